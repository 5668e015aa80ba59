//! Fitting a router to the inputs that it gets in the quantized model.

use rayon::prelude::*;

/// Ridges to choose from, as shares of the mean of the Gram matrix's diagonal.
const RIDGES: [f64; 6] = [0.001, 0.004, 0.016, 0.064, 0.25, 1.0];
/// Tokens that are fitted to or left out together: neighbours have much in common.
const RUN: usize = 256;
/// Tokens that are less near are passed over: they are far from any tie.
const LEAST_NEARNESS: f64 = 0.02;

/// The difference between the logits of the last expert that is used and the first that is not. What else some
/// architectures choose by, biases beside the router and groups of experts, is not looked at.
pub(super) fn margin(logits: &[f32], n_used: usize) -> f64 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    match (sorted.get(n_used.wrapping_sub(1)), sorted.get(n_used)) {
        (Some(a), Some(b)) => f64::from(a - b),
        _ => f64::INFINITY,
    }
}

/// Weighted sums over tokens for the regression of what a router should add.
struct Sums {
    n_in: usize,
    /// `n_in x n_in`, of which the upper triangle is filled.
    gram: Vec<f64>,
    /// `n_expert x n_in`.
    cross: Vec<f64>,
}

/// The regression of what a router should add, its ridge chosen on tokens that it was not fitted to.
pub(super) struct Regression {
    /// Sums over every other run of [`RUN`] tokens, and over those between.
    halves: [Sums; 2],
    tokens: usize,
}

/// A token of the quantized model.
pub(super) struct Token<'a> {
    /// The router's input.
    pub input: &'a [f32],
    /// What the router says.
    pub logits: &'a [f32],
    /// What the original said.
    pub wanted: &'a [f32],
    /// How near it is to a tie: `exp(-margin / typical margin)`.
    pub nearness: f64,
    /// How much it counts besides.
    pub weight: f64,
}

impl Token<'_> {
    fn counts(&self) -> f64 {
        self.nearness * self.weight
    }
}

impl Regression {
    pub(super) fn new(n_in: usize, n_expert: usize) -> Self {
        Self {
            halves: [0; 2].map(|_| Sums::new(n_in, n_expert)),
            tokens: 0,
        }
    }

    /// Adds tokens; the result does not depend on the number of threads.
    pub(super) fn add(&mut self, tokens: &[Token<'_>]) {
        let mut rest = tokens;
        while !rest.is_empty() {
            let (own, after) = rest.split_at((RUN - self.tokens % RUN).min(rest.len()));
            self.halves[self.tokens / RUN % 2].add(own);
            self.tokens += own.len();
            rest = after;
        }
    }

    /// What to add to the router's rows, `n_expert` rows of `n_in`; `None` where the sums do not determine it or where
    /// nothing that is added makes the logits of the tokens left out better.
    pub(super) fn solve(self) -> Option<Vec<f64>> {
        let [fitted, held_out] = &self.halves;
        let left_out = |ridge: f64| {
            let add = fitted.solve(ridge)?;
            Some((ridge, held_out.change(&add)))
        };
        let tried: Vec<(f64, f64)> = RIDGES.par_iter().filter_map(|r| left_out(*r)).collect();
        let (ridge, change) = tried.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        if change.is_nan() || change >= 0.0 {
            return None;
        }
        let [mut all, rest] = self.halves;
        all.merge(&rest);
        all.solve(ridge)
    }
}

impl Sums {
    fn new(n_in: usize, n_expert: usize) -> Self {
        Self {
            n_in,
            gram: vec![0.0; n_in * n_in],
            cross: vec![0.0; n_expert * n_in],
        }
    }

    fn add(&mut self, tokens: &[Token<'_>]) {
        let tokens: Vec<&Token<'_>> = tokens
            .iter()
            .filter(|t| t.nearness >= LEAST_NEARNESS)
            .collect();
        let n = self.n_in;
        self.gram
            .par_chunks_mut(n)
            .enumerate()
            .for_each(|(i, row)| {
                for t in &tokens {
                    let x = t.counts() * f64::from(t.input[i]);
                    for (g, y) in row[i..].iter_mut().zip(&t.input[i..]) {
                        *g += x * f64::from(*y);
                    }
                }
            });
        self.cross
            .par_chunks_mut(n)
            .enumerate()
            .for_each(|(e, row)| {
                for t in &tokens {
                    let missing = t.counts() * f64::from(t.wanted[e] - t.logits[e]);
                    for (c, y) in row.iter_mut().zip(t.input) {
                        *c += missing * f64::from(*y);
                    }
                }
            });
    }

    fn merge(&mut self, other: &Self) {
        for (a, b) in self.gram.iter_mut().zip(&other.gram) {
            *a += b;
        }
        for (a, b) in self.cross.iter_mut().zip(&other.cross) {
            *a += b;
        }
    }

    /// By how much the weighted squared error of these tokens' logits changes when `add` is added.
    fn change(&self, add: &[f64]) -> f64 {
        let n = self.n_in;
        let of_row = |(row, cross): (&[f64], &[f64])| {
            let mut sum = 0.0;
            for i in 0..n {
                let gram = &self.gram[i * n..(i + 1) * n];
                let beside: f64 = gram[i + 1..]
                    .iter()
                    .zip(&row[i + 1..])
                    .map(|(g, w)| g * w)
                    .sum();
                sum += row[i] * (gram[i] * row[i] + 2.0 * beside - 2.0 * cross[i]);
            }
            sum
        };
        add.par_chunks(n)
            .zip(self.cross.par_chunks(n))
            .map(of_row)
            .collect::<Vec<f64>>()
            .iter()
            .sum()
    }

    /// The ridge regression's solution; `ridge` is a share of the mean of the Gram matrix's diagonal.
    fn solve(&self, ridge: f64) -> Option<Vec<f64>> {
        let n = self.n_in;
        let mean = (0..n).map(|i| self.gram[i * n + i]).sum::<f64>() / n as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut gram = self.gram.clone();
        for i in 0..n {
            gram[i * n + i] += ridge * mean;
        }
        // Cholesky, upper form: gram = Uᵀ U, row by row in place.
        for i in 0..n {
            let (above, rest) = gram.split_at_mut(i * n);
            let row = &mut rest[..n];
            for k in 0..i {
                let u = above[k * n + i];
                if u != 0.0 {
                    for (r, a) in row[i..].iter_mut().zip(&above[k * n + i..(k + 1) * n]) {
                        *r -= u * a;
                    }
                }
            }
            let pivot = row[i];
            if pivot.is_nan() || pivot <= 0.0 {
                return None;
            }
            let root = pivot.sqrt();
            for r in &mut row[i..] {
                *r /= root;
            }
        }
        let u = &gram;
        let mut solved = self.cross.clone();
        solved.par_chunks_mut(n).for_each(|b| {
            for i in 0..n {
                let done = b[i] / u[i * n + i];
                b[i] = done;
                for (c, a) in b[i + 1..].iter_mut().zip(&u[i * n + i + 1..(i + 1) * n]) {
                    *c -= done * a;
                }
            }
            for i in (0..n).rev() {
                let known: f64 = b[i + 1..]
                    .iter()
                    .zip(&u[i * n + i + 1..(i + 1) * n])
                    .map(|(x, a)| x * a)
                    .sum();
                b[i] = (b[i] - known) / u[i * n + i];
            }
        });
        solved.iter().all(|x| x.is_finite()).then_some(solved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_difference_is_found() {
        let (n_in, n_expert) = (24, 5);
        let mut state = 7u64;
        let mut noise = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 33) as f32 / 2f32.powi(30)) - 1.0
        };
        let truth: Vec<f32> = (0..n_in * n_expert).map(|_| noise()).collect();
        let mut regression = Regression::new(n_in, n_expert);
        for _ in 0..400 {
            let input: Vec<f32> = (0..n_in).map(|_| noise()).collect();
            let logits: Vec<f32> = (0..n_expert).map(|_| noise()).collect();
            let wanted: Vec<f32> = (0..n_expert)
                .map(|e| {
                    let row = &truth[e * n_in..(e + 1) * n_in];
                    logits[e] + row.iter().zip(&input).map(|(a, b)| a * b).sum::<f32>()
                })
                .collect();
            regression.add(&[Token {
                input: &input,
                logits: &logits,
                wanted: &wanted,
                nearness: 0.5,
                weight: 1.0,
            }]);
        }
        let found = regression.solve().unwrap();
        for (a, b) in found.iter().zip(&truth) {
            assert!((a - f64::from(*b)).abs() < 0.03, "{a} {b}");
        }
        assert!(Regression::new(3, 2).solve().is_none());
    }

    #[test]
    fn the_margin_is_between_the_last_used_and_the_first_unused() {
        assert_eq!(margin(&[0.5, 3.0, 2.0, -1.0], 2), 1.5);
        assert_eq!(margin(&[0.5, 3.0], 2), f64::INFINITY);
        assert_eq!(margin(&[0.5], 0), f64::INFINITY);
    }
}
