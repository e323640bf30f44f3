/** All sessions of a client on one call: which message to send next, and whom each event is for.
 * Synchronous, like `session.ts`: `connection.ts` owns the call, the clock and the waiting. */
import { create } from "@bufbuild/protobuf";

import { Cancelled, Code, type HeadraceError } from "../errors.js";
import {
  CommandSchema,
  type StreamRequest,
  StreamRequestSchema,
  type StreamResponse,
} from "../gen/headrace/stream/v1/stream_pb.js";
import { backoffMs, type RetryPolicy } from "../retry.js";
import type { Command, Session } from "./session.js";

// Bytes of one message, about: a session adds its share whole.
const MESSAGE = 256 << 10;
// A call that ended so will not end better when it is made again.
const FINAL = new Set([
  Code.Unimplemented,
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.InvalidArgument,
  Code.NotFound,
]);

/** A session keeps its handle from call to call; none is used twice. */
export class StreamLink {
  /** Whether there is a call. */
  connected = false;
  /** Calls that ended since a server last answered. */
  failures = 0;
  readonly #policy: RetryPolicy;
  readonly #sessions = new Map<number, Session>();
  readonly #handles = new Map<Session, number>();
  readonly #touched = new Set<Session>();
  #lastHandle = 0;

  constructor(policy: RetryPolicy) {
    this.#policy = policy;
  }

  get size(): number {
    return this.#sessions.size;
  }

  add(session: Session): void {
    const handle = ++this.#lastHandle;
    this.#sessions.set(handle, session);
    this.#handles.set(session, handle);
    this.touch(session);
  }

  /** `session` may have something to send. */
  touch(session: Session): void {
    if (this.#handles.has(session)) {
      this.#touched.add(session);
    }
  }

  /** A new call has begun: every session opens or resumes on it. */
  connect(): void {
    this.connected = true;
    for (const session of this.#handles.keys()) {
      this.#touched.add(session);
    }
  }

  /** The next message to send; undefined while there is nothing to say. */
  request(): StreamRequest | undefined {
    const request = create(StreamRequestSchema);
    let room = this.connected ? MESSAGE : 0;
    for (const session of this.#touched) {
      if (room <= 0) {
        break;
      }
      this.#touched.delete(session);
      const handle = this.#handles.get(session) ?? 0;
      const { commands, more } = commandsOf(session);
      for (const command of commands) {
        request.commands.push(create(CommandSchema, { handle, command }));
        room -= sizeOf(command);
      }
      if (session.phase === "ended") {
        this.#remove(session);
      } else if (more) {
        this.#touched.add(session); // behind all others
      }
    }
    return request.commands.length > 0 ? request : undefined;
  }

  /** Hands every event to its session. Returns those that had some. */
  receive(response: StreamResponse): Set<Session> {
    this.failures = 0;
    const changed = new Set<Session>();
    for (const event of response.events) {
      const session = this.#sessions.get(event.handle);
      if (session === undefined) {
        continue; // the last words to a session that was given up
      }
      session.receive(event);
      changed.add(session);
      if (session.phase === "ended") {
        this.#remove(session);
      } else if (session.phase !== "detached") {
        this.#touched.add(session); // one that is waits for another call
      }
    }
    return changed;
  }

  /** The call has ended with `error`. Returns the sessions that ended with it, and how long to wait
   * before another call is made for the rest. */
  lose(error: HeadraceError, nowMs: number): { ended: Session[]; waitMs: number } {
    this.connected = false;
    this.#touched.clear();
    this.failures += 1;
    const ended: Session[] = [];
    for (const session of [...this.#handles.keys()]) {
      session.detach(error, nowMs, FINAL.has(error.code));
      if (session.phase === "ended") {
        this.#remove(session);
        ended.push(session);
      }
    }
    return { ended, waitMs: backoffMs(this.#policy, this.failures, Math.random()) };
  }

  /** Gives every session up, and returns them; what closes them on the server is still to be sent. */
  close(): Session[] {
    const givenUp = [...this.#handles.keys()];
    for (const session of givenUp) {
      session.leave(clientClosed());
      this.touch(session);
      if (session.phase === "ended") {
        this.#remove(session);
      }
    }
    return givenUp;
  }

  #remove(session: Session): void {
    this.#touched.delete(session);
    this.#sessions.delete(this.#handles.get(session) ?? 0);
    this.#handles.delete(session);
  }
}

function commandsOf(session: Session): { commands: Command[]; more: boolean } {
  return session.phase === "new" || session.phase === "detached"
    ? { commands: session.attach(), more: false }
    : session.commands();
}

function sizeOf(command: Command): number {
  const data = command.case === "chunk" ? (command.value.data ?? []) : [];
  return data.reduce((sum, bytes) => sum + bytes.length, 32);
}

/** What ends the streams of a client that is closed. */
export function clientClosed(): Cancelled {
  return new Cancelled(Code.Canceled, "the client was closed");
}
