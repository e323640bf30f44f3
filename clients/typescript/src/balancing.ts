/** Calls spread over several servers. */
import { lookup } from "node:dns/promises";

import { Code, ConnectError, type Transport } from "@connectrpc/connect";

import { type Channel, type ChannelOptions, openChannel } from "./channel.js";

const DNS = "dns:///";
/** A server that was not there, or drains, is left alone for so long while there are others. */
export const REST_MS = 1000;
// A name is looked up again after this, or once a server is not there: pods come and go.
const LOOKUP_MS = 30_000;
const LEAST_LOOKUP_MS = 1000;

/** Whose turn it is, of those that do not rest. It touches neither clock nor network. */
export class Rotation {
  #keys: readonly string[];
  #turn = 0;
  readonly #restsUntil = new Map<string, number>();

  constructor(keys: readonly string[]) {
    this.#keys = keys;
  }

  get keys(): readonly string[] {
    return this.#keys;
  }

  /** The next that does not rest; where all do, whoever is to be back first. */
  next(now: number): string {
    let soonest: string | undefined;
    for (let step = 1; step <= this.#keys.length; step++) {
      const at = (this.#turn + step) % this.#keys.length;
      const key = this.#keys[at];
      if (key === undefined) {
        break;
      }
      if (this.#until(key) <= now) {
        this.#turn = at;
        return key;
      }
      if (soonest === undefined || this.#until(key) < this.#until(soonest)) {
        soonest = key;
      }
    }
    if (soonest === undefined) {
      throw new RangeError("addresses: expected at least one");
    }
    return soonest;
  }

  /** `key` was not there at `now`. */
  rest(key: string, now: number): void {
    this.#restsUntil.set(key, now + REST_MS);
  }

  /** Goes on with `keys`; what is known of those that stay is kept. */
  replace(keys: readonly string[]): void {
    this.#keys = keys;
    for (const key of this.#restsUntil.keys()) {
      if (!keys.includes(key)) {
        this.#restsUntil.delete(key);
      }
    }
  }

  #until(key: string): number {
    return this.#restsUntil.get(key) ?? 0;
  }
}

/**
 * A channel to one server ("host:port"), to several (a list), or to all that a name resolves to
 * ("dns:///host:port", as of a headless Kubernetes service): calls take turns.
 *
 * Throws TypeError for an address of another form.
 */
export function openBalanced(
  address: string | readonly string[],
  options: ChannelOptions,
): Channel {
  if (typeof address === "string" && !address.startsWith(DNS)) {
    return openChannel(address, options);
  }
  return new Balanced(address, options);
}

/** Which of the servers a connection is made to that has to stay with its server. */
export class Choice {
  readonly #address: string | readonly string[];
  readonly #rotation = new Rotation([]);

  constructor(address: string | readonly string[]) {
    this.#address = address;
  }

  /** One by chance of those that do not rest. Throws a ConnectError (Unavailable) where a name that
   * was never found cannot be. */
  async next(): Promise<string> {
    this.#rotation.replace(shuffled(await this.#all()));
    return this.#rotation.next(performance.now());
  }

  /** `key` was not there. */
  rest(key: string): void {
    this.#rotation.rest(key, performance.now());
  }

  async #all(): Promise<readonly string[]> {
    if (typeof this.#address !== "string") {
      return this.#address;
    }
    try {
      return await resolve(this.#address);
    } catch (error) {
      if (this.#rotation.keys.length === 0) {
        throw error;
      }
      return this.#rotation.keys;
    }
  }
}

/** Clients that all began with the first would leave nothing to the others. */
function shuffled(keys: readonly string[]): string[] {
  const drawn = keys.map((key) => ({ key, lot: Math.random() }));
  return drawn.sort((one, other) => one.lot - other.lot).map(({ key }) => key);
}

class Balanced implements Channel {
  readonly transport: Transport;
  readonly #name: string | undefined;
  readonly #options: ChannelOptions;
  readonly #channels = new Map<string, Channel>();
  readonly #rotation: Rotation;
  #lookedUp = -Infinity;
  #looking: Promise<void> | undefined;

  constructor(address: string | readonly string[], options: ChannelOptions) {
    this.#options = withServerName(options, address);
    if (typeof address === "string") {
      this.#name = address;
      this.#rotation = new Rotation([]);
    } else {
      if (address.length === 0) {
        throw new TypeError("address: expected at least one host:port, got none");
      }
      this.#rotation = new Rotation(address);
      address.forEach((each) => this.#channel(each)); // throws for what is no address
    }
    this.transport = {
      unary: (...asked) => this.#call((transport) => transport.unary(...asked)),
      stream: (...asked) => this.#call((transport) => transport.stream(...asked)),
    };
  }

  async close(): Promise<void> {
    await Promise.all([...this.#channels.values()].map((channel) => channel.close()));
  }

  async #call<T>(make: (transport: Transport) => Promise<T>): Promise<T> {
    await this.#lookUp(LOOKUP_MS);
    const key = this.#rotation.next(performance.now());
    try {
      return await make(this.#channel(key).transport);
    } catch (error) {
      if (ConnectError.from(error).code === Code.Unavailable) {
        this.#rotation.rest(key, performance.now());
        this.#lookUp(LEAST_LOOKUP_MS).catch(() => undefined); // those that are known will do
      }
      throw error;
    }
  }

  #channel(key: string): Channel {
    let channel = this.#channels.get(key);
    if (channel === undefined) {
      channel = openChannel(key, this.#options);
      this.#channels.set(key, channel);
    }
    return channel;
  }

  /** Learns who there is, unless that is known from the last `ms`. Throws Unavailable where a name
   * that was never found cannot be. */
  async #lookUp(ms: number): Promise<void> {
    if (this.#name === undefined || performance.now() - this.#lookedUp < ms) {
      return;
    }
    this.#looking ??= this.#learn(this.#name).finally(() => (this.#looking = undefined));
    await this.#looking;
  }

  async #learn(name: string): Promise<void> {
    try {
      this.#rotation.replace(await resolve(name));
    } catch (error) {
      if (this.#rotation.keys.length === 0) {
        throw error;
      }
    }
    this.#lookedUp = performance.now();
    for (const [key, channel] of this.#channels) {
      if (!this.#rotation.keys.includes(key)) {
        this.#channels.delete(key);
        void channel.close();
      }
    }
  }
}

/** Throws a ConnectError (Unavailable) where a name cannot be resolved. */
async function resolve(name: string): Promise<string[]> {
  if (!name.startsWith(DNS)) {
    return [name];
  }
  const { host, port } = split(name);
  const found = await lookup(host, { all: true }).catch((error: unknown) => {
    throw new ConnectError(String(error), Code.Unavailable, undefined, undefined, error);
  });
  return found.map(({ address, family }) => (family === 6 ? `[${address}]` : address) + `:${port}`);
}

function split(name: string): { host: string; port: string } {
  const match = /^dns:\/\/\/([^/:]+):(\d+)$/.exec(name);
  if (match?.[1] === undefined || match[2] === undefined) {
    throw new TypeError(`address: expected dns:///host:port, got ${name}`);
  }
  return { host: match[1], port: match[2] };
}

/** A certificate has the name that was looked up, not the address that was found. */
export function withServerName(
  options: ChannelOptions,
  address: string | readonly string[],
): ChannelOptions {
  if (typeof address !== "string" || !address.startsWith(DNS)) {
    return options;
  }
  const { host } = split(address);
  const { tls } = options;
  return tls === undefined || tls.serverName !== undefined
    ? options
    : { ...options, tls: { ...tls, serverName: host } };
}
