//! Vectors of eight rows: what the 256-bit kernels share.

use std::arch::x86_64::*;

pub type Int = __m256i;
pub type Float = __m256;

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
pub fn load(x: &[i32; 8]) -> Int {
    // SAFETY: reads the 32 bytes of the array; needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn store(to: &mut [i32; 8], x: Int) {
    // SAFETY: writes the 32 bytes of the array; needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn load_float(x: &[f32; 8]) -> Float {
    // SAFETY: reads the 32 bytes of the array; needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub fn store_float(to: &mut [f32; 8], x: Float) {
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
