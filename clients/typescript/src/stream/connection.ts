/** The call that carries a client's sessions, made again when it breaks. */
import { setTimeout as sleep } from "node:timers/promises";

import { Code, fromCallError, type HeadraceError, Unavailable } from "../errors.js";
import type { StreamRequest, StreamResponse } from "../gen/headrace/stream/v1/stream_pb.js";
import type { RetryPolicy } from "../retry.js";
import { clientClosed, StreamLink } from "./link.js";
import type { Session } from "./session.js";

/** Begins a call. */
export type MakeCall = (
  requests: AsyncIterable<StreamRequest>,
  signal: AbortSignal,
) => AsyncIterable<StreamResponse>;

// For the last words to a server when a client is closed.
const FAREWELL_MS = 1000;

/** Something to wait for again and again; what was notified before is not waited for. */
class Bell {
  #rung = false;
  #listener: (() => void) | undefined;

  ring(): void {
    this.#rung = true;
    this.#listener?.();
  }

  async wait(): Promise<void> {
    if (!this.#rung) {
      await new Promise<void>((resolve) => (this.#listener = resolve));
    }
    this.#rung = false;
  }
}

export class StreamConnection {
  /** Whether the server, or its model, was not there to open a session. */
  refused = false;
  readonly #makeCall: MakeCall;
  readonly #link: StreamLink;
  readonly #over = new AbortController();
  #work = new Bell();
  #running: Promise<void> | undefined;
  #closed = false;
  #retired = false;

  constructor(makeCall: MakeCall, policy: RetryPolicy) {
    this.#makeCall = makeCall;
    this.#link = new StreamLink(policy);
  }

  /** Whether new sessions had better go to another server. */
  get isMissing(): boolean {
    return this.refused || this.#link.failures > 0;
  }

  /** Opens `session` with the next message. */
  add(session: Session): void {
    if (this.#closed) {
      session.leave(clientClosed());
      return;
    }
    this.#link.add(session);
    this.#work.ring();
    this.#running ??= this.#run();
  }

  /** `session` may have something to send. */
  touch(session: Session): void {
    this.#link.touch(session);
    this.#work.ring();
  }

  /** Gets no more sessions: waits until those it has are over, and ends the call with them. */
  async retire(): Promise<void> {
    this.#retired = true;
    this.#work.ring();
    await this.#running;
  }

  /** Ends every session; the server is told, if it listens. */
  async close(): Promise<void> {
    this.#closed = true;
    wake(this.#link.close());
    this.#work.ring();
    if (this.#running !== undefined && this.#link.connected) {
      const stop = new AbortController();
      const patience = sleep(FAREWELL_MS, undefined, { signal: stop.signal }).catch(
        () => undefined,
      );
      await Promise.race([this.#running, patience]);
      stop.abort();
    }
    this.#over.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    while (this.#link.size > 0) {
      const error = await this.#carry();
      const { ended, waitMs } = this.#link.lose(error, performance.now());
      wake(ended);
      if (this.#link.size > 0) {
        await sleep(waitMs, undefined, { signal: this.#over.signal }).catch(() => undefined);
      }
    }
    // Before whoever was woken can add a session, which would otherwise wait for a run that is over.
    this.#running = undefined;
  }

  /** Carries the sessions on one call. Returns how it ended. */
  async #carry(): Promise<HeadraceError> {
    const call = { over: new AbortController(), work: new Bell() };
    this.#work = call.work;
    this.#link.connect();
    const signal = AbortSignal.any([this.#over.signal, call.over.signal]);
    try {
      for await (const response of this.#makeCall(this.#requests(call.work, signal), signal)) {
        wake(this.#link.receive(response));
        call.work.ring();
      }
    } catch (error) {
      return fromCallError(error);
    } finally {
      call.over.abort();
      call.work.ring(); // so that the requests end, too
    }
    return new Unavailable(Code.Unavailable, "the server has ended the call");
  }

  async *#requests(work: Bell, signal: AbortSignal): AsyncGenerator<StreamRequest> {
    while (!signal.aborted) {
      const request = this.#link.request();
      if (request !== undefined) {
        yield request;
      } else if (this.#closed || (this.#retired && this.#link.size === 0)) {
        return;
      } else {
        await work.wait();
      }
    }
  }
}

function wake(sessions: Iterable<Session>): void {
  for (const session of sessions) {
    session.wake();
  }
}
