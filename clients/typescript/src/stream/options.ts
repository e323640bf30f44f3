/** How a sensor stream is opened, and the message that says so. */
import { create } from "@bufbuild/protobuf";

import {
  Layout as WireLayout,
  NonFinite as WireNonFinite,
  type Open,
  OpenSchema,
  Overload as WireOverload,
  Tail as WireTail,
} from "../gen/headrace/stream/v1/stream_pb.js";
import type { Inputs } from "../messages.js";
import { encodeRaw, type FixedDatatype, isDatatype } from "../tensors.js";

const OVERLOAD = {
  refuse: WireOverload.REFUSE,
  drop_oldest: WireOverload.DROP_OLDEST,
  latest_only: WireOverload.LATEST_ONLY,
} as const;
const TAIL = { drop: WireTail.DROP, pad: WireTail.PAD, short: WireTail.SHORT } as const;
const NON_FINITE = { refuse: WireNonFinite.REFUSE, allow: WireNonFinite.ALLOW } as const;
const LAYOUT = {
  samples: WireLayout.SAMPLES,
  samples_channels: WireLayout.SAMPLES_CHANNELS,
  channels_samples: WireLayout.CHANNELS_SAMPLES,
} as const;

export type Overload = keyof typeof OVERLOAD;
export type Tail = keyof typeof TAIL;
export type NonFinite = keyof typeof NON_FINITE;
export type Layout = keyof typeof LAYOUT;

/** One input of the model that windows are cut for. */
export interface Signal {
  /** Values of one sample; 1 where it is not given. */
  readonly channels?: number;
  /** Of the arrays that are sent, as the model's input has it; FP32 where it is not given. */
  readonly datatype?: FixedDatatype;
  /** How a window lies in the input after the batch dimension; not needed where only one fits. */
  readonly layout?: Layout;
}

/** Lengths are in samples. `channels`, `datatype` and `layout` are of the model's only input; with
 * `signals`, each has its own. */
export interface StreamOptions extends Signal {
  readonly window: number;
  /** Samples per second. */
  readonly sampleRate: number;
  /** From the start of a window to that of the next; `window` where it is not given. */
  readonly hop?: number;
  /** Samples before a window that the model gets in front of it; zeros at the start. */
  readonly context?: number;
  /** The inputs that carry the signal, by name; each `send` then brings an array for each. */
  readonly signals?: Readonly<Record<string, Signal>>;
  /** Of the model; without, the highest one that is served is followed. */
  readonly version?: string;
  /** What becomes of samples that fill no window at a flush or at the end: "drop" unless given. */
  readonly tail?: Tail;
  /** What gives way when windows come faster than they are computed or taken: with "refuse", unless
   * given otherwise, `send` waits; the others drop windows, each reported in a gap. */
  readonly overload?: Overload;
  /** From the arrival of a window's last sample to its result; a window that cannot make it is
   * dropped, in a gap. */
  readonly objectiveMs?: number;
  /** How long the session outlives its connection, 60 s unless given. 0: a broken connection ends it. */
  readonly ttlMs?: number;
  /** Names of the outputs to send; all where there are none. */
  readonly outputs?: readonly string[];
  /** Inputs that are no signals, for one window, batch dimension included. */
  readonly constants?: Inputs;
  /** Where a stateful model starts, by state input; zeros for those not named. */
  readonly initialState?: Inputs;
  /** Whether NaN and infinities are refused (`send` throws RangeError) or given to the model. */
  readonly nonFinite?: NonFinite;
  /** 1 is the most urgent; 0 leaves it to the model. */
  readonly priority?: number;
  /** Samples that may wait on the server; 0 for as many as it allows. The client keeps at most as
   * many, to send again after a broken connection. */
  readonly buffer?: number;
  /** Results that wait here to be taken before `send` and the server wait too: 4096 unless given. */
  readonly maxUnread?: number;
}

const LARGEST = 2 ** 32 - 1;

/** The signals by input; the empty name stands for the model's only one. */
export function signalsOf(options: StreamOptions): Readonly<Record<string, Signal>> {
  return options.signals ?? { "": options };
}

/** The message that opens the stream. Throws RangeError and TypeError naming the option. */
export function opening(model: string, options: StreamOptions): Open {
  const { window, sampleRate, hop = 0, context = 0, objectiveMs = 0, ttlMs = 60_000 } = options;
  checkWhole("window", window, 1);
  checkWhole("hop", hop, 0);
  checkWhole("context", context, 0);
  checkWhole("priority", options.priority ?? 0, 0);
  checkWhole("buffer", options.buffer ?? 0, 0);
  checkWhole("maxUnread", options.maxUnread ?? 1, 1);
  checkNumber("sampleRate", sampleRate, sampleRate > 0, "more than 0");
  checkNumber("objectiveMs", objectiveMs, objectiveMs >= 0, "0 or more");
  checkNumber("ttlMs", ttlMs, ttlMs >= 0, "0 or more");
  return create(OpenSchema, {
    model,
    version: options.version ?? "",
    signals: signals(options),
    window,
    hop,
    context,
    sampleRateHz: sampleRate,
    latencyObjectiveUs: BigInt(Math.round(objectiveMs * 1e3)),
    overload: choice("overload", OVERLOAD, options.overload ?? "refuse"),
    tail: choice("tail", TAIL, options.tail ?? "drop"),
    nonFinite: choice("nonFinite", NON_FINITE, options.nonFinite ?? "refuse"),
    // Rounded up: 0 would mean that the session does not outlive its connection.
    ttlMs: BigInt(Math.ceil(ttlMs)),
    bufferSamples: BigInt(options.buffer ?? 0),
    outputs: [...(options.outputs ?? [])],
    constants: tensors(options.constants),
    initialState: tensors(options.initialState),
    priority: options.priority ?? 0,
  });
}

function signals(options: StreamOptions) {
  const given = Object.entries(signalsOf(options));
  if (given.length === 0) {
    throw new RangeError("signals: expected at least one, got none");
  }
  return given.map(([input, { channels = 1, datatype = "FP32", layout }]) => {
    checkWhole("channels", channels, 1);
    if (!isDatatype(datatype) || (datatype as string) === "BYTES") {
      throw new TypeError(`datatype: expected one of fixed size, got ${datatype}`);
    }
    const where = layout === undefined ? WireLayout.UNSPECIFIED : choice("layout", LAYOUT, layout);
    return { input, datatype, channels, layout: where };
  });
}

function tensors(values: Inputs = {}) {
  return Object.entries(values).map(([name, tensor]) => ({
    name,
    datatype: tensor.datatype,
    shape: tensor.shape.map(BigInt),
    data: encodeRaw(tensor),
  }));
}

function choice<T>(name: string, choices: Readonly<Record<string, T>>, given: string): T {
  const found = choices[given];
  if (found === undefined) {
    throw new RangeError(`${name}: expected ${Object.keys(choices).join(", ")}, got ${given}`);
  }
  return found;
}

function checkWhole(name: string, value: number, least: number): void {
  const holds = Number.isInteger(value) && value >= least && value <= LARGEST;
  checkNumber(name, value, holds, `a whole number from ${least} to ${LARGEST}`);
}

function checkNumber(name: string, value: number, holds: boolean, expected: string): void {
  if (!holds || !Number.isFinite(value)) {
    throw new RangeError(`${name}: expected ${expected}, got ${value}`);
  }
}
