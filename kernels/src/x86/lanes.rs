//! Loads, stores and small shuffles that the kernels share.

use std::arch::{asm, x86_64::*};

/// `N` bytes of `bytes` from `at`.
#[inline(always)]
pub(super) fn part<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("a slice of this length")
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: reads the 32 bytes of the array; needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: reads the 16 bytes of the array; needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Eight bytes in the low half.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load8(bytes: &[u8; 8]) -> __m128i {
    _mm_cvtsi64_si128(i64::from_le_bytes(*bytes))
}

#[inline(always)]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*part(bytes, at))
}

#[inline(always)]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*part(bytes, at))
}

/// The half at `at`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16_at(
        bytes, at,
    )))))
}

/// The same vector. Compilers that know how its lanes came about make two shuffles of one.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn opaque(mut x: __m256i) -> __m256i {
    // SAFETY: does nothing.
    unsafe {
        asm!("/* {x} */", x = inout(ymm_reg) x, options(pure, nomem, nostack, preserves_flags));
    }
    x
}

/// The sums of the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum4(v: [__m256i; 4]) -> __m128i {
    let x = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}

/// Eight vectors of eight dwords: `out[i][j] = v[j][i]`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transpose(v: [__m256i; 8]) -> [__m256i; 8] {
    let pair_lo = |a, b| _mm256_unpacklo_epi32(a, b);
    let pair_hi = |a, b| _mm256_unpackhi_epi32(a, b);
    let (a0, a1, a2, a3) = (
        pair_lo(v[0], v[1]),
        pair_hi(v[0], v[1]),
        pair_lo(v[2], v[3]),
        pair_hi(v[2], v[3]),
    );
    let (a4, a5, a6, a7) = (
        pair_lo(v[4], v[5]),
        pair_hi(v[4], v[5]),
        pair_lo(v[6], v[7]),
        pair_hi(v[6], v[7]),
    );
    let (b0, b1) = (_mm256_unpacklo_epi64(a0, a2), _mm256_unpackhi_epi64(a0, a2));
    let (b2, b3) = (_mm256_unpacklo_epi64(a1, a3), _mm256_unpackhi_epi64(a1, a3));
    let (b4, b5) = (_mm256_unpacklo_epi64(a4, a6), _mm256_unpackhi_epi64(a4, a6));
    let (b6, b7) = (_mm256_unpacklo_epi64(a5, a7), _mm256_unpackhi_epi64(a5, a7));
    [
        _mm256_permute2x128_si256::<0x20>(b0, b4),
        _mm256_permute2x128_si256::<0x20>(b1, b5),
        _mm256_permute2x128_si256::<0x20>(b2, b6),
        _mm256_permute2x128_si256::<0x20>(b3, b7),
        _mm256_permute2x128_si256::<0x31>(b0, b4),
        _mm256_permute2x128_si256::<0x31>(b1, b5),
        _mm256_permute2x128_si256::<0x31>(b2, b6),
        _mm256_permute2x128_si256::<0x31>(b3, b7),
    ]
}

/// Ask for the cache line of `bytes[at]`, which may lie outside.
#[inline(always)]
pub(super) fn prefetch(bytes: &[u8], at: usize) {
    // SAFETY: SSE is part of x86-64; a prefetch of any address is harmless.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast()) }
}
