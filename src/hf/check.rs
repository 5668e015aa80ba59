//! Whether the tensors are those that `config.json` describes.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::{Config, Folder};
use crate::gguf::MadeTensor;

/// A size that `config.json` states, with the field that states it.
type Stated<'a> = Option<(&'a str, u64)>;

/// Checks the shapes of the tensors whose sizes `config.json` states, and that no layer lacks all its tensors.
///
/// # Errors
/// Names the file, the tensor and the field that disagree.
pub(super) fn shapes(
    config: &Config,
    arch: &str,
    tensors: &[MadeTensor],
    folder: &Folder,
    n_layer: u32,
) -> Result<()> {
    let size = |fields: &[&'static str]| -> Result<Stated<'static>> {
        for field in fields {
            if config.get(field).is_some_and(|v| v.is_number()) {
                return Ok(Some((field, config.u32(field)?.into())));
            }
        }
        Ok(None)
    };
    let hidden = size(&["hidden_size"])?;
    let vocab = size(&["vocab_size"])?;
    let experts = size(&[
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
    ])?;
    let width = size(&[
        "moe_intermediate_size",
        "intermediate_size_moe",
        "intermediate_size",
    ])?;
    let dense = size(&["dense_intermediate_size", "intermediate_size"])?;
    let heads = size(&["num_attention_heads"])?;
    let kv_heads = size(&["num_key_value_heads"])?;
    // These two give queries another shape than heads times head size.
    let plain = !matches!(arch, "deepseek2" | "qwen3next");
    let head_dim = size(&["head_dim"])?;
    let per_head = |n: Stated<'static>| match (plain, n, head_dim) {
        (true, Some((field, n)), Some((_, d))) => Some((field, n * d)),
        _ => None,
    };
    let mut layers = BTreeSet::new();
    for tensor in tensors {
        let spec = &tensor.spec;
        let (layer, module) = split_layer(&spec.name);
        layers.extend(layer);
        let expected: [Stated<'_>; 3] = match module {
            "token_embd.weight" | "output.weight" => [hidden, vocab, None],
            "output_norm.weight" | "attn_norm.weight" | "ffn_norm.weight" => [hidden, None, None],
            "attn_q.weight" => [None, per_head(heads), None],
            "attn_k.weight" | "attn_v.weight" => [hidden, per_head(kv_heads), None],
            "ffn_gate_inp.weight" => [hidden, experts, None],
            "ffn_gate_exps.weight" | "ffn_up_exps.weight" => [hidden, width, experts],
            "ffn_down_exps.weight" => [width, hidden, experts],
            "ffn_gate.weight" | "ffn_up.weight" => [hidden, dense, None],
            "ffn_down.weight" => [dense, hidden, None],
            _ => [None; 3],
        };
        for (i, stated) in expected.into_iter().enumerate() {
            if let Some((field, n)) = stated
                && spec.dims.ne(i) != n
            {
                bail!(
                    "{}: the data for {} have shape {} (fastest dimension first), but field '{field}' of {} asks for {n} as dimension {i}; the files are of different models",
                    folder.files[tensor.file].path.display(),
                    spec.name,
                    spec.dims,
                    config.path().display()
                );
            }
        }
    }
    for layer in 0..n_layer {
        if !layers.contains(&layer) {
            return Err(config.error(
                "num_hidden_layers",
                format!(
                    "says that there are {n_layer} layers, but {} has no tensor of layer {layer}",
                    folder.dir.display()
                ),
            ));
        }
    }
    if !tensors.iter().any(|t| t.spec.name == "token_embd.weight") {
        bail!(
            "{}: the token embedding (model.embed_tokens.weight) is missing; download the checkpoint again",
            folder.dir.display()
        );
    }
    Ok(())
}

/// `blk.3.attn_q.weight` is layer 3's `attn_q.weight`.
fn split_layer(name: &str) -> (Option<u32>, &str) {
    let parsed = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, module)| Some((layer.parse().ok()?, module)));
    match parsed {
        Some((layer, module)) => (Some(layer), module),
        None => (None, name),
    }
}
