//! Weights of several rows, unpacked and interleaved for the matrix kernels, and activations to match.
//!
//! A panel holds 256 weights of `NR` rows. Dword `r` of step `k` holds codes `4 * k ..= 4 * k + 3` of row `r`, so that a
//! vector of dwords has one row a lane, needs no sum over lanes, and takes scales by row.

use std::arch::x86_64::*;

use super::{
    lanes::{load, part, transpose},
    unpack_small::SmallAvx2,
    unpack_super::{Form, SuperAvx2},
};
use crate::activation::{BLOCK_BYTES, SUMS, VALUES};

/// Steps of four codes in 256.
pub(super) const STEPS: usize = 64;

/// What a kernel has to know of a type's codes; constants only.
pub(super) trait Codes {
    const FORM: Form;
    /// The largest magnitude of a code in a panel.
    const MAX: i32;
    /// Steps that share a scale.
    const STEPS: usize;
    /// Whether kernels with `vpdpbusd` or the signs trick see the activations as they are, or else moved up by
    /// 128 to be unsigned, which a term of the weights alone corrects.
    const UNSIGNED_WEIGHTS: bool = matches!(Self::FORM, Form::Unsigned(0));
}

pub(super) struct SuperCodes<S>(std::marker::PhantomData<S>);
impl<S: SuperAvx2> Codes for SuperCodes<S> {
    const FORM: Form = S::FORM;
    const MAX: i32 = S::MAX;
    const STEPS: usize = if S::SUB == 16 { 4 } else { 8 };
}

pub(super) struct SmallCodes<M>(std::marker::PhantomData<M>);
impl<M: SmallAvx2> Codes for SmallCodes<M> {
    const FORM: Form = M::FORM;
    const MAX: i32 = M::MAX;
    const STEPS: usize = 8;
}

/// 256 weights of `NR` rows of a type with blocks of 256.
#[repr(C, align(64))]
pub(super) struct SuperPanel<const NR: usize> {
    pub codes: [[i32; NR]; STEPS],
    /// By sub-block and row: int32, or twice the int16.
    pub scale: [[i32; NR]; 16],
    /// By row, pairs of int16 as the activations pair their sums.
    pub min: [[i32; NR]; 8],
    pub d: [f32; NR],
    pub dmin: [f32; NR],
}

/// 256 weights of `NR` rows of a type with float scales.
#[repr(C, align(64))]
pub(super) struct SmallPanel<const NR: usize> {
    pub codes: [[i32; NR]; STEPS],
    pub d: [[f32; NR]; 8],
    pub m: [[f32; NR]; 8],
}

/// 256 activations for a panel.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct PanelActs {
    /// int8, or uint8 moved up by 128.
    pub q: [i32; STEPS],
    /// Super types: pairs of int16 sums to multiply `min` with. Small types: the bits of the 8 scales.
    pub a: [i32; 8],
    /// Super types: the bits of the scale. Small types: the bits of 8 times scale times sum.
    pub b: [i32; 8],
}

impl PanelActs {
    pub const ZERO: PanelActs = PanelActs {
        q: [0; STEPS],
        a: [0; 8],
        b: [0; 8],
    };
    /// Activations of 128, as moved up: what has to be taken off again.
    pub const MOVED: PanelActs = PanelActs {
        q: [0x8080_8080_u32 as i32; STEPS],
        a: [0; 8],
        b: [0; 8],
    };
}

#[inline]
#[target_feature(enable = "avx2")]
fn put<const NR: usize>(to: &mut [i32; NR], half: usize, x: __m256i) {
    let to: &mut [i32; 8] = (&mut to[8 * half..8 * half + 8])
        .try_into()
        .expect("eight rows");
    // SAFETY: writes the 32 bytes of the array; needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
}

/// Codes of eight rows into lanes `8 * half ..`.
#[inline]
#[target_feature(enable = "avx2")]
fn put_codes<const NR: usize>(
    codes: &mut [[i32; NR]; STEPS],
    half: usize,
    rows: &[[__m256i; 8]; 8],
) {
    for j in 0..8 {
        let mut v = [rows[0][0]; 8];
        for r in 0..8 {
            v[r] = rows[r][j];
        }
        let columns = transpose(v);
        for k in 0..8 {
            put(&mut codes[8 * j + k], half, columns[k]);
        }
    }
}

impl<const NR: usize> SuperPanel<NR> {
    pub const ZERO: Self = SuperPanel {
        codes: [[0; NR]; STEPS],
        scale: [[0; NR]; 16],
        min: [[0; NR]; 8],
        d: [0.0; NR],
        dmin: [0.0; NR],
    };

    /// Fill with block `b` of each of the rows; `wide` says that scales are to be int32.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fill<S: SuperAvx2>(&mut self, rows: &[&[u8]; NR], b: usize, wide: bool) {
        for half in 0..NR / 8 {
            let zero = _mm256_setzero_si256();
            let mut codes = [[zero; 8]; 8];
            let mut scale = [zero; 8];
            let mut min = [zero; 8];
            for r in 0..8 {
                let row = rows[8 * half + r];
                // SAFETY: this function has the features.
                let mut w = unsafe { S::parts(&row[b * S::BYTES..][..S::BYTES]) };
                if let Form::Unsigned(offset @ 1..) = S::FORM {
                    for q in &mut w.q {
                        *q = _mm256_sub_epi8(*q, _mm256_set1_epi8(offset));
                    }
                }
                if S::FORM == Form::Magnitudes {
                    for (q, sign) in w.q.iter_mut().zip(w.sign) {
                        *q = _mm256_sign_epi8(*q, sign);
                    }
                }
                codes[r] = w.q;
                scale[r] = w.scale;
                min[r] = w.min;
                self.d[8 * half + r] = w.d;
                self.dmin[8 * half + r] = w.dmin;
            }
            put_codes(&mut self.codes, half, &codes);
            // Dword k of a row's scales: sixteens 4k and 4k + 2, from the fourth on 4(k - 4) + 1 and 4(k - 4) + 3.
            let columns = transpose(scale);
            for (k, &x) in columns.iter().enumerate() {
                let (first, second) = if wide {
                    (
                        _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(x)),
                        _mm256_srai_epi32::<16>(x),
                    )
                } else {
                    let low = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
                    let high = _mm256_srli_epi32::<16>(x);
                    (
                        _mm256_or_si256(low, _mm256_slli_epi32::<16>(low)),
                        _mm256_or_si256(high, _mm256_slli_epi32::<16>(high)),
                    )
                };
                if S::SUB == 16 {
                    let at = k % 4 * 4 + k / 4;
                    put(&mut self.scale[at], half, first);
                    put(&mut self.scale[at + 2], half, second);
                } else if k < 4 {
                    put(&mut self.scale[2 * k], half, first);
                    put(&mut self.scale[2 * k + 1], half, second);
                }
            }
            if S::HAS_MIN {
                let columns = transpose(min);
                for (k, &x) in columns.iter().enumerate() {
                    put(&mut self.min[k], half, x);
                }
            }
        }
    }
}

impl<const NR: usize> SmallPanel<NR> {
    pub const ZERO: Self = SmallPanel {
        codes: [[0; NR]; STEPS],
        d: [[0.0; NR]; 8],
        m: [[0.0; NR]; 8],
    };

    /// Fill with the pieces `8 * b ..` of each of the rows, of which there are `n`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fill<M: SmallAvx2>(&mut self, rows: &[&[u8]; NR], b: usize, n: usize) {
        for half in 0..NR / 8 {
            let mut codes = [[_mm256_setzero_si256(); 8]; 8];
            for r in 0..8 {
                let row = rows[8 * half + r];
                for j in 0..n {
                    let piece = 8 * b + j;
                    let block = &row[piece / M::PIECES * M::BYTES..][..M::BYTES];
                    // SAFETY: this function has the features.
                    let (q, d, m) = unsafe {
                        let (d, m) = M::scale(block);
                        (M::codes(block, piece % M::PIECES), d, m)
                    };
                    codes[r][j] = match M::FORM {
                        Form::Unsigned(offset @ 1..) => {
                            _mm256_sub_epi8(q, _mm256_set1_epi8(offset))
                        }
                        _ => q,
                    };
                    self.d[j][8 * half + r] = d;
                    self.m[j][8 * half + r] = m;
                }
            }
            put_codes(&mut self.codes, half, &codes);
        }
    }
}

impl PanelActs {
    /// Take over a block of a quantized row.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fill(&mut self, block: &[u8; BLOCK_BYTES], move_up: bool) {
        let by = _mm256_set1_epi8(if move_up { -128 } else { 0 });
        for (j, q) in self.q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            put(
                q,
                0,
                _mm256_xor_si256(load(part(block, VALUES + 32 * j)), by),
            );
        }
    }

    /// For types with blocks of 256 of which `STEPS` share a scale.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fill_super(&mut self, block: &[u8; BLOCK_BYTES], move_up: bool, sub: usize) {
        self.fill(block, move_up);
        let mut sums = load(part(block, SUMS));
        if sub != 16 {
            // Sums of 32; those of odd sixteens are in the upper half.
            sums = _mm256_add_epi16(sums, _mm256_permute2x128_si256::<0x81>(sums, sums));
        }
        put(&mut self.a, 0, sums);
        self.b[0] = i32::from_ne_bytes(*part(block, 0));
    }

    /// For types with float scales.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fill_small(&mut self, block: &[u8; BLOCK_BYTES], move_up: bool) {
        self.fill(block, move_up);
        let scale = load(part(block, 0));
        let sums = load(part(block, SUMS));
        let sums = _mm_add_epi16(
            _mm256_castsi256_si128(sums),
            _mm256_extracti128_si256::<1>(sums),
        );
        let sums = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(sums));
        put(&mut self.a, 0, scale);
        put(
            &mut self.b,
            0,
            _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(scale), sums)),
        );
    }
}
