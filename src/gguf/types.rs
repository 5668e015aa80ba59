//! ggml's tensor types: ids, names and block sizes.

use std::fmt;
use std::str::FromStr;

/// Defines [`GgmlType`] from one row per type: variant, id, ggml's name, elements per block, bytes
/// per block, whether ggml counts it as quantized.
macro_rules! ggml_types {
    ($($variant:ident = $id:literal, $name:literal, $elems:literal, $bytes:literal, $quantized:literal;)*) => {
        /// A ggml tensor type, as stored in a GGUF file (ggml 0.26, ids 0 to 42 without the removed
        /// ones). Ordered by id.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types, missing_docs)]
        #[repr(u32)]
        pub enum GgmlType { $($variant = $id,)* }

        impl GgmlType {
            /// Every type, in order of id.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$variant,)*];

            /// The type with this id, or `None` if ggml has none or removed it.
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id { $($id => Some(GgmlType::$variant),)* _ => None }
            }

            /// ggml's own name, spelled as `ggml_type_name` prints it (`q4_K`, `iq2_xxs`, `bf16`).
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => $name,)* }
            }

            /// Elements in one block. A row must hold a whole number of blocks.
            pub const fn block_elems(self) -> u64 {
                match self { $(GgmlType::$variant => $elems,)* }
            }

            /// Bytes in one block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(GgmlType::$variant => $bytes,)* }
            }

            /// Whether ggml counts the type as quantized (floats and integers are not).
            pub const fn is_quantized(self) -> bool {
                match self { $(GgmlType::$variant => $quantized,)* }
            }
        }
    };
}

// Sizes follow the block structs' static assertions in ggml/src/ggml-common.h (QK_K = 256).
ggml_types! {
    F32     = 0,  "f32",     1,   4,   false;
    F16     = 1,  "f16",     1,   2,   false;
    Q4_0    = 2,  "q4_0",    32,  18,  true;
    Q4_1    = 3,  "q4_1",    32,  20,  true;
    Q5_0    = 6,  "q5_0",    32,  22,  true;
    Q5_1    = 7,  "q5_1",    32,  24,  true;
    Q8_0    = 8,  "q8_0",    32,  34,  true;
    Q8_1    = 9,  "q8_1",    32,  36,  true;
    Q2_K    = 10, "q2_K",    256, 84,  true;
    Q3_K    = 11, "q3_K",    256, 110, true;
    Q4_K    = 12, "q4_K",    256, 144, true;
    Q5_K    = 13, "q5_K",    256, 176, true;
    Q6_K    = 14, "q6_K",    256, 210, true;
    Q8_K    = 15, "q8_K",    256, 292, true;
    IQ2_XXS = 16, "iq2_xxs", 256, 66,  true;
    IQ2_XS  = 17, "iq2_xs",  256, 74,  true;
    IQ3_XXS = 18, "iq3_xxs", 256, 98,  true;
    IQ1_S   = 19, "iq1_s",   256, 50,  true;
    IQ4_NL  = 20, "iq4_nl",  32,  18,  true;
    IQ3_S   = 21, "iq3_s",   256, 110, true;
    IQ2_S   = 22, "iq2_s",   256, 82,  true;
    IQ4_XS  = 23, "iq4_xs",  256, 136, true;
    I8      = 24, "i8",      1,   1,   false;
    I16     = 25, "i16",     1,   2,   false;
    I32     = 26, "i32",     1,   4,   false;
    I64     = 27, "i64",     1,   8,   false;
    F64     = 28, "f64",     1,   8,   false;
    IQ1_M   = 29, "iq1_m",   256, 56,  true;
    BF16    = 30, "bf16",    1,   2,   false;
    TQ1_0   = 34, "tq1_0",   256, 54,  true;
    TQ2_0   = 35, "tq2_0",   256, 66,  true;
    MXFP4   = 39, "mxfp4",   32,  17,  true;
    NVFP4   = 40, "nvfp4",   64,  36,  true;
    Q1_0    = 41, "q1_0",    128, 18,  true;
    Q2_0    = 42, "q2_0",    64,  18,  true;
}

impl GgmlType {
    /// The id stored in files.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type with this name, in any case (`Q4_K`, `q4_k`).
    pub fn from_name(name: &str) -> Option<GgmlType> {
        Self::ALL
            .iter()
            .copied()
            .find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `n_elems` elements; `None` if that is not a whole number of blocks or the
    /// product does not fit.
    pub const fn row_bytes(self, n_elems: u64) -> Option<u64> {
        if !n_elems.is_multiple_of(self.block_elems()) {
            return None;
        }
        (n_elems / self.block_elems()).checked_mul(self.block_bytes())
    }

    /// Bits per weight, block headers included.
    pub fn bpw(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_elems() as f64
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A type name that ggml does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown ggml type '{0}'; the known ones are {known}", known = known_names())]
pub struct UnknownGgmlType(pub String);

fn known_names() -> String {
    let names: Vec<_> = GgmlType::ALL.iter().map(|t| t.name()).collect();
    names.join(", ")
}

impl FromStr for GgmlType {
    type Err = UnknownGgmlType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::from_name(s).ok_or_else(|| UnknownGgmlType(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_round_trip() {
        assert_eq!(GgmlType::ALL.len(), 35);
        for &t in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(t.id()), Some(t));
            assert_eq!(t.to_string().parse(), Ok(t));
            assert_eq!(GgmlType::from_name(&t.name().to_uppercase()), Some(t));
        }
        assert!(GgmlType::ALL.windows(2).all(|w| w[0] < w[1]));
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_id(removed), None);
        }
        let error = "q4_k_m".parse::<GgmlType>().unwrap_err().to_string();
        assert!(error.contains("'q4_k_m'") && error.contains("iq2_xxs"));
    }

    #[test]
    fn sizes_match_published_bits_per_weight() {
        for (ty, bpw) in [
            (GgmlType::Q1_0, 1.125),
            (GgmlType::IQ1_S, 1.5625),
            (GgmlType::TQ1_0, 1.6875),
            (GgmlType::IQ1_M, 1.75),
            (GgmlType::IQ2_XXS, 2.0625),
            (GgmlType::TQ2_0, 2.0625),
            (GgmlType::Q2_0, 2.25),
            (GgmlType::IQ2_XS, 2.3125),
            (GgmlType::IQ2_S, 2.5625),
            (GgmlType::Q2_K, 2.625),
            (GgmlType::IQ3_XXS, 3.0625),
            (GgmlType::Q3_K, 3.4375),
            (GgmlType::IQ3_S, 3.4375),
            (GgmlType::MXFP4, 4.25),
            (GgmlType::IQ4_XS, 4.25),
            (GgmlType::NVFP4, 4.5),
            (GgmlType::Q4_K, 4.5),
            (GgmlType::IQ4_NL, 4.5),
            (GgmlType::Q5_K, 5.5),
            (GgmlType::Q6_K, 6.5625),
            (GgmlType::Q8_0, 8.5),
            (GgmlType::BF16, 16.0),
        ] {
            assert_eq!(ty.bpw(), bpw, "{ty}");
        }
    }

    #[test]
    fn row_bytes_refuses_partial_blocks_and_overflow() {
        assert_eq!(GgmlType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4_K.row_bytes(0), Some(0));
        assert_eq!(GgmlType::Q4_K.row_bytes(255), None);
        assert_eq!(GgmlType::F64.row_bytes(u64::MAX), None);
        assert_eq!(GgmlType::F32.row_bytes(u64::MAX / 4 + 1), None);
    }
}
