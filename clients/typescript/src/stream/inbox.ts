/** What has come and was not taken yet, and how much of what has come was acknowledged. */
import { BadResponse } from "../errors.js";
import type { StreamEvent } from "./results.js";

// Acknowledged this many times within what may be outstanding, and for so many bytes of results, of
// which servers do not keep any number either: seldom, and never too late.
const ACKS = 8;
const ACK_BYTES = 256 << 10;

/** Deliveries are numbered from 1. */
export class Inbox {
  /** The last delivery that came in order. */
  delivered = 0;
  /** The last one that the server was told to have come. */
  acked = 0;
  readonly #maxUnread: number;
  #bytes = 0; // that were delivered, and not acknowledged
  #unread: StreamEvent[] = [];
  #reading = false;
  #discarding = false;

  /** maxUnread: how many may wait to be taken before no more are acknowledged. */
  constructor(maxUnread: number) {
    this.#maxUnread = maxUnread;
  }

  /** Whether this one is new. Throws BadResponse where one before it is missing. */
  count(delivery: number, bytes: number): boolean {
    if (delivery > this.delivered + 1) {
      throw new BadResponse(`delivery ${delivery} came after ${this.delivered}`);
    }
    if (delivery <= this.delivered) {
      return false;
    }
    this.delivered = delivery;
    this.#bytes += bytes;
    return true;
  }

  put(event: StreamEvent): void {
    if (!this.#discarding) {
      this.#unread.push(event);
    }
  }

  take(): StreamEvent[] {
    this.#reading = true;
    return this.#unread.splice(0);
  }

  next(): StreamEvent | undefined {
    this.#reading = true;
    return this.#unread.shift();
  }

  /** Nobody will take what comes from now on, nor, if `unread`, what has come. */
  discard(unread: boolean): void {
    this.#discarding = true;
    if (unread) {
      this.#unread = [];
    }
  }

  /** Whether results have to be taken first. Throws where nobody ever did: most likely the one who
   * would is waiting right here. */
  isFull(): boolean {
    if (this.#unread.length < this.#maxUnread) {
      return false;
    }
    if (!this.#reading) {
      throw new Error(
        `${this.#unread.length} results wait and none was taken: take them while sending, with run() ` +
          "or take(), or in a loop of their own; or raise maxUnread",
      );
    }
    return true;
  }

  /** What to acknowledge now, if anything. last: nothing will follow. */
  ack(maxOutstanding: number, last: boolean): number | undefined {
    const count = this.delivered - this.acked;
    const few = count < Math.max(1, Math.floor(maxOutstanding / ACKS)) && this.#bytes < ACK_BYTES;
    const waits = few || this.#unread.length >= this.#maxUnread;
    if (count === 0 || (waits && !last)) {
      return undefined;
    }
    this.acknowledged();
    return this.acked;
  }

  /** The server is told that all that was delivered has come. */
  acknowledged(): void {
    this.acked = this.delivered;
    this.#bytes = 0;
  }
}
