/**
 * The protocol's datatypes as JavaScript's arrays, and the layouts in which tensors travel.
 *
 * FP16 and BF16 have no array type of their own: their elements are held as bit patterns in a
 * Uint16Array, which `halves.ts` converts. BOOL is a Uint8Array of 0 and 1.
 */
import { endianness } from "node:os";

import type { InferTensorContents } from "./gen/headrace/inference/v2/grpc_service_pb.js";

/** What holds the elements of a tensor, by datatype. */
export interface Elements {
  BOOL: Uint8Array;
  UINT8: Uint8Array;
  UINT16: Uint16Array;
  UINT32: Uint32Array;
  UINT64: BigUint64Array;
  INT8: Int8Array;
  INT16: Int16Array;
  INT32: Int32Array;
  INT64: BigInt64Array;
  FP16: Uint16Array;
  FP32: Float32Array;
  FP64: Float64Array;
  BYTES: readonly Uint8Array[];
  BF16: Uint16Array;
}

export type Datatype = keyof Elements;
export type FixedDatatype = Exclude<Datatype, "BYTES">;
type FixedArray = Elements[FixedDatatype];

interface ArrayType<A extends FixedArray> {
  readonly BYTES_PER_ELEMENT: number;
  readonly name: string;
  new (length: number): A;
  new (buffer: ArrayBufferLike, byteOffset?: number, length?: number): A;
}

const ARRAYS: { readonly [D in FixedDatatype]: ArrayType<Elements[D]> } = {
  BOOL: Uint8Array,
  UINT8: Uint8Array,
  UINT16: Uint16Array,
  UINT32: Uint32Array,
  UINT64: BigUint64Array,
  INT8: Int8Array,
  INT16: Int16Array,
  INT32: Int32Array,
  INT64: BigInt64Array,
  FP16: Uint16Array,
  FP32: Float32Array,
  FP64: Float64Array,
  BF16: Uint16Array,
};

/** All datatypes of the protocol. */
export const DATATYPES: readonly Datatype[] = [...(Object.keys(ARRAYS) as Datatype[]), "BYTES"];

if (endianness() !== "LE") {
  throw new Error("tensors travel little-endian, and this client runs on such machines only");
}

/**
 * A tensor: elements in row-major order. Nothing is converted: the array must be its datatype's.
 *
 * Throws TypeError for another kind of array and RangeError where its length is not the shape's.
 */
export class Tensor<D extends Datatype = Datatype> {
  readonly datatype: D;
  readonly shape: readonly number[];
  readonly data: Elements[D];

  constructor(datatype: D, shape: readonly number[], data: Elements[D]) {
    checkKind(datatype, data);
    const count = elementCount(shape);
    if (data.length !== count) {
      throw new RangeError(
        `expected ${count} elements for the shape [${shape.join(", ")}], got ${data.length}`,
      );
    }
    this.datatype = datatype;
    this.shape = [...shape];
    this.data = data;
  }

  /** A BYTES tensor of texts, as UTF-8. */
  static text(shape: readonly number[], texts: readonly string[]): Tensor<"BYTES"> {
    const encoder = new TextEncoder();
    return new Tensor(
      "BYTES",
      shape,
      texts.map((text) => encoder.encode(text)),
    );
  }

  /** The elements of a BYTES tensor as texts. Throws TypeError for another datatype, and for bytes
   * that are no UTF-8. */
  texts(): string[] {
    const decoder = new TextDecoder("utf-8", { fatal: true });
    if (!hasDatatype(this, "BYTES")) {
      throw new TypeError(`expected BYTES, got ${this.datatype}`);
    }
    return this.data.map((element) => decoder.decode(element));
  }
}

/** Whether a tensor has this datatype; TypeScript then knows its `data`. */
export function hasDatatype<D extends Datatype>(tensor: Tensor, datatype: D): tensor is Tensor<D> {
  return tensor.datatype === datatype;
}

export function isDatatype(name: string): name is Datatype {
  return name === "BYTES" || Object.hasOwn(ARRAYS, name);
}

/** Bytes of one element; 0 for BYTES. */
export function itemSize(datatype: Datatype): number {
  return datatype === "BYTES" ? 0 : ARRAYS[datatype].BYTES_PER_ELEMENT;
}

/** Elements of a tensor of this shape: 1 for a scalar, whose shape is empty. */
export function elementCount(shape: readonly number[]): number {
  for (const dimension of shape) {
    if (!Number.isSafeInteger(dimension) || dimension < 0) {
      throw new RangeError(`expected dimensions of 0 and more, got [${shape.join(", ")}]`);
    }
  }
  return shape.reduce((product, dimension) => product * dimension, 1);
}

/** Throws TypeError unless `data` is what holds elements of this datatype. */
export function checkKind(datatype: Datatype, data: unknown): void {
  if (!isDatatype(datatype)) {
    throw new TypeError(`no datatype ${String(datatype)}; there are ${DATATYPES.join(", ")}`);
  }
  const [fits, expected] =
    datatype === "BYTES"
      ? [
          Array.isArray(data) && data.every((e) => e instanceof Uint8Array),
          "an array of Uint8Array",
        ]
      : [data instanceof ARRAYS[datatype], `a ${ARRAYS[datatype].name}`];
  if (!fits) {
    throw new TypeError(`${datatype} takes ${expected}, got ${kindOf(data)}`);
  }
}

/** What something is, for people. */
export function kindOf(value: unknown): string {
  return typeof value === "object" && value !== null ? value.constructor.name : typeof value;
}

/** The raw contents of a tensor: little-endian, row-major; each BYTES element after its length. A
 * view of the same memory, not a copy, but for BYTES. */
export function encodeRaw(tensor: Tensor): Uint8Array {
  return tensor.datatype === "BYTES"
    ? encodeBytes(tensor.data as Elements["BYTES"])
    : bytesOf(tensor.data as FixedArray);
}

/** The memory of an array. */
export function bytesOf(array: FixedArray): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function encodeBytes(elements: Elements["BYTES"]): Uint8Array {
  const total = elements.reduce((sum, element) => sum + 4 + element.length, 0);
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const element of elements) {
    view.setUint32(at, element.length, true);
    bytes.set(element, at + 4);
    at += 4 + element.length;
  }
  return bytes;
}

/** The tensor that raw contents hold: a view of them where their place in memory allows it.
 *
 * Throws RangeError where their size is not what datatype and shape ask for. */
export function decodeRaw<D extends Datatype>(
  bytes: Uint8Array,
  datatype: D,
  shape: readonly number[],
): Tensor<D> {
  const count = elementCount(shape);
  const data =
    datatype === "BYTES" ? decodeBytes(bytes, count) : decodeFixed(bytes, datatype, count);
  return new Tensor(datatype, shape, data as Elements[D]);
}

function decodeFixed(bytes: Uint8Array, datatype: FixedDatatype, count: number): FixedArray {
  const type = ARRAYS[datatype];
  const expected = count * type.BYTES_PER_ELEMENT;
  if (bytes.length !== expected) {
    throw new RangeError(`expected ${expected} bytes of ${datatype}, got ${bytes.length}`);
  }
  const placed = bytes.byteOffset % type.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
  return new type(placed.buffer, placed.byteOffset, count);
}

function decodeBytes(bytes: Uint8Array, count: number): Uint8Array[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const elements: Uint8Array[] = [];
  let at = 0;
  while (elements.length < count) {
    const start = at + 4;
    const end = start > bytes.length ? Infinity : start + view.getUint32(at, true);
    if (end > bytes.length) {
      throw new RangeError(
        `BYTES element ${elements.length} of ${count} is cut off: ${bytes.length - at} bytes are left`,
      );
    }
    elements.push(bytes.subarray(start, end));
    at = end;
  }
  if (at !== bytes.length) {
    throw new RangeError(`${bytes.length - at} bytes follow the last of ${count} BYTES elements`);
  }
  return elements;
}

const CONTENTS = {
  BOOL: "boolContents",
  UINT8: "uintContents",
  UINT16: "uintContents",
  UINT32: "uintContents",
  UINT64: "uint64Contents",
  INT8: "intContents",
  INT16: "intContents",
  INT32: "intContents",
  INT64: "int64Contents",
  FP32: "fp32Contents",
  FP64: "fp64Contents",
  BYTES: "bytesContents",
} as const satisfies Partial<Record<Datatype, keyof InferTensorContents>>;

/** The tensor that typed contents hold. Throws RangeError where their number is not the shape's, or
 * the datatype has none (FP16 and BF16). */
export function decodeContents(
  contents: InferTensorContents,
  datatype: Datatype,
  shape: readonly number[],
): Tensor {
  if (datatype === "FP16" || datatype === "BF16") {
    throw new RangeError(`${datatype} has no typed contents, it travels as raw contents`);
  }
  const values = contents[CONTENTS[datatype]];
  if (datatype === "BYTES") {
    return new Tensor(datatype, shape, values as Uint8Array[]);
  }
  const array = new ARRAYS[datatype](values.length);
  for (const [index, value] of values.entries()) {
    array[index] = typeof value === "boolean" ? Number(value) : (value as number & bigint);
  }
  return new Tensor(datatype, shape, array);
}
