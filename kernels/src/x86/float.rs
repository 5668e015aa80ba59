//! Float weights: eight sums an element, whatever the tile, so that elements do not depend on how calls are split. AVX2.

use std::arch::x86_64::*;

use super::{
    apart::{Four, ROWS, ask_ahead},
    lanes::{load16, part},
};
use crate::{
    f16::{bf16_to_f32, f16_to_f32},
    matmul::Job,
};

/// Eight weights and one.
pub(super) trait Float {
    const BYTES: usize;
    fn one(bytes: &[u8]) -> f32;
    /// # Safety
    /// Needs AVX2, FMA and F16C.
    unsafe fn eight(bytes: &[u8]) -> __m256;
}

pub(super) struct F32;
impl Float for F32 {
    const BYTES: usize = 4;
    fn one(bytes: &[u8]) -> f32 {
        f32::from_le_bytes(*part(bytes, 0))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(bytes: &[u8]) -> __m256 {
        _mm256_castsi256_ps(super::lanes::load(part(bytes, 0)))
    }
}

pub(super) struct F16;
impl Float for F16 {
    const BYTES: usize = 2;
    fn one(bytes: &[u8]) -> f32 {
        f16_to_f32(u16::from_le_bytes(*part(bytes, 0)))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(bytes: &[u8]) -> __m256 {
        _mm256_cvtph_ps(load16(part(bytes, 0)))
    }
}

pub(super) struct BF16;
impl Float for BF16 {
    const BYTES: usize = 2;
    fn one(bytes: &[u8]) -> f32 {
        bf16_to_f32(u16::from_le_bytes(*part(bytes, 0)))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn eight(bytes: &[u8]) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load16(
            part(bytes, 0),
        ))))
    }
}

/// All rows of the job with all its activations.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul<F: Float>(job: &Job, out: &mut [f32]) {
    for four in Four::all(job) {
        let mut t = 0;
        while t < job.act_rows.len() {
            t += match job.act_rows.len() - t {
                1 => tile::<F, 1>(job, four, t, out),
                2 => tile::<F, 2>(job, four, t, out),
                _ => tile::<F, 3>(job, four, t, out),
            };
        }
    }
}

/// Four rows with `T` activations from `t`; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<F: Float, const T: usize>(job: &Job, four: Four, t: usize, out: &mut [f32]) -> usize {
    let rows = four.rows;
    let n_in = job.weights.n_in();
    let mut acts = [&[][..]; T];
    for (i, a) in acts.iter_mut().enumerate() {
        *a = job.activation(t + i);
    }
    let mut sums = [[_mm256_setzero_ps(); T]; ROWS];
    for k in 0..n_in / 8 {
        let mut a = [_mm256_setzero_ps(); T];
        for i in 0..T {
            a[i] = _mm256_castsi256_ps(super::lanes::load(part(acts[i], 32 * k)));
        }
        for r in 0..ROWS {
            // Once for each cache line.
            if (8 * F::BYTES * k).is_multiple_of(64) {
                ask_ahead(rows[r], 8 * F::BYTES * k, 64);
            }
            // SAFETY: this function has the features.
            let w = unsafe { F::eight(&rows[r][8 * F::BYTES * k..][..8 * F::BYTES]) };
            for i in 0..T {
                sums[r][i] = _mm256_fmadd_ps(w, a[i], sums[r][i]);
            }
        }
    }
    for i in 0..T {
        let mut values = [0f32; ROWS];
        for (r, value) in values.iter_mut().enumerate() {
            let sum = sums[r][i];
            let half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            *value = _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
            for k in n_in / 8 * 8..n_in {
                let a = f32::from_ne_bytes(*part(acts[i], 4 * k));
                *value += F::one(&rows[r][F::BYTES * k..]) * a;
            }
        }
        four.put(out, t + i, values);
    }
    T
}
