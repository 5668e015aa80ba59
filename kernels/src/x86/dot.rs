//! Few activation rows: each weight row is unpacked in registers and multiplied with all of them, AVX2.

use std::arch::x86_64::*;

use super::{
    apart::{Four, ROWS, ask_ahead},
    lanes::{load, part, sum4},
    lookup::{GATHER, INSERT, STORE, way_for},
    product::multiply,
    unpack_small::SmallAvx2,
    unpack_super::{Form, SuperAvx2},
};
use crate::{
    activation::{BLOCK_BYTES, SUMS, VALUES},
    matmul::Job,
};

/// The float at byte `at`.
#[inline(always)]
fn float(bytes: &[u8], at: usize) -> f32 {
    f32::from_ne_bytes(*part(bytes, at))
}

/// Types with blocks of 256: all rows of the job with all its activations.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_super<S: SuperAvx2>(job: &Job, out: &mut [f32]) {
    match way_for(S::TABLE) {
        GATHER => super_some::<S, GATHER>(job, out),
        STORE => super_some::<S, STORE>(job, out),
        _ => super_some::<S, INSERT>(job, out),
    }
}

/// As [`matmul_super`], entries of tables looked up in one way.
#[target_feature(enable = "avx2,fma,f16c")]
fn super_some<S: SuperAvx2, const WAY: u8>(job: &Job, out: &mut [f32]) {
    match job.act_rows.len() {
        1 => super_all::<S, 1, PIECE, WAY>(job, out),
        2 => super_all::<S, 2, PIECE_OF_TWO, WAY>(job, out),
        3 => super_all::<S, 3, 1, WAY>(job, out),
        _ => super_all::<S, 4, 1, WAY>(job, out),
    }
}

/// As [`matmul_super`], up to `T` activations at a time.
#[target_feature(enable = "avx2,fma,f16c")]
fn super_all<S: SuperAvx2, const T: usize, const N: usize, const WAY: u8>(
    job: &Job,
    out: &mut [f32],
) {
    let mut several = Piece::<T, N>::new();
    let mut single = Piece::<1, PIECE>::new();
    for four in Four::all(job) {
        let mut t = 0;
        while t < job.act_rows.len() {
            t += match job.act_rows.len() - t {
                left if left >= T => super_rows::<S, T, N, WAY>(job, four, t, &mut several, out),
                _ => super_rows::<S, 1, PIECE, WAY>(job, four, t, &mut single, out),
            };
        }
    }
}

/// Rows of at most so many blocks are worked on one after the other, with one activation row or two: memory, for which that
/// waits, is then read on. Of longer rows, and with more activations, a block of each row in turn is faster.
const PIECE: usize = 64;
const PIECE_OF_TWO: usize = 16;
/// Sums of a piece of blocks, yet to be added up over their lanes.
struct Piece<const T: usize, const N: usize> {
    /// By block and activation, of each row.
    dots: [[[__m256i; ROWS]; T]; N],
    mins: [[[__m256i; ROWS]; T]; N],
    d: [[f32; ROWS]; N],
    dmin: [[f32; ROWS]; N],
}

impl<const T: usize, const N: usize> Piece<T, N> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new() -> Self {
        let zero = _mm256_setzero_si256();
        Piece {
            dots: [[[zero; ROWS]; T]; N],
            mins: [[[zero; ROWS]; T]; N],
            d: [[0.0; ROWS]; N],
            dmin: [[0.0; ROWS]; N],
        }
    }
}

/// Four rows with `T` activations from `t`; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn super_rows<S: SuperAvx2, const T: usize, const N: usize, const WAY: u8>(
    job: &Job,
    four: Four,
    t: usize,
    piece: &mut Piece<T, N>,
    out: &mut [f32],
) -> usize {
    let rows = four.rows;
    let n_blocks = rows[0].len() / S::BYTES;
    let mut acts = [&[][..]; T];
    for (i, a) in acts.iter_mut().enumerate() {
        *a = job.activation(t + i);
    }
    let most = if n_blocks <= N { N } else { 1 };
    let mut sums = [_mm_setzero_ps(); T];
    for start in (0..n_blocks).step_by(most) {
        let n = most.min(n_blocks - start);
        for r in 0..ROWS {
            for b in 0..n {
                let block = start + b;
                ask_ahead(rows[r], block * S::BYTES, S::BYTES);
                let weights = &rows[r][block * S::BYTES..][..S::BYTES];
                let acts = acts.map(|a| part(a, block * BLOCK_BYTES));
                // SAFETY: this function has the features.
                let of = unsafe { S::product::<WAY, T>(weights, acts) };
                (piece.d[b][r], piece.dmin[b][r]) = (of.d, of.dmin);
                for i in 0..T {
                    piece.dots[b][i][r] = of.dots[i];
                    if S::HAS_MIN {
                        piece.mins[b][i][r] = of.mins[i];
                    }
                }
            }
        }
        for b in 0..n {
            let [d0, d1, d2, d3] = piece.d[b];
            let d = _mm_setr_ps(d0, d1, d2, d3);
            let [d0, d1, d2, d3] = piece.dmin[b];
            let dmin = _mm_setr_ps(d0, d1, d2, d3);
            for (i, a) in acts.iter().enumerate() {
                let a = _mm_set1_ps(float(a, (start + b) * BLOCK_BYTES));
                let dots = _mm_cvtepi32_ps(sum4(piece.dots[b][i]));
                sums[i] = _mm_fmadd_ps(_mm_mul_ps(d, a), dots, sums[i]);
                if S::HAS_MIN {
                    let mins = _mm_cvtepi32_ps(sum4(piece.mins[b][i]));
                    sums[i] = _mm_fnmadd_ps(_mm_mul_ps(dmin, a), mins, sums[i]);
                }
            }
        }
    }
    put(four, t, &sums, out);
    T
}

/// Sums of `T` activations with four rows into the output.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn put<const T: usize>(four: Four, t: usize, sums: &[__m128; T], out: &mut [f32]) {
    for (i, &sum) in sums.iter().enumerate() {
        let mut values = [0f32; ROWS];
        // SAFETY: writes the 16 bytes of the array.
        unsafe { _mm_storeu_ps(values.as_mut_ptr(), sum) };
        four.put(out, t + i, values);
    }
}

/// Types with float scales: all rows of the job with all its activations.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_small<M: SmallAvx2>(job: &Job, out: &mut [f32]) {
    for four in Four::all(job) {
        let mut t = 0;
        while t < job.act_rows.len() {
            let left = job.act_rows.len() - t;
            let n = match left {
                1 => small_rows::<M, 1>(job, four, t, out),
                2 => small_rows::<M, 2>(job, four, t, out),
                3 => small_rows::<M, 3>(job, four, t, out),
                _ => small_rows::<M, 4>(job, four, t, out),
            };
            t += n;
        }
    }
}

/// Four rows with `T` activations from `t`; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn small_rows<M: SmallAvx2, const T: usize>(
    job: &Job,
    four: Four,
    t: usize,
    out: &mut [f32],
) -> usize {
    let rows = four.rows;
    let n_pieces = rows[0].len() / M::BYTES * M::PIECES;
    let mut acts = [&[][..]; T];
    for (i, a) in acts.iter_mut().enumerate() {
        *a = job.activation(t + i);
    }
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm_setzero_ps(); T];
    for p in 0..n_pieces {
        let at = p / M::PIECES * M::BYTES;
        let mut q = [_mm256_setzero_si256(); ROWS];
        let mut d = [0f32; ROWS];
        let mut m = [0f32; ROWS];
        for r in 0..ROWS {
            ask_ahead(rows[r], at, 1);
            let block = &rows[r][at..][..M::BYTES];
            // SAFETY: this function has the features.
            unsafe {
                q[r] = M::codes(block, p % M::PIECES);
                (d[r], m[r]) = M::scale(block);
            }
        }
        let d = _mm_setr_ps(d[0], d[1], d[2], d[3]);
        let m = _mm_setr_ps(m[0], m[1], m[2], m[3]);
        for (i, a) in acts.iter().enumerate() {
            let a: &[u8; BLOCK_BYTES] = part(a, p / 8 * BLOCK_BYTES);
            let j = p % 8;
            let values = load(part(a, VALUES + 32 * j));
            let mut dots = [ones; ROWS];
            for r in 0..ROWS {
                dots[r] = _mm256_madd_epi16(multiply(M::FORM, q[r], ones, values), ones);
            }
            let mut dot = sum4(dots);
            let half = |at: usize| i32::from(i16::from_ne_bytes(*part(a, at)));
            let total = half(SUMS + 2 * j) + half(SUMS + 16 + 2 * j);
            if let Form::Unsigned(offset @ 1..) = M::FORM {
                dot = _mm_sub_epi32(dot, _mm_set1_epi32(i32::from(offset) * total));
            }
            let scale = float(a, 4 * j);
            sums[i] = _mm_fmadd_ps(
                _mm_mul_ps(d, _mm_set1_ps(scale)),
                _mm_cvtepi32_ps(dot),
                sums[i],
            );
            if M::HAS_MIN {
                sums[i] = _mm_fmadd_ps(m, _mm_set1_ps(scale * total as f32), sums[i]);
            }
        }
    }
    put(four, t, &sums, out);
    T
}
