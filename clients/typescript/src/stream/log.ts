/** What a user handed over and the server may not have yet, in order, to be sent again if needed. */
import { BadResponse } from "../errors.js";
import type { Chunk, Sampler } from "./samples.js";

/** `position`: samples before it. */
export type Entry =
  | { readonly kind: "samples"; readonly position: number; readonly chunk: Chunk }
  | { readonly kind: "flush"; readonly position: number; readonly number: number }
  | { readonly kind: "end" };
type Flush = Extract<Entry, { kind: "flush" }>;

/**
 * With `keep`, what was sent stays until `confirm` or `rewind` says that the server has it.
 *
 * A flush may be refused, and what came behind it would then be cut wrongly: nothing is sent until
 * it is answered.
 */
export class Log {
  /** Samples that were handed over. */
  position = 0;
  /** Flushes that were asked for. */
  flushes = 0;
  readonly #sampler: Sampler;
  readonly #keep: boolean;
  #unsent: Entry[] = [];
  #sent: Entry[] = [];
  #inDoubt: Flush | undefined;

  constructor(sampler: Sampler, keep: boolean) {
    this.#sampler = sampler;
    this.#keep = keep;
  }

  add(chunk: Chunk): void {
    this.#unsent.push({ kind: "samples", position: this.position, chunk });
    this.position += chunk.count;
  }

  /** Returns its number, from 1. */
  flush(): number {
    this.flushes += 1;
    this.#unsent.push({ kind: "flush", position: this.position, number: this.flushes });
    return this.flushes;
  }

  end(): void {
    this.#unsent.push({ kind: "end" });
  }

  clear(): void {
    this.#unsent = [];
    this.#sent = [];
    this.#inDoubt = undefined;
  }

  /** What is to be sent next, and counts as sent now. */
  next(): Entry | undefined {
    const entry = this.#inDoubt === undefined ? this.#unsent.shift() : undefined;
    if (entry === undefined) {
      return undefined;
    }
    if (entry.kind === "flush") {
      this.#inDoubt = entry;
    }
    if (this.#keep) {
      this.#sent.push(entry);
    }
    return entry;
  }

  /** The server has the samples before `received`, and so many flushes. */
  confirm(received: number, flushes: number): void {
    while (this.#sent[0] !== undefined && has(this.#sent[0], received, flushes)) {
      this.#sent.shift();
    }
    if (this.#inDoubt !== undefined && this.#inDoubt.number <= flushes) {
      this.#inDoubt = undefined;
    }
  }

  /** The flush that waits for its answer was refused: it comes next again. */
  takeBack(): void {
    if (this.#inDoubt !== undefined) {
      this.#unsent.unshift(this.#inDoubt);
      this.#inDoubt = undefined;
      if (this.#keep) {
        this.#sent.pop();
      }
    }
  }

  /** Everything is to be sent again but what the server has. Throws BadResponse where it misses what
   * it was known to have, or has what it cannot have. */
  rewind(received: number, flushes: number, closing: boolean): void {
    const log = [...this.#sent, ...this.#unsent];
    this.#sent = [];
    this.#inDoubt = undefined;
    while (
      log[0] !== undefined &&
      (has(log[0], received, flushes) || (closing && log[0].kind === "end"))
    ) {
      log.shift();
    }
    let expected = this.position;
    const at = log.findIndex((entry) => entry.kind === "samples");
    const first = log[at];
    if (first?.kind === "samples") {
      expected = first.position;
      const taken = received - first.position;
      if (taken > 0 && taken < first.chunk.count) {
        // The rest of a chunk that was taken in part.
        const chunk = this.#sampler.cut(first.chunk, taken, first.chunk.count - taken);
        log[at] = { kind: "samples", position: received, chunk };
        expected = received;
      }
    }
    this.#unsent = log;
    if (received !== expected) {
      throw new BadResponse(`resumed at sample ${received}, where ${expected} was expected`);
    }
  }
}

/** Whether a server with so much has `entry` too: it takes commands in order. */
function has(entry: Entry, received: number, flushes: number): boolean {
  switch (entry.kind) {
    case "samples":
      return entry.position + entry.chunk.count <= received;
    case "flush":
      return entry.number <= flushes || entry.position < received;
    case "end":
      return false;
  }
}
