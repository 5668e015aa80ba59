//! Unpacked forms of types with tables, with AVX2.

use std::arch::x86_64::*;

use super::lanes::{half, part};
use super::lookup::INSERT;
use super::together::{Heads, across, dwords, high_halves, low_halves, neighbours};
use super::unpack_super::{
    Form, MOST_PLANES, Parts, SuperAvx2, both, codes, eight_nibbles, iq4_table, iq4_xs_scales,
    nibbles, odd, scales4, two_bits, with_third, without_min,
};
use crate::blocks::{Codes, FourBits, Iq4XsInOrder, Numbered, Pack, ThreeBits};

/// Its codes by number, moved up so that none is negative.
#[inline]
#[target_feature(enable = "avx2")]
fn table<C: Codes>() -> __m256i {
    // Two products with unsigned codes meet in an int16.
    const { assert!(2 * 2 * C::MAX as i32 * 127 <= i16::MAX as i32) };
    let up = const {
        let mut up = [0; 16];
        let mut i = 0;
        while i < 16 {
            up[i] = (C::TABLE[i] + C::MAX) as u8;
            i += 1;
        }
        i128::from_le_bytes(up)
    };
    both(_mm_set_epi64x((up >> 64) as i64, up as i64))
}

/// Odd scales as the form's are.
#[inline]
#[target_feature(enable = "avx2")]
fn scale<C: Codes>(odd: __m256i) -> __m256i {
    if C::HALVED {
        _mm256_add_epi16(odd, odd)
    } else {
        odd
    }
}

/// Scales of eight rows from their bits, a byte each.
#[inline]
#[target_feature(enable = "avx2")]
fn byte_scale<C: Codes>(stored: __m256i) -> __m256i {
    let odd = _mm256_or_si256(_mm256_add_epi8(stored, stored), _mm256_set1_epi8(1));
    if C::HALVED {
        _mm256_add_epi8(odd, odd)
    } else {
        odd
    }
}

/// The nibbles of each dword in turn, the low one first, four in each.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles_in_turn(x: __m256i) -> [__m256i; 2] {
    let fifteen = _mm256_set1_epi8(15);
    let low = _mm256_and_si256(x, fifteen);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(x), fifteen);
    let [first, second] = neighbours(low);
    let [first_high, second_high] = neighbours(high);
    [
        _mm256_or_si256(first, _mm256_slli_epi16::<8>(first_high)),
        _mm256_or_si256(second, _mm256_slli_epi16::<8>(second_high)),
    ]
}

impl<C: Codes> SuperAvx2 for FourBits<C> {
    const FORM: Form = Form::Unsigned(C::MAX);
    const MAX: i32 = C::MAX as i32;
    const SUB: usize = 32;
    const PLANES: &'static [usize] = &[0, 32, 64, 96];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, z, w, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        let table = table::<C>();
        nibbles([x, y, z, w]).map(|q| _mm256_shuffle_epi8(table, q))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        let [.., low, last] = dwords(blocks, 118);
        let [first, second] = nibbles_in_turn(across(low, last));
        let zero = _mm256_setzero_si256();
        let scale = [byte_scale::<C>(first), byte_scale::<C>(second), zero, zero];
        let d = _mm256_mul_ps(high_halves(last), _mm256_set1_ps(C::D));
        Heads::without_min(scale, d)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 134] = part(block, 0);
        let q = codes::<Self>(block);
        let odd = odd(eight_nibbles(part(block, 128)));
        without_min(q, scale::<C>(odd), half(block, 132) * C::D)
    }
}

impl<C: Codes> SuperAvx2 for ThreeBits<C> {
    const FORM: Form = Form::Unsigned(C::MAX);
    const MAX: i32 = C::MAX as i32;
    const SUB: usize = 16;
    const PLANES: &'static [usize] = &[32, 64, 0];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, third, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        let table = table::<C>();
        with_third(two_bits(x, y), third).map(|q| _mm256_shuffle_epi8(table, q))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        let [_, x, y, last] = dwords(blocks, 90);
        let [a, b] = nibbles_in_turn(across(x, y));
        let [c, d] = nibbles_in_turn(across(y, last));
        let half = _mm256_mul_ps(high_halves(last), _mm256_set1_ps(C::D));
        Heads::without_min([a, b, c, d].map(|x| byte_scale::<C>(x)), half)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 106] = part(block, 0);
        let q = codes::<Self>(block);
        let odd = scales4(part(block, 96));
        without_min(q, scale::<C>(odd), half(block, 104) * C::D)
    }
}

impl SuperAvx2 for Iq4XsInOrder {
    const FORM: Form = Form::Signed;
    const MAX: i32 = 127;
    const SUB: usize = 32;
    const FEW: usize = 4;
    const PLANES: &'static [usize] = &[8, 40, 72, 104];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, z, w, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        let table = iq4_table();
        nibbles([x, y, z, w]).map(|q| _mm256_shuffle_epi8(table, q))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        let [halves, low, ..] = dwords(blocks, 0);
        // Two bits for each of four scales, to the fifth and sixth of a byte.
        let high = |x| {
            let top = |j: i32| _mm256_set1_epi32(48 << (8 * j));
            let [a, b] = [_mm256_slli_epi32::<4>(x), _mm256_slli_epi32::<10>(x)];
            let [c, d] = [_mm256_slli_epi32::<16>(x), _mm256_slli_epi32::<22>(x)];
            let ab = _mm256_or_si256(_mm256_and_si256(a, top(0)), _mm256_and_si256(b, top(1)));
            let cd = _mm256_or_si256(_mm256_and_si256(c, top(2)), _mm256_and_si256(d, top(3)));
            _mm256_or_si256(ab, cd)
        };
        let scale = |low, high| _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
        let [first, second] = nibbles_in_turn(low);
        let first = scale(first, high(_mm256_srli_epi32::<16>(halves)));
        let second = scale(second, high(_mm256_srli_epi32::<24>(halves)));
        let zero = _mm256_setzero_si256();
        Heads::without_min([first, second, zero, zero], low_halves(halves))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 136] = part(block, 0);
        let q = codes::<Self>(block);
        without_min(q, iq4_xs_scales(part(block, 0)), half(block, 0))
    }
}

/// As [`crate::blocks::Unpackable::unpack_block`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unpack_block<S: SuperAvx2 + Numbered>(block: &[u8], out: &mut [u8]) {
    // SAFETY: this function has the features.
    let w = unsafe { S::parts::<INSERT>(block) };
    let mut numbers = [0u8; 256];
    let sign_bit = _mm256_set1_epi8(1 << (S::Codes::BITS - 1));
    let least = _mm256_set1_epi8((0xff >> S::Codes::SHIFT) as u8 as i8);
    let shift = _mm_cvtsi32_si128(S::Codes::SHIFT as i32);
    for (j, to) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Without what comes from the byte above.
        let magnitude = _mm256_and_si256(_mm256_srl_epi16(w.q[j], shift), least);
        let minus = _mm256_cmpgt_epi8(_mm256_setzero_si256(), w.sign[j]);
        let number = _mm256_or_si256(magnitude, _mm256_and_si256(minus, sign_bit));
        // SAFETY: writes the 32 bytes of the array; needs no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), number) };
    }
    let mut halves = [0i16; 16];
    // SAFETY: writes the 32 bytes of the array; needs no alignment.
    unsafe { _mm256_storeu_si256(halves.as_mut_ptr().cast(), w.scale) };
    let down = 1 + u32::from(S::Codes::HALVED);
    // Those of even sixteens are in the low half.
    let scales = std::array::from_fn(|j| (halves[j / 2 + j % 2 * 8] >> down) as u8);
    S::Packed::pack(&numbers, &scales, [block[0], block[1]], out);
}
