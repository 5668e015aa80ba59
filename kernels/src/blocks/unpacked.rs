//! Forms that types with tables of many entries are brought into once: each code is three or four bits that number a
//! value of a table of a register's size, so that nothing has to be looked up in memory any more. Products are the same,
//! bit for bit.

use std::marker::PhantomData;

use super::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Xs, Super, SuperType};
use crate::{f16::half, tables};

/// What the codes of an unpacked form say.
pub(crate) trait Codes {
    /// Bits of a number: the magnitude's, shifted right by [`Codes::SHIFT`], and above them the sign.
    const BITS: u32;
    const SHIFT: u32;
    /// Codes by number, in units of the form.
    const TABLE: [i8; 16];
    /// The largest of them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    const MAX: i8 = largest(Self::TABLE);
    /// Codes are half of the type's own, scales twice.
    const HALVED: bool = false;
    /// What the block's half is multiplied by.
    const D: f32;
}

/// The magnitudes and their negatives, by number.
const fn signed<const N: usize>(magnitudes: [i8; N], bits: u32) -> [i8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < N {
        table[i] = magnitudes[i];
        table[i | 1 << (bits - 1)] = -magnitudes[i];
        i += 1;
    }
    table
}

const fn largest(table: [i8; 16]) -> i8 {
    let mut most = 0;
    let mut i = 0;
    while i < table.len() {
        if table[i] > most {
            most = table[i];
        }
        i += 1;
    }
    most
}

pub(crate) struct Iq3SCodes;
impl Codes for Iq3SCodes {
    const BITS: u32 = 4;
    const SHIFT: u32 = 1;
    const TABLE: [i8; 16] = signed([1, 3, 5, 7, 9, 11, 13, 15], Self::BITS);
    const D: f32 = 1.0;
}

/// All are even: halved, twice as many products fit sums of int16.
pub(crate) struct Iq3XxsCodes;
impl Codes for Iq3XxsCodes {
    const BITS: u32 = 4;
    const SHIFT: u32 = 2;
    const TABLE: [i8; 16] = signed([2, 6, 10, 14, 18, 22, 26, 31], Self::BITS);
    const HALVED: bool = true;
    const D: f32 = 0.25;
}

pub(crate) struct Iq2Codes;
impl Codes for Iq2Codes {
    const BITS: u32 = 3;
    const SHIFT: u32 = 4;
    const TABLE: [i8; 16] = signed([8, 25, 43], Self::BITS);
    const D: f32 = 0.125;
}

/// A type that can be brought into another form.
pub(crate) trait Unpackable: SuperType {
    type Form: SuperType;
    /// A block into that form.
    fn unpack_block(block: &[u8], out: &mut [u8]);
}

/// A type that can be brought into a form of [`FourBits`] or [`ThreeBits`]. Its blocks begin with a half.
pub(crate) trait Numbered: SuperType {
    type Codes: Codes;
    type Packed: SuperType + Pack;
}

/// Codes in the order of weights, scales of sixteens of weights and the half d into a block of a form.
pub(crate) trait Pack {
    fn pack(numbers: &[u8; 256], scales: &[u8; 16], d: [u8; 2], block: &mut [u8]);
}

/// 32 times two nibbles as in Q4_K; 4 bytes of scales, 4 bits for each 32 weights; half d.
pub(crate) struct FourBits<C>(PhantomData<C>);
/// 32 bytes of third bits and 64 of two-bit planes as in Q3_K; 8 bytes of scales, 4 bits for each 16 weights; half d.
pub(crate) struct ThreeBits<C>(PhantomData<C>);

/// A scale from its four bits.
fn scale<C: Codes>(stored: u8) -> i16 {
    let odd = 2 * i16::from(stored) + 1;
    if C::HALVED { 2 * odd } else { odd }
}

impl<C: Codes> SuperType for FourBits<C> {
    const BYTES: usize = 134;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 132) * C::D;
        for (j, codes) in out.q.chunks_exact_mut(32).enumerate() {
            let shift = j % 2 * 4;
            for (q, byte) in codes.iter_mut().zip(&block[j / 2 * 32..]) {
                *q = C::TABLE[usize::from(byte >> shift & 15)];
            }
            out.scale[2 * j..2 * j + 2].fill(scale::<C>(block[128 + j / 2] >> shift & 15));
        }
    }
}

impl<C: Codes> Pack for FourBits<C> {
    fn pack(numbers: &[u8; 256], scales: &[u8; 16], d: [u8; 2], block: &mut [u8]) {
        for (two, bytes) in numbers.chunks_exact(64).zip(block.chunks_exact_mut(32)) {
            let (low, high) = two.split_at(32);
            for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
                *byte = low | high << 4;
            }
        }
        for j in 0..4 {
            block[128 + j] = scales[4 * j] | scales[4 * j + 2] << 4;
        }
        block[132..134].copy_from_slice(&d);
    }
}

impl<C: Codes> SuperType for ThreeBits<C> {
    const BYTES: usize = 106;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        out.d = half(block, 104) * C::D;
        for (j, codes) in out.q.chunks_exact_mut(32).enumerate() {
            let planes = &block[32 + j / 4 * 32..];
            for ((q, two), third) in codes.iter_mut().zip(planes).zip(&block[..32]) {
                let third = third >> j & 1;
                *q = C::TABLE[usize::from(two >> (j % 4 * 2) & 3 | third << 2)];
            }
        }
        for (j, x) in out.scale.iter_mut().enumerate() {
            *x = scale::<C>(block[96 + j / 2] >> (j % 2 * 4) & 15);
        }
    }
}

impl<C: Codes> Pack for ThreeBits<C> {
    fn pack(numbers: &[u8; 256], scales: &[u8; 16], d: [u8; 2], block: &mut [u8]) {
        block[..96].fill(0);
        for (j, numbers) in numbers.chunks_exact(32).enumerate() {
            for (i, number) in numbers.iter().enumerate() {
                block[i] |= (number >> 2) << j;
                block[32 + j / 4 * 32 + i] |= (number & 3) << (j % 4 * 2);
            }
        }
        for j in 0..8 {
            block[96 + j] = scales[2 * j] | scales[2 * j + 1] << 4;
        }
        block[104..106].copy_from_slice(&d);
    }
}

/// The number of one of the type's codes.
fn number<S: Numbered>(code: i8) -> u8 {
    let magnitude = code.unsigned_abs() >> u32::from(S::Codes::HALVED);
    magnitude >> S::Codes::SHIFT | u8::from(code < 0) << (S::Codes::BITS - 1)
}

impl<S: Numbered> Unpackable for S {
    type Form = S::Packed;
    fn unpack_block(block: &[u8], out: &mut [u8]) {
        let mut w = Super::ZERO;
        S::unpack(block, &mut w);
        let scales = w.scale.map(|s| (s >> 1) as u8);
        S::Packed::pack(&w.q.map(number::<S>), &scales, [block[0], block[1]], out);
    }
}

macro_rules! numbered {
    ($($ty:ident $codes:ident $packed:ident;)*) => {
        $(impl Numbered for $ty {
            type Codes = $codes;
            type Packed = $packed<$codes>;
        })*
    };
}

numbered! {
    Iq3S Iq3SCodes FourBits;
    Iq3Xxs Iq3XxsCodes FourBits;
    Iq2Xxs Iq2Codes ThreeBits;
    Iq2Xs Iq2Codes ThreeBits;
    Iq2S Iq2Codes ThreeBits;
}

/// IQ4_XS with nibbles in the order of Q4_K, which takes fewer instructions; what comes before them is the same.
pub(crate) struct Iq4XsInOrder;
impl SuperType for Iq4XsInOrder {
    const BYTES: usize = 136;
    const HAS_MIN: bool = false;
    fn unpack(block: &[u8], out: &mut Super) {
        // The scales; codes are read again.
        Iq4Xs::unpack(block, out);
        for (j, codes) in out.q.chunks_exact_mut(32).enumerate() {
            for (q, byte) in codes.iter_mut().zip(&block[8 + j / 2 * 32..]) {
                *q = tables::IQ4[usize::from(byte >> (j % 2 * 4) & 15)];
            }
        }
    }
}

impl Unpackable for Iq4Xs {
    type Form = Iq4XsInOrder;
    fn unpack_block(block: &[u8], out: &mut [u8]) {
        out[..8].copy_from_slice(&block[..8]);
        let pairs = block[8..136].chunks_exact(32);
        for (from, to) in pairs.zip(out[8..136].chunks_exact_mut(32)) {
            // Two pieces of 32 weights, whose low nibbles are sixteen weights and high ones the next sixteen.
            let (first, second) = from.split_at(16);
            for i in 0..16 {
                to[i] = first[i] & 15 | second[i] << 4;
                to[i + 16] = first[i] >> 4 | second[i] & 0xf0;
            }
        }
    }
}
