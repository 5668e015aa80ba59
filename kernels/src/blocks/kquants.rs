//! The K-quants.

use super::{Super, SuperType};
use crate::f16::half;

/// 16 scales and minimums of 4 bits; 64 bytes of 2 bits; half d, half dmin.
pub(crate) struct Q2K;
impl SuperType for Q2K {
    const BYTES: usize = 84;
    const HAS_MIN: bool = true;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 80);
        out.dmin = half(block, 82);
        for j in 0..16 {
            out.scale[j] = i16::from(block[j] & 15);
            out.min[j] = i16::from(block[j] >> 4);
        }
        let bytes = &block[16..80];
        for (i, q) in out.q.iter_mut().enumerate() {
            *q = (two_bits(bytes, i)) as i8;
        }
    }
}

/// Code `i` of 64 bytes that hold 4 planes of 2 bits for each 128 weights.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// 32 bytes of high bits; 64 bytes of 2 bits; 16 scales of 6 bits, offset 32; half d. Codes have offset 4.
pub(crate) struct Q3K;
impl SuperType for Q3K {
    const BYTES: usize = 110;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        let (high, bytes, scales) = (&block[..32], &block[32..96], &block[96..108]);
        out.d = half(block, 108);
        for j in 0..16 {
            let low = scales[j % 8] >> (j / 8 * 4) & 15;
            let top = scales[8 + j % 4] >> (j / 4 * 2) & 3;
            out.scale[j] = i16::from(low | top << 4) - 32;
        }
        for (i, q) in out.q.iter_mut().enumerate() {
            let bit = high[i % 32] >> (i / 32) & 1;
            *q = (two_bits(bytes, i) | bit << 2) as i8 - 4;
        }
    }
}

/// The 8 scales and 8 minimums of 6 bits that Q4_K and Q5_K hold in 12 bytes; each serves two sixteens.
fn scales_and_mins(bytes: &[u8], out: &mut Super) {
    for j in 0..8 {
        let (scale, min) = if j < 4 {
            (bytes[j] & 63, bytes[j + 4] & 63)
        } else {
            (
                bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4,
                bytes[j + 4] >> 4 | bytes[j] >> 6 << 4,
            )
        };
        out.scale[2 * j..2 * j + 2].fill(i16::from(scale));
        out.min[2 * j..2 * j + 2].fill(i16::from(min));
    }
}

/// half d, half dmin; 12 bytes of scales and minimums; 128 bytes, two planes of nibbles for each 64 weights.
pub(crate) struct Q4K;
impl SuperType for Q4K {
    const BYTES: usize = 144;
    const HAS_MIN: bool = true;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0);
        out.dmin = half(block, 2);
        scales_and_mins(&block[4..16], out);
        for (i, q) in out.q.iter_mut().enumerate() {
            *q = (block[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15) as i8;
        }
    }
}

/// As Q4_K with 32 bytes of fifth bits, a plane for each 32 weights, before the nibbles.
pub(crate) struct Q5K;
impl SuperType for Q5K {
    const BYTES: usize = 176;
    const HAS_MIN: bool = true;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0);
        out.dmin = half(block, 2);
        scales_and_mins(&block[4..16], out);
        for (i, q) in out.q.iter_mut().enumerate() {
            let low = block[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
            *q = (low | (block[16 + i % 32] >> (i / 32) & 1) << 4) as i8;
        }
    }
}

/// 128 bytes of low nibbles; 64 bytes of high 2 bits; 16 int8 scales; half d. Codes have offset 32.
pub(crate) struct Q6K;
impl SuperType for Q6K {
    const BYTES: usize = 210;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 208);
        for j in 0..16 {
            out.scale[j] = i16::from(block[192 + j] as i8);
        }
        let high = &block[128..192];
        for (i, q) in out.q.iter_mut().enumerate() {
            let low = block[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
            *q = (low | two_bits(high, i) << 4) as i8 - 32;
        }
    }
}
