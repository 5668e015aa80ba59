//! Whether the tensors are those that `config.json` describes.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::{Config, Folder};
use crate::gguf::{MadeTensor, Metadata};

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

/// Checks what llama.cpp only asserts: it would end the process on parameters outside these bounds.
///
/// # Errors
/// Names the field of `config.json` and what it would have to be.
pub(super) fn limits(config: &Config, arch: &str, metadata: &Metadata) -> Result<()> {
    /// `LLAMA_MAX_LAYERS` and `LLAMA_MAX_EXPERTS`.
    const MAX_LAYERS: u64 = 512;
    const MAX_EXPERTS: u64 = 1024;
    let size = |key: &str| metadata.get_u64(&format!("{arch}.{key}")).unwrap_or(0);
    let layers = size("block_count");
    let (experts, used) = (size("expert_count"), size("expert_used_count"));
    let (groups, groups_used) = (size("expert_group_count"), size("expert_group_used_count"));
    let checks = [
        (
            (1..=MAX_LAYERS).contains(&layers),
            "num_hidden_layers",
            format!("gives {layers} layers; llama.cpp runs 1 to {MAX_LAYERS}"),
        ),
        (
            (1..=MAX_EXPERTS).contains(&experts),
            "num_experts",
            format!("gives {experts} experts; llama.cpp runs 1 to {MAX_EXPERTS}"),
        ),
        (
            (1..=experts).contains(&used),
            "num_experts_per_tok",
            format!("gives {used} experts a token, but there are {experts}"),
        ),
        (
            groups < experts && (groups <= 1 || experts.is_multiple_of(groups)),
            "n_group",
            format!("is {groups}, which does not divide {experts} experts into groups"),
        ),
        (
            groups <= 1 || (1..groups).contains(&groups_used),
            "topk_group",
            format!("is {groups_used}, which is not a part of {groups} groups"),
        ),
        (
            size("embedding_length") > 0,
            "hidden_size",
            "is 0 or missing".into(),
        ),
        (
            size("attention.head_count") > 0,
            "num_attention_heads",
            "is 0 or missing".into(),
        ),
    ];
    for (holds, field, problem) in checks {
        if !holds {
            return Err(config.error(field, problem));
        }
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
