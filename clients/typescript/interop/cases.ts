/** What the interop cases have in common. */
import assert from "node:assert/strict";

import {
  Client,
  type ClientOptions,
  type Datatype,
  HeadraceError,
  type Inputs,
  Tensor,
} from "../src/index.js";

/** The server. `cutAddress` breaks connections. */
export interface Env {
  readonly address: string;
  readonly cutAddress: string;
}

export type Case = (client: Client, env: Env) => Promise<void>;
export type Cases = Readonly<Record<string, Case>>;

/** A client of the server with options of its own, closed after `use`. */
export async function withClient<T>(
  address: string,
  options: ClientOptions,
  use: (client: Client) => Promise<T>,
): Promise<T> {
  const client = new Client(address, options);
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}

export function fp32(shape: readonly number[], values: Iterable<number>): Tensor<"FP32"> {
  return new Tensor("FP32", shape, Float32Array.from(values));
}

/** [1, 2] of one value. */
export function pair(value = 1): Tensor<"FP32"> {
  return fp32([1, 2], [value, value]);
}

/** Bit for bit, datatype and shape included. */
export function equal<D extends Datatype>(got: Tensor, expected: Tensor<D>): void {
  assert.deepEqual([got.datatype, got.shape], [expected.datatype, expected.shape]);
  if (ArrayBuffer.isView(got.data) && ArrayBuffer.isView(expected.data)) {
    assert.deepEqual(bits(got.data), bits(expected.data));
  } else {
    assert.deepEqual([...got.data].map(String), [...expected.data].map(String));
  }
}

function bits(array: ArrayBufferView): Buffer {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}

type ErrorClass = new (...given: never[]) => HeadraceError;

/** The error of a call that must fail so, with these words in its message. */
export async function refused(
  call: Promise<unknown>,
  kind: ErrorClass,
  reason: string,
  ...words: string[]
): Promise<HeadraceError> {
  const error: unknown = await call.then(
    () => assert.fail("this was answered"),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof HeadraceError)) {
    throw error;
  }
  assert.equal(error.constructor, kind, String(error));
  assert.equal(error.reason, reason);
  for (const word of words) {
    assert.ok(error.details.includes(word), `${word} is not in: ${error.details}`);
  }
  return error;
}

/** Inputs of one row for a `lab` model, whose answer is y = [[2 value + 1]]. */
export function lab({ steps = 0, index = 0, value = 1 } = {}): Inputs {
  return {
    x: fp32([1, 1], [value]),
    steps: new Tensor("INT64", [1], BigInt64Array.of(BigInt(steps))),
    index: new Tensor("INT64", [1], BigInt64Array.of(BigInt(index))),
  };
}
