//! A tensor as the plan makes it, for the loaded model.

use anyhow::{Context as _, Result};
use rayon::prelude::*;

use crate::analysis::Importance;
use crate::encode::{Refit, can_rescale, rescale};
use crate::ggml;
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::plan::{Plan, TensorChoice};
use crate::runtime::{AlignedBytes, Model, WeightHandles};

/// Exchanges the weights of a loaded model for what `plan` makes of them, `refit` included, until the result is
/// dropped. The model must be loaded without repacking.
///
/// # Errors
/// A tensor cannot be quantized.
pub fn exchange<'m>(
    model: &'m Model,
    source: &Gguf,
    plan: &Plan,
    refit: &Refit,
    importance: &Importance,
    n_threads: usize,
) -> Result<WeightHandles<'m>> {
    let mut handles = WeightHandles::find(model)?;
    for choice in &plan.tensors {
        let Some(tensor) = source.tensor(&choice.name) else {
            continue;
        };
        let kept = choice.experts.is_empty() && choice.ty == tensor.ty;
        if !kept && handles.contains(&tensor.name) {
            let (ty, bytes) = quantized(source, tensor, choice, refit, importance, n_threads)
                .with_context(|| format!("tensor {}", tensor.name))?;
            handles.replace(&tensor.name, ty, bytes)?;
        }
    }
    for (name, values) in &refit.routers {
        if let (Some(tensor), true) = (source.tensor(name), handles.contains(name)) {
            let row = tensor.ty.row_bytes(tensor.ne(0)).unwrap_or(0);
            let mut bytes = AlignedBytes::zeroed((row * tensor.n_rows()) as usize);
            ggml::encode(tensor.ty, values, tensor.ne(0) as usize, None, &mut bytes)?;
            handles.replace(name, tensor.ty, bytes)?;
        }
    }
    Ok(handles)
}

/// The type of matrix `i` of a tensor in a plan.
pub(super) fn type_of(choice: &TensorChoice, i: usize) -> GgmlType {
    choice.experts.get(i).copied().unwrap_or(choice.ty)
}

/// The whole tensor as `choice` says, its matrices multiplied by their factors; where experts have types of their
/// own, in float16.
///
/// # Errors
/// A value cannot be quantized.
pub(super) fn quantized(
    source: &Gguf,
    tensor: &TensorInfo,
    choice: &TensorChoice,
    refit: &Refit,
    importance: &Importance,
    n_threads: usize,
) -> Result<(GgmlType, AlignedBytes)> {
    let n_in = tensor.ne(0) as usize;
    let per_matrix = tensor.ne(1) as usize;
    let out_type = if choice.experts.is_empty() {
        choice.ty
    } else {
        GgmlType::F16
    };
    let bytes_of = |ty: GgmlType| {
        ty.row_bytes(n_in as u64)
            .map(|n| n as usize)
            .with_context(|| format!("rows of {n_in} values do not fill blocks of {ty}"))
    };
    let row_bytes = bytes_of(out_type)?;
    let mut out = AlignedBytes::zeroed(row_bytes * tensor.n_rows() as usize);
    let per_block = per_matrix.div_ceil((4 * n_threads).max(1)).max(1);
    let mut blocks: Vec<(usize, &mut [u8])> = Vec::new();
    for (matrix, bytes) in out.chunks_mut(row_bytes * per_matrix).enumerate() {
        for (i, part) in bytes.chunks_mut(row_bytes * per_block).enumerate() {
            blocks.push((matrix * per_matrix + i * per_block, part));
        }
    }
    blocks.into_par_iter().try_for_each(|(first, dst)| {
        let n_rows = dst.len() / row_bytes;
        let matrix = first / per_matrix;
        let ty = type_of(choice, matrix);
        let src = source.rows(tensor, first as u64..(first + n_rows) as u64)?;
        if ty == tensor.ty && ty == out_type {
            dst.copy_from_slice(&src);
            return Ok(());
        }
        let mut values = vec![0f32; n_rows * n_in];
        ggml::decode(tensor.ty, &src, &mut values)?;
        if ty != tensor.ty {
            let imp = importance.of(&tensor.name, matrix, n_in);
            let mut coded = vec![0u8; bytes_of(ty)? * n_rows];
            ggml::encode(ty, &values, n_in, imp, &mut coded)
                .with_context(|| format!("from row {first}"))?;
            if can_rescale(ty) {
                rescale(ty, &mut coded, refit.scale(&tensor.name, matrix))?;
            }
            if ty == out_type {
                dst.copy_from_slice(&coded);
                return Ok(());
            }
            ggml::decode(ty, &coded, &mut values)?;
        }
        ggml::encode(out_type, &values, n_in, None, dst)
    })?;
    Ok((out_type, out))
}
