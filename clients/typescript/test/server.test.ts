/**
 * The interop cases, against a real server that is started here.
 *
 * It needs the server's Python: HEADRACE_PYTHON, or .venv of the repository, or python3.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { CALLS } from "../interop/calls.js";
import { type Env, withClient } from "../interop/cases.js";
import { SENSORS } from "../interop/sensors.js";

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
});
