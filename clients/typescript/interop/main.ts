/**
 * The interop cases of clients/interop.md, run by the TypeScript client.
 *
 *     node dist/interop/main.js ADDRESS CUT_ADDRESS [CASE...]
 *     node dist/interop/main.js --list
 */
import { inspect } from "node:util";

import { CALLS } from "./calls.js";
import { type Case, type Cases, type Env, withClient } from "./cases.js";
import { SENSORS } from "./sensors.js";

// A case that waits for what never comes must not keep the others from their turn.
const LONGEST_MS = 60_000;
const CASES: Cases = { ...CALLS, ...SENSORS };

/** What went wrong; empty where it went well. */
async function problemOf(name: string, env: Env): Promise<string> {
  const found: Case | undefined = CASES[name];
  if (found === undefined) {
    return "this client has no such case";
  }
  let timer: NodeJS.Timeout | undefined;
  const hung = new Promise<never>((_, reject) => {
    timer = setTimeout(reject, LONGEST_MS, new Error(`after ${LONGEST_MS} ms it still waited`));
  });
  try {
    await Promise.race([hung, withClient(env.address, {}, (client) => found(client, env))]);
    return "";
  } catch (error) {
    return inspect(error);
  } finally {
    clearTimeout(timer);
  }
}

const [address, cutAddress, ...names] = process.argv.slice(2);
if (address === "--list") {
  process.stdout.write(Object.keys(CASES).join("\n") + "\n");
} else if (address === undefined || cutAddress === undefined) {
  process.stderr.write("usage: main.js ADDRESS CUT_ADDRESS [CASE...] | --list\n");
  process.exitCode = 2;
} else {
  for (const name of names.length > 0 ? names : Object.keys(CASES)) {
    const problem = await problemOf(name, { address, cutAddress });
    process.stdout.write(JSON.stringify({ case: name, problem }) + "\n");
  }
}
