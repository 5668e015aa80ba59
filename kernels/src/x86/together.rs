//! Blocks of eight rows at once, with AVX2: vectors have one row a lane.

use std::arch::x86_64::*;

use super::lanes::{load, load16, part};

/// What is not codes in the blocks of eight rows.
pub(super) struct Heads {
    /// Byte `j` of dword `r` of vector `i`: the scale of the sub-block `4 * i + j` of row `r`.
    pub scale: [__m256i; 4],
    /// Minima, likewise; unsigned.
    pub min: [__m256i; 4],
    /// By row.
    pub d: __m256,
    pub dmin: __m256,
}

impl Heads {
    /// Of a type without minima.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn without_min(scale: [__m256i; 4], d: __m256) -> Heads {
        Heads {
            scale,
            min: [_mm256_setzero_si256(); 4],
            d,
            dmin: _mm256_setzero_ps(),
        }
    }
}

/// Sixteen bytes from `at` of the rows' blocks, by dword.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn dwords(blocks: [&[u8]; 8], at: usize) -> [__m256i; 4] {
    let both = |r: usize| two(part(blocks[r], at), part(blocks[r + 4], at));
    four_dwords(both(0), both(1), both(2), both(3))
}

/// Sixteen bytes of one row and of another.
#[inline]
#[target_feature(enable = "avx2")]
fn two(low: &[u8; 16], high: &[u8; 16]) -> __m256i {
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load16(low)), load16(high))
}

/// Four times four dwords, twice: `out[i]` has dword `i` of each in turn.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn four_dwords(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (low, high) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    let (ab, cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        low,
        high,
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
    ]
}

/// The last two bytes of each dword of `a`, then the first two of `b`'s.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn across(a: __m256i, b: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_srli_epi32::<16>(a), _mm256_slli_epi32::<16>(b))
}

/// The halves in the low words of dwords.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn low_halves(dwords: __m256i) -> __m256 {
    let zero = _mm256_setzero_si256();
    let words = _mm256_packus_epi32(_mm256_blend_epi16::<0b1010_1010>(dwords, zero), zero);
    let words = _mm256_permute4x64_epi64::<0b10_00>(words);
    _mm256_cvtph_ps(_mm256_castsi256_si128(words))
}

/// The halves in the high words of dwords.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn high_halves(dwords: __m256i) -> __m256 {
    low_halves(_mm256_srli_epi32::<16>(dwords))
}

/// For `vpshufb`: of each dword the bytes of these numbers, zeros for [`NONE`].
const fn pick(of: [u8; 4]) -> [u8; 32] {
    let mut picked = [0; 32];
    let mut i = 0;
    while i < 32 {
        let start = (i / 4 % 4 * 4) as u8;
        picked[i] = if of[i % 4] == NONE {
            NONE
        } else {
            start + of[i % 4]
        };
        i += 1;
    }
    picked
}
const NONE: u8 = 0x80;

/// The bytes of each dword, signed, as int32.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn signed_bytes(x: __m256i) -> [__m256i; 4] {
    [
        _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(x)),
        _mm256_srai_epi32::<24>(_mm256_slli_epi32::<16>(x)),
        _mm256_srai_epi32::<24>(_mm256_slli_epi32::<8>(x)),
        _mm256_srai_epi32::<24>(x),
    ]
}

/// The bytes of each dword, signed, as twice an int16.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn signed_bytes_twice(x: __m256i) -> [__m256i; 4] {
    const UP: [[u8; 32]; 4] = [
        pick([NONE, 0, NONE, 0]),
        pick([NONE, 1, NONE, 1]),
        pick([NONE, 2, NONE, 2]),
        pick([NONE, 3, NONE, 3]),
    ];
    let up = |j: usize| _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(x, load(&UP[j])));
    [up(0), up(1), up(2), up(3)]
}

/// The first two bytes of each dword, unsigned, as int16, and the last two.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn neighbours(x: __m256i) -> [__m256i; 2] {
    const PAIRS: [[u8; 32]; 2] = [pick([0, NONE, 1, NONE]), pick([2, NONE, 3, NONE])];
    let [first, second] = &PAIRS;
    [
        _mm256_shuffle_epi8(x, load(first)),
        _mm256_shuffle_epi8(x, load(second)),
    ]
}

/// The even bytes of each dword, unsigned, as int16, and the odd ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn even_and_odd(x: __m256i) -> [__m256i; 2] {
    [
        _mm256_and_si256(x, _mm256_set1_epi16(255)),
        _mm256_srli_epi16::<8>(x),
    ]
}
