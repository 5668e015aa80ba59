//! How the weights of each tensor are distributed: what makes a matrix hard to quantize.
//!
//! A block shares one scale, so a row with heavy tails or single large weights spends its levels on them, and a
//! matrix whose outputs hang on few input channels suffers from errors in those.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::Serialize;

use super::importance::{Importance, Unreached};
use super::stats::Analysis;
use crate::ggml;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::ModelView;
use crate::progress::Progress;

/// Values of a tensor that are looked at.
const SAMPLE: u64 = 1 << 16;
/// The part of the input channels whose weight [`MatrixDistribution::concentration`] gives.
pub const TOP_CHANNELS: f64 = 0.01;

/// The distribution of the weights of one matrix (an expert, or an ordinary weight), from a sample of its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MatrixDistribution {
    /// Mean over rows of the excess kurtosis `m4 / m2^2 - 3` about the row's mean: 0 for normal weights, -1.2
    /// for uniform ones, large for heavy tails.
    pub kurtosis_mean: f64,
    /// The largest excess kurtosis of a row.
    pub kurtosis_max: f64,
    /// Mean over rows of the outlier ratio, the largest magnitude over the root mean square.
    pub outlier_mean: f64,
    /// The largest outlier ratio of a row.
    pub outlier_max: f64,
    /// Share, 0 to 1, of `sum_i m_i sum_o W[o,i]^2` that the [`TOP_CHANNELS`] strongest input channels have (at
    /// least one channel), with `m_i` the mean squared activation of channel `i`, or 1 where it is not known.
    pub concentration: f64,
}

impl MatrixDistribution {
    /// Figures of a matrix.
    pub const N: usize = 5;

    /// The figures in the order of the fields.
    pub fn to_array(self) -> [f64; Self::N] {
        [
            self.kurtosis_mean,
            self.kurtosis_max,
            self.outlier_mean,
            self.outlier_max,
            self.concentration,
        ]
    }

    /// From figures in the order of the fields.
    pub fn from_array(v: [f64; Self::N]) -> Self {
        Self {
            kurtosis_mean: v[0],
            kurtosis_max: v[1],
            outlier_mean: v[2],
            outlier_max: v[3],
            concentration: v[4],
        }
    }
}

/// The distributions of tensors' matrices, by tensor name.
pub type Distributions = BTreeMap<String, Vec<MatrixDistribution>>;

/// Measures the distributions of the quantizable tensors that an analysis does not hold yet.
///
/// # Errors
/// A tensor cannot be read or decoded; names it.
pub fn complete_distributions(
    source: &Gguf,
    view: &ModelView,
    analysis: &mut Analysis,
    n_threads: usize,
    progress: &Progress,
) -> Result<()> {
    let missing: Vec<&TensorInfo> = view
        .tensors
        .iter()
        .filter(|t| t.quantizable)
        .map(|t| &source.tensors[t.index])
        .filter(|t| !analysis.distributions.contains_key(&t.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let importance = Importance::new(analysis, Unreached::default());
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build()?;
    let found = measure_distributions(source, &missing, &importance, SAMPLE, &pool, progress)?;
    analysis.distributions.extend(found);
    Ok(())
}

/// Measures the distributions of tensors, from rows taken evenly so that about `max_values` values of a tensor are
/// read, and at least four rows of each matrix. Rows with values that are not finite are passed over.
///
/// # Errors
/// A tensor cannot be read or decoded; names it.
pub fn measure_distributions(
    source: &Gguf,
    tensors: &[&TensorInfo],
    importance: &Importance,
    max_values: u64,
    pool: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<Distributions> {
    let matrices: Vec<(&TensorInfo, usize)> = tensors
        .iter()
        .flat_map(|&t| {
            let n_mat = t.n_rows() / t.ne(1).max(1);
            (0..n_mat as usize).map(move |m| (t, m))
        })
        .collect();
    let bar = progress.bar("weights' distribution", matrices.len() as u64, "matrices");
    let found: Vec<MatrixDistribution> = pool.install(|| {
        matrices
            .par_iter()
            .map(|(tensor, matrix)| {
                let one =
                    of_matrix(source, tensor, *matrix, importance, max_values).with_context(|| {
                        let path = source.paths()[tensor.part].display();
                        format!("{path}: tensor {}", tensor.name)
                    });
                bar.inc(1);
                one
            })
            .collect::<Result<_>>()
    })?;
    bar.finish();
    let mut table = Distributions::new();
    for ((tensor, _), one) in matrices.iter().zip(found) {
        table.entry(tensor.name.clone()).or_default().push(one);
    }
    Ok(table)
}

fn of_matrix(
    source: &Gguf,
    tensor: &TensorInfo,
    matrix: usize,
    importance: &Importance,
    max_values: u64,
) -> Result<MatrixDistribution> {
    let n_in = tensor.ne(0);
    let per_matrix = tensor.ne(1);
    let n_mat = tensor.n_rows() / per_matrix.max(1);
    let wanted = (max_values / n_in.max(1) / n_mat.max(1)).clamp(per_matrix.min(4), per_matrix);
    let mut sums = Sums::new(n_in as usize);
    let mut row = vec![0f32; n_in as usize];
    for i in 0..wanted {
        let at = matrix as u64 * per_matrix + i * per_matrix / wanted;
        ggml::decode(tensor.ty, &source.rows(tensor, at..at + 1)?, &mut row)?;
        sums.add(&row);
    }
    Ok(sums.finish(importance.of(&tensor.name, matrix, n_in as usize)))
}

/// What rows add up to.
struct Sums {
    rows: f64,
    kurtosis: f64,
    kurtosis_max: f64,
    outlier: f64,
    outlier_max: f64,
    /// Sum of squares of each input channel.
    channels: Vec<f64>,
}

impl Sums {
    fn new(n_in: usize) -> Self {
        Self {
            rows: 0.0,
            kurtosis: 0.0,
            kurtosis_max: f64::NEG_INFINITY,
            outlier: 0.0,
            outlier_max: 0.0,
            channels: vec![0.0; n_in],
        }
    }

    fn add(&mut self, row: &[f32]) {
        let n = row.len() as f64;
        let (mut sum, mut square, mut largest) = (0.0, 0.0, 0.0f64);
        for w in row {
            let w = f64::from(*w);
            sum += w;
            square += w * w;
            largest = largest.max(w.abs());
        }
        let mean = sum / n;
        let (mut m2, mut m4) = (0.0, 0.0);
        for w in row {
            let d = (f64::from(*w) - mean).powi(2);
            m2 += d;
            m4 += d * d;
        }
        // Of a row of equal values, or with one that is not finite, there is no shape to speak of.
        let kurtosis = n * m4 / (m2 * m2) - 3.0;
        if !kurtosis.is_finite() {
            return;
        }
        let outlier = largest / (square / n).sqrt();
        self.rows += 1.0;
        self.kurtosis += kurtosis;
        self.kurtosis_max = self.kurtosis_max.max(kurtosis);
        self.outlier += outlier;
        self.outlier_max = self.outlier_max.max(outlier);
        for (c, w) in self.channels.iter_mut().zip(row) {
            *c += f64::from(*w) * f64::from(*w);
        }
    }

    fn finish(self, importance: Option<&[f32]>) -> MatrixDistribution {
        if self.rows == 0.0 {
            return MatrixDistribution::default();
        }
        let mut channels = self.channels;
        if let Some(importance) = importance {
            for (c, m) in channels.iter_mut().zip(importance) {
                *c *= f64::from(*m);
            }
        }
        channels.sort_by(|a, b| b.total_cmp(a));
        let top = (channels.len() as f64 * TOP_CHANNELS).ceil() as usize;
        let total: f64 = channels.iter().sum();
        let strongest: f64 = channels.iter().take(top).sum();
        MatrixDistribution {
            kurtosis_mean: self.kurtosis / self.rows,
            kurtosis_max: self.kurtosis_max,
            outlier_mean: self.outlier / self.rows,
            outlier_max: self.outlier_max,
            concentration: if total > 0.0 { strongest / total } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal numbers from a small generator (Marsaglia's xorshift, Box and Muller's transform).
    fn normal(n: usize) -> Vec<f32> {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            ((x >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        (0..n)
            .map(|_| {
                let (a, b) = (uniform(), uniform());
                ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
            })
            .collect()
    }

    fn of(values: &[f32], n_in: usize, importance: Option<&[f32]>) -> MatrixDistribution {
        let mut sums = Sums::new(n_in);
        values.chunks(n_in).for_each(|row| sums.add(row));
        sums.finish(importance)
    }

    #[test]
    fn normal_weights_have_no_excess() {
        let n_in = 1000;
        let mut values = normal(64 * n_in);
        let plain = of(&values, n_in, None);
        assert!(plain.kurtosis_mean.abs() < 0.06, "{plain:?}");
        assert!((3.0..3.6).contains(&plain.outlier_mean), "{plain:?}");
        // Ten of a thousand equal channels have a hundredth, the strongest ten of a sample hardly more.
        assert!((0.01..0.02).contains(&plain.concentration), "{plain:?}");

        // One weight of one row is an outlier: the maxima find it and the means hardly move.
        values[5 * n_in + 7] = 50.0;
        let planted = of(&values, n_in, None);
        let mean_square: f64 = values[5 * n_in..6 * n_in]
            .iter()
            .map(|w| f64::from(*w).powi(2))
            .sum::<f64>()
            / n_in as f64;
        assert!((planted.outlier_max - 50.0 / mean_square.sqrt()).abs() < 1e-9);
        assert!(planted.kurtosis_max > 300.0 && planted.kurtosis_mean < 10.0);
        assert!(planted.outlier_mean < plain.outlier_mean + 1.0);
    }

    #[test]
    fn uniform_weights_are_flat() {
        let row: Vec<f32> = (0..=1000).map(|i| i as f32 / 500.0 - 1.0).collect();
        let d = of(&row, row.len(), None);
        assert!((d.kurtosis_mean + 1.2).abs() < 0.01, "{d:?}");
        assert!((d.outlier_max - 3f64.sqrt()).abs() < 0.01, "{d:?}");
        assert_eq!(d.kurtosis_mean, d.kurtosis_max);
    }

    #[test]
    fn concentration_follows_the_activations() {
        let row = [1.0, -1.0, 1.0, -1.0f32];
        let even = of(&row, 4, None);
        assert!((even.concentration - 0.25).abs() < 1e-12);
        let loud = of(&row, 4, Some(&[1.0, 97.0, 1.0, 1.0]));
        assert!((loud.concentration - 0.97).abs() < 1e-12);
        // Rows that tell nothing.
        for row in [
            [2.0; 4],
            [0.0; 4],
            [1.0, f32::NAN, 2.0, 3.0],
            [f32::INFINITY; 4],
        ] {
            assert_eq!(of(&row, 4, None), MatrixDistribution::default());
        }
    }

    #[test]
    fn arrays_keep_the_order() {
        let v = [1.0, 2.0, 3.0, 4.0, 0.5];
        assert_eq!(MatrixDistribution::from_array(v).to_array(), v);
    }
}
