//! Matrix kernels of AVX2: eight rows a vector, `vpmaddubsw` into int16, as many as these can hold before they are scaled.

use super::{
    super::{
        lanes::{part, prefetch},
        panel::{Codes, PanelActs, STEPS, SmallCodes, SmallPanel, SuperCodes, SuperPanel},
        unpack_small::SmallAvx2,
        unpack_super::SuperAvx2,
    },
    Buffers, CHUNK, chunk, drivers,
};
use crate::{activation::BLOCK_BYTES, matmul::Job};

drivers!("avx2,fma,f16c", lanes, 8, [4, 3, 2, 1]);

mod lanes {
    use std::arch::x86_64::*;

    use super::{
        super::super::{
            panel::{Codes, PanelActs, RUN, STEPS},
            unpack_super::Form,
        },
        NR,
    };

    pub use super::super::ymm::*;

    /// Whether scales are int32 a row rather than twice an int16.
    pub const WIDE: bool = false;

    /// The scale 1.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn one() -> Int {
        _mm256_set1_epi16(1)
    }

    /// How the two bytes of a product are kept within int16 pairs.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Mode {
        /// Unsigned weights, signed activations.
        Weights,
        /// Activations moved up by 128, signed weights.
        Activations,
        /// Magnitudes of weights, activations with the weights' signs: for weights above 64.
        Signs,
    }

    const fn mode<C: Codes>() -> Mode {
        if C::UNSIGNED_WEIGHTS {
            Mode::Weights
        } else if C::MAX <= 64 {
            Mode::Activations
        } else {
            Mode::Signs
        }
    }

    /// Products that int16 can add up: pairs of at most 127 (255 moved up) times MAX.
    const fn run<C: Codes>() -> usize {
        let most = match mode::<C>() {
            Mode::Weights => 32767 / (2 * 127 * C::MAX as usize),
            Mode::Activations => 32767 / (2 * 255 * C::MAX as usize),
            Mode::Signs => 1,
        };
        let mut run = C::STEPS;
        while run > most {
            run /= 2;
        }
        run
    }

    /// Whether activations are to be moved up by 128.
    pub const fn moved<C: Codes>() -> bool {
        matches!(mode::<C>(), Mode::Activations)
    }

    /// Add `scale` times the products of the steps `at .. at + C::STEPS` to `dots`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn multiply<C: Codes, const T: usize>(
        codes: &[[i32; NR]; STEPS],
        acts: &[PanelActs; T],
        at: usize,
        scale: Int,
        dots: &mut [Int; T],
    ) {
        let run = const { run::<C>() };
        for start in (0..C::STEPS).step_by(run) {
            let mut sums = [zero(); T];
            for k in 0..run {
                let step = at + start + k;
                let w = load(&codes[step]);
                for i in 0..T {
                    let a = _mm256_set1_epi32(acts[i].q[step]);
                    let products = match const { mode::<C>() } {
                        Mode::Weights => _mm256_maddubs_epi16(w, a),
                        Mode::Activations => _mm256_maddubs_epi16(a, w),
                        Mode::Signs => {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
                        }
                    };
                    sums[i] = if k == 0 {
                        products
                    } else {
                        _mm256_add_epi16(sums[i], products)
                    };
                }
            }
            for i in 0..T {
                dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(sums[i], scale));
            }
        }
    }

    /// Steps whose true sums fit int16 whatever the activations: pairs of at most 127 times MAX.
    const fn fitting<C: Codes>() -> usize {
        let most = 32767 / (2 * 127 * C::MAX as usize);
        let mut run = C::STEPS;
        while run > most {
            run /= 2;
        }
        run
    }

    /// Steps of a run of sums that wrap around, if activations are quiet; half as many of which fit in any case.
    pub const fn longest<C: Codes>() -> usize {
        let twice = 2 * fitting::<C>();
        if twice < C::STEPS { twice } else { C::STEPS }
    }

    /// Whether the sums of [`longest`] runs fit whatever the activations.
    pub const fn sure<C: Codes>() -> bool {
        longest::<C>() == fitting::<C>()
    }

    /// Whether int16 sums may wrap around. Those of activations moved up by 128 then begin at what is to be taken off, and
    /// come back, because the true sums fit: of half a run always, of a run where activations are quiet. That costs an
    /// addition a run, so that four products at a time are as good without.
    pub const fn wraps<C: Codes>() -> bool {
        moved::<C>() && run::<C>() <= 2 && longest::<C>() >= RUN
    }

    /// What wrapping sums begin at: -128 times the codes of a run, and those of its first half.
    #[target_feature(enable = "avx2")]
    pub fn fill_start<C: Codes>(
        codes: &[[i32; NR]; STEPS],
        start: &mut [[[i32; NR]; 2]; STEPS / RUN],
    ) {
        let length = const { longest::<C>() };
        // Codes that are added up before they are multiplied: as many as int8 holds.
        let few = const {
            let mut few = longest::<C>() / 2;
            while few * C::MAX as usize > 127 {
                few /= 2;
            }
            few
        };
        let moved = _mm256_set1_epi8(-128);
        let sum = |codes: &[[i32; NR]]| {
            let mut sum = zero();
            for codes in codes.chunks_exact(few) {
                let mut all = load(&codes[0]);
                for codes in &codes[1..] {
                    all = _mm256_add_epi8(all, load(codes));
                }
                sum = _mm256_sub_epi16(sum, _mm256_maddubs_epi16(moved, all));
            }
            sum
        };
        for (start, codes) in start.iter_mut().zip(codes.chunks_exact(length)) {
            let (first, second) = codes.split_at(length / 2);
            let half = sum(first);
            store(&mut start[0], _mm256_add_epi16(half, sum(second)));
            store(&mut start[1], half);
        }
    }

    /// As [`multiply`], with sums that wrap around; `QUIET` if all activations are.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn multiply_wrapping<C: Codes, const T: usize, const QUIET: bool>(
        codes: &[[i32; NR]; STEPS],
        start: &[[[i32; NR]; 2]; STEPS / RUN],
        acts: &[PanelActs; T],
        at: usize,
        scale: Int,
        dots: &mut [Int; T],
    ) {
        let longest = const { longest::<C>() };
        let length = if QUIET { longest } else { longest / 2 };
        for first in (at..at + C::STEPS).step_by(length) {
            let [whole, half] = &start[first / longest];
            let start = match first % longest {
                0 if QUIET => load(whole),
                0 => load(half),
                _ => _mm256_sub_epi16(load(whole), load(half)),
            };
            let mut sums = [start; T];
            for step in first..first + length {
                let w = load(&codes[step]);
                for i in 0..T {
                    let a = _mm256_set1_epi32(acts[i].q[step]);
                    sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(a, w));
                }
            }
            for i in 0..T {
                dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(sums[i], scale));
            }
        }
    }

    /// Whether magnitudes and signs are multiplied apart: `!a` for `-a`, which any port of the processor can do, leaves
    /// out one times the magnitude, and that is a term of the weights alone. Of magnitudes up to 127 the pairs fit.
    pub const fn apart<C: Codes>() -> bool {
        matches!(C::FORM, Form::Signed) && 64 < C::MAX && C::MAX <= 127
    }

    /// Whether the scaled products of a panel have an [`excess`].
    pub const fn exceeds<C: Codes>() -> bool {
        moved::<C>() && !wraps::<C>() || apart::<C>()
    }

    /// What activations moved up by 128, or `!a` for `-a`, add to the scaled products of a panel.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn excess<C: Codes>(
        codes: &[[i32; NR]; STEPS],
        signs: &[[i32; NR]; STEPS],
        scale: &[[i32; NR]; 16],
    ) -> Int {
        const {
            let fits = 2 * 128 * C::STEPS as i32 * C::MAX <= 32767;
            assert!(!exceeds::<C>() || apart::<C>() || fits);
        }
        let up = _mm256_set1_epi8(-128);
        let mut excess = zero();
        for sub in 0..STEPS / C::STEPS {
            let first = sub * C::STEPS;
            let sum = if apart::<C>() {
                let mut sum = zero();
                for step in first..first + C::STEPS {
                    // Minus the magnitudes of what is negative.
                    let minus = _mm256_maddubs_epi16(load(&codes[step]), load(&signs[step]));
                    sum = _mm256_add_epi16(sum, minus);
                }
                sum
            } else {
                let mut all = load(&codes[first]);
                for codes in &codes[first + 1..first + C::STEPS] {
                    all = _mm256_add_epi8(all, load(codes));
                }
                _mm256_maddubs_epi16(up, all)
            };
            let scaled = _mm256_madd_epi16(sum, load(&scale[sub]));
            excess = _mm256_add_epi32(excess, scaled);
        }
        excess
    }

    /// As [`multiply`], with magnitudes and signs.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn multiply_apart<C: Codes, const T: usize>(
        codes: &[[i32; NR]; STEPS],
        signs: &[[i32; NR]; STEPS],
        acts: &[PanelActs; T],
        at: usize,
        scale: Int,
        dots: &mut [Int; T],
    ) {
        for step in at..at + C::STEPS {
            let (w, sign) = (load(&codes[step]), load(&signs[step]));
            for i in 0..T {
                let a = _mm256_xor_si256(_mm256_set1_epi32(acts[i].q[step]), sign);
                let products = _mm256_maddubs_epi16(w, a);
                dots[i] = _mm256_add_epi32(dots[i], _mm256_madd_epi16(products, scale));
            }
        }
    }
}
