//! Matrix kernels of AVX-VNNI: eight rows a vector, `vpdpbusd`.

use super::{
    super::{
        lanes::part,
        panel::{Codes, PanelActs, STEPS, SmallCodes, SmallPanel, SuperCodes, SuperPanel},
        unpack_small::SmallAvx2,
        unpack_super::SuperAvx2,
    },
    Buffers, CHUNK, drivers,
};
use crate::{activation::BLOCK_BYTES, matmul::Job};

drivers!("avx2,fma,f16c,avxvnni", lanes, 8, [4, 3, 2, 1]);

mod lanes {
    use std::arch::x86_64::*;

    use super::{
        super::super::panel::{Codes, PanelActs, STEPS},
        NR,
    };

    pub type Int = __m256i;
    pub type Float = __m256;
    /// Whether scales are int32 a row rather than twice an int16.
    pub const WIDE: bool = true;

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn zero() -> Int {
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn sub(a: Int, b: Int) -> Int {
        _mm256_sub_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load(x: &[i32; NR]) -> Int {
        // SAFETY: reads the 32 bytes of the array; needs no alignment.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn load_float(x: &[f32; NR]) -> Float {
        // SAFETY: reads the 32 bytes of the array; needs no alignment.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn store_float(to: &mut [f32; NR], x: Float) {
        // SAFETY: writes the 32 bytes of the array; needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    /// `fma(d * scale, dot, sum)`
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn add_scaled(d: Float, scale: f32, dot: Int, sum: Float) -> Float {
        _mm256_fmadd_ps(
            _mm256_mul_ps(d, _mm256_set1_ps(scale)),
            _mm256_cvtepi32_ps(dot),
            sum,
        )
    }

    /// `fma(m, x, sum)`
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn add_product(m: Float, x: f32, sum: Float) -> Float {
        _mm256_fmadd_ps(m, _mm256_set1_ps(x), sum)
    }

    /// `sum` plus the product of pairs of int16 with one pair.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn add_pairs(sum: Int, x: Int, pair: i32) -> Int {
        _mm256_add_epi32(sum, _mm256_madd_epi16(x, _mm256_set1_epi32(pair)))
    }

    /// The scale 1.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    pub fn one() -> Int {
        _mm256_set1_epi32(1)
    }

    /// Whether activations are to be moved up by 128.
    pub const fn moved<C: Codes>() -> bool {
        !C::UNSIGNED_WEIGHTS
    }

    /// Add `scale` times the products of the steps `at .. at + C::STEPS` to `dots`.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
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
                let a = _mm256_set1_epi32(acts[i].q[step]);
                sums[i] = if C::UNSIGNED_WEIGHTS {
                    _mm256_dpbusd_avx_epi32(sums[i], w, a)
                } else {
                    _mm256_dpbusd_avx_epi32(sums[i], a, w)
                };
            }
        }
        for i in 0..T {
            dots[i] = _mm256_add_epi32(dots[i], _mm256_mullo_epi32(sums[i], scale));
        }
    }
}
