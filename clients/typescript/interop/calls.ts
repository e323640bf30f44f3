/** Interop cases of the TypeScript client: everything but sensor streams. */
import assert from "node:assert/strict";
import { inspect } from "node:util";

import {
  type Client,
  DeadlineExceeded,
  HeadraceError,
  InferenceFailed,
  InferResult,
  InvalidInput,
  ModelNotFound,
  Overloaded,
  type RetryPolicy,
  Tensor,
  toBfloat16,
  toFloat16,
  Unavailable,
} from "../src/index.js";
import {
  type Case,
  type Cases,
  type Env,
  equal,
  fp32,
  lab,
  pair,
  refused,
  withClient,
} from "./cases.js";

const ENDLESS = 50_000_000;
const CROWD = 20;
const CROWD_STEPS = 5_000;
const NEVER_AGAIN = { maxAttempts: 1 };
const SHAPE = [2, 2];

// The least and the greatest, and some that would not survive a wrong width, sign or byte order.
const VALUES: readonly Tensor[] = [
  new Tensor("BOOL", SHAPE, Uint8Array.of(1, 0, 0, 1)),
  new Tensor("UINT8", SHAPE, Uint8Array.of(0, 1, 128, 255)),
  new Tensor("UINT16", SHAPE, Uint16Array.of(0, 258, 32768, 65535)),
  new Tensor("UINT32", SHAPE, Uint32Array.of(0, 66051, 2 ** 31, 2 ** 32 - 1)),
  new Tensor("UINT64", SHAPE, BigUint64Array.of(0n, 2n ** 40n + 3n, 2n ** 63n, 2n ** 64n - 1n)),
  new Tensor("INT8", SHAPE, Int8Array.of(0, -1, -128, 127)),
  new Tensor("INT16", SHAPE, Int16Array.of(0, -2, -32768, 32767)),
  new Tensor("INT32", SHAPE, Int32Array.of(0, -66051, -(2 ** 31), 2 ** 31 - 1)),
  new Tensor("INT64", SHAPE, BigInt64Array.of(0n, -(2n ** 40n), -(2n ** 63n), 2n ** 63n - 1n)),
  new Tensor("FP16", SHAPE, toFloat16([-1.5, 2 ** -24, 65504, Infinity])),
  new Tensor("BF16", SHAPE, toBfloat16([-1.5, 1e-30, 3e38, Infinity])),
  fp32(SHAPE, [-1.5, 2 ** -149, NaN, Infinity]),
  new Tensor("FP64", SHAPE, Float64Array.of(-1.5, 5e-324, 1e300, -Infinity)),
  Tensor.text(SHAPE, ["", "zwölf", "\0a", "one"]),
];

const datatypes: Cases = Object.fromEntries(
  VALUES.map((value): [string, Case] => [
    `datatype_${value.datatype}`,
    async (client) => {
      const result = await client.infer(`identity_${value.datatype}`, { x: value });
      equal(result.get("y"), value);
    },
  ]),
);

async function identity(client: Client, value: Tensor, model = "identity_FP32"): Promise<void> {
  equal((await client.infer(model, { x: value })).get("y"), value);
}

const tensors: Cases = {
  ...datatypes,

  async scalar(client) {
    await identity(client, fp32([], [2.5]), "scalar");
  },

  async no_rows(client) {
    await identity(client, fp32([0, 3], []));
  },

  async big_message(client) {
    await identity(client, fp32([4, 1 << 20], Array(4 << 20).keys()));
  },

  async message_too_big(client) {
    const value = new Tensor("FP32", [33, 1 << 18], new Float32Array(33 << 18));
    const error = await refused(client.infer("identity_FP32", { x: value }), Overloaded, "");
    assert.equal(error.retryAfterMs, undefined);
  },
};

const requests: Cases = {
  async several_outputs(client) {
    const inputs = { a: pair(3), b: pair(1) };
    const result = await client.infer("arithmetic", inputs);
    assert.deepEqual([...result.outputs.keys()], ["total", "difference", "doubled"]);
    equal(result.get("total"), pair(4));
    equal(result.get("difference"), pair(2));
    equal(result.get("doubled"), pair(6));
    const some = await client.infer("arithmetic", inputs, { outputs: ["difference", "total"] });
    assert.deepEqual([...some.outputs.keys()], ["difference", "total"]);
    equal(some.get("difference"), pair(2));
  },

  async request_id(client) {
    const result = await client.infer("double", { x: pair() }, { requestId: "mine" });
    assert.deepEqual([result.id, result.model, result.version], ["mine", "double", "1"]);
  },

  async parameters(client) {
    const options = { parameters: { headrace_explain: true } };
    const result = await client.infer("double", { x: pair() }, options);
    assert.equal(result.parameters.headrace_batch_requests, 1);
  },

  async version(client) {
    equal((await client.infer("versions", { x: pair() }, { version: "1" })).get("y"), pair(1));
    const result = await client.infer("versions", { x: pair() });
    equal(result.get("y"), pair(3));
    assert.equal(result.version, "3");
    const call = client.infer("versions", { x: pair() }, { version: "2" });
    await refused(call, ModelNotFound, "MODEL_NOT_FOUND", "'2'");
  },

  async metadata(client) {
    const call = (caller: string) =>
      client.infer("double", { x: pair() }, { headers: { "headrace-caller": caller } });
    await refused(call("c".repeat(1000)), InvalidInput, "INVALID_INPUT", "headrace-caller", "1000");
    equal((await call("c".repeat(10))).get("y"), pair(2));
  },
};

const errors: Cases = {
  async error_unknown_model(client) {
    await refused(
      client.infer("nothing", { x: pair() }),
      ModelNotFound,
      "MODEL_NOT_FOUND",
      "'nothing'",
    );
  },

  async error_unknown_input(client) {
    await refused(client.infer("double", { z: pair() }), InvalidInput, "INVALID_INPUT", "'z'");
  },

  async error_missing_input(client) {
    await refused(client.infer("arithmetic", { a: pair() }), InvalidInput, "INVALID_INPUT", "'b'");
  },

  async error_wrong_datatype(client) {
    const call = client.infer("double", { x: new Tensor("FP64", [1, 2], new Float64Array(2)) });
    await refused(call, InvalidInput, "INVALID_INPUT", "'x'", "FP32", "FP64");
  },

  async error_wrong_shape(client) {
    const call = client.infer("double", { x: fp32([2], [1, 1]) });
    await refused(call, InvalidInput, "INVALID_INPUT", "'x'", "[-1, -1]", "[2]");
  },

  async error_of_the_model(client) {
    await refused(client.infer("lab", lab({ index: 99 })), InferenceFailed, "EXECUTION_FAILED");
  },

  async no_server() {
    const retry = { maxAttempts: 3, initialBackoffMs: 10 };
    await withClient("127.0.0.1:1", { retry }, async (nobody) => {
      await refused(nobody.serverLive(), Unavailable, "");
    });
  },
};

/** How a crowd at once fares with a model for which two may wait. Who is answered is right. */
function crowd(env: Env, retry: Partial<RetryPolicy>): Promise<(InferResult | HeadraceError)[]> {
  return withClient(env.address, { retry }, (client) =>
    Promise.all(
      Array.from({ length: CROWD }, async (_, value) => {
        try {
          const result = await client.infer("lab_bounded", lab({ steps: CROWD_STEPS, value }));
          equal(result.get("y"), fp32([1, 1], [2 * value + 1]));
          return result;
        } catch (error) {
          assert.ok(error instanceof HeadraceError, String(error));
          return error;
        }
      }),
    ),
  );
}

async function failures(client: Client, model: string): Promise<bigint> {
  const [statistics] = await client.modelStatistics(model);
  return statistics?.inferenceStats?.fail?.count ?? 0n;
}

const load: Cases = {
  async deadline(client) {
    const call = client.infer("lab_deadline", lab({ steps: ENDLESS }), { deadlineMs: 300 });
    await assert.rejects(call, DeadlineExceeded);
    equal((await client.infer("lab_deadline", lab())).get("y"), fp32([1, 1], [3]));
  },

  async cancel(client) {
    const signal = AbortSignal.timeout(300);
    const call = client.infer("lab_cancel", lab({ steps: ENDLESS }), { signal });
    await assert.rejects(call, { name: "TimeoutError" });
    equal((await client.infer("lab_cancel", lab())).get("y"), fp32([1, 1], [3]));
  },

  async overload_refused(_, env) {
    const outcomes = await crowd(env, NEVER_AGAIN);
    const refusals = outcomes.filter((outcome) => outcome instanceof HeadraceError);
    assert.ok(refusals.length > 0 && refusals.length < CROWD, `${refusals.length} were refused`);
    for (const error of refusals) {
      assert.ok(error instanceof Overloaded, String(error));
      assert.equal(error.reason, "OVERLOADED");
      assert.ok((error.retryAfterMs ?? 0) > 0);
    }
  },

  async overload_retried(client, env) {
    const before = await failures(client, "lab_bounded");
    const outcomes = await crowd(env, { maxAttempts: 200 });
    for (const outcome of outcomes) {
      assert.ok(outcome instanceof InferResult, inspect(outcome));
    }
    assert.ok((await failures(client, "lab_bounded")) > before);
  },
};

const control: Cases = {
  async server_state(client) {
    assert.ok(await client.serverLive());
    assert.ok(await client.serverReady());
    assert.ok(await client.modelReady("identity_FP32"));
    assert.ok(!(await client.modelReady("nothing")));
  },

  async server_metadata(client) {
    const said = await client.serverMetadata();
    assert.equal(said.name, "headrace");
    assert.notEqual(said.version, "");
    assert.ok(said.extensions.includes("statistics"));
  },

  async model_metadata(client) {
    const said = await client.modelMetadata("arithmetic");
    assert.deepEqual(said.inputs, [
      { name: "a", datatype: "FP32", shape: [-1, -1] },
      { name: "b", datatype: "FP32", shape: [-1, -1] },
    ]);
    assert.deepEqual(
      said.outputs.map(({ name }) => name),
      ["total", "difference", "doubled"],
    );
  },

  async repository(client, env) {
    const index = await client.repositoryIndex();
    const versions = index.filter(({ name }) => name === "versions");
    assert.deepEqual(versions.map(({ version, state }) => [version, state]).sort(), [
      ["1", "READY"],
      ["3", "READY"],
    ]);
    await client.unloadModel("scalar");
    await withClient(env.address, { retry: NEVER_AGAIN }, async (once) => {
      await refused(once.infer("scalar", { x: fp32([], [1]) }), Unavailable, "MODEL_UNAVAILABLE");
    });
    await client.loadModel("scalar");
    await identity(client, fp32([], [1]), "scalar");
  },

  async statistics(client) {
    const rows = async () =>
      (await client.modelStatistics("versions")).reduce((sum, m) => sum + m.inferenceCount, 0n);
    const before = await rows();
    await client.infer("versions", { x: fp32([3, 2], Array(6).fill(1) as number[]) });
    assert.equal(await rows(), before + 3n);
  },
};

const streams: Cases = {
  async stream_requests(client) {
    const asked = Array.from({ length: 50 }, (_, number) => ({
      model: "double",
      inputs: { x: pair(number) },
      options: { requestId: `r${number}` },
    }));
    const seen = new Set<string>();
    for await (const { id, result } of client.inferStream(asked)) {
      assert.ok(result && !seen.has(id), id);
      seen.add(id);
      equal(result.get("y"), pair(2 * Number(id.slice(1))));
    }
    assert.equal(seen.size, asked.length);
  },

  async stream_errors(client) {
    const asked = ["double", "nothing", "double"].map((model) => ({
      model,
      inputs: { x: pair() },
    }));
    const outcomes = new Map<string, InferResult | HeadraceError>();
    for await (const { id, result, error } of client.inferStream(asked)) {
      outcomes.set(id, result ?? error);
    }
    assert.ok(outcomes.get("#1") instanceof ModelNotFound, inspect(outcomes.get("#1")));
    for (const id of ["#0", "#2"]) {
      const result = outcomes.get(id);
      assert.ok(result instanceof InferResult, inspect(result));
      equal(result.get("y"), pair(2));
    }
  },
};

export const CALLS: Cases = { ...tensors, ...requests, ...errors, ...load, ...control, ...streams };
