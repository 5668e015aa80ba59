//! Codebooks of the i-quants and the fixed non-linear scales, expanded at compile time from [`packed`].

mod packed;

/// Values of IQ4_NL and IQ4_XS codes.
pub(crate) static IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the values of E2M1 codes (MXFP4, NVFP4).
pub(crate) static E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

const LEVELS_2: [u8; 3] = [8, 25, 43];
const LEVELS_3_XXS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
const LEVELS_3_S: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
/// Eight times -1, 0 and 1, as int8: IQ1 adds an eighth to or takes it from each coordinate.
const LEVELS_1: [u8; 3] = [0xf8, 0, 8];

/// Eight coordinates an entry, one a byte, the first in the lowest.
const fn expand8<const N: usize>(packed: &[u16; N], levels: [u8; 3]) -> [u64; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 8 {
            out[i] |= (levels[(packed[i] >> (2 * j)) as usize & 3] as u64) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    out
}

/// Four coordinates an entry, one a byte, the first in the lowest.
const fn expand4<const N: usize>(packed: &[u16; N], levels: [u8; 8]) -> [u32; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut j = 0;
        while j < 4 {
            out[i] |= (levels[(packed[i] >> (3 * j)) as usize & 7] as u32) << (8 * j);
            j += 1;
        }
        i += 1;
    }
    out
}

pub(crate) static IQ2_XXS: [u64; 256] = expand8(&packed::IQ2_XXS, LEVELS_2);
pub(crate) static IQ2_XS: [u64; 512] = expand8(&packed::IQ2_XS, LEVELS_2);
pub(crate) static IQ2_S: [u64; 1024] = expand8(&packed::IQ2_S, LEVELS_2);
pub(crate) static IQ3_XXS: [u32; 256] = expand4(&packed::IQ3_XXS, LEVELS_3_XXS);
pub(crate) static IQ3_S: [u32; 512] = expand4(&packed::IQ3_S, LEVELS_3_S);
/// Eight times the codebook of IQ1_S and IQ1_M, int8 a byte.
pub(crate) static IQ1: [u64; 2048] = expand8(&packed::IQ1, LEVELS_1);

/// The sign bits of 8 values from the 7 that are stored: the eighth makes their number even.
pub(crate) const fn signs8(seven: u32) -> u8 {
    let seven = seven & 127;
    (seven | ((seven.count_ones() & 1) << 7)) as u8
}
