//! Blocks of 32 weights with float scales, and the 1- and 2-bit blocks of 128 and 64.

use super::{Small, SmallType};
use crate::{
    f16::{e8m0_half, half},
    tables::{E2M1, IQ4},
};

/// `out[i]` from the low nibble of byte `i` and `out[i + 16]` from its high one.
fn nibbles(bytes: &[u8], out: &mut [i8; 32], f: impl Fn(usize, u8) -> i8) {
    for (i, byte) in bytes[..16].iter().enumerate() {
        out[i] = f(i, byte & 15);
        out[i + 16] = f(i + 16, byte >> 4);
    }
}

/// Bit `i` of the 32 at byte `at`, as 16.
fn fifth(block: &[u8], at: usize, i: usize) -> u8 {
    (block[at + i / 8] >> (i % 8) & 1) << 4
}

/// half d; 16 bytes of nibbles, offset 8.
pub(crate) struct Q4_0;
impl SmallType for Q4_0 {
    const BYTES: usize = 18;
    const PIECES: usize = 1;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], _: usize, out: &mut Small) {
        out.d = half(block, 0);
        nibbles(&block[2..], &mut out.q, |_, q| q as i8 - 8);
    }
}

/// half d, half m; nibbles.
pub(crate) struct Q4_1;
impl SmallType for Q4_1 {
    const BYTES: usize = 20;
    const PIECES: usize = 1;
    const HAS_MIN: bool = true;
    fn unpack(block: &[u8], _: usize, out: &mut Small) {
        out.d = half(block, 0);
        out.m = half(block, 2);
        nibbles(&block[4..], &mut out.q, |_, q| q as i8);
    }
}

/// half d; 32 fifth bits; nibbles; offset 16.
pub(crate) struct Q5_0;
impl SmallType for Q5_0 {
    const BYTES: usize = 22;
    const PIECES: usize = 1;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], _: usize, out: &mut Small) {
        out.d = half(block, 0);
        nibbles(&block[6..], &mut out.q, |i, q| {
            (q | fifth(block, 2, i)) as i8 - 16
        });
    }
}

/// half d, half m; 32 fifth bits; nibbles.
pub(crate) struct Q5_1;
impl SmallType for Q5_1 {
    const BYTES: usize = 24;
    const PIECES: usize = 1;
    const HAS_MIN: bool = true;
    fn unpack(block: &[u8], _: usize, out: &mut Small) {
        out.d = half(block, 0);
        out.m = half(block, 2);
        nibbles(&block[8..], &mut out.q, |i, q| {
            (q | fifth(block, 4, i)) as i8
        });
    }
}

/// half d; 32 int8.
pub(crate) struct Q8_0;
impl SmallType for Q8_0 {
    const BYTES: usize = 34;
    const PIECES: usize = 1;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], _: usize, out: &mut Small) {
        out.d = half(block, 0);
        for (q, &byte) in out.q.iter_mut().zip(&block[2..34]) {
            *q = byte as i8;
        }
    }
}

/// half d; nibbles that number the values of a table.
pub(crate) struct Iq4Nl;
impl SmallType for Iq4Nl {
    const BYTES: usize = 18;
    const PIECES: usize = 1;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], _: usize, out: &mut Small) {
        out.d = half(block, 0);
        nibbles(&block[2..], &mut out.q, |_, q| IQ4[usize::from(q)]);
    }
}

/// Exponent of the scale; nibbles of E2M1.
pub(crate) struct Mxfp4;
impl SmallType for Mxfp4 {
    const BYTES: usize = 17;
    const PIECES: usize = 1;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], _: usize, out: &mut Small) {
        out.d = e8m0_half(block[0]);
        nibbles(&block[1..], &mut out.q, |_, q| E2M1[usize::from(q)]);
    }
}

/// half d; 128 bits: 1 for d, 0 for -d.
pub(crate) struct Q1_0;
impl SmallType for Q1_0 {
    const BYTES: usize = 18;
    const PIECES: usize = 4;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], piece: usize, out: &mut Small) {
        out.d = half(block, 0);
        for (i, q) in out.q.iter_mut().enumerate() {
            *q = 2 * (block[2 + 4 * piece + i / 8] >> (i % 8) & 1) as i8 - 1;
        }
    }
}

/// half d; 64 codes of 2 bits in order, offset 1.
pub(crate) struct Q2_0;
impl SmallType for Q2_0 {
    const BYTES: usize = 18;
    const PIECES: usize = 2;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], piece: usize, out: &mut Small) {
        out.d = half(block, 0);
        for (i, q) in out.q.iter_mut().enumerate() {
            *q = (block[2 + 8 * piece + i / 4] >> (2 * (i % 4)) & 3) as i8 - 1;
        }
    }
}
