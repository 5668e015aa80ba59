//! The tensor types: their numbers and names in GGUF, their block sizes, the activations that they are multiplied with.

use crate::{Activation, blocks::unpackable};

macro_rules! types {
    ($($variant:ident $id:literal $name:literal $elems:literal $bytes:literal $activation:ident;)*) => {
        /// A type of weights, as GGUF files hold them.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Type { $($variant,)* }

        impl Type {
            /// Every type that this crate multiplies.
            pub const ALL: &'static [Type] = &[$(Type::$variant,)*];

            /// The type with this number in GGUF files, if it is one of [`Type::ALL`].
            pub fn from_id(id: u32) -> Option<Type> {
                match id { $($id => Some(Type::$variant),)* _ => None }
            }

            /// Its number in GGUF files.
            pub fn id(self) -> u32 {
                match self { $(Type::$variant => $id,)* }
            }

            /// The type that ggml calls so (`q4_K`, `iq2_xxs`).
            pub fn from_name(name: &str) -> Option<Type> {
                match name { $($name => Some(Type::$variant),)* _ => None }
            }

            /// ggml's name of it.
            pub fn name(self) -> &'static str {
                match self { $(Type::$variant => $name,)* }
            }

            /// Weights in a block; a row is a whole number of blocks.
            pub fn block_elems(self) -> usize {
                match self { $(Type::$variant => $elems,)* }
            }

            /// Bytes of a block.
            pub fn block_bytes(self) -> usize {
                match self { $(Type::$variant => $bytes,)* }
            }

            /// The form in which activations must be given.
            pub fn activation(self) -> Activation {
                match self { $(Type::$variant => Activation::$activation,)* }
            }
        }
    };
}

types! {
    F32 0 "f32" 1 4 F32;
    F16 1 "f16" 1 2 F32;
    BF16 30 "bf16" 1 2 F32;
    Q4_0 2 "q4_0" 32 18 Q8;
    Q4_1 3 "q4_1" 32 20 Q8;
    Q5_0 6 "q5_0" 32 22 Q8;
    Q5_1 7 "q5_1" 32 24 Q8;
    Q8_0 8 "q8_0" 32 34 Q8;
    Q2_K 10 "q2_K" 256 84 Q8K;
    Q3_K 11 "q3_K" 256 110 Q8K;
    Q4_K 12 "q4_K" 256 144 Q8K;
    Q5_K 13 "q5_K" 256 176 Q8K;
    Q6_K 14 "q6_K" 256 210 Q8K;
    IQ1_S 19 "iq1_s" 256 50 Q8K;
    IQ1_M 29 "iq1_m" 256 56 Q8K;
    IQ2_XXS 16 "iq2_xxs" 256 66 Q8K;
    IQ2_XS 17 "iq2_xs" 256 74 Q8K;
    IQ2_S 22 "iq2_s" 256 82 Q8K;
    IQ3_XXS 18 "iq3_xxs" 256 98 Q8K;
    IQ3_S 21 "iq3_s" 256 110 Q8K;
    IQ4_NL 20 "iq4_nl" 32 18 Q8;
    IQ4_XS 23 "iq4_xs" 256 136 Q8K;
    MXFP4 39 "mxfp4" 32 17 Q8;
    TQ1_0 34 "tq1_0" 256 54 Q8K;
    TQ2_0 35 "tq2_0" 256 66 Q8K;
    Q1_0 41 "q1_0" 128 18 Q8;
    Q2_0 42 "q2_0" 64 18 Q8;
}

impl Type {
    /// Bytes of a row of `n` weights; None if `n` is not a whole number of blocks or too large.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        self.row_of(self.block_bytes(), n)
    }

    /// Bytes of a block in the form that [`crate::unpack_row`] brings the type into; None if there is none.
    pub fn unpacked_block_bytes(self) -> Option<usize> {
        unpackable!(self,
            numbered S => Some(<<S as b::Unpackable>::Form as b::SuperType>::BYTES),
            other S => Some(<<S as b::Unpackable>::Form as b::SuperType>::BYTES),
            _ => None)
    }

    /// As [`Type::row_bytes`], in that form.
    pub fn unpacked_row_bytes(self, n: usize) -> Option<usize> {
        self.row_of(self.unpacked_block_bytes()?, n)
    }

    /// Bytes of a row of `n` weights whose blocks have so many.
    fn row_of(self, block_bytes: usize, n: usize) -> Option<usize> {
        (n.is_multiple_of(self.block_elems()))
            .then(|| (n / self.block_elems()).checked_mul(block_bytes))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back() {
        for &ty in Type::ALL {
            assert_eq!(Type::from_id(ty.id()), Some(ty));
            assert_eq!(Type::from_name(ty.name()), Some(ty));
        }
        assert_eq!(Type::from_id(9), None);
        assert_eq!(Type::from_name("Q4_K"), None);
        assert_eq!(Type::Q4_K.row_bytes(512), Some(288));
        assert_eq!(Type::Q4_K.row_bytes(100), None);
        assert_eq!(Type::F32.row_bytes(usize::MAX), None);
    }
}
