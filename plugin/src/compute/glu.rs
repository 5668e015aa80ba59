//! Gated linear units: what lies between gate, up and down. A host that may leave them here hands over a layer's
//! experts as one graph instead of two.
//!
//! Results are those of ggml's formulas within the rounding of floats. Every operation is rounded for itself, so that
//! they have the same bits with every instruction set.

use super::rows::{Input, Output};

/// Why a node cannot be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("gate, up and results are not of the same shape")]
pub struct Error;

/// A function of a gate's value `x` and an up value `y`. `sigmoid(x)` is `1 / (1 + exp(-x))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `max(x, 0) * y`
    Reglu,
    /// `x * sigmoid(2 u) * y`, which is `0.5 * x * (1 + tanh(u)) * y`, with `u = sqrt(2 / pi) * (x + 0.044715 x³)`
    Geglu,
    /// `x * sigmoid(1.702 x) * y`
    GegluQuick,
    /// `x * sigmoid(x) * y`
    Swiglu,
    /// As `Swiglu`, of `min(x, limit)` and of `y` within `±limit`
    SwigluClamp { limit: f32 },
    /// `x * sigmoid(alpha x) * (y + 1)`, of `min(x, limit)` and of `y` within `±limit`
    SwigluOai { alpha: f32, limit: f32 },
}

impl Kind {
    /// By ggml's name, with the floats among the operation's parameters; `None` for one that is not known. Its error
    /// function's `GEGLU_ERF` is not: no layer of experts has it.
    pub fn from_name(name: &str, alpha: f32, limit: f32) -> Option<Self> {
        Some(match name {
            "REGLU" => Self::Reglu,
            "GEGLU" => Self::Geglu,
            "GEGLU_QUICK" => Self::GegluQuick,
            "SWIGLU" => Self::Swiglu,
            "SWIGLU_CLAMP" => Self::SwigluClamp { limit },
            "SWIGLU_OAI" => Self::SwigluOai { alpha, limit },
            _ => return None,
        })
    }

    /// Writes the function of each value of `x` and its `y` to `out`.
    pub fn apply(self, x: &[f32], y: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            unsafe { self.apply_avx2(x, y, out) };
            return;
        }
        self.apply_inline(x, y, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn apply_avx2(self, x: &[f32], y: &[f32], out: &mut [f32]) {
        self.apply_inline(x, y, out);
    }

    #[inline(always)]
    fn apply_inline(self, x: &[f32], y: &[f32], out: &mut [f32]) {
        #[inline(always)]
        fn each(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
            for ((x, y), out) in x.iter().zip(y).zip(out) {
                *out = f(*x, *y);
            }
        }
        match self {
            Self::Reglu => each(x, y, out, |x, y| if x > 0.0 { x * y } else { 0.0 }),
            Self::Geglu => each(x, y, out, |x, y| {
                let u = 0.797_884_6 * x * (1.0 + 0.044_715 * x * x);
                x / (1.0 + exp(-2.0 * u)) * y
            }),
            Self::GegluQuick => each(x, y, out, |x, y| x / (1.0 + exp(-1.702 * x)) * y),
            Self::Swiglu => each(x, y, out, |x, y| x / (1.0 + exp(-x)) * y),
            Self::SwigluClamp { limit } => each(x, y, out, |x, y| {
                let x = at_most(x, limit);
                x / (1.0 + exp(-x)) * within(y, limit)
            }),
            Self::SwigluOai { alpha, limit } => each(x, y, out, |x, y| {
                let x = at_most(x, limit);
                x / (1.0 + exp(alpha * -x)) * (within(y, limit) + 1.0)
            }),
        }
    }
}

// Comparisons that leave what is not a number as it is, unlike `f32::min`.
#[inline(always)]
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

#[inline(always)]
fn within(x: f32, limit: f32) -> f32 {
    if x < -limit {
        -limit
    } else if x > limit {
        limit
    } else {
        x
    }
}

/// `exp(x)` within two units in the last place, for `x` within ±87; beyond, as at the ends. Made of operations that
/// compilers turn into vectors: `x = n ln 2 + r`, a polynomial for `exp(r)`, and `n` into the exponent.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Added, it leaves the integer in the lowest bits of the significand.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, of which the first has few enough bits for exact products with `n`.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = within(x, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for factor in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + factor;
    }
    let exponent = rounded
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    p * f32::from_bits(exponent << 23)
}

/// A gated linear unit over rows: `output[row] = kind(gate[row], up[row])`.
pub struct Glu<'a> {
    pub name: String,
    pub kind: Kind,
    /// Rows of gate values, and where in a row they begin.
    pub gate: (Input<'a>, usize),
    /// As `gate`, of up values.
    pub up: (Input<'a>, usize),
    pub output: Output<'a>,
}

impl<'a> Glu<'a> {
    /// Of gate and up in tensors of their own, or, without `up`, in the halves of `gate`'s rows: the gate in the first
    /// unless they are `swapped`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn new(
        name: String,
        kind: Kind,
        gate: Input<'a>,
        up: Option<Input<'a>>,
        swapped: bool,
        output: Output<'a>,
    ) -> Result<Self, Error> {
        let n = output.form().ne[0];
        let (gate, up, width) = match up {
            Some(up) if up.form().ne != gate.form().ne => return Err(Error),
            Some(up) => ((gate, 0), (up, 0), n),
            None => {
                let (first, second) = if swapped { (n, 0) } else { (0, n) };
                ((gate, first), (gate, second), n.saturating_mul(2))
            }
        };
        let ne = gate.0.form().ne;
        if ne[0] != width || ne[1..] != output.form().ne[1..] || output.form().n_values().is_none()
        {
            return Err(Error);
        }
        Ok(Self {
            name,
            kind,
            gate,
            up,
            output,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 6] = [
        Kind::Reglu,
        Kind::Geglu,
        Kind::GegluQuick,
        Kind::Swiglu,
        Kind::SwigluClamp { limit: 3.5 },
        Kind::SwigluOai {
            alpha: 1.702,
            limit: 7.0,
        },
    ];

    /// The same in double precision, from the definitions.
    fn expected(kind: Kind, x: f64, y: f64) -> f64 {
        let swish = |x: f64, a: f64| x / (1.0 + (-a * x).exp());
        match kind {
            Kind::Reglu => x.max(0.0) * y,
            Kind::Geglu => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + u.tanh()) * y
            }
            Kind::GegluQuick => swish(x, 1.702) * y,
            Kind::Swiglu => swish(x, 1.0) * y,
            Kind::SwigluClamp { limit } => {
                let limit = f64::from(limit);
                swish(x.min(limit), 1.0) * y.clamp(-limit, limit)
            }
            Kind::SwigluOai { alpha, limit } => {
                let limit = f64::from(limit);
                swish(x.min(limit), f64::from(alpha)) * (y.clamp(-limit, limit) + 1.0)
            }
        }
    }

    #[test]
    fn functions_are_those_of_the_definitions() {
        for kind in KINDS {
            for i in -20_000..=20_000 {
                let (x, y) = (i as f32 / 1_000.0, (i * 7 % 1_001) as f32 / 50.0);
                let mut found = [0.0];
                kind.apply(&[x], &[y], &mut found);
                let expected = expected(kind, f64::from(x), f64::from(y));
                // Where the sigmoid is nearly 0, a rounding of its argument is a larger one of its value.
                let error = (f64::from(found[0]) - expected).abs();
                assert!(
                    error <= 4e-6 * expected.abs() + 1e-9,
                    "{kind:?} of {x}, {y}: {} for {expected}",
                    found[0]
                );
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so_and_extremes_are_finite() {
        for kind in KINDS {
            let mut x = [0.0; 6];
            kind.apply(
                &[f32::NAN, 1.0, -1e30, 1e30, -100.0, 100.0],
                &[1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0],
                &mut x,
            );
            assert!(x[0].is_nan() || kind == Kind::Reglu, "{kind:?}");
            assert!(x[1].is_nan(), "{kind:?}");
            assert!(x[2].abs() <= 1e-5 && x[4].abs() <= 1e-30, "{kind:?} {x:?}");
            assert!(x[3] > 0.0 && x[5] > 0.0, "{kind:?} {x:?}");
        }
    }

    #[test]
    fn instruction_sets_give_the_same_bits() {
        for kind in KINDS {
            let values: Vec<f32> = (0..1_003).map(|i| (i as f32 - 501.0) / 31.0).collect();
            let others: Vec<f32> = values.iter().rev().copied().collect();
            let (mut a, mut b) = (values.clone(), values.clone());
            kind.apply(&values, &others, &mut a);
            kind.apply_inline(&values, &others, &mut b);
            assert_eq!(
                a.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                b.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn unknown_names() {
        assert_eq!(Kind::from_name("GEGLU_ERF", 0.0, 0.0), None);
        assert_eq!(Kind::from_name("SWIGLU", 1.0, 2.0), Some(Kind::Swiglu));
    }
}
