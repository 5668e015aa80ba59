//! The i-quants with blocks of 256 weights. Constant factors of the format (1/2, 1/4, 1/8) go into `d`, where they are exact.

use super::{Super, SuperType};
use crate::{
    f16::{f16_to_f32, half},
    tables,
};

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Weights `8 * group..` from 8 magnitudes and 8 sign bits.
fn put8(out: &mut Super, group: usize, magnitudes: u64, signs: u8) {
    for (j, byte) in magnitudes.to_le_bytes().into_iter().enumerate() {
        out.q[8 * group + j] = if signs >> j & 1 == 1 {
            -(byte as i8)
        } else {
            byte as i8
        };
    }
}

/// Two entries of four coordinates as one of eight.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// half d; for each 32 weights 4 numbers of entries and 28 bits of signs with 4 of scale.
pub(crate) struct Iq2Xxs;
impl SuperType for Iq2Xxs {
    const BYTES: usize = 66;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0) * 0.125;
        for i in 0..8 {
            let signs = u32_at(block, 2 + 8 * i + 4);
            out.scale[2 * i..2 * i + 2].fill(2 * (signs >> 28) as i16 + 1);
            for l in 0..4 {
                let entry = tables::IQ2_XXS[usize::from(block[2 + 8 * i + l])];
                put8(out, 4 * i + l, entry, tables::signs8(signs >> (7 * l)));
            }
        }
    }
}

/// The scales of IQ2_XS and IQ2_S: 4 bits for each 16 weights.
fn scales4(bytes: &[u8], out: &mut Super) {
    for j in 0..16 {
        out.scale[j] = 2 * i16::from(bytes[j / 2] >> (j % 2 * 4) & 15) + 1;
    }
}

/// half d; 32 numbers of entries of 9 bits with 7 of signs; 8 bytes of scales.
pub(crate) struct Iq2Xs;
impl SuperType for Iq2Xs {
    const BYTES: usize = 74;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0) * 0.125;
        scales4(&block[66..74], out);
        for group in 0..32 {
            let code = u16_at(block, 2 + 2 * group);
            let entry = tables::IQ2_XS[usize::from(code & 511)];
            put8(out, group, entry, tables::signs8(u32::from(code >> 9)));
        }
    }
}

/// half d; 32 low bytes of entries; 32 bytes of signs; 8 bytes of high bits; 8 bytes of scales.
pub(crate) struct Iq2S;
impl SuperType for Iq2S {
    const BYTES: usize = 82;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0) * 0.125;
        scales4(&block[74..82], out);
        for group in 0..32 {
            let high = block[66 + group / 4] >> (group % 4 * 2) & 3;
            let entry = tables::IQ2_S[usize::from(block[2 + group]) | usize::from(high) << 8];
            put8(out, group, entry, block[34 + group]);
        }
    }
}

/// half d; 64 numbers of entries; for each 32 weights 28 bits of signs and 4 of scale.
pub(crate) struct Iq3Xxs;
impl SuperType for Iq3Xxs {
    const BYTES: usize = 98;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0) * 0.25;
        for i in 0..8 {
            let signs = u32_at(block, 66 + 4 * i);
            out.scale[2 * i..2 * i + 2].fill(2 * (signs >> 28) as i16 + 1);
            for l in 0..4 {
                let group = 4 * i + l;
                let entry = |k: usize| tables::IQ3_XXS[usize::from(block[2 + 2 * group + k])];
                put8(
                    out,
                    group,
                    pair(entry(0), entry(1)),
                    tables::signs8(signs >> (7 * l)),
                );
            }
        }
    }
}

/// half d; 64 low bytes of entries; 8 bytes of ninth bits; 32 bytes of signs; 4 bytes of scales.
pub(crate) struct Iq3S;
impl SuperType for Iq3S {
    const BYTES: usize = 110;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0);
        for j in 0..8 {
            let scale = 2 * i16::from(block[106 + j / 2] >> (j % 2 * 4) & 15) + 1;
            out.scale[2 * j..2 * j + 2].fill(scale);
        }
        let entry = |i: usize| {
            let ninth = block[66 + i / 8] >> (i % 8) & 1;
            tables::IQ3_S[usize::from(block[2 + i]) | usize::from(ninth) << 8]
        };
        for group in 0..32 {
            put8(
                out,
                group,
                pair(entry(2 * group), entry(2 * group + 1)),
                block[74 + group],
            );
        }
    }
}

/// The eight weights of an IQ1 entry, times eight, moved by plus or minus one.
fn put1(out: &mut Super, group: usize, entry: usize, negative: bool) {
    let delta = if negative { -1 } else { 1 };
    for (j, byte) in tables::IQ1[entry & 2047]
        .to_le_bytes()
        .into_iter()
        .enumerate()
    {
        out.q[8 * group + j] = byte as i8 + delta;
    }
}

/// half d; 32 low bytes of entries; for each 32 weights 4 times 3 high bits, 3 bits of scale, the sign of delta.
pub(crate) struct Iq1S;
impl SuperType for Iq1S {
    const BYTES: usize = 50;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0) * 0.125;
        for i in 0..8 {
            let high = u16_at(block, 34 + 2 * i);
            out.scale[2 * i..2 * i + 2].fill(2 * (high >> 12 & 7) as i16 + 1);
            for l in 0..4 {
                let entry =
                    usize::from(block[2 + 4 * i + l]) | usize::from(high >> (3 * l) & 7) << 8;
                put1(out, 4 * i + l, entry, high & 0x8000 != 0);
            }
        }
    }
}

/// 32 low bytes of entries; 32 times 3 high bits and the sign of delta; 16 scales of 3 bits in 4 words whose
/// upper nibbles are the half d.
pub(crate) struct Iq1M;
impl SuperType for Iq1M {
    const BYTES: usize = 56;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        let words: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
        let d = words
            .iter()
            .enumerate()
            .fold(0, |d, (i, word)| d | (word >> 12) << (4 * i));
        out.d = f16_to_f32(d) * 0.125;
        for j in 0..16 {
            out.scale[j] = 2 * (words[j / 4] >> (3 * (j % 4)) & 7) as i16 + 1;
        }
        for group in 0..32 {
            let high = block[32 + group / 2] >> (group % 2 * 4) & 15;
            put1(
                out,
                group,
                usize::from(block[group]) | usize::from(high & 7) << 8,
                high & 8 != 0,
            );
        }
    }
}

/// half d; 8 times 2 high bits of scales; 8 times 4 low ones; nibbles that number the values of a table.
pub(crate) struct Iq4Xs;
impl SuperType for Iq4Xs {
    const BYTES: usize = 136;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 0);
        let high = u16_at(block, 2);
        for j in 0..8 {
            let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
            let scale = i16::from(low) | ((high >> (2 * j) & 3) << 4) as i16;
            out.scale[2 * j..2 * j + 2].fill(scale - 32);
            for i in 0..16 {
                let byte = block[8 + 16 * j + i];
                out.q[32 * j + i] = tables::IQ4[usize::from(byte & 15)];
                out.q[32 * j + i + 16] = tables::IQ4[usize::from(byte >> 4)];
            }
        }
    }
}
