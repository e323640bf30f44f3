/**
 * What takes a real server, which is started here, but for the interop cases: tests/interop of the
 * repository runs those.
 *
 * It needs the server's Python: HEADRACE_PYTHON, or .venv of the repository, or python3.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { Client, Tensor, Unavailable, WindowResult } from "../src/index.js";

const REPOSITORY = fileURLToPath(new URL("../../../../", import.meta.url));
const VENV = `${REPOSITORY}.venv/bin/python`;

function startServer() {
  const python = process.env.HEADRACE_PYTHON ?? (existsSync(VENV) ? VENV : "python3");
  return spawn(python, [`${REPOSITORY}tests/interop/serve.py`], {
    stdio: ["pipe", "pipe", "inherit"],
  });
}

type Server = ReturnType<typeof startServer>;

/** From the first line that a server prints. */
async function addressOf(server: Server): Promise<string> {
  for await (const line of createInterface(server.stdout)) {
    const [address] = line.split(" ");
    assert.ok(address, line);
    return address;
  }
  throw new Error("the server has ended before it was up");
}

async function stop(server: Server): Promise<void> {
  const ended = once(server, "exit");
  server.stdin.end();
  assert.deepEqual(await ended, [0, null]);
}

const FRAMING = { window: 1, sampleRate: 1 };

/** Opens a stream, and checks what comes of a sample. */
async function streamOne(client: Client): Promise<void> {
  const stream = await client.stream("double", FRAMING);
  for await (const event of stream.run(Float32Array.of(21))) {
    assert.ok(event instanceof WindowResult);
    assert.deepEqual([...event.get("y", "FP32").data], [42]);
  }
  assert.equal(stream.summary?.windows, 1);
}

describe("against the real server", () => {
  let server: Server;
  let running: string;

  before(async () => {
    server = startServer();
    running = await addressOf(server);
  });

  after(() => stop(server));

  test("the example ends, and with success", { timeout: 60_000 }, async () => {
    // In a process of its own: here other tests keep the event loop alive.
    const program = fileURLToPath(new URL("../examples/calls.js", import.meta.url));
    const example = spawn(process.execPath, [program, running, "double"], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    assert.deepEqual(await once(example, "exit"), [0, null]);
  });

  test("calls go on where one of several servers is gone", { timeout: 60_000 }, async () => {
    const gone = await closedPort();
    const inputs = { x: new Tensor("FP32", [1, 1], Float32Array.of(21)) };
    for (const address of [[gone, running], `dns:///localhost:${portOf(running)}`]) {
      const client = new Client(address, { retry: { maxAttempts: 2 } });
      const asked = Array.from({ length: 20 }, () => client.infer("double", inputs));
      for (const result of await Promise.all(asked)) {
        assert.deepEqual([...result.get("y", "FP32").data], [42]);
      }
      await client.close();
    }
  });

  test("streams find the server that is there", { timeout: 60_000 }, async () => {
    const gone = await closedPort();
    for (let round = 0; round < 8; round++) {
      const client = new Client([gone, running], { retry: { maxAttempts: 2 } });
      await streamOne(client);
      await client.close();
    }
  });

  test("streams go on elsewhere when their server stops", { timeout: 60_000 }, async () => {
    const leaving = startServer();
    const servers = [await addressOf(leaving), running];
    // Some will have their stream on the one that leaves.
    const clients = Array.from({ length: 8 }, () => new Client(servers));
    await Promise.all(clients.map((client) => client.stream("double", FRAMING)));
    await stop(leaving);
    await Promise.all(clients.map((client) => streamOne(client)));
    await Promise.all(clients.map((client) => client.close()));
  });

  test("a name that nobody has", { timeout: 60_000 }, async () => {
    const client = new Client("dns:///nobody.invalid:1", { retry: { maxAttempts: 1 } });
    await assert.rejects(client.serverLive(), Unavailable);
    await assert.rejects(client.stream("double", FRAMING), Unavailable);
    await client.close();
  });
});

function portOf(address: string): string {
  return address.slice(address.lastIndexOf(":") + 1);
}

/** An address where nobody listens any more. */
async function closedPort(): Promise<string> {
  const listener = createServer().listen(0, "127.0.0.1");
  await once(listener, "listening");
  const { port } = listener.address() as AddressInfo;
  listener.close();
  await once(listener, "close");
  return `127.0.0.1:${port}`;
}
