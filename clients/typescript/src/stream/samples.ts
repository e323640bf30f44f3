/** From arrays of samples to the bytes of chunks. */
import {
  bytesOf,
  checkKind,
  type Elements,
  type FixedDatatype,
  itemSize,
  kindOf,
} from "../tensors.js";
import type { NonFinite, Signal } from "./options.js";

export type SampleArray = Elements[FixedDatatype];

/** What is accepted as samples: an array of them, sample after sample with all its channels; where
 * the stream has `signals`, one such array for each, equally many samples of each. */
export type Samples = SampleArray | Readonly<Record<string, SampleArray>>;

// A chunk's bytes, about: so that no session keeps its neighbours on the same call waiting.
const CHUNK_BYTES = 128 << 10;

/** For each signal the bytes of its samples, as they travel. */
export interface Chunk {
  readonly data: readonly Uint8Array[];
  readonly count: number;
  /** Of the first sample. */
  readonly timestampNs?: bigint | undefined;
}

interface Format {
  readonly name: string;
  readonly datatype: FixedDatatype;
  /** Bytes of one sample with all its channels. */
  readonly width: number;
  readonly channels: number;
}

/** Reads what a user sends. */
export class Sampler {
  /** Samples of a chunk, at most. */
  readonly longest: number;
  readonly #formats: readonly Format[];
  readonly #finite: boolean;

  constructor(signals: Readonly<Record<string, Signal>>, nonFinite: NonFinite) {
    this.#formats = Object.entries(signals).map(([name, { datatype = "FP32", channels = 1 }]) => ({
      name,
      datatype,
      channels,
      width: itemSize(datatype) * channels,
    }));
    this.#finite = nonFinite === "refuse";
    const width = this.#formats.reduce((sum, format) => sum + format.width, 0);
    this.longest = Math.max(1, Math.floor(CHUNK_BYTES / width));
  }

  /** All samples as one chunk of any length, in the user's own memory. Throws TypeError and
   * RangeError naming the signal, what was expected and what came. */
  read(samples: Samples, timestampNs?: bigint): Chunk {
    const pairs = this.#pairs(samples);
    const counts = pairs.map(([format, array]) => this.#count(format, array));
    const count = counts[0] ?? 0;
    if (counts.some((other) => other !== count)) {
      throw new RangeError(
        `expected equally many samples of ${this.#names()}, got ${counts.join(", ")}`,
      );
    }
    return { data: pairs.map(([, array]) => bytesOf(array)), count, timestampNs };
  }

  /** Each signal and its array. */
  #pairs(samples: Samples): [Format, SampleArray][] {
    if (ArrayBuffer.isView(samples)) {
      if (this.#formats.length > 1) {
        throw new TypeError(`expected arrays for ${this.#names()}, got one ${kindOf(samples)}`);
      }
      return this.#formats.map((format) => [format, samples]);
    }
    const given = Object.keys(samples);
    const pairs = this.#formats.flatMap((format): [Format, SampleArray][] => {
      const array = samples[format.name];
      return array === undefined ? [] : [[format, array]];
    });
    if (pairs.length !== this.#formats.length || given.length !== pairs.length) {
      throw new RangeError(
        `expected samples of ${this.#names()}, got ${given.join(", ") || "nothing"}`,
      );
    }
    return pairs;
  }

  #count(format: Format, array: SampleArray): number {
    const where = format.name ? `signal ${format.name}` : "samples";
    try {
      checkKind(format.datatype, array);
    } catch (error) {
      throw new TypeError(`${where}: ${(error as Error).message}`, { cause: error });
    }
    if (array.length % format.channels !== 0) {
      throw new RangeError(
        `${where}: expected values for ${format.channels} channels of each sample, got ${array.length}`,
      );
    }
    if (this.#finite) {
      checkFinite(where, format, array);
    }
    return array.length / format.channels;
  }

  #names(): string {
    return this.#formats.map(({ name }) => name).join(", ");
  }

  /** `count` samples of a chunk from `start` on, copied. */
  cut(chunk: Chunk, start: number, count: number): Chunk {
    const data = chunk.data.map((bytes, index) => {
      const width = this.#formats[index]?.width ?? 0;
      return bytes.slice(start * width, (start + count) * width);
    });
    // The time of what follows the first sample follows from the sample rate.
    return { data, count, timestampNs: start === 0 ? chunk.timestampNs : undefined };
  }
}

// All bits of the exponent: that of NaN and infinity.
const EXPONENT: Partial<Record<FixedDatatype, number>> = { FP16: 0x7c00, BF16: 0x7f80 };

function checkFinite(where: string, format: Format, array: SampleArray): void {
  let at = -1;
  const exponent = EXPONENT[format.datatype];
  if (array instanceof Float32Array || array instanceof Float64Array) {
    at = array.findIndex((value) => !Number.isFinite(value));
  } else if (exponent !== undefined && array instanceof Uint16Array) {
    at = array.findIndex((bits) => (bits & exponent) === exponent);
  }
  if (at >= 0) {
    throw new RangeError(
      `${where}: expected finite values, got another in sample ${Math.floor(at / format.channels)}, ` +
        `channel ${at % format.channels} (nonFinite: "allow" gives them to the model)`,
    );
  }
}
