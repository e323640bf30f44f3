"""`headrace inspect`: what a model takes and gives, and whether it can be batched."""

from __future__ import annotations

import asyncio
import pathlib
import time

from rich.console import Console
from rich.table import Table

from headrace.server.errors import ServerError
from headrace.server.executors.session import Provider
from headrace.server.models import served
from headrace.server.models.repository import Catalogue
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import ModelSpec, TensorSpec
from headrace.server.models.states import propose_states

_BAR = 30  # characters


def main(path: pathlib.Path, provider: str) -> int:
    """Prints the contracts of the model, or models, at `path`. Returns the exit code."""
    console = Console()
    try:
        asyncio.run(_inspect(console, path, Provider(provider)))
    except ServerError as error:
        Console(stderr=True).print(f"headrace inspect: {error}", markup=False)
        return 1
    return 0


async def _inspect(console: Console, path: pathlib.Path, provider: Provider) -> None:
    for source in Catalogue([path]).sources().values():
        options = source.options()
        files = source.files(options)
        for version in options.versions.choose(list(files)):
            began = time.monotonic()
            model = await served.load(source.name, str(version), files[version], options, provider)
            _show(console, model, time.monotonic() - began)
            await model.close()


def _show(console: Console, model: ServedModel, seconds: float) -> None:
    spec, plan = model.spec, model.plan
    table = Table(
        "", "name", "datatype", "shape", "note", title=f"{spec.name} version {spec.version}"
    )
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            note = "optional" if tensor.optional else "state" if tensor.state else ""
            table.add_row(kind, tensor.name, tensor.datatype, _shape(tensor, spec.batched), note)
    console.print(table)
    if spec.batched:
        console.print(
            f"batch axis: the first dimension; rows alone and together agree within "
            f"{model.verdict.deviation:.1g} of the largest value; batches of up to "
            f"{spec.max_batch_size}"
        )
    else:
        console.print(f"not batched: {spec.unbatched_because}", markup=False)
    _show_states(console, spec)
    console.print(
        f"executors: {plan.instances}, with {plan.session.intra_op_threads} thread(s) each, on "
        f"{plan.session.provider.value}; loaded and checked in {seconds:.2f} s"
    )
    _show_costs(console, model)
    for key in model.options.not_honoured:
        console.print(f"set in the configuration, without effect here: {key}", markup=False)


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
        "rows", "ms per batch", "rows/s per executor", "", title="Measured cost, smoothed"
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
