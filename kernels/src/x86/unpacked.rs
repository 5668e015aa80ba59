//! Unpacked forms of types with tables, with AVX2.

use std::arch::x86_64::*;

use super::lanes::{half, load, part};
use super::lookup::INSERT;
use super::unpack_super::{
    Form, Parts, SuperAvx2, both, eight_nibbles, iq4_table, iq4_xs_scales, nibbles, odd, scales4,
    two_bits, with_third, without_min,
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

impl<C: Codes> SuperAvx2 for FourBits<C> {
    const FORM: Form = Form::Unsigned(C::MAX);
    const MAX: i32 = C::MAX as i32;
    const SUB: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 134] = part(block, 0);
        let table = table::<C>();
        let q = nibbles(part(block, 0)).map(|q| _mm256_shuffle_epi8(table, q));
        let odd = odd(eight_nibbles(part(block, 128)));
        without_min(q, scale::<C>(odd), half(block, 132) * C::D)
    }
}

impl<C: Codes> SuperAvx2 for ThreeBits<C> {
    const FORM: Form = Form::Unsigned(C::MAX);
    const MAX: i32 = C::MAX as i32;
    const SUB: usize = 16;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 106] = part(block, 0);
        let table = table::<C>();
        let q = with_third(two_bits(part(block, 32)), load(part(block, 0)));
        let q = q.map(|q| _mm256_shuffle_epi8(table, q));
        let odd = scales4(part(block, 96));
        without_min(q, scale::<C>(odd), half(block, 104) * C::D)
    }
}

impl SuperAvx2 for Iq4XsInOrder {
    const FORM: Form = Form::Signed;
    const MAX: i32 = 127;
    const SUB: usize = 32;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 136] = part(block, 0);
        let table = iq4_table();
        let q = nibbles(part(block, 8)).map(|q| _mm256_shuffle_epi8(table, q));
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
