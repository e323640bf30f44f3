/**
 * The interop cases, against a real server that is started here.
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

import { CALLS } from "../interop/calls.js";
import { type Env, withClient } from "../interop/cases.js";
import { SENSORS } from "../interop/sensors.js";
import { Client, Tensor, Unavailable } from "../src/index.js";

const REPOSITORY = fileURLToPath(new URL("../../../../", import.meta.url));
const VENV = `${REPOSITORY}.venv/bin/python`;

function startServer() {
  const python = process.env.HEADRACE_PYTHON ?? (existsSync(VENV) ? VENV : "python3");
  return spawn(python, [`${REPOSITORY}tests/interop/serve.py`], {
    stdio: ["pipe", "pipe", "inherit"],
  });
}

/** The first line that a server prints. */
async function addresses(server: ReturnType<typeof startServer>): Promise<Env> {
  for await (const line of createInterface(server.stdout)) {
    const [address, cutAddress] = line.split(" ");
    assert.ok(address && cutAddress, line);
    return { address, cutAddress };
  }
  throw new Error("the server has ended before it was up");
}

describe("against the real server", () => {
  let server: ReturnType<typeof startServer>;
  let env: Env;

  before(async () => {
    server = startServer();
    env = await addresses(server);
  });

  after(async () => {
    const ended = new Promise((resolve) => server.once("exit", resolve));
    server.stdin.end();
    assert.equal(await ended, 0);
  });

  for (const [name, run] of Object.entries({ ...CALLS, ...SENSORS })) {
    test(name, { timeout: 60_000 }, () =>
      withClient(env.address, {}, (client) => run(client, env)),
    );
  }

  test("calls go on where one of several servers is gone", { timeout: 60_000 }, async () => {
    const gone = await closedPort();
    const inputs = { x: new Tensor("FP32", [1, 1], Float32Array.of(21)) };
    for (const address of [[gone, env.address], `dns:///localhost:${portOf(env.address)}`]) {
      const client = new Client(address, { retry: { maxAttempts: 2 } });
      const asked = Array.from({ length: 20 }, () => client.infer("double", inputs));
      for (const result of await Promise.all(asked)) {
        assert.deepEqual([...result.get("y", "FP32").data], [42]);
      }
      await client.close();
    }
  });

  test("a name that nobody has", { timeout: 60_000 }, async () => {
    const client = new Client("dns:///nobody.invalid:1", { retry: { maxAttempts: 1 } });
    await assert.rejects(client.serverLive(), Unavailable);
    await assert.rejects(client.stream("double", { window: 1, sampleRate: 1 }), Unavailable);
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
