//! What each type's blocks say, in two common forms of small integers and scales.
//!
//! Types with blocks of 256 weights scale sub-blocks by integers ([`Super`]); the others are read
//! 32 weights at a time with float scales ([`Small`]). Everything else in the crate is derived from these.

mod iquants;
mod kquants;
mod legacy;
mod ternary;
mod unpacked;

pub(crate) use iquants::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Xs};
pub(crate) use kquants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use legacy::{Iq4Nl, Mxfp4, Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(crate) use ternary::{Tq1, Tq2};
pub(crate) use unpacked::Unpackable;
#[cfg(target_arch = "x86_64")]
pub(crate) use unpacked::{Codes, FourBits, Iq4XsInOrder, Numbered, Pack, ThreeBits};

/// 256 weights: `w[i] = d * scale[i / 16] * q[i] - dmin * min[i / 16]`.
pub(crate) struct Super {
    pub q: [i8; 256],
    pub scale: [i16; 16],
    pub min: [i16; 16],
    pub d: f32,
    pub dmin: f32,
}

impl Super {
    pub const ZERO: Super = Super {
        q: [0; 256],
        scale: [0; 16],
        min: [0; 16],
        d: 0.0,
        dmin: 0.0,
    };
}

/// A type with blocks of 256 weights.
pub(crate) trait SuperType {
    const BYTES: usize;
    /// Whether weights have a minimum; if not, `min` and `dmin` are left as they are.
    const HAS_MIN: bool;
    /// Read the block of [`SuperType::BYTES`] bytes.
    fn unpack(block: &[u8], out: &mut Super);
}

/// 32 weights: `w[i] = d * q[i] + m`.
pub(crate) struct Small {
    pub q: [i8; 32],
    pub d: f32,
    pub m: f32,
}

impl Small {
    pub const ZERO: Small = Small {
        q: [0; 32],
        d: 0.0,
        m: 0.0,
    };
}

/// A type with smaller blocks.
pub(crate) trait SmallType {
    const BYTES: usize;
    /// Pieces of 32 weights in a block.
    const PIECES: usize;
    /// Whether weights have an offset `m`; if not, it is left as it is.
    const HAS_MIN: bool;
    /// Read piece `piece` of the block of [`SmallType::BYTES`] bytes.
    fn unpack(block: &[u8], piece: usize, out: &mut Small);
}

/// Run `$super` with `$S` for the marker type of a [`crate::Type`] with blocks of 256 weights, `$small` with `$M` for one
/// with smaller blocks, or `$float` for floats; for the unpacked form, if it has one, where `$unpacked` says so.
macro_rules! by_type {
    ($ty:expr, $unpacked:expr, super $S:ident => $super:expr, small $M:ident => $small:expr, float => $float:expr) => {{
        use $crate::{Type, blocks as b};
        macro_rules! s {
            ($t:ty) => {{
                type $S = $t;
                $super
            }};
        }
        macro_rules! m {
            ($t:ty) => {{
                type $M = $t;
                $small
            }};
        }
        match $ty {
            Type::IQ2_XXS if $unpacked => s!(<b::Iq2Xxs as b::Unpackable>::Form),
            Type::IQ2_XS if $unpacked => s!(<b::Iq2Xs as b::Unpackable>::Form),
            Type::IQ2_S if $unpacked => s!(<b::Iq2S as b::Unpackable>::Form),
            Type::IQ3_XXS if $unpacked => s!(<b::Iq3Xxs as b::Unpackable>::Form),
            Type::IQ3_S if $unpacked => s!(<b::Iq3S as b::Unpackable>::Form),
            Type::IQ4_XS if $unpacked => s!(<b::Iq4Xs as b::Unpackable>::Form),
            Type::F32 | Type::F16 | Type::BF16 => $float,
            Type::Q4_0 => m!(b::Q4_0),
            Type::Q4_1 => m!(b::Q4_1),
            Type::Q5_0 => m!(b::Q5_0),
            Type::Q5_1 => m!(b::Q5_1),
            Type::Q8_0 => m!(b::Q8_0),
            Type::IQ4_NL => m!(b::Iq4Nl),
            Type::MXFP4 => m!(b::Mxfp4),
            Type::Q1_0 => m!(b::Q1_0),
            Type::Q2_0 => m!(b::Q2_0),
            Type::Q2_K => s!(b::Q2K),
            Type::Q3_K => s!(b::Q3K),
            Type::Q4_K => s!(b::Q4K),
            Type::Q5_K => s!(b::Q5K),
            Type::Q6_K => s!(b::Q6K),
            Type::IQ1_S => s!(b::Iq1S),
            Type::IQ1_M => s!(b::Iq1M),
            Type::IQ2_XXS => s!(b::Iq2Xxs),
            Type::IQ2_XS => s!(b::Iq2Xs),
            Type::IQ2_S => s!(b::Iq2S),
            Type::IQ3_XXS => s!(b::Iq3Xxs),
            Type::IQ3_S => s!(b::Iq3S),
            Type::IQ4_XS => s!(b::Iq4Xs),
            Type::TQ1_0 => s!(b::Tq1),
            Type::TQ2_0 => s!(b::Tq2),
        }
    }};
}
pub(crate) use by_type;

/// Run `$numbered` with `$S` for the marker type of a [`crate::Type`] whose unpacked form has numbers for codes, `$other` with
/// `$O` for that of one with another unpacked form, otherwise `$none`.
macro_rules! unpackable {
    ($ty:expr, numbered $S:ident => $numbered:expr, other $O:ident => $other:expr, _ => $none:expr) => {{
        use $crate::{Type, blocks as b};
        macro_rules! s {
            ($t:ty) => {{
                type $S = $t;
                $numbered
            }};
        }
        match $ty {
            Type::IQ2_XXS => s!(b::Iq2Xxs),
            Type::IQ2_XS => s!(b::Iq2Xs),
            Type::IQ2_S => s!(b::Iq2S),
            Type::IQ3_XXS => s!(b::Iq3Xxs),
            Type::IQ3_S => s!(b::Iq3S),
            Type::IQ4_XS => {
                type $O = b::Iq4Xs;
                $other
            }
            _ => $none,
        }
    }};
}
pub(crate) use unpackable;

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_agree() {
        use super::{SmallType, SuperType};
        for &ty in crate::Type::ALL {
            by_type!(ty, false,
                super S => { assert_eq!((ty.block_elems(), ty.block_bytes()), (256, S::BYTES)) },
                small M => { assert_eq!((ty.block_elems(), ty.block_bytes()), (32 * M::PIECES, M::BYTES)) },
                float => {});
            let bytes = ty.unpacked_block_bytes().unwrap_or(ty.block_bytes());
            by_type!(ty, true,
                super S => { assert_eq!(bytes, S::BYTES) },
                small M => { assert_eq!(bytes, M::BYTES) },
                float => {});
        }
    }
}
