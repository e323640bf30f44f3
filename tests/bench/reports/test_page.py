"""The page: it stands alone, is well formed whatever the names, and shows what there is."""

import html.parser
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from headrace.bench.reports.html import page
from headrace.bench.results import Interval, Report
from support import reports

HOSTILE = "</title><script>alert('x')</script>\" onload='x'&<b>\x00\x1b[31m]]>🦆" + "ü" * 80
_VOID = {"meta", "wbr", "br"}
SVG = "{http://www.w3.org/2000/svg}"


class Parser(html.parser.HTMLParser):
    """Fails where a tag is closed that is not open, or stays open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def parsed(report: Report) -> tuple[Parser, list[ElementTree.Element]]:
    """The page's tags and its charts, having checked what holds for every page."""
    written = page(report)
    parser = Parser()
    parser.feed(written)
    parser.close()
    assert not parser.open
    charts = [ElementTree.fromstring(found) for found in re.findall("<svg.*?</svg>", written, re.S)]
    assert parser.tags["svg"] == len(charts)
    _check_numbers(charts)
    identities = [value for _, key, value in parser.attributes if key == "id"]
    assert len(identities) == len(set(identities))
    for chart in charts:
        named = chart.attrib["aria-labelledby"].split()
        assert [chart[0].attrib["id"], chart[1].attrib["id"]] == named
        assert chart[0].text
        assert chart[1].text
    return parser, charts


def _check_numbers(charts: list[ElementTree.Element]) -> None:
    """Every coordinate is a number, and every text begins inside its chart."""
    for chart in charts:
        width, height = map(float, chart.attrib["viewBox"].split()[2:])
        for shape in chart.iter():
            for key in ("x", "y", "x1", "x2", "y1", "y2", "width", "height"):
                if key in shape.attrib:
                    assert math.isfinite(float(shape.attrib[key]))
            if "d" in shape.attrib:
                assert not re.search("nan|inf", shape.attrib["d"])
            if shape.tag == f"{SVG}text":
                assert 0 <= float(shape.attrib["x"]) <= width
                assert 0 <= float(shape.attrib["y"]) <= height


def texts(chart: ElementTree.Element) -> list[str]:
    return [shape.text or "" for shape in chart.iter(f"{SVG}text")]


def chart_called(charts: list[ElementTree.Element], title: str) -> ElementTree.Element:
    return next(chart for chart in charts if (chart[0].text or "").startswith(title))


@pytest.fixture(scope="module")
def whole() -> Report:
    return reports.whole()


def test_nothing_is_fetched_and_nothing_is_run(whole: Report) -> None:
    parser, _ = parsed(whole)
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    linked = [value for _, key, value in parser.attributes if key in ("src", "href")]
    assert all(str(value).startswith("#") for value in linked)
    assert "@import" not in page(whole)
    assert not re.search(r"url\((?!#)", page(whole))


def test_every_link_has_its_place(whole: Report) -> None:
    parser, _ = parsed(whole)
    places = {f"#{value}" for _, key, value in parser.attributes if key == "id"}
    assert {value for _, key, value in parser.attributes if key == "href"} <= places
    hatches = re.findall(r"url\((#[^)]+)\)", page(whole))
    assert hatches
    assert set(hatches) <= places


def test_it_answers_first_and_tells_how_to_do_it_again(whole: Report) -> None:
    parser, _ = parsed(whole)
    for said in (
        "2,000 requests/s is the highest rate at which p99 stays under 50 ms",
        "The load generator was the bottleneck",
        "Python backend",
        "headrace bench 127.0.0.1:8001 --model magika --find 50ms",
        "AMD EPYC",
        "grpcio",
        "RESOURCE_EXHAUSTED",
    ):
        assert said in parser.text
    assert parser.text.index("2,000 requests/s is") < parser.text.index("throughput")


def test_each_kind_of_chart_is_there(whole: Report) -> None:
    _, charts = parsed(whole)
    kinds = Counter(str(chart[0].text).split(":")[0] for chart in charts)
    assert kinds["Latency against offered requests/s"] == 2
    assert kinds["Latency by percentile"] == 5
    assert kinds["headrace ÷ triton"] == 1
    assert kinds["p99 turn by turn"] == 1
    assert kinds["Over time"] == 5 + 6 + 2 + 1 + 1
    assert kinds["Batch sizes"] == kinds["Over time"]


def test_no_name_gets_out_of_its_place() -> None:
    served = reports.Served(HOSTILE)
    measured = [reports.measurement(served, rate, 1.0) for rate in (50.0, 100.0, 200.0)]
    measured[0] = measured[0].model_copy(update={"warnings": (HOSTILE,), "errors": {HOSTILE: 3}})
    report = reports.report(
        reports.section(
            "versus",
            *measured,
            title=HOSTILE,
            labels=(HOSTILE,) * 3,
            notes=(HOSTILE,),
            facts={HOSTILE: HOSTILE},
            ratios=(reports.ratio(HOSTILE, 1.2, 1.1, 1.3, side=HOSTILE, base=HOSTILE),),
        ),
        reports.section("curve", *measured, title=HOSTILE, labels=(HOSTILE,) * 3),
        command=("headrace", HOSTILE),
        started=HOSTILE,
        machine={HOSTILE: {HOSTILE: [HOSTILE]}},
        versions={HOSTILE: HOSTILE},
        targets=({"name": HOSTILE, HOSTILE: HOSTILE},),
    )
    parser, charts = parsed(report)
    assert "script" not in parser.tags
    assert not [key for _, key, _ in parser.attributes if key.startswith("on")]
    assert "\x00" not in page(report)
    assert "\x1b" not in page(report)
    assert charts


def test_a_report_of_nothing() -> None:
    parser, charts = parsed(reports.report(machine={}, versions={}, targets=(), command=()))
    assert not charts
    assert "To do it again" in parser.text


def test_a_section_of_nothing() -> None:
    parser, charts = parsed(reports.report(reports.section("curve"), reports.section("versus")))
    assert not charts
    assert "Nothing was measured" in parser.text


def test_a_measurement_of_which_nothing_is_known() -> None:
    bare = reports.measurement(
        sent=0,
        ok=0,
        good=0,
        throughput=0.0,
        goodput=0.0,
        latency=None,
        service=None,
        intervals=(),
        batches=None,
        server=None,
    )
    parser, charts = parsed(reports.report(reports.section("load", bare)))
    assert not charts
    assert "Not known here: p50, p90, p99, p99.9, max, failed, server CPU" in parser.text


def test_empty_distributions_and_silent_intervals() -> None:
    empty = reports.distribution([])
    silent = [Interval(start=i, seconds=1, ok=0, errors=9, p50_ms=None, p99_ms=None)
              for i in range(3)]  # fmt: skip
    stuck = Interval(start=3, seconds=0, ok=0, errors=0, p50_ms=math.nan, p99_ms=math.inf)
    measured = reports.measurement(
        latency=empty, service=empty, intervals=(*silent, stuck), errors={"UNAVAILABLE": 27}
    )
    parser, charts = parsed(reports.report(reports.section("load", measured)))
    assert "UNAVAILABLE 27" in parser.text
    over_time = chart_called(charts, "Over time")
    bars = [shape for shape in over_time.iter() if shape.get("class") == "errors"]
    assert len(bars) == 3
    assert not any(title.startswith("Latency by") for title in (str(c[0].text) for c in charts))


def test_figures_that_are_no_numbers_are_dashes() -> None:
    latency = reports.distribution([1.0]).model_copy(
        update={"p99_ms": math.nan, "max_ms": math.inf}
    )
    measured = reports.measurement(latency=latency, throughput=math.nan)
    ratio = reports.ratio("p99_ms", math.nan, math.nan, math.inf, real=False)
    section = reports.section("versus", measured, ratios=(ratio,), facts={"rate": math.nan})
    parser, _ = parsed(reports.report(section))
    assert not re.search(r"\b(nan|inf)\b", parser.text)


def test_one_request() -> None:
    one = reports.distribution([12.5])
    measured = reports.measurement(latency=one, service=one)
    parser, _ = parsed(reports.report(reports.section("load", measured)))
    assert "p50 12.5 ms and p99 12.5 ms" in parser.text


def test_forty_measurements_are_a_choice_of_charts_and_a_whole_table() -> None:
    measured = [reports.measurement(rate=20.0 + 10 * i, seconds=1.0, seed=i) for i in range(40)]
    parser, charts = parsed(reports.report(reports.section("curve", *measured)))
    assert parser.tags["details"] == 1
    assert parser.tags["tr"] >= 80
    assert sum(str(chart[0].text).startswith("Over time") for chart in charts) == 6
    assert "6 of 40 measurements" in parser.text
    drawn = texts(chart_called(charts, "Latency by percentile"))
    assert "20/s poisson" in drawn
    assert "410/s poisson" in drawn


def test_labels_at_the_lines_ends_do_not_cover_each_other() -> None:
    measured = [reports.measurement(rate=100.0 + i, seconds=1.0, seed=1) for i in range(6)]
    _, charts = parsed(reports.report(reports.section("load", *measured)))
    chart = chart_called(charts, "Latency by percentile")
    ends = [float(t.attrib["y"]) for t in chart.iter(f"{SVG}text") if t.get("class") == "name"]
    assert len(ends) == 6
    assert all(b - a >= 12.9 for a, b in zip(sorted(ends), sorted(ends)[1:], strict=False))


def test_a_histogram_that_is_rubbish_is_said_to_be() -> None:
    broken = reports.distribution([1.0]).model_copy(update={"histogram": "rubbish"})
    section = reports.section("load", reports.measurement(latency=broken))
    with pytest.raises(ValueError, match="histogram that can't be read"):
        page(reports.report(section))


def test_of_each_side_as_many_measurements_are_drawn() -> None:
    long = "a rival with a name too long to be written out beside its line"
    measured = [
        reports.measurement(reports.Served(name), 50.0 * (1 + i), 1.0)
        for i in range(7)
        for name in ("headrace", long)
    ]
    labels = tuple(f"{10 + 10 * (i // 2)}%" for i in range(14))
    _, charts = parsed(reports.report(reports.section("curve", *measured, labels=labels)))
    drawn = texts(chart_called(charts, "Latency by percentile"))
    ours = [name for name in drawn if name.endswith(", headrace")]
    theirs = [name for name in drawn if name.endswith("…")]
    assert sorted(ours) == ["10%, headrace", "40%, headrace", "70%, headrace"]
    assert sorted(name[:4] for name in theirs) == ["10%,", "40%,", "70%,"]
