//! `smmla`: two rows times two activations, eight values of each, in one instruction.

use std::arch::{aarch64::*, asm};

use super::{
    Kernel, ROWS,
    dot::{Dotprod, load, load_codes},
};

pub(super) struct Mmla;

impl Kernel for Mmla {
    const TOKENS: usize = 4;

    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn dots<const N: usize, const T: usize>(
        rows: &[[i8; N]; ROWS],
        scale: &[[i32; 16]; ROWS],
        acts: &[&[u8]; T],
    ) -> [[i32; ROWS]; T] {
        if T < 4 {
            // SAFETY: dotprod is among the features of this function.
            return unsafe { Dotprod::dots::<N, T>(rows, scale, acts) };
        }
        // By pair of activations and pair of rows: row 0 with both activations, then row 1.
        let mut sums = [[vdupq_n_s32(0); ROWS / 2]; 2];
        for j in 0..N / 16 {
            let mut a = [(vdupq_n_s8(0), vdupq_n_s8(0)); 2];
            for i in 0..2 {
                a[i] = zip(load(acts[2 * i], 16 * j), load(acts[2 * i + 1], 16 * j));
            }
            for r in 0..ROWS / 2 {
                let w = zip(
                    load_codes(&rows[2 * r], 16 * j),
                    load_codes(&rows[2 * r + 1], 16 * j),
                );
                let scale =
                    vcombine_s32(vdup_n_s32(scale[2 * r][j]), vdup_n_s32(scale[2 * r + 1][j]));
                for i in 0..2 {
                    let products = smmla(smmla(vdupq_n_s32(0), w.0, a[i].0), w.1, a[i].1);
                    sums[i][r] = vmlaq_s32(sums[i][r], products, scale);
                }
            }
        }
        let mut out = [[0; ROWS]; T];
        for i in 0..2 {
            for r in 0..ROWS / 2 {
                out[2 * i][2 * r] = vgetq_lane_s32::<0>(sums[i][r]);
                out[2 * i + 1][2 * r] = vgetq_lane_s32::<1>(sums[i][r]);
                out[2 * i][2 * r + 1] = vgetq_lane_s32::<2>(sums[i][r]);
                out[2 * i + 1][2 * r + 1] = vgetq_lane_s32::<3>(sums[i][r]);
            }
        }
        out
    }
}

/// The first eights of both, and the second ones.
#[inline]
#[target_feature(enable = "neon")]
fn zip(x: int8x16_t, y: int8x16_t) -> (int8x16_t, int8x16_t) {
    (
        vcombine_s8(vget_low_s8(x), vget_low_s8(y)),
        vcombine_s8(vget_high_s8(x), vget_high_s8(y)),
    )
}

#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers, of the features of this function; its intrinsic is not stable.
    unsafe {
        asm!("smmla {sum:v}.4s, {w:v}.16b, {a:v}.16b", sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
