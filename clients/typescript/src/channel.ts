/** How a client is connected. */
import { once } from "node:events";
import type { Http2Session } from "node:http2";

import type { Transport } from "@connectrpc/connect";
import { createNodeHttpClient, Http2SessionManager } from "@connectrpc/connect-node";
import { createTransport } from "@connectrpc/connect/protocol-grpc";

/** An encrypted connection. PEM data, as text or bytes. */
export interface TLS {
  /** Replaces Node's own root certificates. */
  readonly rootCertificates?: string | Buffer;
  /** With `clientCertificate`, for a server that asks its clients for one (mTLS). */
  readonly clientKey?: string | Buffer;
  readonly clientCertificate?: string | Buffer;
  /** The name expected in the server's certificate when it is not that of the address. */
  readonly serverName?: string;
}

/** Options of a connection. The defaults suit a server on the same machine. */
export interface ChannelOptions {
  /** Encrypt; without, plain text is sent. */
  readonly tls?: TLS;
  /** Ping an open call this often, so that a long stream with pauses outlives the idle limits of
   * proxies. A server may refuse pings that come more often than it allows: Headrace does below
   * 10 s, other gRPC servers below 300 s. */
  readonly keepaliveMs?: number;
  /** Send a token even without TLS, where whoever is on the way can read it: to a server on the same
   * machine, or where something else encrypts. */
  readonly tokenInPlainText?: boolean;
}

/** One HTTP/2 connection, made at the first call and made again when it has broken. */
export interface Channel {
  readonly transport: Transport;
  /** Ends the connection, and every call on it. */
  close(): Promise<void>;
}

// Bytes of one answer that may be under way: HTTP/2's own 64 KiB would halt a large tensor at each
// round trip.
const WINDOW = 8 << 20;

// Written at a time. Where a server refuses a message before it has come whole, Node loses the
// server's answer if one large write is still under way, and the call would wait for ever.
const PIECE = 64 << 10;
const LARGEST_MESSAGE = 2 ** 32 - 1;

// For calls whose answer has come to be done with, when a connection is closed.
const FAREWELL_MS = 100;

/** It remembers its connection, to end it in peace: `abort` by itself tells the server of an error. */
class Connection extends Http2SessionManager {
  #session: Http2Session | undefined;

  override async request(...asked: Parameters<Http2SessionManager["request"]>) {
    const stream = await super.request(...asked);
    this.#session = stream.session;
    return stream;
  }

  async close(): Promise<void> {
    const session = this.#session;
    if (session !== undefined && !session.destroyed) {
      // A timer of its own: nothing else might keep the process alive for so long, and one that ends
      // while it waits says that it has failed.
      const late = new AbortController();
      const timer = setTimeout(() => {
        late.abort();
      }, FAREWELL_MS);
      const closed = once(session, "close", { signal: late.signal }).catch(() => undefined);
      session.close();
      await closed;
      clearTimeout(timer);
    }
    this.abort();
  }
}

/** Throws TypeError for an address that is not "host:port". */
export function openChannel(address: string, options: ChannelOptions): Channel {
  const { tls, keepaliveMs } = options;
  const url = `${tls ? "https" : "http"}://${address}`;
  if (!URL.canParse(url) || new URL(url).host === "" || address.includes("/")) {
    throw new TypeError(`address: expected host:port, got ${address}`);
  }
  const connection = new Connection(
    url,
    keepaliveMs === undefined ? {} : { pingIntervalMs: keepaliveMs, pingTimeoutMs: 10_000 },
    { settings: { initialWindowSize: WINDOW }, ...tlsOptions(tls) },
  );
  const http = createNodeHttpClient({ httpVersion: "2", sessionProvider: () => connection });
  const transport = createTransport({
    baseUrl: url,
    httpClient: ({ body, ...request }) =>
      http(body === undefined ? request : { ...request, body: inPieces(body) }),
    useBinaryFormat: true,
    interceptors: [],
    // Tensors rarely repay compression.
    acceptCompression: [],
    sendCompression: null,
    compressMinBytes: 1024,
    readMaxBytes: LARGEST_MESSAGE,
    writeMaxBytes: LARGEST_MESSAGE,
  });
  return { transport, close: () => connection.close() };
}

async function* inPieces(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const bytes of body) {
    for (let at = 0; at < bytes.length; at += PIECE) {
      yield bytes.subarray(at, at + PIECE);
    }
  }
}

function tlsOptions(tls: TLS | undefined) {
  return {
    ...(tls?.rootCertificates !== undefined && { ca: tls.rootCertificates }),
    ...(tls?.clientKey !== undefined && { key: tls.clientKey }),
    ...(tls?.clientCertificate !== undefined && { cert: tls.clientCertificate }),
    ...(tls?.serverName !== undefined && { servername: tls.serverName }),
  };
}
