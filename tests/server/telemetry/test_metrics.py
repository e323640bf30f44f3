"""What is scraped is what was counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.batcher.cost import CostTable
from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Reject, Request, Why
from headrace.batcher.state import Limits, State
from headrace.server.telemetry.metrics import Metrics, Sample
from headrace.server.telemetry.prometheus import PrometheusText
from headrace.server.telemetry.statistics import ModelStatistics

Labels = frozenset[tuple[str, str]]


@pytest.fixture
def samples() -> list[Sample]:
    return []


@pytest.fixture
def metrics(samples: list[Sample]) -> Iterator[Metrics]:
    made = Metrics(lambda: samples, {"OK": 3, "INVALID_INPUT": 2})
    yield made
    made.close()


def scrape(metrics: Metrics) -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = {}
    text = PrometheusText().write(metrics.collect()).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("headrace"):
                found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def labels(**values: str) -> Labels:
    return frozenset({"model": "m", "version": "3", **values}.items())


def busy() -> Sample:
    """A model with every figure set, each to another value."""
    figures, state = (
        ModelStatistics(),
        State(dict.fromkeys(("one", "two", "three"), "cpu"), Limits()),
    )
    request = Request("key", None, 10.0, 4, 100)
    request.started = 11.0
    batch = Batch("key", [request], "one", Reason.FULL, 11.0)
    done = Completion((), None, 0.5, 2.0, 0.25)
    figures.dispatched(batch)
    figures.completed(batch, done, 14.0)
    figures.answered(request, batch, done, 14.0)
    figures.padded(30, 12)
    figures.failed(Request("key", None, 10.0), 10.0)
    figures.wasted(request, batch, 14.0)
    for _ in range(2):
        figures.rejected(Reject(request, Why.QUEUE_FULL, 0.1, ""))
    for size in (7, 50, 900):
        state.enqueue(Request("key", None, 10.0, 1, size))
    state.running["two"] = batch
    return Sample("m", "3", figures, state)


def test_every_figure_is_scraped_as_it_was_counted(metrics: Metrics, samples: list[Sample]) -> None:
    samples.append(busy())
    found = scrape(metrics)
    assert found["headrace_requests_total"] == {
        labels(outcome="answered"): 1,
        labels(outcome="model failed"): 1,
        labels(outcome="queue full"): 2,
    }
    assert found["headrace_rows_total"] == {labels(): 4}
    assert found["headrace_wasted_requests_total"] == {labels(): 1}
    assert found["headrace_wasted_rows_total"] == {labels(): 4}
    assert found["headrace_padding_elements_total"] == {
        labels(kind="true"): 30,
        labels(kind="padding"): 12,
    }
    assert found["headrace_batches_total"] == {labels(reason="full"): 1}
    assert found["headrace_request_time_seconds_total"] == {
        labels(phase="total"): 4.0,
        labels(phase="queue"): 1.0,
        labels(phase="compute_input"): 0.5,
        labels(phase="compute_infer"): 2.0,
        labels(phase="compute_output"): 0.25,
    }
    assert found["headrace_queue_requests"] == {labels(): 3}
    assert found["headrace_queue_bytes"] == {labels(): 957}
    assert found["headrace_executors_busy"] == {labels(): 1}


def test_it_is_read_at_each_collection(metrics: Metrics, samples: list[Sample]) -> None:
    counted = {"OK": 3, "INVALID_INPUT": 2}
    calls = {frozenset({("reason", reason)}): n for reason, n in counted.items()}
    assert scrape(metrics) == {"headrace_calls_total": calls}
    samples.append(busy())
    assert scrape(metrics)["headrace_rows_total"] == {labels(): 4}
    samples[0][2].rows += 6
    assert scrape(metrics)["headrace_rows_total"] == {labels(): 10}


def test_versions_are_told_apart(metrics: Metrics, samples: list[Sample]) -> None:
    samples += [busy(), Sample("m", "4", ModelStatistics(), State({"one": "cpu"}, Limits()))]
    assert scrape(metrics)["headrace_rows_total"] == {labels(): 4, labels(version="4"): 0}


def test_two_servers_in_one_process_do_not_share_metrics(
    metrics: Metrics, samples: list[Sample]
) -> None:
    samples.append(busy())
    other = Metrics(list, {})
    assert scrape(other) == {}
    other.close()
    assert scrape(metrics)


def test_the_process_is_measured_too(metrics: Metrics) -> None:
    assert b"process_resident_memory_bytes" in PrometheusText().write(metrics.collect())


def test_what_was_learned_of_batches_is_there_by_their_rows(
    metrics: Metrics, samples: list[Sample]
) -> None:
    costs = CostTable(64)
    for rows in (1, 2, 4, 6):
        costs.observe(rows, 0.010 + 0.001 * rows)
    samples.append(busy()._replace(costs=costs))
    found = scrape(metrics)
    assert found["headrace_batch_predicted_seconds"] == {
        labels(rows="1"): pytest.approx(0.011),
        labels(rows="2"): pytest.approx(0.012),
        labels(rows="4"): pytest.approx(0.014),
    }
    assert found["headrace_batch_best_rate"][labels()] == pytest.approx(6 / 0.016)
