"""Between messages and NumPy arrays.

Requests come in the parts that `wire.py` has found; responses are put together as bytes, so that a
tensor is copied once, from where it was computed into the message that is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from headrace.inference.tensors import (
    DATATYPES,
    Array,
    Datatype,
    decode_contents,
    decode_raw,
    element_count,
    raw_buffer,
)
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.contract import InputTensor
from headrace.server.errors import InvalidInput, Unsupported
from headrace.server.exchange import InferenceRequest, InferenceResult, Kind, SequencePlace
from headrace.server.models.spec import TensorSpec
from headrace.server.rpc.limits import Limits, check_head, check_shape
from headrace.server.rpc.wire import Head, WireRequest, delimited

EXPLAIN: Final = "headrace_explain"
SOLO: Final = "headrace_solo"
FINAL_RESPONSE: Final = "triton_final_response"
# Parameters that are known, by the prefixes that no others may have.
_RESERVED: Final = {
    "triton_": ("triton_enable_empty_final_response", FINAL_RESPONSE),
    "headrace_": (EXPLAIN, SOLO),
}
# Tags of length-delimited fields of a response.
_ID_TAG: Final = pb.ModelInferResponse.ID_FIELD_NUMBER << 3 | 2
_RAW_TAG: Final = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2
_KEPT_SHAPES: Final = 64
_LONGEST_CALLER: Final = 128
_LIMITS: Final = Limits()

# Puts the parts of a message together: bytes, and arrays that lie in one piece.
Join = Callable[[Sequence[Any]], Any]


@dataclass(slots=True, eq=False)
class _Asked:
    """What a head asks, checked as far as that goes without tensors.

    classes: how many are wanted of each output that is to be classified. explain: whether the
    answer is to say how it came about. tensors: of each input its name, datatype, shape and size in
    bytes, once a request with raw contents has been found right. kind: None unless other requests
    may share the head.
    """

    outputs: Sequence[str]
    classes: Mapping[str, int]
    timeout: float | None
    priority: int
    solo: bool
    sequence: SequencePlace | None
    explain: bool
    kind: Kind | None
    tensors: Sequence[tuple[str, Datatype, tuple[int, ...], int]] = ()


def decode(
    wire: WireRequest,
    arrival: float,
    remaining: float | None,
    caller: str = "",
    limits: Limits = _LIMITS,
) -> InferenceRequest:
    """What a request message asks. Tensors in it are viewed, not copied.

    `arrival` is of the monotonic clock; `remaining` are the seconds of the call's deadline, None
    when it has none; `caller` is whom it comes from. Raises InvalidInput naming the field,
    Unsupported for shared memory.
    """
    if wire.head.asked is None:
        check_head(wire.head.message, limits)
    asked = _asked(wire.head)
    if len(caller) > _LONGEST_CALLER:
        raise InvalidInput(
            f"metadata 'headrace-caller': expected at most {_LONGEST_CALLER} characters, got "
            f"{len(caller)}"
        )
    return InferenceRequest(
        model=wire.head.model,
        version=wire.head.version,
        inputs=_known_inputs(asked, wire.raw)
        or _inputs(wire.head.message, asked, wire.raw, limits),
        arrival=arrival,
        outputs=asked.outputs,
        remaining=math.inf if remaining is None else remaining,
        timeout=asked.timeout,
        priority=asked.priority,
        solo=asked.solo,
        caller=caller,
        sequence=asked.sequence,
        kind=asked.kind,
        id=wire.id,
    )


def _asked(head: Head) -> _Asked:
    """What `head` asks, read once. Raises InvalidInput, Unsupported."""
    found: _Asked | None = head.asked
    if found is None:
        found = head.asked = _read(head)
    return found


def _read(head: Head) -> _Asked:
    message = head.message
    timeout, priority = _scheduling(message.parameters)
    classes = {}
    for output in message.outputs:
        _refuse_shared_memory(f"output '{output.name}'", output.parameters)
        if "classification" in output.parameters:
            classes[output.name] = _class_count(output)  # refused before the model runs, not after
    return _Asked(
        outputs=[output.name for output in message.outputs],
        classes=classes,
        timeout=timeout,
        priority=priority,
        solo=_flag(message.parameters, SOLO),
        sequence=_sequence(message.parameters),
        explain=_flag(message.parameters, EXPLAIN),
        kind=Kind() if head.kept else None,
    )


def _known_inputs(asked: _Asked, raw: Sequence[memoryview]) -> list[InputTensor] | None:
    """The tensors of a head that has been checked; None where they are to be looked at closely."""
    if not asked.tensors or len(raw) != len(asked.tensors):
        return None
    tensors = []
    for place, (name, datatype, shape, nbytes) in enumerate(asked.tensors):
        buffer = raw[place]
        if len(buffer) != nbytes:
            return None
        array: Array = np.ndarray(shape, datatype.numpy, buffer)
        tensors.append(InputTensor(name, datatype.name, array))
    return tensors


def _inputs(
    message: pb.ModelInferRequest, asked: _Asked, raw: Sequence[memoryview], limits: Limits
) -> list[InputTensor]:
    if raw and len(raw) != len(message.inputs):
        raise InvalidInput(
            f"raw_input_contents: expected one entry for each of {len(message.inputs)} inputs, "
            f"got {len(raw)}"
        )
    tensors, known = [], []
    for index, tensor in enumerate(message.inputs):
        where = f"input '{tensor.name}'"
        _refuse_shared_memory(where, tensor.parameters)
        datatype = DATATYPES.get(tensor.datatype)
        if datatype is None:
            expected = ", ".join(DATATYPES)
            raise InvalidInput(
                f"{where}: unknown datatype '{tensor.datatype}', expected one of {expected}"
            )
        shape = list(tensor.shape)
        check_shape(where, shape, limits)
        typed = tensor.HasField("contents")
        if raw and typed:
            raise InvalidInput(
                f"{where}: contents field must not be specified when using raw_input_contents"
            )
        try:
            if raw:
                array = decode_raw(raw[index], datatype, shape)
            else:
                array = decode_contents(tensor.contents, datatype, shape)
        except ValueError as error:
            raise InvalidInput(f"{where}: {error}") from None
        tensors.append(InputTensor(tensor.name, tensor.datatype, array))
        known.append((tensor.name, datatype, tuple(shape), len(raw[index]) if raw else 0))
    if raw and all(datatype.itemsize for _, datatype, _, _ in known):
        asked.tensors = known
    return tensors


def _refuse_shared_memory(where: str, parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise Unsupported(f"{where}: shared memory is not offered, send the tensor in the message")


def _scheduling(parameters: Mapping[str, Any]) -> tuple[float | None, int]:
    """The request's own timeout in seconds, and its priority."""
    timeout, priority = None, 0
    for key in parameters:
        if key == "timeout":
            microseconds = _whole(parameters[key], "timeout", ("int64_param",))
            timeout = microseconds / 1e6 if microseconds else None
        elif key == "priority":
            priority = _whole(parameters[key], "priority", ("int64_param", "uint64_param"))
        else:
            _check_reserved(key)
    return timeout, priority


def _check_reserved(key: str) -> None:
    """Refuses what would be ignored: most likely a mistyped name."""
    for prefix, known in _RESERVED.items():
        if key.startswith(prefix) and key not in known:
            raise InvalidInput(
                f"parameter '{key}': of names that begin with '{prefix}' expected "
                f"{' or '.join(known)}"
            )


def _flag(parameters: Mapping[str, Any], key: str) -> bool:
    if key not in parameters:
        return False
    kind = parameters[key].WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidInput(f"parameter '{key}': expected bool_param, got {kind}")
    return bool(parameters[key].bool_param)


def _sequence(parameters: Mapping[str, Any]) -> SequencePlace | None:
    """The request's place in a sequence; None for an id of 0 or "", which mean that it has none."""
    if "sequence_id" not in parameters:
        return None
    parameter = parameters["sequence_id"]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "string_param"):
        raise InvalidInput(
            f"parameter 'sequence_id': expected int64_param or string_param, got {kind}"
        )
    start, end = (_flag(parameters, key) for key in ("sequence_start", "sequence_end"))
    id_ = getattr(parameter, kind)
    return SequencePlace(id_, start, end) if id_ else None


def _whole(parameter: Any, key: str, kinds: Sequence[str]) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in kinds:
        raise InvalidInput(f"parameter '{key}': expected {' or '.join(kinds)}, got {kind}")
    value = int(getattr(parameter, kind))
    if value < 0:
        raise InvalidInput(f"parameter '{key}': expected 0 or more, got {value}")
    return value


def encode(wire: WireRequest, result: InferenceResult, join: Join = b"".join) -> Any:
    """The serialized response to `wire`, tensors as raw contents: bytes, or what else `join` makes
    of its parts."""
    asked = _asked(wire.head)
    outputs = result.outputs
    if asked.classes:
        outputs = [_classified(asked, result, tensor, array) for tensor, array in outputs]
    raw = [raw_buffer(array, DATATYPES[tensor.datatype]) for tensor, array in outputs]
    id_ = wire.id.encode()
    parts: list[Any] = [_response_head(result, outputs)]
    if id_:
        parts += (delimited(_ID_TAG, len(id_)), id_)
    for buffer in raw:
        size = len(buffer) if isinstance(buffer, bytes) else buffer.nbytes
        parts += (delimited(_RAW_TAG, size), buffer)
    if asked.explain:
        parts.append(_explanation(result).SerializeToString())
    return join(parts)


def _response_head(result: InferenceResult, outputs: Sequence[tuple[TensorSpec, Array]]) -> bytes:
    """The response without its id and its tensors' contents: the same for requests of one kind
    that get outputs of the same shapes."""
    kept: dict[Hashable, bytes] = {} if result.notes is None else result.notes
    shapes = tuple([array.shape for _, array in outputs])
    head = kept.get(shapes)
    if head is None:
        spec = result.model.spec
        response = pb.ModelInferResponse(model_name=spec.name, model_version=spec.version)
        for tensor, array in outputs:
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        if len(kept) >= _KEPT_SHAPES:
            kept.clear()
        head = kept[shapes] = response.SerializeToString()
    return head


def _classified(
    asked: _Asked, result: InferenceResult, tensor: TensorSpec, array: Array
) -> tuple[TensorSpec, Array]:
    """An output as its classes, where that is asked for."""
    count = asked.classes.get(tensor.name)
    if count is None:
        return tensor, array
    labels = result.model.labels.get(tensor.name, ())
    classes = _classify(tensor, array, count, labels, result.model.spec.batched)
    return replace(tensor, datatype="BYTES"), classes


def _class_count(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> int:
    count = _whole(output.parameters["classification"], "classification", ("int64_param",))
    if count == 0:
        raise InvalidInput(f"output '{output.name}': classification expects 1 or more, got 0")
    return count


def _classify(
    tensor: TensorSpec, array: Array, count: int, labels: Sequence[str], batched: bool
) -> Array:
    """The `count` largest elements of each row as "value:index[:label]"; shape [rows, count]."""
    if tensor.datatype in ("BYTES", "BOOL"):
        raise InvalidInput(f"output '{tensor.name}': {tensor.datatype} cannot be classified")
    values = array
    if tensor.datatype == "BF16":
        values = (array.astype("<u4") << 16).view("<f4")
    # Not -1: NumPy cannot tell how long the rows of an empty array are.
    rows = values.reshape(len(values) if batched else 1, element_count(values.shape[batched:]))
    count = min(count, rows.shape[1])
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    out = np.empty(best.shape, dtype=object)
    for place, found in np.ndenumerate(best):
        index = int(found)
        text = f"{rows[place[0], index]:f}:{index}"
        out[place] = (f"{text}:{labels[index]}" if index < len(labels) else text).encode()
    return out if batched else out[0]


def _explanation(result: InferenceResult) -> pb.ModelInferResponse:
    """The parameters that are asked for with `headrace_explain`, and nothing else."""
    response = pb.ModelInferResponse()
    answer = result.answer
    batch, took = answer.batch, answer.completion
    compute = took.seconds
    values = response.parameters
    values["headrace_batch_size"].int64_param = batch.rows
    values["headrace_batch_requests"].int64_param = len(batch.requests)
    values["headrace_found_waiting"].int64_param = answer.found
    values["headrace_left_waiting"].int64_param = batch.waiting
    values["headrace_queue_us"].int64_param = int(answer.queue_seconds * 1e6)
    values["headrace_compute_us"].int64_param = int(compute * 1e6)
    if not math.isnan(batch.expected):
        values["headrace_expected_us"].int64_param = int(batch.expected * 1e6)
    values["headrace_reason"].string_param = batch.reason.value
    values["headrace_executor"].string_param = batch.executor
    if result.padded_to:
        values["headrace_padded_to"].int64_param = result.padded_to
    return response
