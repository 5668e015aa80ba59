//! How far each type moves a tensor's outputs, measured by really quantizing it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::importance::Importance;
use crate::ggml;
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::progress::Progress;

/// Output errors of a tensor's matrices (experts; one for an ordinary weight) in each type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorErrors {
    /// Expected squared output of each matrix for one token that reaches it.
    pub energy: Vec<f64>,
    /// Expected squared error over [`TensorErrors::energy`], for each matrix, by type.
    pub by_type: BTreeMap<GgmlType, Vec<f64>>,
}

/// Relative output errors of every tensor in every candidate type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorTable {
    tensors: BTreeMap<String, TensorErrors>,
}

impl ErrorTable {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The errors of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorErrors> {
        self.tensors.get(name)
    }

    /// Every tensor's errors, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorErrors)> {
        self.tensors
            .iter()
            .map(|(name, errors)| (name.as_str(), errors))
    }

    /// Whether the errors of a tensor in a type are known.
    pub fn contains(&self, tensor: &str, ty: GgmlType) -> bool {
        self.tensors
            .get(tensor)
            .is_some_and(|t| t.by_type.contains_key(&ty))
    }

    /// Adds a tensor's errors to those known.
    pub fn insert(&mut self, tensor: &str, errors: TensorErrors) {
        let known = self.tensors.entry(tensor.to_owned()).or_default();
        known.energy = errors.energy;
        known.by_type.extend(errors.by_type);
    }

    /// Relative error of a whole tensor, `sum_e t_e n_e r_e / sum_e t_e n_e` with `n_e` the energy and `r_e`
    /// the relative error of matrix `e`, and `t_e = traffic[e]` how much passes through it. One value stands
    /// for all matrices.
    pub fn relative(&self, tensor: &str, ty: GgmlType, traffic: &[f64]) -> Option<f64> {
        let errors = self.tensors.get(tensor)?;
        let shares = shares(&errors.energy, traffic);
        Some(
            errors
                .by_type
                .get(&ty)?
                .iter()
                .zip(shares)
                .map(|(r, s)| r * s)
                .sum(),
        )
    }

    /// What share of a tensor's output each matrix has, `t_e n_e / sum t_e n_e`.
    pub fn shares(&self, tensor: &str, traffic: &[f64]) -> Option<Vec<f64>> {
        Some(shares(&self.tensors.get(tensor)?.energy, traffic))
    }
}

fn shares(energy: &[f64], traffic: &[f64]) -> Vec<f64> {
    let passing = |e: usize| {
        if traffic.len() == energy.len() {
            traffic[e]
        } else {
            1.0
        }
    };
    let parts: Vec<f64> = energy
        .iter()
        .enumerate()
        .map(|(e, n)| n * passing(e))
        .collect();
    let total: f64 = parts.iter().sum();
    if total > 0.0 {
        parts.into_iter().map(|p| p / total).collect()
    } else {
        vec![1.0 / energy.len().max(1) as f64; energy.len()]
    }
}

/// Measures, for each tensor, each of its matrices `e` and each of its candidate types,
///
/// `r_e = sum_i m[e,i] sum_o (W[e,o,i] - Q(W)[e,o,i])^2 / sum_i m[e,i] sum_o W[e,o,i]^2`
///
/// with `m[e,i]` the mean squared activation of input channel `i` over the tokens that reached `e`: the
/// expected squared error of the outputs over their expected square, for channels taken as uncorrelated (the
/// weighting of llama.cpp's imatrix). Rows are sampled evenly so that about `max_values` values of a tensor are
/// quantized.
///
/// # Errors
/// A tensor cannot be quantized; names it.
pub fn measure_errors(
    source: &Gguf,
    tensors: &[(&TensorInfo, Vec<GgmlType>)],
    importance: &Importance,
    max_values: u64,
    pool: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<ErrorTable> {
    // Work in pieces of a few rows of one expert, all types of a piece together: the rows are decoded once.
    let mut pieces = Vec::new();
    for (index, (tensor, _)) in tensors.iter().enumerate() {
        push_pieces(&mut pieces, index, tensor, max_values);
    }
    let bar = progress.bar("measuring types", pieces.len() as u64, "blocks");
    let partial: Vec<Vec<f64>> = pool.install(|| {
        pieces
            .par_iter()
            .map(|piece| {
                let (tensor, types) = &tensors[piece.tensor];
                let sums =
                    measure_piece(source, tensor, types, importance, piece).with_context(|| {
                        format!(
                            "{}: tensor {}",
                            source.paths()[tensor.part].display(),
                            tensor.name
                        )
                    });
                bar.inc(1);
                sums
            })
            .collect::<Result<_>>()
    })?;
    bar.finish();

    // Per tensor and matrix: squared errors a type, and last the energy. The sample stands for all rows.
    let mut totals: Vec<Vec<Vec<f64>>> = tensors
        .iter()
        .map(|(t, types)| {
            vec![vec![0.0; types.len() + 1]; (t.n_rows() / t.dims.ne(1).max(1)) as usize]
        })
        .collect();
    for (piece, sums) in pieces.iter().zip(&partial) {
        for (t, s) in totals[piece.tensor][piece.matrix].iter_mut().zip(sums) {
            *t += s;
        }
    }
    let mut table = ErrorTable::default();
    for ((tensor, types), total) in tensors.iter().zip(&totals) {
        let energy: Vec<f64> = total.iter().map(|m| m[types.len()]).collect();
        let of_type = |i: usize| -> Vec<f64> {
            total
                .iter()
                .zip(&energy)
                .map(|(m, n)| if *n > 0.0 { m[i] / n } else { 0.0 })
                .collect()
        };
        let by_type = types
            .iter()
            .enumerate()
            .map(|(i, ty)| (*ty, of_type(i)))
            .collect();
        table.insert(&tensor.name, TensorErrors { energy, by_type });
    }
    Ok(table)
}

struct Piece {
    tensor: usize,
    matrix: usize,
    /// Rows of the matrix.
    rows: Vec<usize>,
}

/// Values of a piece.
const PIECE_VALUES: u64 = 1 << 14;

fn push_pieces(pieces: &mut Vec<Piece>, index: usize, tensor: &TensorInfo, max_values: u64) {
    let n_in = tensor.ne(0).max(1);
    let per_matrix = tensor.ne(1);
    let n_mat = tensor.n_rows() / per_matrix.max(1);
    if per_matrix == 0 || n_mat == 0 {
        return;
    }
    // At least four rows of each matrix, so that every expert counts.
    let wanted = (max_values / n_in / n_mat).clamp(per_matrix.min(4), per_matrix);
    let rows: Vec<usize> = (0..wanted)
        .map(|i| (i * per_matrix / wanted) as usize)
        .collect();
    let chunk = ((PIECE_VALUES / n_in).max(1)) as usize;
    for matrix in 0..n_mat as usize {
        for rows in rows.chunks(chunk) {
            pieces.push(Piece {
                tensor: index,
                matrix,
                rows: rows.to_vec(),
            });
        }
    }
}

/// Weighted squared errors, one a type, and last the weighted square of the weights.
fn measure_piece(
    source: &Gguf,
    tensor: &TensorInfo,
    types: &[GgmlType],
    importance: &Importance,
    piece: &Piece,
) -> Result<Vec<f64>> {
    let n_in = tensor.ne(0) as usize;
    let mut values = vec![0f32; n_in * piece.rows.len()];
    for (row, out) in piece.rows.iter().zip(values.chunks_exact_mut(n_in)) {
        let row = piece.matrix as u64 * tensor.ne(1) + *row as u64;
        ggml::decode(tensor.ty, &source.rows(tensor, row..row + 1)?, out)?;
    }
    let imp = importance.of(&tensor.name, piece.matrix, n_in);
    let weigh = |i: usize| imp.map_or(1.0, |v| f64::from(v[i]));
    let mut sums = Vec::with_capacity(types.len() + 1);
    let mut back = vec![0f32; values.len()];
    for &ty in types {
        if ty == tensor.ty {
            sums.push(0.0);
            continue;
        }
        let row_bytes = ty
            .row_bytes(n_in as u64)
            .context("rows do not hold whole blocks")? as usize;
        let mut coded = vec![0u8; row_bytes * piece.rows.len()];
        ggml::encode(ty, &values, n_in, imp, &mut coded)?;
        ggml::decode(ty, &coded, &mut back)?;
        let mut sum = 0.0;
        for (w, q) in values.chunks_exact(n_in).zip(back.chunks_exact(n_in)) {
            for (i, (w, q)) in w.iter().zip(q).enumerate() {
                let d = f64::from(w - q);
                sum += weigh(i) * d * d;
            }
        }
        sums.push(sum);
    }
    let norm = values
        .chunks_exact(n_in)
        .flat_map(|row| row.iter().enumerate())
        .map(|(i, w)| weigh(i) * f64::from(*w) * f64::from(*w))
        .sum();
    sums.push(norm);
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensors_error_follows_the_traffic() {
        let mut table = ErrorTable::default();
        let by_type = BTreeMap::from([(GgmlType::Q4_K, vec![0.1, 0.3])]);
        table.insert(
            "w",
            TensorErrors {
                energy: vec![1.0, 2.0],
                by_type,
            },
        );
        let relative = |traffic: &[f64]| table.relative("w", GgmlType::Q4_K, traffic).unwrap();
        assert!((relative(&[1.0, 0.0]) - 0.1).abs() < 1e-12);
        assert!((relative(&[2.0, 1.0]) - 0.2).abs() < 1e-12);
        assert!((relative(&[1.0]) - 0.7 / 3.0).abs() < 1e-12);
        assert!((relative(&[0.0, 0.0]) - 0.2).abs() < 1e-12);
        assert!(table.relative("w", GgmlType::Q5_K, &[1.0]).is_none());
    }
}
