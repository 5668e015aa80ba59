//! The paths through this crate by instruction set, and which of them this processor has.

/// An instruction set with code of its own. All give the same bits for block types; float types
/// (F32, F16, BF16) are summed in an order that differs between paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 and the 256-bit `vpdpbusd` of AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, VL and VNNI.
    Avx512Vnni,
    Neon,
    NeonDotprod,
    NeonI8mm,
}

impl Isa {
    pub const ALL: [Isa; 7] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::Neon,
        Isa::NeonDotprod,
        Isa::NeonI8mm,
    ];

    /// Its name in the environment variable `MOQA_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neondotprod",
            Isa::NeonI8mm => "neoni8mm",
        }
    }

    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name))
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => avx2,
                Isa::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
                Isa::Avx512Vnni => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512vnni")
                }
                Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            match self {
                Isa::Scalar => true,
                Isa::Neon => is_aarch64_feature_detected!("neon"),
                Isa::NeonDotprod => is_aarch64_feature_detected!("dotprod"),
                Isa::NeonI8mm => {
                    is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm")
                }
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Isa::Scalar
        }
    }

    /// The paths that this processor has, the slowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The fastest path that this processor has and that `MOQA_ISA`, if set to one of the names,
    /// does not exclude. Names that are unknown are ignored.
    pub fn detect() -> Isa {
        let cap = std::env::var("MOQA_ISA")
            .ok()
            .and_then(|name| Isa::from_name(&name));
        Isa::best(cap)
    }

    /// The fastest available path not above `cap`.
    fn best(cap: Option<Isa>) -> Isa {
        Isa::available()
            .into_iter()
            .filter(|&isa| cap.is_none_or(|cap| isa <= cap))
            .max()
            .unwrap_or(Isa::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps() {
        assert_eq!(Isa::best(Some(Isa::Scalar)), Isa::Scalar);
        assert!(Isa::best(Some(Isa::Avx2)) <= Isa::Avx2);
        assert!(Isa::best(None).is_available());
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
    }
}
