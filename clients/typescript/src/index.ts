/** The client of Headrace for Node.js, for any server of the Open Inference Protocol over gRPC. */
export type { ChannelOptions, TLS } from "./channel.js";
export { Client, type ClientOptions, type ControlOptions } from "./client.js";
export * from "./errors.js";
export * from "./halves.js";
export type { InferOptions, Inputs, StreamRequest } from "./messages.js";
export {
  InferResult,
  type ModelIndex,
  type ModelMetadata,
  type Outputs,
  type ParameterValue,
  type ServerMetadata,
  type StreamAnswer,
  type TensorMetadata,
} from "./results.js";
export { DEFAULT_RETRY, type RetryPolicy } from "./retry.js";
export type { Layout, NonFinite, Overload, Signal, StreamOptions, Tail } from "./stream/options.js";
export {
  type Flushed,
  type Gap,
  type GapReason,
  type StreamEvent,
  type StreamSummary,
  WindowResult,
} from "./stream/results.js";
export type { Samples } from "./stream/samples.js";
export type { SensorStream } from "./stream/sensor_stream.js";
export {
  DATATYPES,
  type Datatype,
  type Elements,
  type FixedDatatype,
  hasDatatype,
  Tensor,
} from "./tensors.js";
