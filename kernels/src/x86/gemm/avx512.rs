//! Matrix kernels of AVX-512 VNNI: sixteen rows a vector, `vpdpbusd`.

use super::{
    super::{
        lanes::{part, prefetch},
        panel::{Codes, PanelActs, STEPS, SmallCodes, SmallPanel, SuperCodes, SuperPanel},
        unpack_small::SmallAvx2,
        unpack_super::SuperAvx2,
    },
    Buffers, CHUNK, chunk, drivers,
};
use crate::{activation::BLOCK_BYTES, matmul::Job};

drivers!(
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni",
    lanes,
    16,
    [8, 4, 2, 1]
);

mod lanes {
    use std::arch::x86_64::*;

    use super::{
        super::{
            super::panel::{Codes, PanelActs, RUN, STEPS},
            only_multiply,
        },
        NR,
    };

    pub type Int = __m512i;
    pub type Float = __m512;
    /// Whether scales are int32 a row rather than twice an int16.
    pub const WIDE: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn zero() -> Int {
        _mm512_setzero_si512()
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn sub(a: Int, b: Int) -> Int {
        _mm512_sub_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn load(x: &[i32; NR]) -> Int {
        // SAFETY: reads the 64 bytes of the array; needs no alignment.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn load_float(x: &[f32; NR]) -> Float {
        // SAFETY: reads the 64 bytes of the array; needs no alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn store_float(to: &mut [f32; NR], x: Float) {
        // SAFETY: writes the 64 bytes of the array; needs no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    /// `fma(d * scale, dot, sum)`
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn add_scaled(d: Float, scale: f32, dot: Int, sum: Float) -> Float {
        _mm512_fmadd_ps(
            _mm512_mul_ps(d, _mm512_set1_ps(scale)),
            _mm512_cvtepi32_ps(dot),
            sum,
        )
    }

    /// `fma(m, x, sum)`
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn add_product(m: Float, x: f32, sum: Float) -> Float {
        _mm512_fmadd_ps(m, _mm512_set1_ps(x), sum)
    }

    /// `sum` plus the product of pairs of int16 with one pair.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn add_pairs(sum: Int, x: Int, pair: i32) -> Int {
        _mm512_add_epi32(sum, _mm512_madd_epi16(x, _mm512_set1_epi32(pair)))
    }

    /// The scale 1.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn one() -> Int {
        _mm512_set1_epi32(1)
    }

    /// Whether activations are to be moved up by 128.
    pub const fn moved<C: Codes>() -> bool {
        !C::UNSIGNED_WEIGHTS
    }

    /// Add `scale` times the products of the steps `at .. at + C::STEPS` to `dots`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn multiply<C: Codes, const T: usize>(
        codes: &[[i32; NR]; STEPS],
        acts: &[PanelActs; T],
        at: usize,
        scale: Int,
        dots: &mut [Int; T],
    ) {
        let mut sums = [zero(); T];
        for step in at..at + C::STEPS {
            let w = load(&codes[step]);
            for i in 0..T {
                let a = _mm512_set1_epi32(acts[i].q[step]);
                sums[i] = if C::UNSIGNED_WEIGHTS {
                    _mm512_dpbusd_epi32(sums[i], w, a)
                } else {
                    _mm512_dpbusd_epi32(sums[i], a, w)
                };
            }
        }
        for i in 0..T {
            dots[i] = _mm512_add_epi32(dots[i], _mm512_mullo_epi32(sums[i], scale));
        }
    }

    only_multiply!("avx512f,avx512bw,avx512vnni");
}
