/** What comes back on a sensor stream, as plain typed objects. */
import { BadResponse } from "../errors.js";
import {
  type Closed,
  type Gap as GapMessage,
  Gap_Reason as WireReason,
  type Result,
  type Tensor as TensorMessage,
} from "../gen/headrace/stream/v1/stream_pb.js";
import { Outputs } from "../results.js";
import { decodeRaw, isDatatype, type Tensor } from "../tensors.js";

/** The answer to one window: its outputs, batch dimension included, and what it spans. */
export class WindowResult extends Outputs {
  readonly kind = "result";
  /** Counts every window of the stream, from 0. */
  readonly window: number;
  /** What it spans, without context and padding; `endSample` itself is not in it. */
  readonly firstSample: number;
  readonly endSample: number;
  /** The same in time: nanoseconds of the client's clock, by the timestamps that were sent and the
   * sample rate. Without timestamps the first sample is at 0. */
  readonly startNs: bigint;
  readonly endNs: bigint;
  /** From the window's last sample to the start of its run. */
  readonly queueMs: number;
  /** Of the run. */
  readonly computeMs: number;
  /** Windows and requests that shared the run. */
  readonly batchSize: number;

  /** Throws BadResponse where the message contradicts itself. */
  constructor(message: Result) {
    super(new Map(message.outputs.map((tensor) => [tensor.name, readTensor(tensor)])));
    this.window = Number(message.window);
    this.firstSample = Number(message.firstSample);
    this.endSample = Number(message.endSample);
    this.startNs = message.startNs;
    this.endNs = message.endNs;
    this.queueMs = Number(message.queueUs) / 1e3;
    this.computeMs = Number(message.computeUs) / 1e3;
    this.batchSize = message.batchSize;
  }
}

/** "overloaded": given way, as the overload choice says; "late": the objective could not be met;
 * "failed": the model failed on this very window; "unavailable": the model is not served now;
 * "stopping": the server stops. */
export type GapReason =
  "overloaded" | "late" | "failed" | "unavailable" | "stopping" | "unspecified";

const REASONS: Partial<Record<WireReason, GapReason>> = {
  [WireReason.OVERLOADED]: "overloaded",
  [WireReason.LATE]: "late",
  [WireReason.FAILED]: "failed",
  [WireReason.UNAVAILABLE]: "unavailable",
  [WireReason.STOPPING]: "stopping",
};

/** Windows that have no result, in their place among those that have one: from `firstWindow` up to,
 * but not with, `endWindow`; the samples likewise. */
export interface Gap {
  readonly kind: "gap";
  readonly firstWindow: number;
  readonly endWindow: number;
  readonly firstSample: number;
  readonly endSample: number;
  readonly reason: GapReason;
  /** For people. */
  readonly message: string;
}

export type StreamEvent = WindowResult | Gap;

/** Samples that the server received, windows that it cut of them, and how many of these had results
 * and how many lie in gaps. */
export interface StreamSummary {
  readonly samples: number;
  readonly windows: number;
  readonly answered: number;
  readonly dropped: number;
}

/** All that came before a flush is answered: windows and samples so far. */
export interface Flushed {
  readonly windows: number;
  readonly samples: number;
}

function readTensor(message: TensorMessage): Tensor {
  const where = `output ${message.name}`;
  if (!isDatatype(message.datatype)) {
    throw new BadResponse(`${where}: no datatype ${message.datatype}`);
  }
  try {
    return decodeRaw(message.data, message.datatype, message.shape.map(Number));
  } catch (error) {
    throw new BadResponse(`${where}: ${(error as Error).message}`, error);
  }
}

export function readGap(message: GapMessage): Gap {
  return {
    kind: "gap",
    firstWindow: Number(message.firstWindow),
    endWindow: Number(message.endWindow),
    firstSample: Number(message.firstSample),
    endSample: Number(message.endSample),
    reason: REASONS[message.reason] ?? "unspecified",
    message: message.message,
  };
}

export function readClosed(message: Closed): StreamSummary {
  return {
    samples: Number(message.samples),
    windows: Number(message.windows),
    answered: Number(message.answered),
    dropped: Number(message.dropped),
  };
}
