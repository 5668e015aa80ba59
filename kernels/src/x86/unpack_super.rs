//! Blocks of 256 weights into vectors of codes and scales, with AVX2.

use std::arch::{asm, x86_64::*};

use super::lanes::{half, load, load8, load16, opaque, part, u16_at, u32_at};
use super::lookup::{GATHER, INSERT, STORE, gather4, gather8, insert8};
use super::product::{Product, of_parts, scale_of, values};
use super::together::{Heads, across, dwords, high_halves, low_halves};
use crate::{
    activation::BLOCK_BYTES,
    blocks::{self as b, SuperType},
    tables,
};

/// What the bytes of `q` are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Unsigned; a weight is the code less this offset.
    Unsigned(i8),
    /// Signed.
    Signed,
    /// Magnitudes; the signs are apart.
    Magnitudes,
}

/// A block as vectors. `scale` and `min` hold 16 int16, those of even sixteens of weights in the low half, of odd
/// ones in the high half.
pub(super) struct Parts {
    pub q: [__m256i; 8],
    /// With [`Form::Magnitudes`] 1 or -1 for each of `q`.
    pub sign: [__m256i; 8],
    pub scale: __m256i,
    pub min: __m256i,
    pub d: f32,
    pub dmin: f32,
}

/// Planes of a type, at most.
pub(super) const MOST_PLANES: usize = 6;

pub(super) trait SuperAvx2: SuperType + Sized {
    const FORM: Form;
    /// The largest magnitude of codes less their offset.
    const MAX: i32;
    /// Weights that share a scale: 16, 32, or 256 if scales are all one.
    const SUB: usize;

    /// From more activation rows on unpacking panels pays: measured with weights from memory and from caches.
    const FEW: usize = 2;

    /// Whether codes are entries of a table, which can be gathered.
    const TABLE: bool = false;

    /// Where in a block the vectors of bytes are that [`SuperAvx2::codes`] makes codes of; none if it takes more than that,
    /// and blocks are unpacked one by one.
    const PLANES: &'static [usize] = &[];

    /// All codes of a block from its [planes](SuperAvx2::PLANES). Each byte of the codes comes of the planes' bytes at its
    /// own place, so bytes of several blocks can be put together as it suits.
    ///
    /// # Safety
    /// Needs AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes(_planes: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        unreachable!("no planes")
    }

    /// Scales of the rows' blocks, if there are planes.
    ///
    /// # Safety
    /// Needs AVX2, FMA and F16C.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(_blocks: [&[u8]; 8]) -> Heads {
        unreachable!("no planes")
    }

    /// `WAY` says how entries of tables are looked up, as in [`super::lookup`].
    ///
    /// # Safety
    /// Needs AVX2, FMA and F16C.
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts;

    /// The products with blocks of activations.
    ///
    /// # Safety
    /// Needs AVX2, FMA and F16C.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn product<const WAY: u8, const T: usize>(
        block: &[u8],
        acts: [&[u8; BLOCK_BYTES]; T],
    ) -> Product<T> {
        // SAFETY: the caller's promise.
        let w = unsafe { Self::parts::<WAY>(block) };
        of_parts::<Self, T>(&w, acts)
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn both(x: __m128i) -> __m256i {
    _mm256_broadcastsi128_si256(x)
}

/// 16 bytes in order of sixteens to the order of [`Parts`], still bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn even_odd(x: __m128i) -> __m128i {
    _mm_shuffle_epi8(
        x,
        _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15),
    )
}

/// `2 * x + 1`
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn odd(x: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_add_epi16(x, x), _mm256_set1_epi16(1))
}

/// The codes of a block that has [planes](SuperAvx2::PLANES).
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn codes<S: SuperAvx2>(block: &[u8]) -> [__m256i; 8] {
    let mut planes = [_mm256_setzero_si256(); MOST_PLANES];
    for (plane, at) in planes.iter_mut().zip(S::PLANES) {
        *plane = load(part(block, *at));
    }
    // SAFETY: this function has the feature.
    unsafe { S::codes(planes) }
}

/// Two halves of four planes of 2 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn two_bits(x: __m256i, y: __m256i) -> [__m256i; 8] {
    let three = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(x, three),
        _mm256_and_si256(_mm256_srli_epi16::<2>(x), three),
        _mm256_and_si256(_mm256_srli_epi16::<4>(x), three),
        _mm256_and_si256(_mm256_srli_epi16::<6>(x), three),
        _mm256_and_si256(y, three),
        _mm256_and_si256(_mm256_srli_epi16::<2>(y), three),
        _mm256_and_si256(_mm256_srli_epi16::<4>(y), three),
        _mm256_and_si256(_mm256_srli_epi16::<6>(y), three),
    ]
}

/// Codes of two bits with the bits of `third`, the lowest of each byte for the first vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn with_third(mut q: [__m256i; 8], third: __m256i) -> [__m256i; 8] {
    let four = _mm256_set1_epi8(4);
    let bits = [
        _mm256_slli_epi16::<2>(third),
        _mm256_slli_epi16::<1>(third),
        third,
        _mm256_srli_epi16::<1>(third),
        _mm256_srli_epi16::<2>(third),
        _mm256_srli_epi16::<3>(third),
        _mm256_srli_epi16::<4>(third),
        _mm256_srli_epi16::<5>(third),
    ];
    for (q, bits) in q.iter_mut().zip(bits) {
        *q = _mm256_or_si256(*q, _mm256_and_si256(bits, four));
    }
    q
}

impl SuperAvx2 for b::Q2K {
    const FORM: Form = Form::Unsigned(0);
    const MAX: i32 = 3;
    const SUB: usize = 16;
    const FEW: usize = 1;
    const PLANES: &'static [usize] = &[16, 48];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        two_bits(x, y)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        let both = dwords(blocks, 0);
        let fifteen = _mm256_set1_epi8(15);
        let [.., halves] = dwords(blocks, 68);
        Heads {
            scale: both.map(|x| _mm256_and_si256(x, fifteen)),
            min: both.map(|x| _mm256_and_si256(_mm256_srli_epi16::<4>(x), fifteen)),
            d: low_halves(halves),
            dmin: high_halves(halves),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 84] = part(block, 0);
        let scales = even_odd(load16(part(block, 0)));
        let fifteen = _mm_set1_epi8(15);
        Parts {
            sign: [_mm256_setzero_si256(); 8],
            q: codes::<Self>(block),
            scale: _mm256_cvtepu8_epi16(_mm_and_si128(scales, fifteen)),
            min: _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16::<4>(scales), fifteen)),
            d: half(block, 80),
            dmin: half(block, 82),
        }
    }
}

impl SuperAvx2 for b::Q3K {
    const FORM: Form = Form::Unsigned(4);
    const MAX: i32 = 4;
    const SUB: usize = 16;
    const PLANES: &'static [usize] = &[32, 64, 0];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, third, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        with_third(two_bits(x, y), third)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        // From the two bytes before the scales.
        let [x, y, z, last] = dwords(blocks, 94);
        let (low, next, high) = (across(x, y), across(y, z), across(z, last));
        let (fifteen, top) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
        let scale = |low, high| {
            let low = _mm256_and_si256(low, fifteen);
            let scale = _mm256_or_si256(low, _mm256_and_si256(high, top));
            _mm256_sub_epi8(scale, _mm256_set1_epi8(32))
        };
        let scale = [
            scale(low, _mm256_slli_epi16::<4>(high)),
            scale(next, _mm256_slli_epi16::<2>(high)),
            scale(_mm256_srli_epi16::<4>(low), high),
            scale(_mm256_srli_epi16::<4>(next), _mm256_srli_epi16::<2>(high)),
        ];
        Heads::without_min(scale, high_halves(last))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 110] = part(block, 0);
        let low = load8(part(block, 96));
        let low = _mm_unpacklo_epi64(low, _mm_srli_epi16::<4>(low));
        let low = _mm_and_si128(low, _mm_set1_epi8(15));
        let high = _mm_set1_epi32(u32_at(block, 104) as i32);
        let high = _mm_and_si128(
            _mm_srlv_epi32(high, _mm_setr_epi32(0, 2, 4, 6)),
            _mm_set1_epi8(3),
        );
        let scales = _mm_or_si128(low, _mm_slli_epi16::<4>(high));
        let scales = even_odd(_mm_sub_epi8(scales, _mm_set1_epi8(32)));

        Parts {
            q: codes::<Self>(block),
            sign: [_mm256_setzero_si256(); 8],
            scale: _mm256_cvtepi8_epi16(scales),
            min: _mm256_setzero_si256(),
            d: half(block, 108),
            dmin: 0.0,
        }
    }
}

/// Scales and minimums of Q4_K and Q5_K from their 12 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn scales_and_mins(bytes: &[u8; 12]) -> (__m256i, __m256i) {
    let (a, b, c) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8));
    let scale_high = c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4;
    let min_high = c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4;
    let eight = |low: u32, high: u32| i64::from(high) << 32 | i64::from(low & 0x3f3f_3f3f);
    (
        both(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(eight(a, scale_high)))),
        both(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(eight(b, min_high)))),
    )
}

/// The heads of Q4_K and Q5_K.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn heads_with_mins(blocks: [&[u8]; 8]) -> Heads {
    let [halves, a, b, c] = dwords(blocks, 0);
    let (six, four) = (_mm256_set1_epi8(63), _mm256_set1_epi8(15));
    let top = _mm256_set1_epi8(48);
    let with_top = |low, high| {
        let top = _mm256_and_si256(_mm256_srli_epi16::<2>(high), top);
        _mm256_or_si256(_mm256_and_si256(low, four), top)
    };
    let zero = _mm256_setzero_si256();
    Heads {
        scale: [_mm256_and_si256(a, six), with_top(c, a), zero, zero],
        min: [
            _mm256_and_si256(b, six),
            with_top(_mm256_srli_epi16::<4>(c), b),
            zero,
            zero,
        ],
        d: low_halves(halves),
        dmin: high_halves(halves),
    }
}

/// Four times two planes of nibbles.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn nibbles(planes: [__m256i; 4]) -> [__m256i; 8] {
    let fifteen = _mm256_set1_epi8(15);
    let mut q = [fifteen; 8];
    for (i, x) in planes.into_iter().enumerate() {
        q[2 * i] = _mm256_and_si256(x, fifteen);
        q[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(x), fifteen);
    }
    q
}

impl SuperAvx2 for b::Q4K {
    const FORM: Form = Form::Unsigned(0);
    const MAX: i32 = 15;
    const SUB: usize = 32;
    const PLANES: &'static [usize] = &[16, 48, 80, 112];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, z, w, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        nibbles([x, y, z, w])
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        heads_with_mins(blocks)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 144] = part(block, 0);
        let (scale, min) = scales_and_mins(part(block, 4));
        Parts {
            q: codes::<Self>(block),
            sign: [scale; 8],
            scale,
            min,
            d: half(block, 0),
            dmin: half(block, 2),
        }
    }
}

impl SuperAvx2 for b::Q5K {
    const FORM: Form = Form::Unsigned(0);
    const MAX: i32 = 31;
    const SUB: usize = 32;
    const FEW: usize = 3;
    const PLANES: &'static [usize] = &[48, 80, 112, 144, 16];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, z, w, high, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        let sixteen = _mm256_set1_epi8(16);
        let mut q = nibbles([x, y, z, w]);
        let bits = [
            _mm256_slli_epi16::<4>(high),
            _mm256_slli_epi16::<3>(high),
            _mm256_slli_epi16::<2>(high),
            _mm256_slli_epi16::<1>(high),
            high,
            _mm256_srli_epi16::<1>(high),
            _mm256_srli_epi16::<2>(high),
            _mm256_srli_epi16::<3>(high),
        ];
        for (q, bits) in q.iter_mut().zip(bits) {
            *q = _mm256_or_si256(*q, _mm256_and_si256(bits, sixteen));
        }
        q
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        heads_with_mins(blocks)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 176] = part(block, 0);
        let (scale, min) = scales_and_mins(part(block, 4));
        Parts {
            q: codes::<Self>(block),
            sign: [scale; 8],
            scale,
            min,
            d: half(block, 0),
            dmin: half(block, 2),
        }
    }
}

impl SuperAvx2 for b::Q6K {
    const FORM: Form = Form::Unsigned(32);
    const MAX: i32 = 32;
    const SUB: usize = 16;
    const FEW: usize = 4;
    const PLANES: &'static [usize] = &[0, 32, 64, 96, 128, 160];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes(planes: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        let (fifteen, top) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48));
        let mut q = [fifteen; 8];
        for i in 0..2 {
            let [x, y, high] = [planes[2 * i], planes[2 * i + 1], planes[4 + i]];
            let bits = [
                _mm256_slli_epi16::<4>(high),
                _mm256_slli_epi16::<2>(high),
                high,
                _mm256_srli_epi16::<2>(high),
            ];
            let low = [x, y, _mm256_srli_epi16::<4>(x), _mm256_srli_epi16::<4>(y)];
            for j in 0..4 {
                q[4 * i + j] = _mm256_or_si256(
                    _mm256_and_si256(low[j], fifteen),
                    _mm256_and_si256(bits[j], top),
                );
            }
        }
        q
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        let [.., halves] = dwords(blocks, 194);
        Heads::without_min(dwords(blocks, 192), high_halves(halves))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 210] = part(block, 0);
        Parts {
            q: codes::<Self>(block),
            sign: [_mm256_setzero_si256(); 8],
            scale: _mm256_cvtepi8_epi16(even_odd(load16(part(block, 192)))),
            min: _mm256_setzero_si256(),
            d: half(block, 208),
            dmin: 0.0,
        }
    }
}

/// Eighth sign bits for 32 bytes of seven, so that each byte has an even number of ones.
#[inline]
#[target_feature(enable = "avx2")]
fn even_parity(seven: __m256i) -> __m256i {
    const E: i8 = 0;
    const O: i8 = -128;
    let parity = both(_mm_setr_epi8(
        E, O, O, E, O, E, E, O, O, E, E, O, E, O, O, E,
    ));
    let fifteen = _mm256_set1_epi8(15);
    let low = _mm256_shuffle_epi8(parity, _mm256_and_si256(seven, fifteen));
    let high = _mm256_shuffle_epi8(
        parity,
        _mm256_and_si256(_mm256_srli_epi16::<4>(seven), fifteen),
    );
    _mm256_or_si256(seven, _mm256_xor_si256(low, high))
}

/// Four sevens of bits in the low 28 of each dword, a byte each.
#[inline]
#[target_feature(enable = "avx2")]
fn sevens(x: __m256i) -> __m256i {
    let a = _mm256_and_si256(x, _mm256_set1_epi32(0x7f));
    let b = _mm256_and_si256(_mm256_slli_epi32::<1>(x), _mm256_set1_epi32(0x7f00));
    let c = _mm256_and_si256(_mm256_slli_epi32::<2>(x), _mm256_set1_epi32(0x7f_0000));
    let d = _mm256_and_si256(_mm256_slli_epi32::<3>(x), _mm256_set1_epi32(0x7f00_0000));
    _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d))
}

/// Byte `4 * i + l` of `bytes`, for `i` from 0 to 7, in each of the bytes `8 * l .. 8 * l + 8` of vector `i`.
#[inline]
#[target_feature(enable = "avx2")]
fn spread_all(bytes: __m256i) -> [__m256i; 8] {
    let low = _mm256_permute4x64_epi64::<0b01_00_01_00>(bytes);
    let high = _mm256_permute4x64_epi64::<0b11_10_11_10>(bytes);
    let first = _mm256_setr_epi64x(
        0,
        0x0101_0101_0101_0101,
        0x0202_0202_0202_0202,
        0x0303_0303_0303_0303,
    );
    let mut all = [first; 8];
    for i in 0..4 {
        let index = _mm256_add_epi8(first, _mm256_set1_epi8(4 * i as i8));
        all[i] = _mm256_shuffle_epi8(low, index);
        all[i + 4] = _mm256_shuffle_epi8(high, index);
    }
    all
}

/// All ones where a byte of [`spread_all`] has its bit.
#[inline]
#[target_feature(enable = "avx2")]
fn negative(spread: __m256i) -> __m256i {
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit)
}

/// 1, or -1 where the bit in `bits` is set, for 256 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn spread_signs(bits: __m256i) -> [__m256i; 8] {
    let mut sign = spread_all(bits);
    for sign in &mut sign {
        *sign = _mm256_or_si256(negative(*sign), _mm256_set1_epi8(1));
    }
    sign
}

/// What a block of magnitudes has beside them: their signs, 32 bytes of bits, and scales as in [`Parts`].
struct Signed {
    signs: __m256i,
    scale: __m256i,
    d: f32,
}

impl Signed {
    /// With the vectors of magnitudes that `codes` gives.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn parts(self, codes: impl Fn(usize) -> __m256i) -> Parts {
        with_signs(
            std::array::from_fn(codes),
            spread_signs(self.signs),
            self.scale,
            self.d,
        )
    }

    /// Likewise. Each vector is used as soon as it is there: all of them, and their signs, would not fit registers.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn product<const T: usize>(
        self,
        codes: impl Fn(usize) -> __m256i,
        acts: [&[u8; BLOCK_BYTES]; T],
    ) -> Product<T> {
        let scales = opaque(self.scale);
        let spread = spread_all(self.signs);
        let mut dots = [_mm256_setzero_si256(); T];
        for j in 0..8 {
            let negative = negative(spread[j]);
            let (q, scale) = (codes(j), scale_of(scales, j));
            for (dot, a) in dots.iter_mut().zip(acts) {
                let values = _mm256_sub_epi8(_mm256_xor_si256(values(a, j), negative), negative);
                let products = _mm256_maddubs_epi16(q, values);
                *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(products, scale));
            }
        }
        Product {
            dots,
            mins: [_mm256_setzero_si256(); T],
            d: self.d,
            dmin: 0.0,
        }
    }
}

/// [`SuperAvx2`] for a type of magnitudes from a table, of which a function gives [`Signed`] and the vectors.
macro_rules! magnitudes {
    ($ty:ty, $looked_up:ident, $max:expr, $sub:expr) => {
        impl SuperAvx2 for $ty {
            const FORM: Form = Form::Magnitudes;
            const MAX: i32 = $max;
            const SUB: usize = $sub;
            const TABLE: bool = true;

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
                let (signed, codes) = $looked_up::<WAY>(block);
                signed.parts(codes)
            }

            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn product<const WAY: u8, const T: usize>(
                block: &[u8],
                acts: [&[u8; BLOCK_BYTES]; T],
            ) -> Product<T> {
                let (signed, codes) = $looked_up::<WAY>(block);
                signed.product(codes, acts)
            }
        }
    };
}

/// Eight bytes as a number. Opaque, because compilers know that the bytes are also in a vector, and to take indices
/// from there is slower than to shift them out of a register.
#[inline(always)]
fn opaque8(bytes: &[u8; 8]) -> u64 {
    let x: u64;
    // SAFETY: loads the 8 bytes of the array.
    unsafe {
        asm!("mov {x}, qword ptr [{at}]", x = lateout(reg) x, at = in(reg) bytes.as_ptr(),
            options(pure, readonly, nostack, preserves_flags));
    }
    x
}

/// Four bytes, likewise.
#[inline(always)]
fn opaque4(bytes: &[u8; 4]) -> u32 {
    let x: u32;
    // SAFETY: loads the 4 bytes of the array.
    unsafe {
        asm!("mov {x:e}, dword ptr [{at}]", x = lateout(reg) x, at = in(reg) bytes.as_ptr(),
            options(pure, readonly, nostack, preserves_flags));
    }
    x
}

#[inline]
#[target_feature(enable = "avx2")]
fn entries8(a: u64, b: u64, c: u64, d: u64) -> __m256i {
    _mm256_setr_epi64x(a as i64, b as i64, c as i64, d as i64)
}

/// Eight dwords to int16, the same in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow(x: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b10_00_10_00>(_mm256_packs_epi32(x, x))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn without_min(q: [__m256i; 8], scale: __m256i, d: f32) -> Parts {
    with_signs(q, [_mm256_setzero_si256(); 8], scale, d)
}

#[inline]
#[target_feature(enable = "avx2")]
fn with_signs(q: [__m256i; 8], sign: [__m256i; 8], scale: __m256i, d: f32) -> Parts {
    Parts {
        q,
        sign,
        scale,
        min: _mm256_setzero_si256(),
        d,
        dmin: 0.0,
    }
}

/// Numbers of entries as bytes of int16, computed in vectors and read by four.
#[repr(align(32))]
struct Indices([u8; 128]);

impl Indices {
    #[inline(always)]
    fn new() -> Indices {
        Indices([0; 128])
    }

    /// Sixteen of them, from `16 * k` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn put(&mut self, k: usize, x: __m256i) {
        let to: &mut [u8; 32] = (&mut self.0[32 * k..32 * k + 32])
            .try_into()
            .expect("sixteen");
        // SAFETY: writes the 32 bytes of the array; needs no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
    }

    /// `4 * i ..= 4 * i + 3`
    #[inline(always)]
    fn four(&self, i: usize) -> u64 {
        opaque8(part(&self.0, 8 * i))
    }

    /// The entries `4 * i ..= 4 * i + 3`, of a table whose size is a power of two.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn entries4<const N: usize, const WAY: u8>(&self, table: &[u64; N], i: usize) -> __m256i {
        if WAY == GATHER {
            let four = load8(part(&self.0, 8 * i));
            return gather4(table, _mm_cvtepu16_epi32(four));
        }
        let four = self.four(i);
        let entry = |l: usize| table[(four >> (16 * l)) as usize & (N - 1)];
        entries8(entry(0), entry(1), entry(2), entry(3))
    }
}

/// Word `4 * k + i` of the two halves (which are the same) in lanes `4 * i .. 4 * i + 4`.
#[inline]
#[target_feature(enable = "avx2")]
fn words_by_four(words: __m128i, k: usize) -> __m256i {
    let first = _mm256_setr_epi64x(
        0x0100_0100_0100_0100,
        0x0302_0302_0302_0302,
        0x0504_0504_0504_0504,
        0x0706_0706_0706_0706,
    );
    let index = _mm256_add_epi8(first, _mm256_set1_epi8(8 * k as i8));
    _mm256_shuffle_epi8(both(words), index)
}

magnitudes!(b::Iq2Xxs, iq2_xxs, 43, 32);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq2_xxs<const WAY: u8>(block: &[u8]) -> (Signed, impl Fn(usize) -> __m256i) {
    let block: &[u8; 66] = part(block, 0);
    let (x, y) = (
        _mm256_castsi256_ps(load(part(block, 2))),
        _mm256_castsi256_ps(load(part(block, 34))),
    );
    let words = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(x, y));
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
    let signed = Signed {
        signs: even_parity(sevens(words)),
        scale: odd(narrow(_mm256_srli_epi32::<28>(words))),
        d: half(block, 0) * 0.125,
    };
    let codes = move |i| {
        if WAY == GATHER {
            let four = i32::from_le_bytes(*part(block, 2 + 8 * i));
            return gather4(&tables::IQ2_XXS, _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)));
        }
        let n = opaque4(part(block, 2 + 8 * i));
        let entry = |l: usize| tables::IQ2_XXS[(n >> (8 * l)) as usize & 255];
        entries8(entry(0), entry(1), entry(2), entry(3))
    };
    (signed, codes)
}

/// Scales of IQ2_XS and IQ2_S.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scales4(bytes: &[u8; 8]) -> __m256i {
    let x = load8(bytes);
    let x = _mm_and_si128(
        _mm_unpacklo_epi64(x, _mm_srli_epi16::<4>(x)),
        _mm_set1_epi8(15),
    );
    odd(_mm256_cvtepu8_epi16(x))
}

magnitudes!(b::Iq2Xs, iq2_xs, 43, 16);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq2_xs<const WAY: u8>(block: &[u8]) -> (Signed, impl Fn(usize) -> __m256i) {
    let block: &[u8; 74] = part(block, 0);
    let (x, y) = (load(part(block, 2)), load(part(block, 34)));
    let high = _mm256_packus_epi16(_mm256_srli_epi16::<9>(x), _mm256_srli_epi16::<9>(y));
    let signed = Signed {
        signs: even_parity(_mm256_permute4x64_epi64::<0b11_01_10_00>(high)),
        scale: scales4(part(block, 66)),
        d: half(block, 0) * 0.125,
    };
    let codes = move |i| {
        if WAY == GATHER {
            // Without the signs, which `gather4` leaves out.
            let four = load8(part(block, 2 + 8 * i));
            return gather4(&tables::IQ2_XS, _mm_cvtepu16_epi32(four));
        }
        let codes = opaque8(part(block, 2 + 8 * i));
        let entry = |l: usize| tables::IQ2_XS[(codes >> (16 * l)) as usize & 511];
        entries8(entry(0), entry(1), entry(2), entry(3))
    };
    (signed, codes)
}

magnitudes!(b::Iq2S, iq2_s, 43, 16);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq2_s<const WAY: u8>(block: &[u8]) -> (Signed, impl Fn(usize) -> __m256i) {
    let block: &[u8; 82] = part(block, 0);
    let mut indices = Indices::new();
    let highs = _mm_cvtepu8_epi16(load8(part(block, 66)));
    for k in 0..2 {
        let low = _mm256_cvtepu8_epi16(load16(part(block, 2 + 16 * k)));
        let up = _mm256_set1_epi64x(0x0004_0010_0040_0100);
        let high = _mm256_mullo_epi16(words_by_four(highs, k), up);
        indices.put(
            k,
            _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi16(0x300))),
        );
    }
    let signed = Signed {
        signs: load(part(block, 34)),
        scale: scales4(part(block, 74)),
        d: half(block, 0) * 0.125,
    };
    (signed, move |i| {
        indices.entries4::<_, WAY>(&tables::IQ2_S, i)
    })
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Entries of four codes. They are put into memory one by one and read as vectors later.
#[repr(align(32))]
struct Entries([u32; 64]);

impl Entries {
    #[inline(always)]
    fn new() -> Entries {
        Entries([0; 64])
    }

    /// `8 * i ..= 8 * i + 7`
    #[inline]
    #[target_feature(enable = "avx2")]
    fn eight(&self, i: usize) -> __m256i {
        let eight: &[u32] = &self.0[8 * i..8 * i + 8];
        // SAFETY: reads the 32 bytes of the slice; needs no alignment.
        unsafe { _mm256_loadu_si256(eight.as_ptr().cast()) }
    }
}

/// [`tables::IQ3_XXS`], all of whose codes are even, halved: twice as many products fit sums of int16. Scales make up for
/// it.
static IQ3_XXS_HALVES: [u32; 256] = {
    let mut halves = tables::IQ3_XXS;
    let mut i = 0;
    while i < 256 {
        assert!(halves[i] & 0x0101_0101 == 0);
        halves[i] >>= 1;
        i += 1;
    }
    halves
};

magnitudes!(b::Iq3Xxs, iq3_xxs, 31, 32);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq3_xxs<const WAY: u8>(block: &[u8]) -> (Signed, impl Fn(usize) -> __m256i) {
    let block: &[u8; 98] = part(block, 0);
    let words = load(part(block, 66));
    let scale = odd(narrow(_mm256_srli_epi32::<28>(words)));
    let signed = Signed {
        signs: even_parity(sevens(words)),
        scale: _mm256_add_epi16(scale, scale),
        d: half(block, 0) * 0.25,
    };
    let mut entries = Entries::new();
    if WAY == STORE {
        for i in 0..8 {
            let n = opaque8(part(block, 2 + 8 * i));
            for k in 0..8 {
                entries.0[8 * i + k] = IQ3_XXS_HALVES[(n >> (8 * k)) as usize & 255];
            }
        }
        // Compilers would put vectors together in registers after all.
        std::hint::black_box(&mut entries);
    }
    let codes = move |i| {
        let eight = part(block, 2 + 8 * i);
        match WAY {
            GATHER => gather8(&IQ3_XXS_HALVES, _mm256_cvtepu8_epi32(load8(eight))),
            INSERT => insert8(&IQ3_XXS_HALVES, eight),
            _ => entries.eight(i),
        }
    };
    (signed, codes)
}

/// Eight nibbles to int16, the same in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn eight_nibbles(bytes: &[u8; 4]) -> __m256i {
    let x = _mm_cvtsi32_si128(i32::from_le_bytes(*bytes));
    let x = _mm_unpacklo_epi8(x, _mm_srli_epi16::<4>(x));
    both(_mm_cvtepu8_epi16(_mm_and_si128(x, _mm_set1_epi8(15))))
}

magnitudes!(b::Iq3S, iq3_s, 15, 32);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq3_s<const WAY: u8>(block: &[u8]) -> (Signed, impl Fn(usize) -> __m256i) {
    let block: &[u8; 110] = part(block, 0);
    let mut indices = Indices::new();
    let bit = _mm256_setr_epi16(
        1,
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        512,
        1024,
        2048,
        4096,
        8192,
        16384,
        i16::MIN,
    );
    for k in 0..4 {
        let low = _mm256_cvtepu8_epi16(load16(part(block, 2 + 16 * k)));
        let bits = _mm256_and_si256(_mm256_set1_epi16(u16_at(block, 66 + 2 * k) as i16), bit);
        let ninth = _mm256_and_si256(_mm256_cmpeq_epi16(bits, bit), _mm256_set1_epi16(256));
        indices.put(k, _mm256_or_si256(low, ninth));
    }
    let signed = Signed {
        signs: load(part(block, 74)),
        scale: odd(eight_nibbles(part(block, 106))),
        d: half(block, 0),
    };
    let codes = move |i| {
        if WAY == GATHER {
            let eight = load16(part(&indices.0, 16 * i));
            return gather8(&tables::IQ3_S, _mm256_cvtepu16_epi32(eight));
        }
        let n = [indices.four(2 * i), indices.four(2 * i + 1)];
        let one = |k: usize| tables::IQ3_S[(n[k / 4] >> (k % 4 * 16)) as usize & 511];
        let entry = |l: usize| pair(one(2 * l), one(2 * l + 1));
        entries8(entry(0), entry(1), entry(2), entry(3))
    };
    (signed, codes)
}

impl SuperAvx2 for b::Iq1S {
    const FORM: Form = Form::Unsigned(9);
    const MAX: i32 = 9;
    const SUB: usize = 32;
    const TABLE: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 50] = part(block, 0);
        let highs = load16(part(block, 34));
        let scale = _mm_and_si128(_mm_srli_epi16::<12>(highs), _mm_set1_epi16(7));
        let mut indices = Indices::new();
        for k in 0..2 {
            let low = _mm256_cvtepu8_epi16(load16(part(block, 2 + 16 * k)));
            // The multiplication moves each lane's three bits to the top.
            let up = _mm256_set1_epi64x(0x0010_0080_0400_2000);
            let high = _mm256_srli_epi16::<5>(_mm256_mullo_epi16(words_by_four(highs, k), up));
            indices.put(
                k,
                _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi16(0x700))),
            );
        }
        let negative = _mm_srai_epi16::<15>(highs);
        let deltas = both(_mm_add_epi8(
            _mm_add_epi8(negative, negative),
            _mm_set1_epi8(10),
        ));
        let mut q = [_mm256_setzero_si256(); 8];
        for (i, q) in q.iter_mut().enumerate() {
            let delta =
                _mm256_shuffle_epi8(deltas, _mm256_set1_epi16((0x0100 + 0x0202 * i) as i16));
            *q = _mm256_add_epi8(indices.entries4::<_, WAY>(&tables::IQ1, i), delta);
        }
        without_min(q, odd(both(scale)), half(block, 0) * 0.125)
    }
}

impl SuperAvx2 for b::Iq1M {
    const FORM: Form = Form::Unsigned(9);
    const MAX: i32 = 9;
    const SUB: usize = 16;
    const TABLE: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 56] = part(block, 0);
        let words = u64::from_le_bytes(*part(block, 48));
        let d = words >> 12 & 0xf | words >> 24 & 0xf0 | words >> 36 & 0xf00 | words >> 48 & 0xf000;
        let d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(d as i32)));
        // Each word twice; the multiplication moves the three bits to the top.
        let x = _mm_cvtsi64_si128(words as i64);
        let x = both(_mm_unpacklo_epi16(x, x));
        let up = _mm256_setr_epi16(
            1 << 13,
            1 << 7,
            1 << 13,
            1 << 7,
            1 << 13,
            1 << 7,
            1 << 13,
            1 << 7, //
            1 << 10,
            1 << 4,
            1 << 10,
            1 << 4,
            1 << 10,
            1 << 4,
            1 << 10,
            1 << 4,
        );
        let scale = _mm256_srli_epi16::<13>(_mm256_mullo_epi16(x, up));
        // The sign of delta of each eight at the top of a byte.
        let high = load16(part(block, 32));
        let low = _mm_slli_epi16::<4>(high);
        let negative = _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
        let seven = _mm_set1_epi8(7);
        let (even, odds) = (
            _mm_and_si128(high, seven),
            _mm_and_si128(_mm_srli_epi16::<4>(high), seven),
        );
        let highs = [_mm_unpacklo_epi8(even, odds), _mm_unpackhi_epi8(even, odds)];
        let mut indices = Indices::new();
        for k in 0..2 {
            let low = _mm256_cvtepu8_epi16(load16(part(block, 16 * k)));
            let high = _mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(highs[k]));
            indices.put(k, _mm256_or_si256(low, high));
        }
        let spread = spread_all(negative);
        let mut q = [_mm256_setzero_si256(); 8];
        for (i, q) in q.iter_mut().enumerate() {
            let minus = _mm256_cmpgt_epi8(_mm256_setzero_si256(), spread[i]);
            let delta = _mm256_add_epi8(_mm256_add_epi8(minus, minus), _mm256_set1_epi8(10));
            *q = _mm256_add_epi8(indices.entries4::<_, WAY>(&tables::IQ1, i), delta);
        }
        without_min(q, odd(scale), d * 0.125)
    }
}

/// The scales of IQ4_XS from the first bytes of a block.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn iq4_xs_scales(block: &[u8; 8]) -> __m256i {
    // The multiplication moves the two bits to the top.
    let up = both(_mm_setr_epi16(
        1 << 14,
        1 << 12,
        1 << 10,
        1 << 8,
        1 << 6,
        1 << 4,
        1 << 2,
        1,
    ));
    let high = _mm256_mullo_epi16(_mm256_set1_epi16(u16_at(block, 2) as i16), up);
    let high = _mm256_slli_epi16::<4>(_mm256_srli_epi16::<14>(high));
    let scale = _mm256_or_si256(eight_nibbles(part(block, 4)), high);
    _mm256_sub_epi16(scale, _mm256_set1_epi16(32))
}

impl SuperAvx2 for b::Iq4Xs {
    const FORM: Form = Form::Signed;
    const MAX: i32 = 127;
    const SUB: usize = 32;
    const FEW: usize = 4;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 136] = part(block, 0);
        let scale = iq4_xs_scales(part(block, 0));
        let mut q = [scale; 8];
        for (i, q) in q.iter_mut().enumerate() {
            *q = iq4(part(block, 8 + 16 * i));
        }
        without_min(q, scale, half(block, 0))
    }
}

/// 32 values of IQ4 codes: low nibbles, then high ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn iq4(bytes: &[u8; 16]) -> __m256i {
    table_nibbles(&tables::IQ4, bytes)
}

/// The values of IQ4 codes, in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn iq4_table() -> __m256i {
    in_both(&tables::IQ4)
}

#[inline]
#[target_feature(enable = "avx2")]
fn in_both(table: &[i8; 16]) -> __m256i {
    let t = i128::from_le_bytes(table.map(|x| x as u8));
    both(_mm_set_epi64x((t >> 64) as i64, t as i64))
}

/// Values of a table by low nibbles, then by high ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn table_nibbles(table: &[i8; 16], bytes: &[u8; 16]) -> __m256i {
    _mm256_shuffle_epi8(in_both(table), plain_nibbles(bytes))
}

/// Low nibbles, then high ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn plain_nibbles(bytes: &[u8; 16]) -> __m256i {
    let x = load16(bytes);
    _mm256_and_si256(
        _mm256_set_m128i(_mm_srli_epi16::<4>(x), x),
        _mm256_set1_epi8(15),
    )
}

/// The first base-3 digit of each byte.
#[inline]
#[target_feature(enable = "avx2")]
fn digit(x: __m256i) -> __m256i {
    let one = _mm256_set1_epi8(86);
    let two = _mm256_set1_epi8(171u8 as i8);
    let ge_one = _mm256_cmpeq_epi8(_mm256_max_epu8(x, one), x);
    let ge_two = _mm256_cmpeq_epi8(_mm256_max_epu8(x, two), x);
    _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(ge_one, ge_two))
}

/// Bytes times three: the next digit comes to the front.
#[inline]
#[target_feature(enable = "avx2")]
fn shift(x: __m256i) -> __m256i {
    _mm256_add_epi8(x, _mm256_add_epi8(x, x))
}

impl SuperAvx2 for b::Tq1 {
    const FORM: Form = Form::Unsigned(1);
    const MAX: i32 = 1;
    const SUB: usize = 256;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 54] = part(block, 0);
        let mut q = [_mm256_setzero_si256(); 8];
        let mut x = load(part(block, 0));
        for q in &mut q[..5] {
            *q = digit(x);
            x = shift(x);
        }
        // Low half one digit, high half the next.
        let y = load16(part(block, 32));
        let three = _mm_add_epi8(y, _mm_add_epi8(y, y));
        let mut x = _mm256_set_m128i(three, y);
        for q in &mut q[5..7] {
            *q = digit(x);
            x = shift(shift(x));
        }
        let four = u32::from_le_bytes(*part(block, 48));
        let step = |x: u32, by: u32| {
            // Bytes of x times `by`, each modulo 256.
            (((x & 0x00ff_00ff) * by) & 0x00ff_00ff)
                | ((((x >> 8 & 0x00ff_00ff) * by) & 0x00ff_00ff) << 8)
        };
        let last = _mm_setr_epi32(
            four as i32,
            step(four, 3) as i32,
            step(four, 9) as i32,
            step(four, 27) as i32,
        );
        q[7] = digit(_mm256_inserti128_si256::<1>(x, last));
        without_min(q, _mm256_set1_epi16(1), half(block, 52))
    }
}

impl SuperAvx2 for b::Tq2 {
    const FORM: Form = Form::Unsigned(1);
    /// Codes are 0..=2 in files that ggml writes, but a fourth is possible.
    const MAX: i32 = 2;
    const SUB: usize = 256;
    const PLANES: &'static [usize] = &[0, 32];

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes([x, y, ..]: [__m256i; MOST_PLANES]) -> [__m256i; 8] {
        two_bits(x, y)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn heads(blocks: [&[u8]; 8]) -> Heads {
        let [.., halves] = dwords(blocks, 50);
        Heads::without_min([_mm256_set1_epi8(1); 4], high_halves(halves))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn parts<const WAY: u8>(block: &[u8]) -> Parts {
        let block: &[u8; 66] = part(block, 0);
        without_min(codes::<Self>(block), _mm256_set1_epi16(1), half(block, 64))
    }
}
