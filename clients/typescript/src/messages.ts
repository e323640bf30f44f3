/** Requests into messages and messages into results: plain functions, no waiting. */
import { create } from "@bufbuild/protobuf";

import { BadResponse, Code, errorOf, type HeadraceError } from "./errors.js";
import {
  type InferParameter,
  InferParameterSchema,
  type ModelInferRequest,
  ModelInferRequestSchema,
  type ModelInferResponse,
  type ModelInferResponse_InferOutputTensor,
  type ModelStreamInferResponse,
} from "./gen/headrace/inference/v2/grpc_service_pb.js";
import { InferResult, type ParameterValue, type StreamAnswer } from "./results.js";
import { decodeContents, decodeRaw, encodeRaw, isDatatype, Tensor } from "./tensors.js";

/** Inputs by name. */
export type Inputs = Readonly<Record<string, Tensor>>;

/** Options of one inference request. */
export interface InferOptions {
  /** Milliseconds from the call to its answer, retries included; without, the call waits as long as
   * the server does. In a stream, whose call has its own, it is sent as the parameter `timeout`. */
  readonly deadlineMs?: number;
  /** Of the model; empty leaves the choice to the server. */
  readonly version?: string;
  /** Comes back as the result's `id`. */
  readonly requestId?: string;
  /** Names of the outputs to compute and send; all where there are none. */
  readonly outputs?: readonly string[];
  /** Passed to the server as they are. Whole numbers go as int64, others as double. */
  readonly parameters?: Readonly<Record<string, ParameterValue>>;
  /** 1 is the highest; 0 is the model's default. */
  readonly priority?: number;
  /** Asks a Headrace server to run the request alone, not in a batch with others. */
  readonly solo?: boolean;
  /** Metadata of the call. In a stream it belongs to the stream, not to a request. */
  readonly headers?: Headers | Record<string, string>;
  /** Gives the call up, here and on the server; the call then throws the signal's reason. */
  readonly signal?: AbortSignal;
}

/** One request of a stream. Without a `requestId` it gets the id "#n", n being its position. */
export interface StreamRequest {
  readonly model: string;
  readonly inputs: Inputs;
  readonly options?: Omit<InferOptions, "headers" | "signal">;
}

// Set by a Headrace server on in-band errors, which the protocol gives only a message.
const STATUS_PARAMETER = "headrace_status";
const REASON_PARAMETER = "headrace_error_reason";
const RETRY_PARAMETER = "headrace_retry_after_ms";
const SOLO_PARAMETER = "headrace_solo";
const LARGEST_INT64 = 2n ** 63n - 1n;

/** The message for one inference, every input as raw contents. */
export function inferRequest(
  model: string,
  inputs: Inputs,
  options: InferOptions,
): ModelInferRequest {
  const entries = Object.entries(inputs);
  const request = create(ModelInferRequestSchema, {
    modelName: model,
    modelVersion: options.version ?? "",
    id: options.requestId ?? "",
    inputs: entries.map(([name, tensor]) => ({
      name,
      datatype: tensor.datatype,
      shape: tensor.shape.map(BigInt),
    })),
    rawInputContents: entries.map(([, tensor]) => encodeRaw(tensor)),
    outputs: (options.outputs ?? []).map((name) => ({ name })),
  });
  const parameters: Record<string, ParameterValue> = { ...options.parameters };
  if (options.priority !== undefined) {
    parameters.priority = options.priority;
  }
  if (options.solo) {
    parameters[SOLO_PARAMETER] = true;
  }
  for (const [name, value] of Object.entries(parameters)) {
    request.parameters[name] = create(InferParameterSchema, {
      parameterChoice: choiceOf(name, value),
    });
  }
  return request;
}

function choiceOf(name: string, value: ParameterValue): InferParameter["parameterChoice"] {
  switch (typeof value) {
    case "boolean":
      return { case: "boolParam", value };
    case "string":
      return { case: "stringParam", value };
    case "bigint":
      return value > LARGEST_INT64 ? { case: "uint64Param", value } : { case: "int64Param", value };
    case "number":
      return Number.isSafeInteger(value)
        ? { case: "int64Param", value: BigInt(value) }
        : { case: "doubleParam", value };
    default:
      throw new TypeError(
        `parameter ${name}: expected boolean, number, bigint or string, got ${typeof value}`,
      );
  }
}

/** Whether a request may be sent again. An attempt that was lost on its way back has already
 * advanced the state of its sequence. */
export function isRepeatable(request: ModelInferRequest): boolean {
  return !("sequence_id" in request.parameters);
}

/** The result in a response. Throws BadResponse where its tensors contradict themselves. */
export function readResult(response: ModelInferResponse): InferResult {
  const { outputs, rawOutputContents: raw, modelName } = response;
  if (raw.length > 0 && raw.length !== outputs.length) {
    throw new BadResponse(
      `model ${modelName}: ${outputs.length} outputs, but ${raw.length} raw contents`,
    );
  }
  const tensors = new Map(
    outputs.map((output, index) => [output.name, readOutput(modelName, output, raw[index])]),
  );
  return new InferResult(tensors, {
    model: modelName,
    version: response.modelVersion,
    id: response.id,
    parameters: readParameters(response.parameters),
  });
}

function readOutput(
  model: string,
  output: ModelInferResponse_InferOutputTensor,
  raw: Uint8Array | undefined,
): Tensor {
  const where = `model ${model}: output ${output.name}`;
  if (!isDatatype(output.datatype)) {
    throw new BadResponse(`${where}: no datatype ${output.datatype}`);
  }
  const shape = output.shape.map(Number);
  try {
    if (raw !== undefined) {
      return decodeRaw(raw, output.datatype, shape);
    }
    if (output.contents !== undefined) {
      return decodeContents(output.contents, output.datatype, shape);
    }
  } catch (error) {
    throw new BadResponse(`${where}: ${(error as Error).message}`, error);
  }
  throw new BadResponse(`${where}: no contents`);
}

function readParameters(messages: Record<string, InferParameter>): Record<string, ParameterValue> {
  const read: Record<string, ParameterValue> = {};
  for (const [name, { parameterChoice: choice }] of Object.entries(messages)) {
    // Unset is legal on the wire and says nothing: the parameter is left out.
    if (choice.case !== undefined) {
      read[name] = typeof choice.value === "bigint" ? plain(choice.value) : choice.value;
    }
  }
  return read;
}

/** A number where it holds the value exactly. */
function plain(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** The message for the request at `position` of a stream. */
export function streamRequest(request: StreamRequest, position: number): ModelInferRequest {
  const { deadlineMs, ...options } = request.options ?? {};
  // gRPC's deadline is the stream's; this parameter is Triton's, in microseconds.
  const timeout =
    deadlineMs === undefined ? {} : { timeout: Math.max(1, Math.round(deadlineMs * 1e3)) };
  return inferRequest(request.model, request.inputs, {
    ...options,
    requestId: options.requestId ?? `#${position}`,
    parameters: { ...options.parameters, ...timeout },
  });
}

/** The answer in a stream's response. It never throws: one bad answer leaves the others be. */
export function streamAnswer(response: ModelStreamInferResponse): StreamAnswer {
  const answered = response.inferResponse;
  const id = answered?.id ?? "";
  if (response.errorMessage || answered === undefined) {
    return { id, error: inBandError(response) };
  }
  try {
    return { id, result: readResult(answered) };
  } catch (error) {
    if (error instanceof BadResponse) {
      return { id, error };
    }
    throw error;
  }
}

function inBandError(response: ModelStreamInferResponse): HeadraceError {
  const parameters = readParameters(response.inferResponse?.parameters ?? {});
  // Servers other than Headrace send the message alone: an error of unknown kind.
  const code = codeOf(String(parameters[STATUS_PARAMETER] ?? "")) ?? Code.Unknown;
  const delay = parameters[RETRY_PARAMETER];
  const retryAfterMs = typeof delay === "number" ? delay : undefined;
  const reason = String(parameters[REASON_PARAMETER] ?? "");
  return errorOf(code, response.errorMessage, { reason, retryAfterMs });
}

/** The status of a name as gRPC writes it: "NOT_FOUND". */
function codeOf(name: string): Code | undefined {
  const plainName = name === "CANCELLED" ? "CANCELED" : name;
  const key = Object.keys(Code).find((k) => k.toUpperCase() === plainName.replaceAll("_", ""));
  return key === undefined ? undefined : Code[key as keyof typeof Code];
}
