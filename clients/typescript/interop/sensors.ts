/** Interop cases of the TypeScript client: sensor streams. */
import assert from "node:assert/strict";
import { inspect } from "node:util";

import {
  type Client,
  InvalidInput,
  ModelNotFound,
  SessionLost,
  type StreamEvent,
  Tensor,
  WindowResult,
} from "../src/index.js";
import { type Cases, equal, fp32, refused, withClient } from "./cases.js";

const QUICK = { initialBackoffMs: 10, maxBackoffMs: 50 };

function* pieces(signal: Float32Array, size: number): Generator<Float32Array> {
  for (let at = 0; at < signal.length; at += size) {
    yield signal.subarray(at, at + size);
  }
}

/** `count` numbers that look random and are the same every time: a linear congruential sequence. */
function noise(seed: number, count: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

function ramp(first: number, count: number): Float32Array {
  return Float32Array.from({ length: count }, (_, index) => first + index);
}

async function all(events: AsyncIterable<StreamEvent>): Promise<StreamEvent[]> {
  const found: StreamEvent[] = [];
  for await (const event of events) {
    found.push(event);
  }
  return found;
}

/** `events`, none of which is a gap, numbered from 0. */
function results(events: readonly StreamEvent[]): WindowResult[] {
  return events.map((event, index) => {
    assert.ok(event instanceof WindowResult, inspect(event));
    assert.equal(event.window, index);
    return event;
  });
}

/** Outputs y are [1, n], twice these samples. */
function isDoubled(event: WindowResult, samples: Float32Array): void {
  equal(
    event.get("y"),
    fp32(
      [1, samples.length],
      samples.map((sample) => 2 * sample),
    ),
  );
}

/** y = x + 0.5 y, in single precision, from y = 0. */
function checkAccumulated(events: readonly StreamEvent[], signal: Float32Array): void {
  assert.equal(events.length, signal.length);
  let state = 0;
  for (const event of results(events)) {
    state = Math.fround((signal[event.window] ?? NaN) + 0.5 * state);
    equal(event.get("y"), fp32([1, 1], [state]));
  }
}

const ACCUMULATE = { window: 1, sampleRate: 100, layout: "samples" } as const;

async function accumulate(client: Client, signal: Float32Array, size: number): Promise<void> {
  const stream = await client.stream("accumulate", ACCUMULATE);
  checkAccumulated(await all(stream.run(pieces(signal, size))), signal);
}

export const SENSORS: Cases = {
  async sensor_windows(client) {
    const signal = ramp(0, 100);
    const stream = await client.stream("double", { window: 8, hop: 4, sampleRate: 100 });
    const events = await all(stream.run(pieces(signal, 7)));
    assert.equal(events.length, 24);
    for (const event of results(events)) {
      const first = 4 * event.window;
      assert.deepEqual([event.firstSample, event.endSample], [first, first + 8]);
      isDoubled(event, signal.subarray(first, first + 8));
    }
    assert.deepEqual(stream.summary, { samples: 100, windows: 24, answered: 24, dropped: 0 });
  },

  async sensor_context(client) {
    const signal = ramp(1, 12);
    const stream = await client.stream("double", { window: 4, context: 3, sampleRate: 100 });
    const padded = Float32Array.of(0, 0, 0, ...signal);
    const events = results(await all(stream.run([signal])));
    assert.equal(events.length, 3);
    for (const event of events) {
      isDoubled(event, padded.subarray(4 * event.window, 4 * event.window + 7));
    }
  },

  async sensor_flush(client) {
    const signal = ramp(1, 10);
    const stream = await client.stream("double", { window: 4, tail: "pad", sampleRate: 100 });
    await stream.send(signal);
    assert.deepEqual(await stream.flush(), { windows: 3, samples: 10 });
    const events = stream.take();
    await stream.send(signal.subarray(0, 4));
    stream.end();
    events.push(...(await all(stream)));
    const [, , third, fourth, ...more] = results(events);
    assert.ok(third && fourth && more.length === 0);
    assert.equal(third.endSample, 10);
    isDoubled(third, Float32Array.of(9, 10, 0, 0));
    assert.deepEqual([fourth.firstSample, fourth.endSample], [10, 14]);
    isDoubled(fourth, signal.subarray(0, 4));
  },

  async sensor_timestamps(client) {
    const stream = await client.stream("double", { window: 5, sampleRate: 10 });
    const start = 10n ** 12n;
    const half = 500_000_000n;
    await stream.send(new Float32Array(10), { timestampNs: start });
    stream.end();
    const spans = results(await all(stream)).map(({ startNs, endNs }) => [startNs, endNs]);
    assert.deepEqual(spans, [
      [start, start + half],
      [start + half, start + 2n * half],
    ]);
  },

  async sensor_datatype(client) {
    const options = { window: 2, sampleRate: 100, datatype: "INT16" } as const;
    const stream = await client.stream("identity_INT16", options);
    const signal = Int16Array.of(-32768, -1, 0, 32767);
    const [first, second] = results(await all(stream.run([signal])));
    assert.ok(first && second);
    equal(first.get("y"), new Tensor("INT16", [1, 2], signal.slice(0, 2)));
    equal(second.get("y"), new Tensor("INT16", [1, 2], signal.slice(2)));
  },

  async sensor_signals(client) {
    const a = ramp(0, 10);
    const b = new Float32Array(10).fill(1);
    const stream = await client.stream("arithmetic", {
      window: 5,
      sampleRate: 10,
      signals: { a: {}, b: {} },
      outputs: ["difference"],
    });
    const events = results(await all(stream.run([{ b, a }])));
    assert.equal(events.length, 2);
    for (const event of events) {
      assert.deepEqual([...event.outputs.keys()], ["difference"]);
      equal(event.get("difference"), fp32([1, 5], ramp(5 * event.window - 1, 5)));
    }
  },

  async sensor_state(client) {
    await accumulate(client, noise(0, 50), 9);
  },

  async sensor_gaps(client) {
    const signal = ramp(0, 100_000);
    const options = { window: 10, sampleRate: 1000, overload: "latest_only" } as const;
    const stream = await client.stream("double", options);
    let window = 0;
    let dropped = 0;
    for await (const event of stream.run([signal])) {
      if (event.kind === "gap") {
        assert.deepEqual([event.firstWindow, event.reason], [window, "overloaded"]);
        dropped += event.endWindow - event.firstWindow;
        window = event.endWindow;
      } else {
        assert.equal(event.window, window);
        isDoubled(event, signal.subarray(10 * window, 10 * window + 10));
        window += 1;
      }
    }
    assert.ok(dropped > 0);
    const answered = 10_000 - dropped;
    assert.deepEqual(stream.summary, { samples: 100_000, windows: 10_000, answered, dropped });
    assert.equal(window, 10_000);
  },

  async sensor_many(client) {
    const signals = Array.from({ length: 20 }, (_, number) => noise(number, 60));
    await Promise.all(signals.map((signal) => accumulate(client, signal, 11)));
  },

  async sensor_leave(client) {
    const leaving = async () => {
      const stream = await client.stream("double", { window: 4, sampleRate: 100 });
      await stream.send(new Float32Array(40));
      for await (const event of stream) {
        assert.equal(event.kind, "result");
        break;
      }
      stream.leave();
    };
    await Promise.all([accumulate(client, noise(3, 400), 10), leaving()]);
  },

  async sensor_refused(client) {
    const unknown = client.stream("nothing", { window: 4, sampleRate: 1 });
    await refused(unknown, ModelNotFound, "MODEL_NOT_FOUND", "'nothing'");
    const wrong = client.stream("double", { window: 4, sampleRate: 1, datatype: "INT16" });
    const field = "open.signals[0].datatype";
    await refused(wrong, InvalidInput, "INVALID_INPUT", field, "FP32", "INT16");
  },

  async sensor_non_finite(client) {
    const signal = Float32Array.of(1, NaN);
    const strict = await client.stream("double", { window: 2, sampleRate: 1 });
    await assert.rejects(strict.send(signal), /sample 1/);
    await strict.close();
    const stream = await client.stream("double", { window: 2, sampleRate: 1, nonFinite: "allow" });
    const [event] = results(await all(stream.run([signal])));
    assert.deepEqual([...(event?.get("y", "FP32").data ?? [])], [2, NaN]);
  },

  async sensor_resume(_, env) {
    const signal = noise(2, 5000);
    await withClient(env.cutAddress, { retry: QUICK }, async (broken) => {
      const stream = await broken.stream("accumulate", ACCUMULATE);
      const events: StreamEvent[] = [];
      const coming = stream[Symbol.asyncIterator]();
      for (const piece of pieces(signal, 100)) {
        await stream.send(piece);
        // One small message at a time: a larger one than may pass would never arrive.
        for (let left = piece.length; left > 0; left--) {
          const { value } = await coming.next();
          assert.ok(value);
          events.push(value);
        }
      }
      await stream.close();
      checkAccumulated(events, signal);
      assert.ok(stream.resumes > 0);
    });
  },

  async sensor_no_resume(_, env) {
    await withClient(env.cutAddress, { retry: QUICK }, async (broken) => {
      const stream = await broken.stream("double", { window: 100, sampleRate: 1, ttlMs: 0 });
      await assert.rejects(all(stream.run(pieces(new Float32Array(20_000), 100))), SessionLost);
    });
  },
};
