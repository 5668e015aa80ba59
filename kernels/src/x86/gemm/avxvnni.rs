//! Matrix kernels of AVX-VNNI: eight rows a vector, `vpdpbusd`.

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

drivers!("avx2,fma,f16c,avxvnni", lanes, 8, [4, 3, 2, 1]);

mod lanes {
    use std::arch::x86_64::*;

    use super::{
        super::{
            super::panel::{Codes, PanelActs, RUN, STEPS},
            only_multiply,
        },
        NR,
    };

    pub use super::super::ymm::*;

    /// Whether scales are int32 a row rather than twice an int16.
    pub const WIDE: bool = true;

    /// The scale 1.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    pub fn one() -> Int {
        _mm256_set1_epi32(1)
    }

    /// Whether activations are to be moved up by 128.
    pub const fn moved<C: Codes>() -> bool {
        !C::UNSIGNED_WEIGHTS
    }

    /// Add `scale` times the products of the steps `at .. at + C::STEPS` to `dots`.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    pub fn multiply<C: Codes, const T: usize>(
        codes: &[[i32; NR]; STEPS],
        acts: &[PanelActs; T],
        at: usize,
        scale: Int,
        dots: &mut [Int; T],
    ) {
        let mut sums = [zero(); T];
        for step in at..at + C::STEPS {
            let w = load(&codes[step]);
            for i in 0..T {
                let a = _mm256_set1_epi32(acts[i].q[step]);
                sums[i] = if C::UNSIGNED_WEIGHTS {
                    _mm256_dpbusd_avx_epi32(sums[i], w, a)
                } else {
                    _mm256_dpbusd_avx_epi32(sums[i], a, w)
                };
            }
        }
        for i in 0..T {
            dots[i] = _mm256_add_epi32(dots[i], _mm256_mullo_epi32(sums[i], scale));
        }
    }

    only_multiply!("avx2,avxvnni");
}
