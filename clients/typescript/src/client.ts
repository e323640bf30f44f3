/** The client of an inference server. */
import { setTimeout as sleep } from "node:timers/promises";

import { type CallOptions, type Client as ServiceClient, createClient } from "@connectrpc/connect";

import { Choice, openBalanced, withServerName } from "./balancing.js";
import { type Channel, type ChannelOptions, openChannel } from "./channel.js";
import { fromCallError, type HeadraceError } from "./errors.js";
import {
  GRPCInferenceService,
  type ModelInferRequest,
  type ModelMetadataResponse_TensorMetadata,
  type ModelStatistics,
} from "./gen/headrace/inference/v2/grpc_service_pb.js";
import { SensorStream as SensorStreamService } from "./gen/headrace/stream/v1/stream_pb.js";
import {
  type InferOptions,
  inferRequest,
  type Inputs,
  isRepeatable,
  readResult,
  streamAnswer,
  type StreamRequest,
  streamRequest,
} from "./messages.js";
import type {
  InferResult,
  ModelIndex,
  ModelMetadata,
  ServerMetadata,
  StreamAnswer,
  TensorMetadata,
} from "./results.js";
import { nextWaitMs, type RetryPolicy, retryPolicy } from "./retry.js";
import { type Route, StreamConnections } from "./stream/connections.js";
import type { StreamOptions } from "./stream/options.js";
import { Plan, SensorStream } from "./stream/sensor_stream.js";

export interface ClientOptions {
  readonly channel?: ChannelOptions;
  readonly retry?: Partial<RetryPolicy>;
  /** Metadata of every call. */
  readonly headers?: Headers | Record<string, string>;
  /** Sent with every call as a bearer token: over TLS, unless `tokenInPlainText` of the channel
   * allows it without. */
  readonly token?: string;
}

/** Options of calls that are no inference. */
export type ControlOptions = Pick<InferOptions, "deadlineMs" | "signal">;

// The server is asked for a sign of life this often; servers may refuse less than 10 s.
const STREAM_KEEPALIVE_MS = 20_000;
const NO_RETRY = retryPolicy({ maxAttempts: 1 });

/**
 * A client of one server at "host:port", of several (a list of these), or of all that a name
 * resolves to ("dns:///host:port"): calls then take turns, and leave out who is not there. All
 * calls to a server share a connection, which is made at the first of them; sensor streams have
 * one to themselves, and stay with the server that it was made to. When that one is missing, new
 * streams go to another.
 */
export class Client {
  readonly #options: ClientOptions;
  readonly #retry: RetryPolicy;
  readonly #channel: Channel;
  readonly #service: ServiceClient<typeof GRPCInferenceService>;
  readonly #streams: StreamConnections;

  constructor(address: string | readonly string[] = "127.0.0.1:8001", options: ClientOptions = {}) {
    this.#options = { ...options, headers: withToken(options) };
    this.#retry = retryPolicy(options.retry);
    this.#channel = openBalanced(address, options.channel ?? {});
    this.#service = createClient(GRPCInferenceService, this.#channel.transport);
    const keepaliveMs = options.channel?.keepaliveMs ?? STREAM_KEEPALIVE_MS;
    const channel = withServerName({ ...options.channel, keepaliveMs }, address);
    this.#streams = new StreamConnections(
      new Choice(address),
      (one) => this.#streamRoute(openChannel(one, channel)),
      this.#retry,
    );
  }

  /** Closes the connections and cancels the calls under way. */
  async close(): Promise<void> {
    await this.#streams.close();
    await this.#channel.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /**
   * Runs `model` on `inputs`.
   *
   * Throws the errors of `errors.ts`; the signal's reason where one was given and has fired.
   */
  async infer(model: string, inputs: Inputs, options: InferOptions = {}): Promise<InferResult> {
    const request = inferRequest(model, inputs, options);
    const policy = isRepeatable(request) ? this.#retry : NO_RETRY;
    const response = await this.#call((o) => this.#service.modelInfer(request, o), options, policy);
    return readResult(response);
  }

  /**
   * Sends many requests on one call, as they come, and yields the answers as they complete. A
   * request that fails is an answer like any other. Streams are never retried: which requests were
   * answered, only the caller knows. To leave the loop ends the call.
   */
  async *inferStream(
    requests: Iterable<StreamRequest> | AsyncIterable<StreamRequest>,
    options: Pick<InferOptions, "deadlineMs" | "headers" | "signal"> = {},
  ): AsyncGenerator<StreamAnswer, void, undefined> {
    const left = new AbortController();
    const signal = options.signal ? AbortSignal.any([options.signal, left.signal]) : left.signal;
    const kept: { error?: unknown } = {};
    const callOptions = this.#callOptions({ ...options, signal }, options.deadlineMs);
    try {
      for await (const response of this.#service.modelStreamInfer(
        outgoing(requests, kept),
        callOptions,
      )) {
        yield streamAnswer(response);
      }
    } catch (error) {
      options.signal?.throwIfAborted();
      throw fromCallError(error);
    } finally {
      left.abort();
    }
    if ("error" in kept) {
      throw kept.error;
    }
  }

  /**
   * Opens a sensor stream: a signal sent as it comes, answered window by window (Headrace servers).
   *
   * Throws `ModelNotFound`, `InvalidInput`, `Overloaded` or `Unavailable`.
   */
  async stream(model: string, options: StreamOptions): Promise<SensorStream> {
    return SensorStream.open(this.#streams, new Plan(model, options));
  }

  #streamRoute(channel: Channel): Route {
    const service = createClient(SensorStreamService, channel.transport);
    return {
      makeCall: (requests, signal) =>
        service.stream(requests, this.#callOptions({ signal }, undefined)),
      close: () => channel.close(),
    };
  }

  /** Whether the server says that it is up. Throws `Unavailable` where there is none. */
  async serverLive(options: ControlOptions = {}): Promise<boolean> {
    return (await this.#call((o) => this.#service.serverLive({}, o), options)).live;
  }

  /** Whether the server takes requests: not while it loads and while it drains. */
  async serverReady(options: ControlOptions = {}): Promise<boolean> {
    return (await this.#call((o) => this.#service.serverReady({}, o), options)).ready;
  }

  /** Whether this model (an empty `version`: any of its versions) takes requests. */
  async modelReady(name: string, version = "", options: ControlOptions = {}): Promise<boolean> {
    return (await this.#call((o) => this.#service.modelReady({ name, version }, o), options)).ready;
  }

  /** Name, version and protocol extensions of the server. */
  async serverMetadata(options: ControlOptions = {}): Promise<ServerMetadata> {
    const said = await this.#call((o) => this.#service.serverMetadata({}, o), options);
    return { name: said.name, version: said.version, extensions: said.extensions };
  }

  /** Names, datatypes and shapes of the model's inputs and outputs. */
  async modelMetadata(
    name: string,
    version = "",
    options: ControlOptions = {},
  ): Promise<ModelMetadata> {
    const said = await this.#call(
      (o) => this.#service.modelMetadata({ name, version }, o),
      options,
    );
    return {
      name: said.name,
      versions: said.versions,
      platform: said.platform,
      inputs: said.inputs.map(readMetadata),
      outputs: said.outputs.map(readMetadata),
    };
  }

  /** Counts and times (nanoseconds) per model version; an empty name asks for all. */
  async modelStatistics(
    name = "",
    version = "",
    options: ControlOptions = {},
  ): Promise<ModelStatistics[]> {
    const said = await this.#call(
      (o) => this.#service.modelStatistics({ name, version }, o),
      options,
    );
    return said.modelStats;
  }

  /** The models of the repository; with `ready`, only those that take requests. */
  async repositoryIndex(ready = false, options: ControlOptions = {}): Promise<ModelIndex[]> {
    const said = await this.#call((o) => this.#service.repositoryIndex({ ready }, o), options);
    return said.models.map(({ name, version, state, reason }) => ({
      name,
      version,
      state,
      reason,
    }));
  }

  /** Loads a model of the repository, or loads it anew; returns when it is ready. */
  async loadModel(modelName: string, options: ControlOptions = {}): Promise<void> {
    await this.#call((o) => this.#service.repositoryModelLoad({ modelName }, o), options);
  }

  /** Stops serving a model. */
  async unloadModel(modelName: string, options: ControlOptions = {}): Promise<void> {
    await this.#call((o) => this.#service.repositoryModelUnload({ modelName }, o), options);
  }

  /** Makes a unary call, again and again if it has to be. */
  async #call<T>(
    method: (options: CallOptions) => Promise<T>,
    options: Pick<InferOptions, "deadlineMs" | "headers" | "signal">,
    policy = this.#retry,
  ): Promise<T> {
    const ends = performance.now() + (options.deadlineMs ?? Infinity);
    for (let attempt = 1; ; attempt++) {
      const leftMs = options.deadlineMs === undefined ? undefined : ends - performance.now();
      let wait;
      try {
        return await method(this.#callOptions(options, leftMs));
      } catch (thrown) {
        options.signal?.throwIfAborted();
        const error: HeadraceError = fromCallError(thrown);
        const remainingMs = ends - performance.now();
        wait = nextWaitMs(policy, { error, attempt, remainingMs, random: Math.random() });
        if (wait === undefined) {
          throw error;
        }
      }
      await sleep(wait, undefined, options.signal ? { signal: options.signal } : {});
    }
  }

  #callOptions(
    options: Pick<InferOptions, "headers" | "signal">,
    timeoutMs: number | undefined,
  ): CallOptions {
    const headers = new Headers(this.#options.headers);
    new Headers(options.headers).forEach((value, key) => {
      headers.set(key, value);
    });
    return {
      headers,
      ...(options.signal && { signal: options.signal }),
      // Whole milliseconds, of which 0 would mean that there is no deadline.
      ...(timeoutMs !== undefined && { timeoutMs: Math.max(1, Math.round(timeoutMs)) }),
    };
  }
}

// RFC 6750, b64token.
const TOKEN = /^[A-Za-z0-9\-._~+/]+=*$/;

/** The headers of every call, with the token if there is one. Throws TypeError for a token, or an
 * authorization among the headers, that would go out in plain text unasked, and for what is no
 * token. */
function withToken({ headers, token, channel }: ClientOptions): Headers {
  const merged = new Headers(headers);
  if (token === undefined) {
    if (merged.has("authorization")) {
      expectEncryption("headers: authorization", channel);
    }
    return merged;
  }
  if (!TOKEN.test(token)) {
    throw new TypeError("token: expected letters, digits and -._~+/=, got something else");
  }
  expectEncryption("token", channel);
  merged.set("authorization", `Bearer ${token}`);
  return merged;
}

function expectEncryption(secret: string, channel: ChannelOptions | undefined): void {
  if (channel?.tls === undefined && channel?.tokenInPlainText !== true) {
    throw new TypeError(
      `${secret}: expected channel.tls with it, since others could read it on its way; ` +
        "channel.tokenInPlainText sends it all the same",
    );
  }
}

/** The messages of a stream. What the caller's iterable throws is kept for the caller: it ends the
 * requests, and is thrown after the last answer to those that were sent. */
async function* outgoing(
  requests: Iterable<StreamRequest> | AsyncIterable<StreamRequest>,
  kept: { error?: unknown },
): AsyncGenerator<ModelInferRequest> {
  let position = 0;
  try {
    for await (const request of requests) {
      yield streamRequest(request, position++);
    }
  } catch (error) {
    kept.error = error;
  }
}

function readMetadata(tensor: ModelMetadataResponse_TensorMetadata): TensorMetadata {
  return { name: tensor.name, datatype: tensor.datatype, shape: tensor.shape.map(Number) };
}
