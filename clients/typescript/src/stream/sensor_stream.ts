/** A sensor stream as its user holds it: what `Session` decides, with the waiting. */
import { setTimeout as sleep } from "node:timers/promises";

import { HeadraceError, Unavailable } from "../errors.js";
import type { Open } from "../gen/headrace/stream/v1/stream_pb.js";
import { nextWaitMs } from "../retry.js";
import type { StreamConnection } from "./connection.js";
import type { StreamConnections } from "./connections.js";
import { opening, signalsOf, type StreamOptions } from "./options.js";
import type { Flushed, StreamEvent, StreamSummary } from "./results.js";
import { type Chunk, type SampleArray, Sampler, type Samples } from "./samples.js";
import { Session } from "./session.js";

/** How one stream is opened, and how its samples are read. */
export class Plan {
  readonly sampler: Sampler;
  readonly #opening: Open;
  readonly #maxUnread: number;

  /** Throws RangeError and TypeError naming the option. */
  constructor(model: string, options: StreamOptions) {
    this.#opening = opening(model, options);
    this.sampler = new Sampler(signalsOf(options), options.nonFinite ?? "refuse");
    this.#maxUnread = options.maxUnread ?? 4096;
  }

  session(): Session {
    return new Session(this.#opening, this.sampler, this.#maxUnread);
  }
}

/**
 * A signal sent as it comes, answered window by window. `run` sends and yields the results; by hand
 * it is `send`, and a loop over the stream beside it.
 */
export class SensorStream implements AsyncIterable<StreamEvent>, AsyncDisposable {
  readonly #connection: StreamConnection;
  readonly #session: Session;
  readonly #sampler: Sampler;
  #waiters: (() => void)[] = [];
  #sending: Promise<unknown> = Promise.resolve();

  private constructor(connection: StreamConnection, plan: Plan) {
    this.#connection = connection;
    this.#sampler = plan.sampler;
    this.#session = plan.session();
    this.#session.wake = () => {
      this.#wake();
    };
  }

  /** Opened on the server; attempts are made as the client's retry policy says. */
  static async open(connections: StreamConnections, plan: Plan): Promise<SensorStream> {
    for (let attempt = 1; ; attempt++) {
      let wait;
      try {
        return await SensorStream.#openOn(await connections.get(), plan);
      } catch (error) {
        if (!(error instanceof HeadraceError)) {
          throw error;
        }
        const failure = { error, attempt, remainingMs: Infinity, random: Math.random() };
        wait = nextWaitMs(connections.policy, failure);
        if (wait === undefined) {
          throw error;
        }
      }
      await sleep(wait);
    }
  }

  static async #openOn(connection: StreamConnection, plan: Plan): Promise<SensorStream> {
    const stream = new SensorStream(connection, plan);
    connection.add(stream.#session);
    try {
      await stream.#until(() => stream.#session.isOpen());
      return stream;
    } catch (error) {
      connection.refused ||= error instanceof Unavailable;
      throw error;
    }
  }

  /** The model's version that served when the stream was opened. */
  get version(): string {
    return this.#session.opened?.version ?? "";
  }

  /** The model's state inputs, which the server keeps; none for a stateless model. */
  get stateInputs(): readonly string[] {
    return this.#session.opened?.stateInputs ?? [];
  }

  /** What the stream came to, once it is closed. */
  get summary(): StreamSummary | undefined {
    return this.#session.summary;
  }

  /** How many times it went on on a new connection. */
  get resumes(): number {
    return this.#session.resumes;
  }

  /**
   * Hands samples over, of any number; waits where the server has no room for them. The array may be
   * used again after that. `timestampNs`: when the first of them was taken, by any clock.
   *
   * Throws TypeError and RangeError for samples that do not fit, and what has ended the stream.
   */
  async send(samples: Samples, options: { timestampNs?: bigint } = {}): Promise<void> {
    const before = this.#sending;
    const mine = (async () => {
      await before.catch(() => undefined); // whoever sent that has been told
      const all = this.#sampler.read(samples, options.timestampNs);
      this.#session.check();
      if (options.timestampNs !== undefined) {
        this.#session.stamp(options.timestampNs);
      }
      await this.#hand(all);
    })();
    this.#sending = mine;
    await mine;
  }

  async #hand(all: Chunk): Promise<void> {
    let done = 0;
    await this.#until(() => {
      while (done < all.count) {
        const count = Math.min(this.#session.room(), all.count - done);
        if (count === 0) {
          return undefined;
        }
        this.#session.put(this.#sampler.cut(all, done, count));
        done += count;
      }
      return true;
    });
  }

  /** Makes a last window, as `tail` says, and waits until all is answered; the stream goes on. */
  async flush(): Promise<Flushed> {
    const number = this.#session.flush();
    return this.#until(() => this.#session.flushed(number));
  }

  /** Says that no more samples come; does not wait. The iteration ends after the last result. */
  end(): void {
    this.#session.end();
    this.#touch();
  }

  /** `end`, and waits until the server has answered every window. */
  async close(): Promise<StreamSummary> {
    this.end();
    return this.#until(() => this.#session.closed());
  }

  /** Gives the stream up: what is under way is dropped. Does not wait. */
  leave(): void {
    this.#session.leave();
    this.#touch();
  }

  /** Leaves the stream, unless it was ended: then waits until it is closed. Throws what has ended
   * the stream where nobody has met it yet. */
  async [Symbol.asyncDispose](): Promise<void> {
    const session = this.#session;
    if (!session.ending && session.error === undefined) {
      this.leave();
    } else if (!session.told) {
      session.inbox.discard(true);
      await this.#until(() => session.closed());
    }
  }

  /** Results and gaps that have come and were not taken, without waiting for more. */
  take(): StreamEvent[] {
    const taken = this.#session.take();
    this.#connection.touch(this.#session);
    return taken;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<StreamEvent, void, undefined> {
    for (;;) {
      const [event] = await this.#until(() => this.#session.read());
      if (event === undefined) {
        return;
      }
      yield event;
    }
  }

  /** Sends all `chunks` (an array is one), yields what comes, and ends the stream; also when the loop is left early.
   * What `chunks` throws is thrown after the last result. */
  async *run(
    chunks: SampleArray | Iterable<Samples> | AsyncIterable<Samples>,
  ): AsyncGenerator<StreamEvent, void, undefined> {
    const kept: { error?: unknown } = {};
    const loop = { left: false };
    const feeding = (async () => {
      try {
        for await (const samples of ArrayBuffer.isView(chunks) ? [chunks] : chunks) {
          if (loop.left) {
            return;
          }
          await this.send(samples);
        }
      } catch (error) {
        kept.error = error;
      }
      this.end();
    })();
    try {
      yield* this;
    } finally {
      loop.left = true;
      this.end();
    }
    await feeding;
    if ("error" in kept) {
      throw kept.error;
    }
  }

  /** Waits until `ready` gives something. */
  async #until<T>(ready: () => T | undefined): Promise<T> {
    for (;;) {
      const value = ready();
      this.#connection.touch(this.#session);
      if (value !== undefined) {
        return value;
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  #touch(): void {
    this.#connection.touch(this.#session);
    this.#wake();
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      waiter();
    }
  }
}
