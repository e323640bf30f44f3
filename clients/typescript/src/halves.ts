/** The 16-bit floating-point formats, whose bit patterns FP16 and BF16 tensors hold. */

const SCRATCH = new Float32Array(1);
const BITS = new Uint32Array(SCRATCH.buffer);

function bitsOf(value: number): number {
  SCRATCH[0] = value;
  return BITS[0] ?? 0;
}

function valueOf(bits: number): number {
  BITS[0] = bits;
  return SCRATCH[0] ?? 0;
}

/** The values of FP16 (IEEE 754 binary16) bit patterns; every one is exact in a Float32Array. */
export function fromFloat16(bits: Uint16Array): Float32Array {
  return Float32Array.from(bits, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    if (exponent === 0x1f) {
      return fraction ? NaN : sign * Infinity;
    }
    return exponent === 0
      ? sign * fraction * 2 ** -24
      : sign * (0x400 + fraction) * 2 ** (exponent - 25);
  });
}

/** FP16 bit patterns of values, rounded to nearest, ties to even; too large ones become infinite. */
export function toFloat16(values: ArrayLike<number>): Uint16Array {
  return Uint16Array.from(values, (value) => {
    const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
    const size = Math.abs(value);
    if (Number.isNaN(value)) {
      return 0x7e00;
    }
    if (size >= 65520) {
      return sign | 0x7c00;
    }
    // One unit in the last place: that of the smallest normal number, 2 ** -14, for all below it.
    const exponent = size < 2 ** -14 ? -14 : Math.min(15, exponentOf(size));
    const units = roundToEven(size / 2 ** (exponent - 10));
    // A carry out of the fraction moves on into the exponent by itself.
    return sign | (units + (exponent + 14) * 0x400);
  });
}

/** The power of two at or below a number, of which a double holds one exactly. */
function exponentOf(size: number): number {
  const found = Math.floor(Math.log2(size));
  return 2 ** found > size ? found - 1 : 2 ** (found + 1) <= size ? found + 1 : found;
}

function roundToEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

/** The values of BF16 bit patterns: the upper halves of those of FP32. */
export function fromBfloat16(bits: Uint16Array): Float32Array {
  return Float32Array.from(bits, (half) => valueOf(half << 16));
}

/** BF16 bit patterns of FP32 values, rounded to nearest, ties to even. */
export function toBfloat16(values: ArrayLike<number>): Uint16Array {
  return Uint16Array.from(values, (value) => {
    if (Number.isNaN(value)) {
      return 0x7fc0;
    }
    const bits = bitsOf(value);
    return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
  });
}
