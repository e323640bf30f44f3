/**
 * One session of a sensor stream as its client sees it: a synchronous state machine.
 *
 * What the user hands over goes into a log, is sent in order, and is kept until the server is known
 * to have it: because a result spans it, because credit has moved past it, or because a resume says
 * so. When the connection breaks, what is kept is sent again from where the server says it is.
 * Deliveries are numbered by the server, so that one which comes again is known.
 *
 * Nothing here waits. A method that is asked until there is something returns undefined until then,
 * and throws what has ended the session.
 */
import type { MessageInitShape } from "@bufbuild/protobuf";

import {
  BadResponse,
  Cancelled,
  Code,
  errorOf,
  type HeadraceError,
  SessionLost,
  Unavailable,
} from "../errors.js";
import {
  type Closed,
  Closed_Reason,
  type CommandSchema,
  type Error as WireError,
  type Event,
  type Open,
  type Opened,
  type Resumed,
} from "../gen/headrace/stream/v1/stream_pb.js";
import { Inbox } from "./inbox.js";
import { type Entry, Log } from "./log.js";
import {
  type Flushed,
  readClosed,
  readGap,
  type StreamEvent,
  type StreamSummary,
  WindowResult,
} from "./results.js";
import type { Chunk, Sampler } from "./samples.js";

export type Command = NonNullable<MessageInitShape<typeof CommandSchema>["command"]>;

/**
 * Where a session stands. detached: open, without a connection. leaving: given up, and being closed
 * on the server. closed: which is still to be acknowledged.
 */
export type Phase =
  "new" | "opening" | "open" | "detached" | "resuming" | "leaving" | "closed" | "ended";

// Bytes of samples that a session adds to a message before others have their turn.
const SHARE = 128 << 10;

export class Session {
  phase: Phase = "new";
  opened: Opened | undefined;
  error: HeadraceError | undefined;
  summary: StreamSummary | undefined;
  ending = false;
  /** Whether the user has met `error`. */
  told = false;
  /** How many times it went on on a new connection. */
  resumes = 0;
  /** Called when those who wait should look again. */
  wake: () => void = () => undefined;
  readonly log: Log;
  readonly inbox: Inbox;
  readonly #opening: Open;
  readonly #longest: number;
  readonly #flushes = new Map<number, Flushed>();
  #credit = 0;
  #timestamp: bigint | undefined;
  #seenFlushes = 0;
  #ackedAtFlush = 0;
  #hold = false; // a flush was refused: until the server has room for it again
  #lostAt: number | undefined;

  constructor(opening: Open, sampler: Sampler, maxUnread: number) {
    this.log = new Log(sampler, opening.ttlMs > 0n);
    this.inbox = new Inbox(maxUnread);
    this.#opening = opening;
    this.#longest = sampler.longest;
  }

  // What the user does.

  /** Whether the user has nothing left to wait for. */
  get isOver(): boolean {
    return this.phase === "leaving" || this.phase === "closed" || this.phase === "ended";
  }

  /** true once the server has opened the session. */
  isOpen(): true | undefined {
    this.check();
    return this.opened && true;
  }

  /** How many samples may be handed over now in one chunk. Throws what has ended the session, and
   * Error after `end`, or where results wait that nobody ever took. */
  room(): number {
    this.check();
    if (this.ending || this.summary !== undefined) {
      throw new Error("the stream was ended: it takes no more samples");
    }
    if (this.opened === undefined || this.inbox.isFull()) {
      return 0;
    }
    const most = Math.min(Number(this.opened.largestChunk), this.#longest);
    return Math.max(0, Math.min(this.#credit - this.log.position, most));
  }

  /** Takes a chunk of at most `room()` samples. */
  put(chunk: Chunk): void {
    this.log.add(chunk);
  }

  /** The next sample was taken then. Throws RangeError where time went back. */
  stamp(timestampNs: bigint): void {
    if (this.#timestamp !== undefined && timestampNs < this.#timestamp) {
      throw new RangeError(`timestampNs: expected ${this.#timestamp} or later, got ${timestampNs}`);
    }
    this.#timestamp = timestampNs;
  }

  /** Returns the flush's number, for `flushed`. */
  flush(): number {
    this.check();
    if (this.ending) {
      throw new Error("the stream was ended: there is nothing to flush");
    }
    return this.log.flush();
  }

  /** The answer to a flush, which is given once. */
  flushed(number: number): Flushed | undefined {
    const answer = this.#flushes.get(number);
    if (answer === undefined) {
      this.check();
      this.inbox.isFull();
    }
    this.#flushes.delete(number);
    return answer;
  }

  /** Nothing more will be handed over: the server makes the last window and closes. */
  end(): void {
    if (!this.ending && !this.isOver) {
      this.ending = true;
      this.log.end();
    }
  }

  /** The summary, once the session has been closed. */
  closed(): StreamSummary | undefined {
    this.check();
    if (this.summary === undefined) {
      this.inbox.isFull();
    }
    return this.summary;
  }

  /** What has come and was not taken yet; after that, throws what has ended the session. */
  take(): StreamEvent[] {
    const taken = this.inbox.take();
    if (taken.length === 0) {
      this.check();
    }
    return taken;
  }

  /** The next result or gap, alone in an array; after the last one an empty array. */
  read(): [] | [StreamEvent] | undefined {
    const event = this.inbox.next();
    if (event !== undefined) {
      return [event];
    }
    this.check();
    return this.summary === undefined ? undefined : [];
  }

  /** Gives the session up: it is closed on the server, and what comes is dropped. What has come may
   * still be taken; after that `error` is thrown, or Cancelled. */
  leave(error?: HeadraceError): void {
    if (this.isOver) {
      return;
    }
    this.error = error ?? new Cancelled(Code.Canceled, "the stream was left");
    this.told = error === undefined;
    this.ending = true;
    this.#hold = false;
    this.inbox.discard(false);
    this.log.clear();
    if (this.phase === "open") {
      this.log.end();
    }
    const alive = ["opening", "open", "resuming"].includes(this.phase);
    this.phase = alive ? "leaving" : "ended";
  }

  /** Throws what has ended the session, if it was an error. */
  check(): void {
    if (this.error !== undefined) {
      this.told = true;
      throw this.error;
    }
  }

  // What goes to the server.

  /** How the session begins on a new connection. */
  attach(): Command[] {
    if (this.phase === "new") {
      this.phase = "opening";
      return [{ case: "open", value: this.#opening }];
    }
    if (this.phase === "detached" && this.opened !== undefined) {
      this.phase = "resuming";
      const { sessionId, resumeToken } = this.opened;
      const delivery = BigInt(this.inbox.delivered);
      return [{ case: "resume", value: { sessionId, resumeToken, delivery } }];
    }
    return [];
  }

  /** What to send now, about SHARE bytes of it, and whether there is more. */
  commands(): { commands: Command[]; more: boolean } {
    const commands: Command[] = [];
    if (this.phase !== "open" && this.phase !== "leaving" && this.phase !== "closed") {
      return { commands, more: false };
    }
    const delivery = this.#ack();
    if (delivery !== undefined) {
      this.#hold = false;
      commands.push({ case: "ack", value: { delivery: BigInt(delivery) } });
    }
    if (this.phase === "closed") {
      this.phase = "ended";
      return { commands, more: false };
    }
    let room = this.#hold ? 0 : SHARE;
    while (room > 0) {
      const entry = this.log.next();
      if (entry === undefined) {
        break;
      }
      commands.push(commandOf(entry));
      if (entry.kind === "samples") {
        room -= entry.chunk.data.reduce((sum, bytes) => sum + bytes.length, 0);
      } else if (entry.kind === "flush") {
        this.#ackedAtFlush = this.inbox.acked;
      }
    }
    return { commands, more: room <= 0 && !this.#hold };
  }

  #ack(): number | undefined {
    if (this.opened === undefined || this.#opening.ttlMs === 0n) {
      return undefined;
    }
    return this.inbox.ack(this.opened.maxOutstanding, this.phase === "closed");
  }

  // What comes from the server.

  /** Takes an event. One that contradicts the protocol ends the session with BadResponse. */
  receive(event: Event): void {
    try {
      this.#receive(event);
    } catch (error) {
      if (!(error instanceof BadResponse)) {
        throw error;
      }
      this.leave(error);
    }
  }

  #receive({ event, delivery }: Event): void {
    switch (event.case) {
      case "opened":
        this.opened = event.value;
        this.#credit = Number(event.value.upToSample);
        this.#begin();
        break;
      case "resumed":
        this.#onResumed(event.value);
        break;
      case "credit":
        this.#onCredit(Number(event.value.upToSample));
        break;
      case "error":
        this.#onError(event.value);
        break;
      case undefined: // of a newer protocol
        break;
      default:
        if (this.inbox.count(Number(delivery), sizeOf(event))) {
          this.#hold = false;
          this.#onDelivery(event);
        }
    }
  }

  #onResumed(resumed: Resumed): void {
    this.#lostAt = undefined;
    this.resumes += 1;
    if (this.phase === "resuming") {
      this.log.rewind(Number(resumed.nextSequence), Number(resumed.flushes), resumed.closing);
    }
    this.#credit = Math.max(this.#credit, Number(resumed.upToSample));
    this.inbox.acknowledged(); // by Resume
    this.#hold = false;
    this.#begin();
  }

  #begin(): void {
    if (this.phase === "leaving") {
      this.log.end();
    } else {
      this.phase = "open";
    }
  }

  #onCredit(upTo: number): void {
    this.#credit = Math.max(this.#credit, upTo);
    if (this.opened !== undefined) {
      // Credit is never more than the buffer ahead of what the server has, and at first it has
      // nothing.
      this.log.confirm(upTo - Number(this.opened.upToSample), this.#seenFlushes);
    }
  }

  #onDelivery(event: Delivery): void {
    switch (event.case) {
      case "result":
      case "gap":
        this.log.confirm(Number(event.value.endSample), this.#seenFlushes);
        this.inbox.put(event.case === "gap" ? readGap(event.value) : new WindowResult(event.value));
        break;
      case "flushed": {
        const flushed = {
          windows: Number(event.value.windows),
          samples: Number(event.value.samples),
        };
        this.#seenFlushes += 1;
        this.#flushes.set(this.#seenFlushes, flushed);
        this.log.confirm(flushed.samples, this.#seenFlushes);
        break;
      }
      case "closed":
        this.#onClosed(event.value);
    }
  }

  #onClosed(closed: Closed): void {
    this.summary = readClosed(closed);
    this.log.clear();
    if (closed.reason === Closed_Reason.STOPPING && this.phase !== "leaving") {
      this.error = new Unavailable(
        Code.Unavailable,
        `the server stops; it received ${closed.samples} samples of ${this.log.position}`,
        { reason: "STOPPING" },
      );
    }
    this.phase = this.#opening.ttlMs > 0n ? "closed" : "ended";
  }

  #onError(told: WireError): void {
    const details = told.field ? `${told.field}: ${told.message}` : told.message;
    const code = codeOf(told.code);
    const { reason } = told;
    if (this.phase === "leaving") {
      if (told.ended) {
        this.phase = "ended";
      }
    } else if (reason === "TOO_MANY_FLUSHES") {
      this.log.takeBack();
      // Unless room was made meanwhile, some will be with the next delivery, or its ack.
      this.#hold = this.inbox.acked === this.#ackedAtFlush;
    } else if (!told.ended) {
      // Whatever was refused, what follows it would not fit any more.
      this.leave(errorOf(code, details, { reason }));
    } else if (this.phase === "resuming" && code === Code.Unavailable) {
      this.phase = "detached"; // this server stops: there may be another connection
    } else if (this.opened !== undefined) {
      this.#fail(new SessionLost(code, details, { reason }));
    } else {
      this.#fail(errorOf(code, details, { reason }));
    }
  }

  // What becomes of the connection.

  /** The connection has broken with `error` at `nowMs`. final: another one would not help. */
  detach(error: HeadraceError, nowMs: number, final: boolean): void {
    if (this.phase === "leaving" || this.phase === "closed") {
      this.phase = "ended";
    } else if (this.phase !== "ended" && this.opened === undefined) {
      this.#fail(error);
    } else if (this.phase !== "ended") {
      this.phase = "detached";
      this.#lostAt ??= nowMs;
      const ttlMs = Number(this.#opening.ttlMs);
      if (final || nowMs - this.#lostAt >= ttlMs) {
        const why = ttlMs
          ? `no connection for ${ttlMs / 1e3} s, its time to live`
          : "time to live 0";
        const { code, details, reason } = error;
        this.#fail(new SessionLost(code, `${details} (${why})`, { reason, cause: error }));
      }
    }
  }

  #fail(error: HeadraceError): void {
    this.error = error;
    this.log.clear();
    this.phase = "ended";
  }
}

/** gRPC's statuses have the same numbers here as there. */
function codeOf(number: number): Code {
  return (
    (Object.values(Code).find((code) => Number(code) === number) as Code | undefined) ??
    Code.Unknown
  );
}

type Delivery = Extract<Event["event"], { case: "result" | "gap" | "flushed" | "closed" }>;

function sizeOf(event: Delivery): number {
  const outputs = event.case === "result" ? event.value.outputs : [];
  return outputs.reduce((sum, tensor) => sum + tensor.data.length, 64);
}

function commandOf(entry: Entry): Command {
  switch (entry.kind) {
    case "samples": {
      const { data, timestampNs } = entry.chunk;
      const stamp = timestampNs === undefined ? {} : { timestampNs };
      return {
        case: "chunk",
        value: { sequence: BigInt(entry.position), data: [...data], ...stamp },
      };
    }
    case "flush":
      return { case: "flush", value: {} };
    case "end":
      return { case: "close", value: {} };
  }
}
