//! Importance of input channels, per tensor and expert, as the quantizers take it.

use std::collections::BTreeMap;

use super::stats::{Analysis, WeightStats};

/// Mean squared activation of each input channel, per expert.
#[derive(Clone, Debug, Default)]
pub struct Importance {
    /// By tensor name: `n_expert` slices of `n_in` values, one after another.
    tensors: BTreeMap<String, (usize, Vec<f32>)>,
}

/// What stands in for the importance of an expert that no calibration token reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unreached {
    /// The mean over the layer's experts that were reached; it also stands beside the few tokens of an expert that was
    /// hardly reached.
    #[default]
    Pooled,
    /// Ones, as llama-quantize does.
    Ones,
}

impl Importance {
    /// From an analysis. `unreached` decides on experts without tokens.
    pub fn new(analysis: &Analysis, unreached: Unreached) -> Self {
        Self::of_stats(&analysis.weights, unreached)
    }

    /// As [`Importance::new`], as if the text were a mix of the domains with these weights
    /// ([`Analysis::channels_of_mix`]).
    pub fn of_mix(analysis: &Analysis, weights: &[f64], unreached: Unreached) -> Self {
        Self::of_stats(&analysis.channels_of_mix(weights), unreached)
    }

    fn of_stats(stats: &BTreeMap<String, WeightStats>, unreached: Unreached) -> Self {
        let each = stats.iter();
        let tensors = each
            .map(|(name, stats)| (name.clone(), (stats.n_in, channel_means(stats, unreached))))
            .collect();
        Self { tensors }
    }

    /// Importance of the input channels of `expert` of a tensor; `None` when there is no data for it or its
    /// shape differs.
    pub fn of(&self, tensor: &str, expert: usize, n_in: usize) -> Option<&[f32]> {
        let (n, values) = self.tensors.get(tensor)?;
        if *n != n_in {
            return None;
        }
        // One matrix of statistics serves every slice of a tensor that is not indexed by experts.
        let n_mat = values.len() / n;
        let expert = if n_mat == 1 { 0 } else { expert };
        values.get(expert * n..(expert + 1) * n)
    }

    /// As libllama's quantize function takes it.
    pub fn to_llama(&self) -> BTreeMap<String, Vec<f32>> {
        self.tensors
            .iter()
            .map(|(k, v)| (k.clone(), v.1.clone()))
            .collect()
    }
}

/// Fewer tokens than this are not trusted alone.
const FEW: f32 = 64.0;
/// How many tokens the mean over the layer's experts counts as, for an expert with few of its own.
const PRIOR: f32 = 8.0;

fn channel_means(stats: &WeightStats, unreached: Unreached) -> Vec<f32> {
    let (n, n_mat) = (stats.n_in, stats.n_mat());
    let mut out = vec![1.0f32; n * n_mat];
    let total: f64 = (0..n_mat).map(|m| stats.count(m)).sum();
    let pooled: Vec<f32> = (0..n)
        .map(|i| {
            let sum: f64 = (0..n_mat).map(|m| f64::from(stats.sum_sq[m * n + i])).sum();
            if total > 0.0 {
                (sum / total) as f32
            } else {
                1.0
            }
        })
        .collect();
    for (m, dst) in out.chunks_exact_mut(n).enumerate() {
        let count = stats.count(m) as f32;
        if count > 0.0 && count < FEW && unreached == Unreached::Pooled && n_mat > 1 {
            // A few tokens say something about an expert, the layer's other tokens the rest.
            for ((d, s), p) in dst
                .iter_mut()
                .zip(&stats.sum_sq[m * n..(m + 1) * n])
                .zip(&pooled)
            {
                *d = (s + PRIOR * p) / (count + PRIOR);
            }
        } else if count > 0.0 {
            // Division in float32, as llama-quantize does it, so that equal statistics give equal files.
            for (d, s) in dst.iter_mut().zip(&stats.sum_sq[m * n..(m + 1) * n]) {
                *d = s / count;
            }
        } else if unreached == Unreached::Pooled {
            dst.copy_from_slice(&pooled);
        }
        // All zeros would make a quantizer divide zero by zero.
        if dst.iter().all(|v| *v == 0.0) {
            dst.fill(1.0);
        }
    }
    out
}
