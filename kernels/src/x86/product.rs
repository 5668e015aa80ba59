//! The products of a block of 256 weights with one of activations, in whole numbers.

use std::arch::x86_64::*;

use super::lanes::{load, opaque, part};
use super::unpack_super::{Form, Parts, SuperAvx2};
use crate::activation::{BLOCK_BYTES, SUMS, VALUES};

/// For each of `T` blocks of activations eight sums of codes' products, scaled, and of minima's, and what they are multiplied
/// by.
pub(super) struct Product<const T: usize> {
    pub dots: [__m256i; T],
    pub mins: [__m256i; T],
    pub d: f32,
    pub dmin: f32,
}

/// Products of codes and activations, added up by two in int16.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn multiply(form: Form, q: __m256i, sign: __m256i, a: __m256i) -> __m256i {
    match form {
        Form::Unsigned(_) => _mm256_maddubs_epi16(q, a),
        Form::Signed => _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(a, q)),
        Form::Magnitudes => _mm256_maddubs_epi16(q, _mm256_sign_epi8(a, sign)),
    }
}

/// The scales of the codes `32 * j ..`, for sums of two.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scale_of(scales: __m256i, j: usize) -> __m256i {
    let pick = _mm256_set1_epi16((0x0100 + 0x0202 * j) as i16);
    _mm256_shuffle_epi8(scales, pick)
}

/// The activations `32 * j ..` of a block.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn values(a: &[u8; BLOCK_BYTES], j: usize) -> __m256i {
    load(part(a, VALUES + 32 * j))
}

/// The products of a block that is there in parts.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn of_parts<S: SuperAvx2, const T: usize>(
    w: &Parts,
    acts: [&[u8; BLOCK_BYTES]; T],
) -> Product<T> {
    let zero = _mm256_setzero_si256();
    let (mut dots, mut mins) = ([zero; T], [zero; T]);
    let scales = opaque(w.scale);
    for (i, a) in acts.into_iter().enumerate() {
        for j in 0..8 {
            let products = multiply(S::FORM, w.q[j], w.sign[j], values(a, j));
            let scale = if S::SUB == 256 {
                w.scale
            } else {
                scale_of(scales, j)
            };
            dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(products, scale));
        }
        let sums = load(part(a, SUMS));
        if let Form::Unsigned(offset @ 1..) = S::FORM {
            let offset = _mm256_set1_epi32(i32::from(offset));
            let excess = _mm256_mullo_epi32(_mm256_madd_epi16(w.scale, sums), offset);
            dots[i] = _mm256_sub_epi32(dots[i], excess);
        }
        mins[i] = _mm256_madd_epi16(w.min, sums);
    }
    Product {
        dots,
        mins,
        d: w.d,
        dmin: w.dmin,
    }
}
