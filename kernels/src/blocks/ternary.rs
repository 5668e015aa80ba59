//! Ternary blocks: one scale for 256 weights of -1, 0 or 1.

use super::{Super, SuperType};
use crate::f16::half;

/// The byte of a TQ1_0 block that holds weight `i`, and which of its base-3 digits it is.
///
/// 32 bytes of 5 digits, a plane of 32 weights for each digit; 16 bytes likewise; 4 bytes of 4 digits.
pub(crate) const fn tq1_place(i: usize) -> (usize, usize) {
    if i < 160 {
        (i % 32, i / 32)
    } else if i < 240 {
        (32 + i % 16, (i - 160) / 16)
    } else {
        (48 + i % 4, (i - 240) / 4)
    }
}

/// Base-3 digits, the first in the highest place of a fraction of 256; half d.
pub(crate) struct Tq1;
impl SuperType for Tq1 {
    const BYTES: usize = 54;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
        out.d = half(block, 52);
        out.scale = [1; 16];
        for (i, q) in out.q.iter_mut().enumerate() {
            let (byte, digit) = tq1_place(i);
            let rest = block[byte].wrapping_mul(POWERS[digit]);
            *q = ((u16::from(rest) * 3) >> 8) as i8 - 1;
        }
    }
}

/// 64 bytes, 4 planes of 2 bits for each 128 weights, offset 1; half d.
pub(crate) struct Tq2;
impl SuperType for Tq2 {
    const BYTES: usize = 66;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 64);
        out.scale = [1; 16];
        for (i, q) in out.q.iter_mut().enumerate() {
            *q = (block[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) as i8 - 1;
        }
    }
}
