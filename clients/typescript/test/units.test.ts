/** What can be tested without a server. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { create } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";

import { openBalanced, REST_MS, Rotation, withServerName } from "../src/balancing.js";
import { openChannel } from "../src/channel.js";
import { fromCallError } from "../src/errors.js";
import { RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import {
  InferTensorContentsSchema,
  ModelInferResponseSchema,
  ModelStreamInferResponseSchema,
} from "../src/gen/headrace/inference/v2/grpc_service_pb.js";
import {
  BadResponse,
  Cancelled,
  Client,
  Code,
  fromBfloat16,
  fromFloat16,
  InvalidInput,
  ModelNotFound,
  Overloaded,
  Tensor,
  toBfloat16,
  toFloat16,
  Unavailable,
} from "../src/index.js";
import { inferRequest, readResult, streamAnswer, streamRequest } from "../src/messages.js";
import { nextWaitMs, retryPolicy } from "../src/retry.js";
import { decodeContents, decodeRaw, encodeRaw } from "../src/tensors.js";

test("every FP16 bit pattern survives", () => {
  const bits = Uint16Array.from({ length: 1 << 16 }, (_, pattern) => pattern);
  const again = toFloat16(fromFloat16(bits));
  for (const [pattern, got] of again.entries()) {
    const isNaN = (pattern & 0x7c00) === 0x7c00 && (pattern & 0x3ff) !== 0;
    assert.equal(got, isNaN ? 0x7e00 : pattern);
  }
});

test("FP16 rounds to nearest, ties to even", () => {
  const cases: [number, number][] = [
    [1 + 2 ** -11, 0x3c00],
    [1 + 3 * 2 ** -11, 0x3c02],
    [1 + 2 ** -11 + 2 ** -20, 0x3c01],
    [2 ** -25, 0],
    [2 ** -25 * 1.0001, 1],
    [2 ** -14 - 2 ** -26, 0x400], // a carry out of the subnormals
    [65519.999, 0x7bff],
    [65520, 0x7c00],
    [1e300, 0x7c00],
    [-0, 0x8000],
  ];
  for (const [value, expected] of cases) {
    assert.equal(toFloat16([value])[0], expected, String(value));
  }
});

test("every BF16 bit pattern survives, and rounding is to nearest, ties to even", () => {
  const bits = Uint16Array.from({ length: 1 << 16 }, (_, pattern) => pattern);
  for (const [pattern, got] of toBfloat16(fromBfloat16(bits)).entries()) {
    const isNaN = (pattern & 0x7f80) === 0x7f80 && (pattern & 0x7f) !== 0;
    assert.equal(got, isNaN ? 0x7fc0 : pattern);
  }
  assert.deepEqual([...toBfloat16([1 + 2 ** -8, 1 + 3 * 2 ** -8])], [0x3f80, 0x3f82]);
});

test("a tensor refuses what does not fit", () => {
  assert.throws(
    () => new Tensor("FP32", [1, 3], new Float32Array(2)),
    /expected 3 elements.*got 2/,
  );
  assert.throws(
    () => new Tensor("FP32", [1], new Float64Array(1) as never),
    /FP32 takes a Float32Array, got Float64Array/,
  );
  assert.throws(() => new Tensor("FP31" as "FP32", [1], new Float32Array(1)), /no datatype FP31/);
  assert.throws(
    () => new Tensor("BYTES", [1], ["text"] as never),
    /BYTES takes an array of Uint8Array/,
  );
  assert.throws(() => new Tensor("FP32", [-1], new Float32Array(1)), /dimensions of 0 and more/);
});

test("raw contents at any place in memory", () => {
  const value = new Tensor("FP64", [2], Float64Array.of(1.5, -2));
  for (const offset of [0, 1, 3, 8]) {
    const moved = new Uint8Array(offset + 16);
    moved.set(encodeRaw(value), offset);
    assert.deepEqual(decodeRaw(moved.subarray(offset), "FP64", [2]), value);
  }
  assert.throws(
    () => decodeRaw(new Uint8Array(15), "FP64", [2]),
    /expected 16 bytes of FP64, got 15/,
  );
});

test("BYTES whose lengths lie", () => {
  const good = encodeRaw(Tensor.text([2], ["ab", ""]));
  assert.deepEqual(decodeRaw(good, "BYTES", [2]).texts(), ["ab", ""]);
  assert.throws(() => decodeRaw(good, "BYTES", [3]), /element 2 of 3 is cut off/);
  assert.throws(() => decodeRaw(good, "BYTES", [1]), /4 bytes follow the last/);
  assert.throws(() => decodeRaw(Uint8Array.of(9, 0, 0, 0, 1), "BYTES", [1]), /cut off/);
});

test("typed contents, as other servers send them", () => {
  const contents = create(InferTensorContentsSchema, {
    intContents: [1, -2],
    boolContents: [true],
  });
  assert.deepEqual(decodeContents(contents, "INT8", [2]).data, Int8Array.of(1, -2));
  assert.deepEqual(decodeContents(contents, "BOOL", [1]).data, Uint8Array.of(1));
  assert.throws(() => decodeContents(contents, "INT8", [3]), /expected 3 elements/);
  assert.throws(() => decodeContents(contents, "FP16", [1]), /no typed contents/);
});

test("a request says what was asked", () => {
  const x = Tensor.text([1], ["a"]);
  const request = inferRequest(
    "m",
    { x },
    { priority: 2, solo: true, parameters: { a: 0.5, b: 2n ** 63n } },
  );
  const sent = Object.entries(request.parameters).map(([name, p]) => [
    name,
    p.parameterChoice.case,
  ]);
  assert.deepEqual(Object.fromEntries(sent), {
    a: "doubleParam",
    b: "uint64Param",
    priority: "int64Param",
    headrace_solo: "boolParam",
  });
  const streamed = streamRequest({ model: "m", inputs: { x }, options: { deadlineMs: 1.5 } }, 7);
  assert.equal(streamed.id, "#7");
  assert.equal(streamed.parameters.timeout?.parameterChoice.value, 1500n);
});

test("a response that contradicts itself", () => {
  const output = { name: "y", datatype: "FP32", shape: [2n] };
  const response = create(ModelInferResponseSchema, { modelName: "m", outputs: [output] });
  assert.throws(() => readResult(response), BadResponse);
  response.rawOutputContents = [new Uint8Array(4)];
  assert.throws(() => readResult(response), /output y: expected 8 bytes of FP32, got 4/);
  response.rawOutputContents = [new Uint8Array(4), new Uint8Array(4)];
  assert.throws(() => readResult(response), /1 outputs, but 2 raw contents/);
  const answer = streamAnswer(create(ModelStreamInferResponseSchema, { inferResponse: response }));
  assert.ok(answer.error instanceof BadResponse);
});

test("errors in a stream", () => {
  const parameter = (name: string) => ({
    parameterChoice: { case: "stringParam" as const, value: name },
  });
  const errorWith = (status: string) =>
    streamAnswer(
      create(ModelStreamInferResponseSchema, {
        errorMessage: "no",
        inferResponse: {
          id: "a",
          parameters: {
            headrace_status: parameter(status),
            headrace_error_reason: parameter("WHY"),
          },
        },
      }),
    ).error;
  assert.ok(errorWith("NOT_FOUND") instanceof ModelNotFound);
  assert.ok(errorWith("CANCELLED") instanceof Cancelled);
  assert.equal(errorWith("NOT_FOUND")?.reason, "WHY");
  assert.equal(errorWith("WHATEVER")?.code, Code.Unknown);
});

test("errors of calls", () => {
  const detail = {
    desc: RetryInfoSchema,
    value: { retryDelay: { seconds: 1n, nanos: 500_000_000 } },
  };
  const full = new ConnectError("full", Code.ResourceExhausted, undefined, [detail]);
  const error = fromCallError(full);
  assert.ok(error instanceof Overloaded);
  assert.equal(error.retryAfterMs, 1500);
  const reset = Object.assign(new Error("reset"), { code: "ECONNRESET" });
  assert.ok(
    fromCallError(new ConnectError("x", Code.Aborted, undefined, undefined, reset)) instanceof
      Unavailable,
  );
  assert.equal(fromCallError(new ConnectError("x", Code.Aborted)).code, Code.Aborted);
});

test("when a call is tried again", () => {
  const policy = retryPolicy({ initialBackoffMs: 100, jitter: 0.2, maxAttempts: 3 });
  const failure = { attempt: 1, remainingMs: Infinity, random: 0.5 };
  const lost = new Unavailable(Code.Unavailable, "");
  const full = new Overloaded(Code.ResourceExhausted, "", { retryAfterMs: 1000 });
  assert.equal(nextWaitMs(policy, { ...failure, error: lost }), 100);
  assert.equal(nextWaitMs(policy, { ...failure, error: lost, attempt: 2 }), 200);
  assert.equal(nextWaitMs(policy, { ...failure, error: lost, attempt: 3 }), undefined);
  assert.equal(nextWaitMs(policy, { ...failure, error: full }), 1100);
  assert.equal(nextWaitMs(policy, { ...failure, error: full, remainingMs: 1000 }), undefined);
  assert.equal(
    nextWaitMs(policy, { ...failure, error: new Overloaded(Code.ResourceExhausted, "") }),
    undefined,
  );
  assert.equal(
    nextWaitMs(policy, { ...failure, error: new InvalidInput(Code.InvalidArgument, "") }),
    undefined,
  );
  assert.throws(() => retryPolicy({ maxAttempts: 0 }), /maxAttempts: expected 1 or more, got 0/);
});

test("an address is host and port", () => {
  for (const wrong of ["", "http://a:1", "a:1/b", "a b:1"]) {
    assert.throws(() => openChannel(wrong, {}), /address: expected host:port/, wrong);
  }
});

test("a token goes out encrypted, or where that is said to be well", async () => {
  for (const channel of [{ tls: {} }, { tokenInPlainText: true }]) {
    await new Client("127.0.0.1:1", { token: "a-b.c_d~e+f/g==", channel }).close();
  }
  assert.throws(() => new Client("127.0.0.1:1", { token: "secret" }), {
    name: "TypeError",
    message: /expected channel\.tls with it/,
  });
  assert.throws(() => new Client("127.0.0.1:1", { headers: { Authorization: "Basic secret" } }), {
    name: "TypeError",
    message: /^headers: authorization: expected channel\.tls/,
  });
  for (const token of ["", "two words", "secret\n"]) {
    assert.throws(() => new Client("127.0.0.1:1", { token, channel: { tls: {} } }), {
      message: "token: expected letters, digits and -._~+/=, got something else",
    });
  }
});

test("servers take turns", () => {
  const rotation = new Rotation(["a", "b", "c"]);
  const turns = Array.from({ length: 6 }, () => rotation.next(0));
  assert.deepEqual(turns.slice(0, 3).sort(), ["a", "b", "c"]);
  assert.deepEqual(turns.slice(3), turns.slice(0, 3));
});

test("a server that is not there rests, unless all do", () => {
  const rotation = new Rotation(["a", "b"]);
  rotation.rest("a", 0);
  assert.deepEqual([rotation.next(1), rotation.next(1), rotation.next(1)], ["b", "b", "b"]);
  rotation.rest("b", 2);
  assert.equal(rotation.next(3), "a"); // it is back first
  assert.equal(rotation.next(REST_MS), "a");
  assert.equal(rotation.next(REST_MS + 2), "b");
});

test("servers come and go", () => {
  const rotation = new Rotation([]);
  assert.throws(() => rotation.next(0), RangeError);
  rotation.replace(["a", "b"]);
  rotation.rest("b", 0);
  rotation.replace(["b", "c"]);
  assert.equal(rotation.next(1), "c");
  rotation.replace(["c"]);
  rotation.replace(["b"]);
  assert.equal(rotation.next(1), "b"); // who has left is forgotten
});

test("certificates are expected to have the name that was looked up", () => {
  const nameIn = (serverName: string | undefined, address: string | string[]) =>
    withServerName({ tls: serverName === undefined ? {} : { serverName } }, address).tls
      ?.serverName;
  assert.equal(nameIn(undefined, "dns:///pods.example:1"), "pods.example");
  assert.equal(nameIn("given", "dns:///pods.example:1"), "given");
  assert.equal(nameIn(undefined, ["a:1", "b:1"]), undefined);
});

test("addresses of several servers are checked", () => {
  for (const wrong of [[], ["127.0.0.1:1", "no port/"], "dns:///host", "dns:///a/b:1"]) {
    assert.throws(() => openBalanced(wrong, {}), TypeError, String(wrong));
  }
});
