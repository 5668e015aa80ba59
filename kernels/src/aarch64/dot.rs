//! A vector of 16 products a row and activation: `sdot`, or widening multiplications of the first ARMv8.

use std::arch::{aarch64::*, asm};

use super::{Kernel, ROWS};

/// Sixteen values of `bytes` from `at`.
#[inline(always)]
pub(super) fn load(bytes: &[u8], at: usize) -> int8x16_t {
    let bytes: &[u8; 16] = bytes[at..at + 16].try_into().expect("16 bytes");
    // SAFETY: reads the 16 bytes of the array; NEON is part of every AArch64 target with std.
    unsafe { vreinterpretq_s8_u8(vld1q_u8(bytes.as_ptr())) }
}

/// Sixteen codes of a row from `at`.
#[inline(always)]
pub(super) fn load_codes(codes: &[i8], at: usize) -> int8x16_t {
    let codes: &[i8; 16] = codes[at..at + 16].try_into().expect("16 codes");
    // SAFETY: reads the 16 bytes of the array.
    unsafe { vld1q_s8(codes.as_ptr()) }
}

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $features:literal, $dot:ident) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Kernel for $name {
            const TOKENS: usize = 4;

            #[target_feature(enable = $features)]
            unsafe fn dots<const N: usize, const T: usize>(
                rows: &[[i8; N]; ROWS],
                scale: &[[i32; 16]; ROWS],
                acts: &[&[u8]; T],
            ) -> [[i32; ROWS]; T] {
                let mut sums = [[vdupq_n_s32(0); ROWS]; T];
                for j in 0..N / 16 {
                    let mut a = [vdupq_n_s8(0); T];
                    for i in 0..T {
                        a[i] = load(acts[i], 16 * j);
                    }
                    for r in 0..ROWS {
                        let w = load_codes(&rows[r], 16 * j);
                        let scale = vdupq_n_s32(scale[r][j]);
                        for i in 0..T {
                            sums[i][r] = vmlaq_s32(sums[i][r], $dot(w, a[i]), scale);
                        }
                    }
                }
                let mut out = [[0; ROWS]; T];
                for i in 0..T {
                    for r in 0..ROWS {
                        out[i][r] = vaddvq_s32(sums[i][r]);
                    }
                }
                out
            }
        }
    };
}

kernel!(
    /// `sdot`
    Dotprod, "neon,dotprod", sdot
);
kernel!(
    /// Products in int16; two of them fit, since activations are at most 127.
    Widening, "neon", widening
);

/// Sums of four products each.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let mut sum = vdupq_n_s32(0);
    // SAFETY: one instruction on registers, of the features of this function; its intrinsic is not stable.
    unsafe {
        asm!("sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b", sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Sums of four products each, though of others.
#[inline]
#[target_feature(enable = "neon")]
fn widening(w: int8x16_t, a: int8x16_t) -> int32x4_t {
    let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
    vpaddlq_s16(vmlal_s8(low, vget_high_s8(w), vget_high_s8(a)))
}
