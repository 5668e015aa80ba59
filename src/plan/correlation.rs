//! What experts of one layer do to each other's errors.
//!
//! A token's expert outputs are added up, and so are their errors. The part of an error that rounding makes at random is
//! independent between experts. The other part is not: a matrix rounded to its cells' means has lost its relative
//! error `r` of its own direction, so that its output is `(1 - r) f` and noise. Where two experts with outputs `f_a`,
//! `f_b` and gate weights `g_a`, `g_b` serve one token, the squared error of the sum holds, beside their own errors,
//! `2 r_a r_b g_a g_b f_a·f_b`: more where they say the same (their errors add up), less where they contradict
//! each other. The mean products are measured (`Coactivation::outputs`).

use crate::analysis::Coactivation;

/// The pair terms of a layer's experts, relative to the energy of the layer's output.
pub(super) struct Pairs {
    n_expert: usize,
    /// `2 E[g_a g_b f_a·f_b] / sum of E[g_e² f_e²]`, zero on the diagonal.
    products: Vec<f64>,
}

impl Pairs {
    /// `None` where they were not measured.
    pub(super) fn new(measured: &Coactivation) -> Option<Self> {
        let n = measured.n_expert;
        if measured.outputs.len() != n * n {
            return None;
        }
        let energy: f64 = (0..n).map(|e| measured.outputs[e * n + e]).sum();
        if energy.is_nan() || energy <= 0.0 {
            return None;
        }
        let mut products: Vec<f64> = measured.outputs.iter().map(|x| 2.0 * x / energy).collect();
        for e in 0..n {
            products[e * n + e] = 0.0;
        }
        Some(Self {
            n_expert: n,
            products,
        })
    }

    /// What expert `e` meets: the sum over the others of their product with it, times their amplitude.
    pub(super) fn field(&self, e: usize, amplitudes: &[f64]) -> f64 {
        self.products[e * self.n_expert..(e + 1) * self.n_expert]
            .iter()
            .zip(amplitudes)
            .map(|(p, a)| p * a)
            .sum()
    }

    /// The product of a pair.
    pub(super) fn of(&self, a: usize, b: usize) -> f64 {
        self.products[a * self.n_expert + b]
    }

    /// The sum over pairs, each once.
    pub(super) fn total(&self, amplitudes: &[f64]) -> f64 {
        let each = amplitudes.iter().enumerate();
        each.map(|(e, a)| a * self.field(e, amplitudes))
            .sum::<f64>()
            / 2.0
    }

    /// No amplitudes between 0 and `largest` make the total smaller than this.
    pub(super) fn least(&self, largest: &[f64]) -> f64 {
        let n = self.n_expert;
        let mut sum = 0.0;
        for a in 0..n {
            for b in a + 1..n {
                sum += self.of(a, b).min(0.0) * largest[a] * largest[b];
            }
        }
        sum
    }
}
