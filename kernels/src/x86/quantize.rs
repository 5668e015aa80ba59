//! Activations to int8, AVX2.

use std::arch::x86_64::*;

use crate::activation::{BLOCK, SUMS, VALUES, scale_of};

/// 256 values into a block, `group` of them (32 or 256) with a scale.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantize_block(values: &[f32; BLOCK], group: usize, block: &mut [u8]) {
    let lines = values.as_chunks::<8>().0;
    let magnitude = _mm256_set1_epi32(i32::MAX);
    for (g, lines) in lines.chunks_exact(group / 8).enumerate() {
        // Magnitudes of floats are in the order of their bits as integers; what is not finite is above the rest.
        let mut most = _mm256_setzero_si256();
        for line in lines {
            let x = _mm256_castps_si256(load(line));
            most = _mm256_max_epi32(most, _mm256_and_si256(x, magnitude));
        }
        let most = _mm_max_epi32(
            _mm256_castsi256_si128(most),
            _mm256_extracti128_si256::<1>(most),
        );
        let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
        let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
        let most = f32::from_bits(_mm_cvtsi128_si32(most) as u32);
        let finite = most.is_finite();
        let (scale, inverse) = if finite {
            scale_of(most)
        } else {
            (f32::NAN, 0.0)
        };
        for j in g * group / 32..(g + 1) * group / 32 {
            block[4 * j..4 * j + 4].copy_from_slice(&scale.to_ne_bytes());
        }
        let inverse = _mm256_set1_ps(inverse);
        for (k, four) in lines.as_chunks::<4>().0.iter().enumerate() {
            let mut q = [_mm256_setzero_si256(); 4];
            if finite {
                for (q, line) in q.iter_mut().zip(four) {
                    *q = _mm256_cvtps_epi32(_mm256_mul_ps(load(line), inverse));
                }
            }
            let words = (
                _mm256_packs_epi32(q[0], q[1]),
                _mm256_packs_epi32(q[2], q[3]),
            );
            let bytes = _mm256_packs_epi16(words.0, words.1);
            let bytes =
                _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let j = g * group / 32 + k;
            let to: &mut [u8; 32] = (&mut block[VALUES + 32 * j..][..32])
                .try_into()
                .expect("32 bytes");
            // SAFETY: writes the 32 bytes of the array; needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) };
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            let sums = _mm256_hadd_epi32(fours, fours);
            let sums = _mm256_hadd_epi32(sums, sums);
            let even = _mm256_extract_epi32::<0>(sums) as i16;
            let odd = _mm256_extract_epi32::<4>(sums) as i16;
            block[SUMS + 2 * j..SUMS + 2 * j + 2].copy_from_slice(&even.to_ne_bytes());
            block[SUMS + 16 + 2 * j..SUMS + 18 + 2 * j].copy_from_slice(&odd.to_ne_bytes());
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(line: &[f32; 8]) -> __m256 {
    // SAFETY: reads the 32 bytes of the array; needs no alignment.
    unsafe { _mm256_loadu_ps(line.as_ptr()) }
}
