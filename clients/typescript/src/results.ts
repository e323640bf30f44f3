/** What comes back from calls, as plain typed objects. */
import type { HeadraceError } from "./errors.js";
import type { Datatype, Tensor } from "./tensors.js";

/** A whole number that a `number` does not hold exactly is a bigint. */
export type ParameterValue = boolean | number | bigint | string;

/** Tensors by name. */
export class Outputs {
  /** In the server's order. */
  readonly outputs: ReadonlyMap<string, Tensor>;

  constructor(outputs: ReadonlyMap<string, Tensor>) {
    this.outputs = outputs;
  }

  /** One output. Throws RangeError where there is none of this name, and TypeError where it has
   * another datatype than the one that is asked for. */
  get(name: string): Tensor;
  get<D extends Datatype>(name: string, datatype: D): Tensor<D>;
  get(name: string, datatype?: Datatype): Tensor {
    const tensor = this.outputs.get(name);
    if (tensor === undefined) {
      throw new RangeError(`no output ${name}; there are ${[...this.outputs.keys()].join(", ")}`);
    }
    if (datatype !== undefined && tensor.datatype !== datatype) {
      throw new TypeError(`output ${name}: expected ${datatype}, got ${tensor.datatype}`);
    }
    return tensor;
  }
}

/** What a result says beside its outputs. */
export interface ResultFacts {
  readonly model: string;
  readonly version: string;
  readonly id: string;
  readonly parameters: Readonly<Record<string, ParameterValue>>;
}

/** The outputs of one request, and what computed them. */
export class InferResult extends Outputs implements ResultFacts {
  readonly model: string;
  readonly version: string;
  readonly id: string;
  readonly parameters: Readonly<Record<string, ParameterValue>>;

  constructor(outputs: ReadonlyMap<string, Tensor>, facts: ResultFacts) {
    super(outputs);
    this.model = facts.model;
    this.version = facts.version;
    this.id = facts.id;
    this.parameters = facts.parameters;
  }
}

/** The answer to the stream request with this `id`: exactly one of `result` and `error`. */
export type StreamAnswer =
  | { readonly id: string; readonly result: InferResult; readonly error?: never }
  | { readonly id: string; readonly result?: never; readonly error: HeadraceError };

/** Who answers: name and version of the server, and the protocol extensions it has. */
export interface ServerMetadata {
  readonly name: string;
  readonly version: string;
  readonly extensions: readonly string[];
}

/** An input or output of a model. In `shape`, -1 is a dimension that varies. */
export interface TensorMetadata {
  readonly name: string;
  readonly datatype: string;
  readonly shape: readonly number[];
}

/** What a model takes and gives, and in which versions it is served. */
export interface ModelMetadata {
  readonly name: string;
  readonly versions: readonly string[];
  readonly platform: string;
  readonly inputs: readonly TensorMetadata[];
  readonly outputs: readonly TensorMetadata[];
}

/** One model version of the repository. `state` is READY, UNAVAILABLE, LOADING, UNLOADING or
 * UNKNOWN; `reason` says why it is not READY. */
export interface ModelIndex {
  readonly name: string;
  readonly version: string;
  readonly state: string;
  readonly reason: string;
}
