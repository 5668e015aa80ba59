//! How far each type moves a tensor's outputs, measured by really quantizing it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::importance::Importance;
use super::stats::Analysis;
use crate::ggml;
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::progress::Progress;

/// Relative output error of every tensor in every candidate type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorTable {
    errors: BTreeMap<String, BTreeMap<GgmlType, f64>>,
}

impl ErrorTable {
    /// Error of a tensor in a type; zero for its source type.
    pub fn get(&self, tensor: &str, ty: GgmlType) -> Option<f64> {
        self.errors.get(tensor)?.get(&ty).copied()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// Every error, `(tensor, type, error)`, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, GgmlType, f64)> {
        self.errors
            .iter()
            .flat_map(|(name, of)| of.iter().map(move |(ty, e)| (name.as_str(), *ty, *e)))
    }

    /// Adds the errors of another table.
    pub fn extend(&mut self, other: ErrorTable) {
        for (name, of) in other.errors {
            self.errors.entry(name).or_default().extend(of);
        }
    }

    /// Sets an error.
    pub fn insert(&mut self, tensor: &str, ty: GgmlType, error: f64) {
        self.errors
            .entry(tensor.to_owned())
            .or_default()
            .insert(ty, error);
    }
}

/// Measures, for each tensor and each of its candidate types,
///
/// `E = sum_e sum_i s[e,i] sum_o (W[e,o,i] - Q(W)[e,o,i])^2 / sum_e sum_i s[e,i] sum_o W[e,o,i]^2`
///
/// with `s[e,i]` the sum of squared activations of input channel `i` over the tokens that reached expert `e`:
/// the expected squared error of the outputs over their expected square, for channels taken as uncorrelated
/// (the weighting of llama.cpp's imatrix). Rows are sampled evenly so that about `max_values` values of a tensor
/// are quantized.
///
/// # Errors
/// A tensor cannot be quantized; names it.
pub fn measure_errors(
    source: &Gguf,
    tensors: &[(&TensorInfo, Vec<GgmlType>)],
    analysis: &Analysis,
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
                let sums = measure_piece(source, tensor, types, analysis, importance, piece)
                    .with_context(|| {
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

    let mut totals: Vec<Vec<f64>> = tensors
        .iter()
        .map(|(_, types)| vec![0.0; types.len() + 1])
        .collect();
    for (piece, sums) in pieces.iter().zip(&partial) {
        for (t, s) in totals[piece.tensor].iter_mut().zip(sums) {
            *t += s;
        }
    }
    let mut table = ErrorTable::default();
    for ((tensor, types), total) in tensors.iter().zip(&totals) {
        let norm = total[types.len()];
        for (ty, sum) in types.iter().zip(total) {
            table.insert(&tensor.name, *ty, if norm > 0.0 { sum / norm } else { 0.0 });
        }
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
    analysis: &Analysis,
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
    // The tokens behind the importance; an expert that none reached counts as one that one token did.
    let tokens = match analysis.weights.get(&tensor.name) {
        Some(w) if imp.is_some() => w.count(piece.matrix.min(w.n_mat() - 1)).max(1.0),
        _ => 1.0,
    };
    let weigh = |i: usize| imp.map_or(1.0, |v| f64::from(v[i])) * tokens;
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
