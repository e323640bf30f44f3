/** Where a client's sensor streams go: to one of its servers, to another once that one is missing. */
import type { Choice } from "../balancing.js";
import { fromCallError } from "../errors.js";
import type { RetryPolicy } from "../retry.js";
import { type MakeCall, StreamConnection } from "./connection.js";
import { clientClosed } from "./link.js";

/** The way to one server. */
export interface Route {
  readonly makeCall: MakeCall;
  close(): Promise<void>;
}

export class StreamConnections {
  readonly policy: RetryPolicy;
  readonly #choice: Choice;
  readonly #routeTo: (address: string) => Route;
  /** That of new streams, and those before it whose sessions have not ended. */
  readonly #routes = new Map<StreamConnection, Route>();
  #current: { readonly address: string; readonly connection: StreamConnection } | undefined;
  #choosing: Promise<StreamConnection> | undefined;
  #closed = false;

  constructor(choice: Choice, routeTo: (address: string) => Route, policy: RetryPolicy) {
    this.#choice = choice;
    this.#routeTo = routeTo;
    this.policy = policy;
  }

  /** The connection for a new stream. Throws `Unavailable` where a name cannot be resolved. */
  async get(): Promise<StreamConnection> {
    if (this.#closed) {
      throw clientClosed();
    }
    if (this.#current !== undefined && !this.#current.connection.isMissing) {
      return this.#current.connection;
    }
    this.#choosing ??= this.#choose().finally(() => (this.#choosing = undefined));
    return this.#choosing.catch((error: unknown) => {
      throw fromCallError(error);
    });
  }

  /** Ends every session; the servers are told, if they listen. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#choosing?.catch(() => undefined);
    await Promise.all(
      [...this.#routes].map(async ([connection, route]) => {
        await connection.close();
        await route.close();
      }),
    );
  }

  async #choose(): Promise<StreamConnection> {
    const last = this.#current;
    if (last !== undefined) {
      this.#choice.rest(last.address);
    }
    const address = await this.#choice.next();
    if (address === last?.address) {
      last.connection.refused = false; // there is no other
      return last.connection;
    }
    if (last !== undefined) {
      void this.#retire(last.connection);
    }
    const route = this.#routeTo(address);
    const connection = new StreamConnection(route.makeCall, this.policy);
    this.#routes.set(connection, route);
    this.#current = { address, connection };
    return connection;
  }

  /** Leaves a connection to its sessions: only the server that has them can resume them. */
  async #retire(connection: StreamConnection): Promise<void> {
    await connection.retire();
    const route = this.#routes.get(connection);
    this.#routes.delete(connection);
    await route?.close();
  }
}
