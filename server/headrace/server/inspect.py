"""`headrace inspect`: what a model takes and gives, and whether it can be batched."""

from __future__ import annotations

import asyncio
import math
import pathlib
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.server.errors import ServerError
from headrace.server.executors.session import Provider
from headrace.server.models import served
from headrace.server.models.operators import OperatorLibraries
from headrace.server.models.plan import Plan
from headrace.server.models.repository import Catalogue, ModelSource
from headrace.server.models.served import Host, ServedModel
from headrace.server.models.spec import ModelSpec, TensorSpec
from headrace.server.models.states import propose_states

_BAR = 30  # characters


def main(path: pathlib.Path, provider: str, operator_libraries: Sequence[pathlib.Path] = ()) -> int:
    """Prints the contracts of the model, or models, at `path`. Returns the exit code, 1 if one of
    them cannot be loaded.

    Everything is measured anew: what an earlier start remembers is neither used nor changed.
    """
    try:
        sources = Catalogue([path]).sources()
        host = Host(Provider(provider), operators=OperatorLibraries(operator_libraries))
        return asyncio.run(_inspect(Console(), sources.values(), host))
    except ServerError as error:
        _say(error)
        return 1


async def _inspect(console: Console, sources: Iterable[ModelSource], host: Host) -> int:
    broken = 0
    for source in sources:
        try:
            await _inspect_model(console, source, host)
        except ServerError as error:  # it says nothing of the others
            broken = 1
            _say(error)
    return broken


async def _inspect_model(console: Console, source: ModelSource, host: Host) -> None:
    options = source.options()
    for version, file in source.files(options).items():
        began = time.monotonic()
        model = await served.load(source.name, str(version), file, options, host)
        _show(console, model, time.monotonic() - began)
        await model.close()


def _say(error: ServerError) -> None:
    Console(stderr=True).print(f"headrace inspect: {error}", markup=False)


def _show(console: Console, model: ServedModel, seconds: float) -> None:
    spec, plan = model.spec, model.plan
    table = Table(
        "", "name", "datatype", "shape", "note", title=Text(f"{spec.name} version {spec.version}")
    )
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            note = "optional" if tensor.optional else "state" if tensor.state else ""
            shape = Text(_shape(tensor, spec.batched))
            table.add_row(kind, Text(tensor.name), tensor.datatype, shape, note)
    console.print(table)
    if spec.batched:
        deviation = model.verdict.deviation
        found = ""
        if deviation == 0:
            found = "rows give the same alone and together; "
        elif not math.isnan(deviation):
            found = f"rows alone and together agree within {deviation:.1g} of the largest value; "
        console.print(
            f"batch axis: the first dimension; {found}batches of up to {spec.max_batch_size}"
        )
        if spec.fixed_rows:
            console.print(f"the graph always takes {spec.fixed_rows} rows: fewer are filled up")
    else:
        console.print(f"not batched: {spec.unbatched_because}", markup=False)
    _show_states(console, spec)
    _show_padding(console, model)
    console.print(f"plan: {plan.in_words}; loaded and checked in {seconds:.2f} s", markup=False)
    _show_layouts(console, plan)
    _show_costs(console, model)
    for key in model.options.not_honoured:
        console.print(f"set in the configuration, without effect here: {key}", markup=False)


def _show_layouts(console: Console, plan: Plan) -> None:
    """What was measured of each layout, where more than one was tried."""
    if len(plan.measured) < 2:
        return
    table = Table("layout", "ms for a lone row", "rows/s, all busy", "chosen for", title="Layouts")
    for measured in plan.measured:
        uses = {plan.main: "a crowd" if plan.lone else "everything", plan.lone: "a lone request"}
        table.add_row(
            measured.layout.in_words,
            f"{measured.alone * 1e3:.3g}",
            f"{measured.rate:.0f}",
            uses.get(measured.layout, ""),
        )
    console.print(table)


def _show_padding(console: Console, model: ServedModel) -> None:
    """Whether requests of unequal length may share a batch; nothing where no length varies."""
    verdict = model.padding
    if verdict.padding is not None:
        console.print(
            f"unequal lengths: padded by {verdict.padding.mode.value}; rows alone and padded agree "
            f"within {verdict.deviation:.1g} of the largest value"
        )
        for name, rules in verdict.padding.outputs.items():
            for rule in rules:
                console.print(f"  dimension {rule.axis} of {name}: {rule}", markup=False)
    elif verdict.reason:
        console.print(f"unequal lengths: not padded: {verdict.reason}", markup=False)


def _show_states(console: Console, spec: ModelSpec) -> None:
    """What the server keeps from one run to the next; or what it might, in words for model.toml."""
    for state in spec.states:
        console.print(
            f"state: output {state.output} feeds input {state.input}, rows along dimension "
            f"{state.axis}, {state.nbytes(1)} bytes for each session",
            markup=False,
        )
    proposed = propose_states(spec.inputs, spec.outputs)
    if proposed:
        console.print("this looks like a recurrent model; to have its state kept, in model.toml:")
    for pair in proposed:
        console.print(
            f'[[state]]\ninput = "{pair.input}"\noutput = "{pair.output}"\n'
            f"batch_axis = {pair.batch_axis}",
            markup=False,
        )


def _show_costs(console: Console, model: ServedModel) -> None:
    """What batches were measured to cost, and how many rows a second each size gives."""
    costs = model.costs
    if costs is None or not costs.known:
        console.print("costs: synthetic inputs were refused, they will be learned from requests")
        return
    rates = {size: size / costs.seconds(size) for size in costs.sizes}
    best = max(rates.values())
    table = Table(
        "rows", "ms per batch", "rows/s per executor", "", title="Cost on a main executor, smoothed"
    )
    for size, rate in rates.items():
        bar = "█" * max(1, round(_BAR * rate / best))
        table.add_row(str(size), f"{costs.seconds(size) * 1e3:.3g}", f"{rate:.0f}", bar)
    console.print(table)


def _shape(tensor: TensorSpec, batched: bool) -> str:
    dims = [
        (symbol or "any") if dim == -1 else str(dim)
        for dim, symbol in zip(tensor.shape, tensor.symbols, strict=True)
    ]
    if batched and dims and not tensor.optional:
        dims[tensor.axis] = "batch"
    return f"({', '.join(dims)})"
