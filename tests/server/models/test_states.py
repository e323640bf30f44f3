"""Recurrent state: declared, found, laid out; and what cannot be."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Request
from headrace.server import inspect
from headrace.server.errors import LoadFailed
from headrace.server.executors.onnx import OnnxExecutor, Seat
from headrace.server.executors.payload import Payload
from headrace.server.models.controls import ControlDeclaration, ControlKind
from headrace.server.models.options import ModelOptions
from headrace.server.models.probe import probe
from headrace.server.models.repository import read_options
from headrace.server.models.spec import ModelSpec, TensorSpec, read_spec
from headrace.server.models.states import StateDeclaration, StateSpec, propose_states
from server import graphs
from support import models

STATE = StateDeclaration("state", "stateN", 1)


def session_of(model: Any) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def read(model: Any, *states: StateDeclaration, **more: Any) -> ModelSpec:
    return read_spec("m", "1", session_of(model), ModelOptions(states=states, **more), 8)


def test_a_state_whose_rows_come_second_is_batched_and_agrees_with_itself() -> None:
    model = models.recurrent()
    spec = read(model, STATE)
    assert spec.batched, spec.unbatched_because
    assert spec.states == (StateSpec("state", "stateN", "FP32", (2, -1, 3), 1),)
    assert spec.states[0].zeros(5).shape == (2, 5, 3)
    assert spec.states[0].nbytes(5) == 2 * 5 * 3 * 4
    assert probe(spec, session_of(model)).reason == ""


@pytest.mark.parametrize("axis", [None, 1])
def test_the_batch_axis_is_found_by_the_name_that_other_inputs_give_it(axis: int | None) -> None:
    spec = read(models.recurrent(), StateDeclaration("state", "stateN", axis))
    assert [state.axis for state in spec.states] == [1]


def test_without_a_declaration_the_second_axis_is_no_batch_axis() -> None:
    spec = read(models.recurrent())
    assert spec.unbatched_because == "the first dimension of input 'state' is always 2"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (StateDeclaration("s", "stateN"), "state input 's' is not in the model"),
        (StateDeclaration("state", "s"), "state output 's' is not in the model"),
        (StateDeclaration("state", "y"), r"state output 'y' \(FP32 \[-1, 3\]\) cannot feed"),
        (StateDeclaration("state", "stateN", 3), "batch_axis is 3, expected 0 to 2"),
        (StateDeclaration("state", "stateN", 1, (4, 4)), r"dims are \[4, 4\], the model's"),
        (StateDeclaration("state", "stateN", 0), "dimension 1 is open"),
    ],
)
def test_a_declaration_that_does_not_fit(state: StateDeclaration, said: str) -> None:
    with pytest.raises(LoadFailed, match=said):
        read(models.recurrent(), state)


def test_a_state_declared_twice() -> None:
    with pytest.raises(LoadFailed, match="declared more than once"):
        read(models.recurrent(), STATE, STATE)


async def test_states_are_gathered_and_given_back_along_their_own_axis() -> None:
    model = models.recurrent()
    session, spec = session_of(model), read(models.recurrent(), STATE)
    rng = np.random.default_rng(0)
    rows = [2, 1, 3]
    members = [
        [
            rng.standard_normal((n, 4)).astype(np.float32),
            rng.standard_normal((2, n, 3)).astype(np.float32),
        ]
        for n in rows
    ]
    key = spec.key(spec.inputs, members[0], ("y", "stateN"))
    assert all(spec.key(spec.inputs, member, ("y", "stateN")) == key for member in members)
    requests = [Request(key, Payload(m), 0.0, rows=n) for m, n in zip(members, rows, strict=True)]
    executor, loop = OnnxExecutor(Seat("e", "cpu"), session), asyncio.get_running_loop()
    try:
        ended: asyncio.Future[Completion] = loop.create_future()

        def done(batch: Batch, completion: Completion, /, *, goes_on: bool = False) -> None:
            loop.call_soon_threadsafe(ended.set_result, completion)

        executor.start(Batch(key, requests, "e", Reason.FULL, 0.0), done)
        completion = await ended
    finally:
        await asyncio.to_thread(executor.close)
    assert completion.error is None
    for (x, state), (y, after) in zip(members, completion.results, strict=True):
        alone = session.run(["y", "stateN"], {"x": x, "state": state})
        np.testing.assert_allclose(y, alone[0], atol=1e-6)
        np.testing.assert_allclose(after, alone[1], atol=1e-6)
        # It outlives the batch: a view would keep the whole batch in memory.
        assert after.base is None


def test_constants_are_no_inputs() -> None:
    spec = read(graphs.two_by_two(), constants={"b": [[1.0, 2.0]]})
    assert [tensor.name for tensor in spec.inputs] == ["a"]
    assert spec.layout.constants["b"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"z": 1}, "constants.z is not an input"),
        ({"b": "word"}, "constants.b: expected FP32"),
        ({"b": [1, 2, 3]}, r"constants.b: expected FP32 of shape \[-1, 2\]"),
    ],
)
def test_constants_that_do_not_fit(constants: Any, said: str) -> None:
    with pytest.raises(LoadFailed, match=said):
        read(graphs.two_by_two(), constants=constants)


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name, datatype, shape, ("",) * len(shape))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("state", "stateN"),
        ("state_in", "state_out"),
        ("h0", "hn"),
        ("c_0", "c_n"),
        ("h", "hn"),
        ("hidden_in", "hidden_out"),
        ("prev_state", "new_state"),
        ("rnn_cache", "rnn_cache_next"),
        ("stateIn", "stateOut"),
    ],
)
def test_plain_pairs_are_proposed(source: str, target: str) -> None:
    inputs = [spec("x", -1, 4), spec(source, 2, -1, 3)]
    outputs = [spec("y", -1, 4), spec(target, 2, -1, 3)]
    assert propose_states(inputs, outputs) == [StateDeclaration(source, target, 1)]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (spec("x_in", 2, 3), spec("x_out", 2, 3)),
        (spec("state", 2, 3), spec("stateN", 2, 4)),
        (spec("state", 2, 3), spec("stateN", 2, 3, datatype="FP16")),
        (spec("state", 2, 3), spec("hidden", 2, 3)),
        (spec("h0", 2, 3), spec("cn", 2, 3)),
        (spec("input", 2, 3), spec("output", 2, 3)),
    ],
)
def test_others_are_not(source: TensorSpec, target: TensorSpec) -> None:
    assert propose_states([source], [target]) == []


def test_two_states_are_told_apart() -> None:
    inputs = [spec("h0", 1, -1, 8), spec("c0", 1, -1, 8)]
    outputs = [spec("cn", 1, -1, 8), spec("hn", 1, -1, 8)]
    pairs = [(pair.input, pair.output) for pair in propose_states(inputs, outputs)]
    assert pairs == [("h0", "hn"), ("c0", "cn")]


def test_model_toml(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.toml").write_text(
        models.RECURRENT + 'dims = [2, 3]\n[[state]]\ninput = "h"\noutput = "hn"\n'
        "[constants]\nsr = 16000\n"
    )
    options = read_options(tmp_path)
    assert options.states == (
        StateDeclaration("state", "stateN", 1, (2, 3)),
        StateDeclaration("h", "hn"),
    )
    assert options.constants == {"sr": 16000}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[state]]\ninput = "h"\n', "state.0.output"),
        ('[[state]]\ninput = "h"\noutput = "n"\ninitial = "ones"\n', "state.0.initial"),
        ('[[state]]\ninput = "h"\noutput = "n"\naxis = 1\n', "state.0.axis"),
        ("max_sequence_idle = 0\n", "max_sequence_idle"),
    ],
)
def test_wrong_keys_of_model_toml(tmp_path: pathlib.Path, text: str, said: str) -> None:
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(LoadFailed, match=said):
        read_options(tmp_path)


def test_config_pbtxt(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.pbtxt").write_text(
        """
        sequence_batching {
          max_sequence_idle_microseconds: 5000000
          oldest { max_candidate_sequences: 4 }
          control_input {
            name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] }
          }
          control_input {
            name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }
          }
          state {
            input_name: "state" output_name: "stateN" data_type: TYPE_FP32 dims: [2, 3]
            initial_state { name: "zero" data_type: TYPE_FP32 dims: [2, 3] zero_data: true }
            use_growable_memory: true
          }
        }
        """
    )
    options = read_options(tmp_path)
    assert options.states == (StateDeclaration("state", "stateN", dims=(2, 3)),)
    assert options.controls == (
        ControlDeclaration("START", ControlKind.START, 0.0, 1.0),
        ControlDeclaration("ID", ControlKind.CORRID),
    )
    assert options.max_sequence_idle == 5.0
    assert options.not_honoured == (
        "sequence_batching.oldest",
        "sequence_batching.state.use_growable_memory",
    )


def test_a_control_input_without_its_values(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.pbtxt").write_text(
        'sequence_batching { control_input { name: "S" control { int32_false_true: [1] } } }'
    )
    with pytest.raises(LoadFailed, match="control_input 'S': expected two values"):
        read_options(tmp_path)


def test_a_control_input_that_the_model_does_not_have() -> None:
    with pytest.raises(LoadFailed, match="control input 'S' is not in the model"):
        read(models.recurrent(), controls=(ControlDeclaration("S", ControlKind.START),))


def test_a_state_from_a_file_is_not_taken_for_zeros(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.pbtxt").write_text(
        'sequence_batching { state { input_name: "a" output_name: "b" '
        'initial_state { name: "f" data_file: "start" } } }'
    )
    with pytest.raises(LoadFailed, match="data_file"):
        read_options(tmp_path)


@pytest.mark.parametrize("declared", [False, True])
def test_inspect_shows_states_and_proposes_them(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], *, declared: bool
) -> None:
    toml = models.RECURRENT if declared else ""
    folder = models.write(tmp_path, "recurrent", models.recurrent(), toml=toml)
    assert inspect.main(folder, "cpu") == 0
    shown = " ".join(capsys.readouterr().out.split())
    kept = "state: output stateN feeds input state, rows along dimension 1, 24 bytes for each"
    proposed = '[[state]] input = "state" output = "stateN" batch_axis = 1'
    assert (kept in shown) is declared
    assert (proposed in shown) is not declared
    assert (
        "not batched: the first dimension of input 'state' is always 2" in shown
    ) is not declared
