/** The session's state machine, without a connection. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";

import { Choice } from "../src/balancing.js";
import { BadResponse, Code, HeadraceError, SessionLost, Unavailable } from "../src/errors.js";
import {
  EventSchema,
  type StreamRequest,
  type StreamResponse,
  StreamResponseSchema,
} from "../src/gen/headrace/stream/v1/stream_pb.js";
import { retryPolicy } from "../src/retry.js";
import { type Route, StreamConnections } from "../src/stream/connections.js";
import { StreamLink } from "../src/stream/link.js";
import { opening, type StreamOptions } from "../src/stream/options.js";
import { Sampler } from "../src/stream/samples.js";
import type { Command, Session } from "../src/stream/session.js";
import { Plan, SensorStream } from "../src/stream/sensor_stream.js";

const FRAMING = { window: 4, sampleRate: 100 };
const BROKEN = new Unavailable(Code.Unavailable, "broken");

type EventInit = MessageInitShape<typeof EventSchema>["event"];

function receive(session: Session, event: EventInit, delivery = 0): void {
  session.receive(
    create(EventSchema, { event: event ?? { case: undefined }, delivery: BigInt(delivery) }),
  );
}

function opened(options: Partial<StreamOptions> = {}): Session {
  const session = new Plan("m", { ...FRAMING, ...options }).session();
  session.attach();
  receive(session, {
    case: "opened",
    value: { upToSample: 100n, largestChunk: 50n, maxOutstanding: 16 },
  });
  return session;
}

const SAMPLER = new Sampler({ "": {} }, "refuse");

function put(session: Session, first: number, count: number): void {
  const values = Float32Array.from({ length: count }, (_, index) => first + index);
  session.put(SAMPLER.cut(SAMPLER.read(values), 0, count));
}

/** What is sent: [sequence, first value, samples] for a chunk, the name for another command. */
function sent(session: Session): unknown[] {
  return session.commands().commands.map((command: Command) => {
    if (command.case !== "chunk") {
      return command.case;
    }
    const [bytes] = command.value.data ?? [];
    assert.ok(bytes);
    const values = new Float32Array(bytes.slice().buffer);
    return [Number(command.value.sequence), values[0], values.length];
  });
}

test("what the server may not have is sent again, cut where it has a part", () => {
  const session = opened();
  put(session, 0, 10);
  put(session, 10, 10);
  assert.deepEqual(sent(session), [
    [0, 0, 10],
    [10, 10, 10],
  ]);
  session.detach(BROKEN, 0, false);
  put(session, 20, 5);
  assert.equal(session.attach()[0]?.case, "resume");
  receive(session, { case: "resumed", value: { nextSequence: 14n, upToSample: 114n } });
  assert.deepEqual(sent(session), [
    [14, 14, 6],
    [20, 20, 5],
  ]);
  assert.equal(session.resumes, 1);
});

test("credit and results confirm what need not be kept", () => {
  const session = opened();
  put(session, 0, 8);
  put(session, 8, 8);
  sent(session);
  receive(session, { case: "credit", value: { upToSample: 108n } });
  session.detach(BROKEN, 0, false);
  session.attach();
  receive(session, { case: "resumed", value: { nextSequence: 4n, upToSample: 104n } });
  assert.throws(
    () => session.room(),
    BadResponse,
    "the server has forgotten what it had confirmed",
  );
});

test("a delivery that comes again is dropped, and one that jumps is a bad response", () => {
  const session = opened();
  receive(session, { case: "gap", value: { endWindow: 1n } }, 1);
  receive(session, { case: "gap", value: { endWindow: 1n } }, 1);
  assert.equal(session.take().length, 1);
  receive(session, { case: "gap", value: {} }, 3);
  assert.throws(() => session.read(), /delivery 3 came after 1/);
});

test("a flush that is refused comes again, and nothing overtakes it", () => {
  const session = opened();
  put(session, 0, 4);
  session.flush();
  put(session, 4, 4);
  assert.deepEqual(sent(session), [[0, 0, 4], "flush"]);
  receive(session, { case: "error", value: { code: 8, reason: "TOO_MANY_FLUSHES" } });
  assert.deepEqual(sent(session), []);
  receive(session, { case: "gap", value: {} }, 1);
  assert.deepEqual(sent(session), ["flush"]);
  receive(session, { case: "flushed", value: { windows: 1n, samples: 4n } }, 2);
  assert.deepEqual(session.flushed(1), { windows: 1, samples: 4 });
  assert.deepEqual(sent(session), ["ack", [4, 4, 4]]);
});

test("acknowledged is every few deliveries, and the last one", () => {
  const session = opened();
  receive(session, { case: "gap", value: {} }, 1);
  assert.deepEqual(sent(session), []);
  receive(session, { case: "gap", value: {} }, 2);
  assert.deepEqual(sent(session), ["ack"]);
  receive(session, { case: "closed", value: { windows: 2n, dropped: 2n } }, 3);
  assert.deepEqual(sent(session), ["ack"]);
  assert.equal(session.phase, "ended");
});

test("the time to live bounds how long a session waits for a connection", () => {
  const session = opened({ ttlMs: 30_000 });
  session.detach(BROKEN, 1_000, false);
  session.detach(BROKEN, 30_999, false);
  assert.equal(session.phase, "detached");
  session.detach(BROKEN, 31_000, false);
  assert.throws(() => session.read(), SessionLost);
});

test("some ends of a call are final", () => {
  const link = new StreamLink(retryPolicy());
  const session = new Plan("m", FRAMING).session();
  link.add(session);
  link.connect();
  assert.equal(link.request()?.commands[0]?.command.case, "open");
  receive(session, { case: "opened", value: { upToSample: 1n, largestChunk: 1n } });
  const { ended } = link.lose(new HeadraceError(Code.Unimplemented, "never"), 0);
  assert.deepEqual([ended, link.size], [[session], 0]);
});

test("results that nobody takes are an error, not a wait for ever", () => {
  const session = opened({ maxUnread: 1 });
  receive(session, { case: "gap", value: {} }, 1);
  assert.throws(() => session.room(), /1 results wait and none was taken/);
  session.take();
  receive(session, { case: "gap", value: {} }, 2);
  assert.equal(session.room(), 0);
});

test("one session with much to send does not keep the others waiting", () => {
  const link = new StreamLink(retryPolicy());
  const sessions = [opened(), opened()];
  for (const session of sessions) {
    link.add(session);
  }
  link.connect();
  const [greedy, modest] = sessions;
  assert.ok(greedy && modest);
  for (let at = 0; at < 40; at++) {
    put(greedy, at * 10_000, 10_000);
  }
  put(modest, 0, 1);
  const handles = new Set(link.request()?.commands.map(({ handle }) => handle));
  assert.deepEqual(handles, new Set([1, 2]));
});

test("samples that do not fit say why", () => {
  const two = new Sampler({ a: { channels: 2 }, b: {} }, "refuse");
  const a = new Float32Array(4);
  assert.throws(() => two.read(a), /expected arrays for a, b, got one Float32Array/);
  assert.throws(() => two.read({ a }), /expected samples of a, b, got a/);
  assert.throws(
    () => two.read({ a, b: new Float32Array(3) }),
    /equally many samples of a, b, got 2, 3/,
  );
  assert.throws(
    () => two.read({ a: new Float32Array(3), b: a }),
    /signal a: expected values for 2 channels/,
  );
  assert.throws(
    () => SAMPLER.read(new Int16Array(2)),
    /samples: FP32 takes a Float32Array, got Int16Array/,
  );
  assert.throws(() => SAMPLER.read(Float32Array.of(0, Infinity)), /in sample 1, channel 0/);
  const bf16 = new Sampler({ "": { datatype: "BF16" } }, "refuse");
  assert.throws(() => bf16.read(Uint16Array.of(0x3f80, 0x7f80)), /in sample 1/);
});

test("options that make no sense say why", () => {
  const cases: [Partial<StreamOptions>, RegExp][] = [
    [{ window: 0 }, /window: expected a whole number from 1/],
    [{ sampleRate: 0 }, /sampleRate: expected more than 0, got 0/],
    [{ ttlMs: NaN }, /ttlMs: expected 0 or more, got NaN/],
    [{ tail: "cut" as never }, /tail: expected drop, pad, short, got cut/],
    [{ signals: {} }, /signals: expected at least one/],
  ];
  for (const [options, expected] of cases) {
    assert.throws(() => opening("m", { ...FRAMING, ...options }), expected);
  }
});

test("a stream that is opened as the last one fails finds a connection", async () => {
  let calls = 0;
  const route: Route = {
    makeCall: async function* () {
      calls += 1;
      await Promise.resolve();
      yield* [];
      throw new ConnectError("no", Code.Unimplemented);
    },
    close: () => Promise.resolve(),
  };
  const connections = new StreamConnections(new Choice("a"), () => route, retryPolicy());
  const open = () => SensorStream.open(connections, new Plan("m", FRAMING));
  await assert.rejects(open(), { code: Code.Unimplemented });
  await assert.rejects(open(), { code: Code.Unimplemented });
  assert.equal(calls, 2);
  await connections.close();
  await assert.rejects(open(), /the client was closed/);
});

const ANSWERS: Record<string, EventInit> = {
  open: {
    case: "opened",
    value: { upToSample: 100n, largestChunk: 50n, maxOutstanding: 16 },
  },
  resume: { case: "resumed", value: { upToSample: 100n } },
  close: { case: "closed", value: {} },
};

/** A server without a network. */
class FakeServer implements Route {
  /** The commands that came. */
  readonly heard: string[] = [];
  /** How many connections to it were closed. */
  closed = 0;
  /** Instead of opening sessions. */
  refusal: EventInit;
  #up = true;
  #breakCall: () => void = () => undefined;

  start(): void {
    this.#up = true;
  }

  stop(): void {
    this.#up = false;
    this.#breakCall();
  }

  close(): Promise<void> {
    this.closed += 1;
    return Promise.resolve();
  }

  async *makeCall(requests: AsyncIterable<StreamRequest>): AsyncGenerator<StreamResponse> {
    const broken = new Promise<never>((_, reject) => {
      this.#breakCall = () => {
        reject(new ConnectError("no connection", Code.Unavailable));
      };
    });
    if (!this.#up) {
      this.#breakCall();
    }
    const incoming = requests[Symbol.asyncIterator]();
    for (;;) {
      const next = await Promise.race([broken, incoming.next()]);
      if (next.done === true) {
        return;
      }
      yield this.#answer(next.value);
    }
  }

  #answer({ commands }: StreamRequest): StreamResponse {
    const events = commands.map(({ handle, command }) => {
      const name = command.case ?? "";
      this.heard.push(name);
      const told = name === "open" ? (this.refusal ?? ANSWERS.open) : ANSWERS[name];
      const delivery = name === "close" ? 1n : 0n;
      return { handle, delivery, event: told ?? { case: undefined } };
    });
    return create(StreamResponseSchema, { events });
  }
}

/** Two servers, and how a stream is opened on one of them. */
function twoServers() {
  const [a, b] = [new FakeServer(), new FakeServer()];
  const policy = retryPolicy({ maxAttempts: 2, initialBackoffMs: 1, maxBackoffMs: 5 });
  const connections = new StreamConnections(
    new Choice(["a", "b"]),
    (address) => {
      const server = address === "a" ? a : b;
      return { makeCall: (requests) => server.makeCall(requests), close: () => server.close() };
    },
    policy,
  );
  return {
    a,
    b,
    connections,
    open: () => SensorStream.open(connections, new Plan("m", FRAMING)),
    /** The one that has been asked to open a session, and the other. */
    homeFirst: (): [FakeServer, FakeServer] => (a.heard.includes("open") ? [a, b] : [b, a]),
  };
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) {
    await sleep(1);
  }
}

const SOON = { timeout: 10_000 };

test("streams find the server that is there", SOON, async () => {
  for (let round = 0; round < 10; round++) {
    const { a, b, connections, open } = twoServers();
    a.stop();
    await Promise.all([open(), open(), open()]);
    assert.deepEqual(b.heard, ["open", "open", "open"]);
    await connections.close();
  }
});

test("new streams leave a server that is gone, and it is let go of", SOON, async () => {
  const { connections, open, homeFirst } = twoServers();
  const first = await open();
  const [home, other] = homeFirst();
  first.leave();
  await until(() => home.heard.includes("close"));
  home.stop();
  await open();
  assert.deepEqual(other.heard, ["open"]);
  await until(() => home.closed === 1);
  await connections.close();
  assert.deepEqual([home.closed, other.closed], [1, 1]);
});

test("a stream that was opened resumes where its state is", SOON, async () => {
  const { connections, open, homeFirst } = twoServers();
  const first = await open();
  const [home, other] = homeFirst();
  home.stop();
  await open();
  assert.equal(home.closed, 0);
  home.start();
  await until(() => first.resumes === 1);
  assert.deepEqual([home.heard.at(-1), other.heard], ["resume", ["open"]]);
  await open();
  assert.deepEqual(other.heard, ["open", "open"]);
  first.leave();
  await until(() => home.closed === 1); // with its last session
  await connections.close();
});

test("new streams leave a server that drains, and others stay on it", SOON, async () => {
  const { connections, open, homeFirst } = twoServers();
  const first = await open();
  const [home, other] = homeFirst();
  home.refusal = {
    case: "error",
    value: { code: Code.Unavailable, reason: "DRAINING", ended: true },
  };
  await open();
  assert.deepEqual([home.heard, other.heard], [["open", "open"], ["open"]]);
  await first.close();
  assert.equal(first.resumes, 0);
  await connections.close();
});

test("where there is one server, it is tried again and keeps its streams", SOON, async () => {
  const server = new FakeServer();
  const connections = new StreamConnections(
    new Choice("a"),
    () => ({ makeCall: (requests) => server.makeCall(requests), close: () => server.close() }),
    retryPolicy({ maxAttempts: 1, initialBackoffMs: 1, maxBackoffMs: 5 }),
  );
  const open = () => SensorStream.open(connections, new Plan("m", FRAMING));
  const first = await open();
  server.stop();
  await assert.rejects(open(), Unavailable);
  server.start();
  await until(() => first.resumes === 1);
  await open();
  assert.deepEqual([server.heard.at(-1), server.closed], ["open", 0]);
  await connections.close();
  assert.equal(server.closed, 1);
});
