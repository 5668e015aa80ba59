//! Exchanging a loaded model's tensors for what the plan makes of them.

use anyhow::{Context as _, Result};

use crate::analysis::{Exchange, Importance};
use crate::encode::{Refit, can_rescale, rescale};
use crate::ggml;
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::plan::{Plan, TensorChoice};
use crate::runtime::{AlignedBytes, WeightHandles};

/// A tensor with what the plan says of it.
pub(super) type Planned<'a> = (&'a TensorInfo, &'a TensorChoice);

/// The type of matrix `i` of a tensor in a plan.
pub(super) fn type_of(choice: &TensorChoice, i: usize) -> GgmlType {
    choice.experts.get(i).copied().unwrap_or(choice.ty)
}

/// The tensors that the plan changes and the model's graph uses.
pub(super) fn changed<'a>(
    source: &'a Gguf,
    plan: &'a Plan,
    handles: &WeightHandles<'_>,
) -> Vec<Planned<'a>> {
    plan.tensors
        .iter()
        .filter_map(|c| Some((source.tensor(&c.name)?, c)))
        .filter(|(t, c)| handles.contains(&t.name) && (!c.experts.is_empty() || c.ty != t.ty))
        .collect()
}

/// Puts a tensor as planned, its matrices multiplied by their factors, in its place; where experts have types of
/// their own, in float16.
///
/// # Errors
/// A value cannot be quantized.
pub(super) fn install(
    handles: &mut WeightHandles<'_>,
    source: &Gguf,
    (tensor, choice): Planned<'_>,
    refit: &Refit,
    importance: &Importance,
    n_threads: usize,
) -> Result<()> {
    let exchange = Exchange {
        type_of: &|matrix| type_of(choice, matrix),
        finish: &|ty, matrix, bytes| {
            if can_rescale(ty) {
                rescale(ty, bytes, refit.scale(&tensor.name, matrix))?;
            }
            Ok(())
        },
        out_type: if choice.experts.is_empty() {
            choice.ty
        } else {
            GgmlType::F16
        },
    };
    let bytes = exchange
        .quantize(source, tensor, importance, n_threads)
        .with_context(|| format!("{}: tensor {}", source.paths()[0].display(), tensor.name))?;
    handles.replace(&tensor.name, exchange.out_type, bytes)?;
    Ok(())
}

/// Puts the fitted routers in their places.
///
/// # Errors
/// A value cannot be written in the router's type.
pub(super) fn install_routers(
    handles: &mut WeightHandles<'_>,
    source: &Gguf,
    refit: &Refit,
) -> Result<()> {
    for (name, values) in &refit.routers {
        if let (Some(tensor), true) = (source.tensor(name), handles.contains(name)) {
            let row = tensor.ty.row_bytes(tensor.ne(0)).unwrap_or(0);
            let mut bytes = AlignedBytes::zeroed((row * tensor.n_rows()) as usize);
            ggml::encode(tensor.ty, values, tensor.ne(0) as usize, None, &mut bytes)?;
            handles.replace(name, tensor.ty, bytes)?;
        }
    }
    Ok(())
}
