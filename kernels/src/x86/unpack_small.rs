//! 32 weights with float scales into a vector of codes, with AVX2.

use std::arch::x86_64::*;

use super::{
    lanes::{half, load, load8, part, u32_at},
    unpack_super::{Form, iq4, plain_nibbles, table_nibbles},
};
use crate::{
    blocks::{self as b, SmallType},
    f16::e8m0_half,
    tables,
};

pub(super) trait SmallAvx2: SmallType {
    const FORM: Form;
    /// The largest magnitude of codes less their offset.
    const MAX: i32;

    /// The 32 codes of a piece.
    ///
    /// # Safety
    /// Needs AVX2, FMA and F16C.
    unsafe fn codes(block: &[u8], piece: usize) -> __m256i;

    /// The scale and, for types with minimums, the offset of a block.
    ///
    /// # Safety
    /// Needs AVX2, FMA and F16C.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scale(block: &[u8]) -> (f32, f32) {
        (
            half(block, 0),
            if Self::HAS_MIN { half(block, 2) } else { 0.0 },
        )
    }
}

/// 32 bits, 16 in the bytes whose bit is set.
#[inline]
#[target_feature(enable = "avx2")]
fn fifths(bits: u32) -> __m256i {
    _mm256_and_si256(mask(bits), _mm256_set1_epi8(16))
}

/// 32 bits, -1 in the bytes whose bit is set.
#[inline]
#[target_feature(enable = "avx2")]
fn mask(bits: u32) -> __m256i {
    let index = _mm256_setr_epi64x(
        0,
        0x0101_0101_0101_0101,
        0x0202_0202_0202_0202,
        0x0303_0303_0303_0303,
    );
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let x = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), index);
    _mm256_cmpeq_epi8(_mm256_and_si256(x, bit), bit)
}

impl SmallAvx2 for b::Q4_0 {
    const FORM: Form = Form::Unsigned(8);
    const MAX: i32 = 8;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], _: usize) -> __m256i {
        plain_nibbles(part(block, 2))
    }
}

impl SmallAvx2 for b::Q4_1 {
    const FORM: Form = Form::Unsigned(0);
    const MAX: i32 = 15;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], _: usize) -> __m256i {
        plain_nibbles(part(block, 4))
    }
}

impl SmallAvx2 for b::Q5_0 {
    const FORM: Form = Form::Unsigned(16);
    const MAX: i32 = 16;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], _: usize) -> __m256i {
        _mm256_or_si256(plain_nibbles(part(block, 6)), fifths(u32_at(block, 2)))
    }
}

impl SmallAvx2 for b::Q5_1 {
    const FORM: Form = Form::Unsigned(0);
    const MAX: i32 = 31;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], _: usize) -> __m256i {
        _mm256_or_si256(plain_nibbles(part(block, 8)), fifths(u32_at(block, 4)))
    }
}

impl SmallAvx2 for b::Q8_0 {
    const FORM: Form = Form::Signed;
    const MAX: i32 = 128;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], _: usize) -> __m256i {
        load(part(block, 2))
    }
}

impl SmallAvx2 for b::Iq4Nl {
    const FORM: Form = Form::Signed;
    const MAX: i32 = 127;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], _: usize) -> __m256i {
        iq4(part(block, 2))
    }
}

/// [`tables::E2M1`] moved up to be unsigned.
static E2M1_UP: [i8; 16] = {
    let mut up = tables::E2M1;
    let mut i = 0;
    while i < 16 {
        up[i] += 12;
        i += 1;
    }
    up
};

impl SmallAvx2 for b::Mxfp4 {
    const FORM: Form = Form::Unsigned(12);
    const MAX: i32 = 12;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], _: usize) -> __m256i {
        table_nibbles(&E2M1_UP, part(block, 1))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scale(block: &[u8]) -> (f32, f32) {
        (e8m0_half(block[0]), 0.0)
    }
}

impl SmallAvx2 for b::Q1_0 {
    const FORM: Form = Form::Unsigned(1);
    const MAX: i32 = 1;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], piece: usize) -> __m256i {
        _mm256_and_si256(mask(u32_at(block, 2 + 4 * piece)), _mm256_set1_epi8(2))
    }
}

impl SmallAvx2 for b::Q2_0 {
    const FORM: Form = Form::Unsigned(1);
    const MAX: i32 = 2;
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: &[u8], piece: usize) -> __m256i {
        // Each of 8 bytes into the four bytes of a dword, each byte of which keeps another pair of bits.
        let x = _mm256_cvtepu8_epi32(load8(part(block, 2 + 8 * piece)));
        let x = _mm256_and_si256(
            _mm256_or_si256(x, _mm256_slli_epi32::<12>(x)),
            _mm256_set1_epi32(0x000f_000f),
        );
        let x = _mm256_or_si256(x, _mm256_slli_epi32::<6>(x));
        _mm256_and_si256(x, _mm256_set1_epi32(0x0303_0303))
    }
}
