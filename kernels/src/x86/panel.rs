//! Weights of several rows, unpacked and interleaved for the matrix kernels, and activations to match.
//!
//! A panel holds 256 weights of `NR` rows. Dword `r` of step `k` holds codes `4 * k ..= 4 * k + 3` of row `r`, so that a
//! vector of dwords has one row a lane, needs no sum over lanes, and takes scales by row.

use std::arch::x86_64::*;

use super::{
    gemm::ymm,
    lanes::{load, part, transpose},
    lookup::{GATHER, INSERT, STORE, way_for},
    together::{dwords, even_and_odd, four_dwords, neighbours, signed_bytes, signed_bytes_twice},
    unpack_small::SmallAvx2,
    unpack_super::{Form, MOST_PLANES, SuperAvx2},
};
use crate::activation::{BLOCK_BYTES, SUMS, VALUES};

/// Steps of four codes in 256.
pub(super) const STEPS: usize = 64;
/// Steps of the shortest run that is added up in int16 with a start of its own.
pub(super) const RUN: usize = 4;

/// What a kernel has to know of a type's codes; constants only.
pub(super) trait Codes {
    const FORM: Form;
    /// The largest magnitude of a code in a panel.
    const MAX: i32;
    /// Steps that share a scale.
    const STEPS: usize;
    /// `vpmaddubsw` and `vpdpbusd` want one unsigned operand. Codes without an offset are; for the others the
    /// activations are moved up by 128, which a term of the weights alone corrects.
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
    /// Of codes that are apart from their signs: all bits of a byte set where the code is negative.
    pub signs: [[i32; NR]; STEPS],
    /// By sub-block and row: int32, or twice the int16.
    pub scale: [[i32; NR]; 16],
    /// Where int16 sums of runs of steps begin, and those of their first half, so that activations moved up by 128 need
    /// no other correction.
    pub start: [[[i32; NR]; 2]; STEPS / RUN],
    /// By row, pairs of int16 as the activations pair their sums.
    pub min: [[i32; NR]; 8],
    pub d: [f32; NR],
    pub dmin: [f32; NR],
    /// For [`SuperPanel::fill`]: kept, as to clear it each time is a call.
    rows: Rows,
}

/// 256 weights of `NR` rows of a type with float scales.
#[repr(C, align(64))]
pub(super) struct SmallPanel<const NR: usize> {
    pub codes: [[i32; NR]; STEPS],
    pub d: [[f32; NR]; 8],
    pub m: [[f32; NR]; 8],
    /// For [`SmallPanel::fill`], likewise.
    rows: Rows,
}

/// 256 activations for a panel.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct PanelActs {
    /// int8, or uint8 moved up by 128.
    pub q: [i32; STEPS],
    /// Super types: pairs of int16 sums to multiply `min` with. Small types: the bits of the 8 scales.
    pub a: [i32; 8],
    /// Super types: the bits of the scale, and the largest sum of magnitudes that meet in an int16 in a run.
    /// Small types: the bits of 8 times scale times sum.
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
    ymm::store(&mut to.as_chunks_mut().0[half], x);
}

/// Codes of eight rows, 256 of each.
#[repr(C, align(32))]
struct Rows([[[__m128i; 2]; 8]; 8]);

impl Rows {
    // SAFETY: of integers only, for which zeros are a value.
    const ZERO: Rows = unsafe { std::mem::zeroed() };

    /// Codes `32 * j ..` of row `r`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn put(&mut self, r: usize, j: usize, x: __m256i) {
        let to: &mut [__m128i; 2] = &mut self.0[r][j];
        // SAFETY: writes the 32 bytes of the array; needs no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), x) }
    }

    /// Into lanes `8 * half ..`. Halves of vectors are put together as they are loaded, which is cheaper than to shuffle
    /// whole vectors.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose_into<const NR: usize>(&self, codes: &mut [[i32; NR]; STEPS], half: usize) {
        for j in 0..8 {
            for part in 0..2 {
                let both = |r: usize| {
                    let low = _mm256_castsi128_si256(self.0[r][j][part]);
                    _mm256_inserti128_si256::<1>(low, self.0[r + 4][j][part])
                };
                let dwords = four_dwords(both(0), both(1), both(2), both(3));
                for (k, x) in dwords.into_iter().enumerate() {
                    put(&mut codes[8 * j + 4 * part + k], half, x);
                }
            }
        }
    }
}

impl<const NR: usize> SuperPanel<NR> {
    pub const ZERO: Self = SuperPanel {
        codes: [[0; NR]; STEPS],
        signs: [[0; NR]; STEPS],
        scale: [[0; NR]; 16],
        start: [[[0; NR]; 2]; STEPS / RUN],
        min: [[0; NR]; 8],
        d: [0.0; NR],
        dmin: [0.0; NR],
        rows: Rows::ZERO,
    };

    /// Fill with block `b` of each of the rows; `wide` says that scales are to be int32, `apart` that codes are to be
    /// magnitudes, apart from their signs.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fill<S: SuperAvx2>(&mut self, rows: &[&[u8]; NR], b: usize, wide: bool, apart: bool) {
        if !S::PLANES.is_empty() {
            return self.fill_together::<S>(rows, b, wide, apart);
        }
        match way_for(S::TABLE) {
            GATHER => self.fill_by::<S, GATHER>(rows, b, wide),
            STORE => self.fill_by::<S, STORE>(rows, b, wide),
            _ => self.fill_by::<S, INSERT>(rows, b, wide),
        }
        if apart {
            for half in 0..NR / 8 {
                for step in 0..STEPS {
                    let codes = ymm::load(&self.codes[step].as_chunks().0[half]);
                    self.put_apart(step, half, codes);
                }
            }
        }
    }

    /// Codes of a step as magnitudes and signs.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn put_apart(&mut self, step: usize, half: usize, codes: __m256i) {
        let minus = _mm256_cmpgt_epi8(_mm256_setzero_si256(), codes);
        put(&mut self.signs[step], half, minus);
        put(&mut self.codes[step], half, _mm256_abs_epi8(codes));
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fill_by<S: SuperAvx2, const WAY: u8>(&mut self, rows: &[&[u8]; NR], b: usize, wide: bool) {
        for half in 0..NR / 8 {
            let zero = _mm256_setzero_si256();
            let mut scale = [zero; 8];
            let mut min = [zero; 8];
            for r in 0..8 {
                let row = rows[8 * half + r];
                // SAFETY: this function has the features.
                let mut w = unsafe { S::parts::<WAY>(&row[b * S::BYTES..][..S::BYTES]) };
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
                for (j, q) in w.q.into_iter().enumerate() {
                    self.rows.put(r, j, q);
                }
                scale[r] = w.scale;
                if S::HAS_MIN {
                    min[r] = w.min;
                }
                self.d[8 * half + r] = w.d;
                self.dmin[8 * half + r] = w.dmin;
            }
            self.rows.transpose_into(&mut self.codes, half);
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

    /// Of types that have [planes](SuperAvx2::PLANES): rows change places before they are unpacked, when there is less of
    /// them, and their scales are taken apart together.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fill_together<S: SuperAvx2>(
        &mut self,
        rows: &[&[u8]; NR],
        b: usize,
        wide: bool,
        apart: bool,
    ) {
        for half in 0..NR / 8 {
            let mut blocks = [&[][..]; 8];
            for (block, row) in blocks.iter_mut().zip(&rows[8 * half..]) {
                *block = &row[b * S::BYTES..][..S::BYTES];
            }
            for sixteen in 0..2 {
                // By dword, then by plane.
                let mut planes = [[_mm256_setzero_si256(); MOST_PLANES]; 4];
                for (i, at) in S::PLANES.iter().enumerate() {
                    for (k, x) in dwords(blocks, at + 16 * sixteen).into_iter().enumerate() {
                        planes[k][i] = x;
                    }
                }
                for (k, planes) in planes.into_iter().enumerate() {
                    // SAFETY: this function has the features.
                    let codes = unsafe { S::codes(planes) };
                    for (j, mut q) in codes.into_iter().enumerate() {
                        if let Form::Unsigned(offset @ 1..) = S::FORM {
                            q = _mm256_sub_epi8(q, _mm256_set1_epi8(offset));
                        }
                        let step = 8 * j + 4 * sixteen + k;
                        if apart {
                            self.put_apart(step, half, q);
                        } else {
                            put(&mut self.codes[step], half, q);
                        }
                    }
                }
            }
            // SAFETY: this function has the features.
            let heads = unsafe { S::heads(blocks) };
            let vectors = if S::SUB == 16 { 4 } else { 2 };
            for (i, &x) in heads.scale[..vectors].iter().enumerate() {
                let scales = if wide {
                    signed_bytes(x)
                } else {
                    signed_bytes_twice(x)
                };
                for (j, scale) in scales.into_iter().enumerate() {
                    put(&mut self.scale[4 * i + j], half, scale);
                }
            }
            if S::HAS_MIN {
                // As activations pair their sums.
                for (i, &x) in heads.min[..vectors].iter().enumerate() {
                    let (at, [first, second]) = if S::SUB == 16 {
                        ([i, i + 4], even_and_odd(x))
                    } else {
                        ([2 * i, 2 * i + 1], neighbours(x))
                    };
                    put(&mut self.min[at[0]], half, first);
                    put(&mut self.min[at[1]], half, second);
                }
            }
            ymm::store_float(&mut self.d.as_chunks_mut().0[half], heads.d);
            ymm::store_float(&mut self.dmin.as_chunks_mut().0[half], heads.dmin);
        }
    }
}

impl<const NR: usize> SmallPanel<NR> {
    pub const ZERO: Self = SmallPanel {
        codes: [[0; NR]; STEPS],
        d: [[0.0; NR]; 8],
        m: [[0.0; NR]; 8],
        rows: Rows::ZERO,
    };

    /// Fill with the pieces `8 * b ..` of each of the rows, of which there are `n`; codes of others are anything.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fill<M: SmallAvx2>(&mut self, rows: &[&[u8]; NR], b: usize, n: usize) {
        for half in 0..NR / 8 {
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
                    let q = match M::FORM {
                        Form::Unsigned(offset @ 1..) => {
                            _mm256_sub_epi8(q, _mm256_set1_epi8(offset))
                        }
                        _ => q,
                    };
                    self.rows.put(r, j, q);
                    self.d[j][8 * half + r] = d;
                    self.m[j][8 * half + r] = m;
                }
            }
            self.rows.transpose_into(&mut self.codes, half);
        }
    }
}

/// The largest sum of the magnitudes that meet in an int16 in `run` steps, 4 or 8: of two of each four neighbours in
/// sixteen or 32 values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn loudness(block: &[u8; BLOCK_BYTES], run: usize) -> i32 {
    let ones = _mm256_set1_epi8(1);
    let mut most = _mm256_setzero_si256();
    for j in 0..8 {
        let values = load(part(block, VALUES + 32 * j));
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values), ones);
        let sums = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
        let mut sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32::<0b01_00_11_10>(sums));
        if run > 4 {
            sums = _mm256_add_epi16(sums, _mm256_permute2x128_si256::<0x01>(sums, sums));
        }
        most = _mm256_max_epi16(most, sums);
    }
    // Each dword of a half holds the same two sums.
    let most = _mm_max_epi16(
        _mm256_castsi256_si128(most),
        _mm256_extracti128_si256::<1>(most),
    );
    let two = _mm_cvtsi128_si32(most);
    (two & 0xffff).max(two >> 16)
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

    /// For types with blocks of 256 of which `sub` share a scale, with how loud it is in runs of `run` steps.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn fill_super(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        move_up: bool,
        sub: usize,
        run: Option<usize>,
    ) {
        self.fill(block, move_up);
        let mut sums = load(part(block, SUMS));
        if sub != 16 {
            // Sums of 32; those of odd sixteens are in the upper half.
            sums = _mm256_add_epi16(sums, _mm256_permute2x128_si256::<0x81>(sums, sums));
        }
        put(&mut self.a, 0, sums);
        self.b[0] = i32::from_ne_bytes(*part(block, 0));
        if let Some(run) = run {
            self.b[1] = loudness(block, run);
        }
    }

    /// Whether sums of a run fit int16 with codes of magnitudes up to `max`.
    pub fn is_quiet(&self, max: i32) -> bool {
        self.b[1] * max <= i32::from(i16::MAX)
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
