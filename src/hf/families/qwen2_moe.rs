//! Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B).

use anyhow::{Result, ensure};

use super::{DEFAULT, Family};
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["Qwen2MoeForCausalLM"],
    arch: "qwen2moe",
    names: NAMES,
    tensor,
    parameters,
    ..DEFAULT
};

/// Names of the single, gated shared expert.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
];

/// Experts come one by one, or as newer transformers save them: all of a layer together, gate above up.
pub(super) fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    if stem.ends_with("mlp.experts.down_proj") {
        return c.add_to_layer(name, "ffn_down_exps.weight", tensor);
    }
    if stem.ends_with("mlp.experts.gate_up_proj") {
        let shape = tensor.shape();
        ensure!(
            shape.len() == 3 && shape[1].is_multiple_of(2),
            "gate and up projections of shape {shape:?}"
        );
        let half = shape[1] / 2;
        let parts = tensor.split(1, &[half, half])?;
        for (gguf, part) in ["ffn_gate_exps.weight", "ffn_up_exps.weight"]
            .iter()
            .zip(parts)
        {
            c.add_to_layer(name, gguf, part)?;
        }
        return Ok(());
    }
    c.add(name, tensor)
}

pub(super) fn parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    c.set_u32("expert_feed_forward_length", "moe_intermediate_size")?;
    c.set_u32(
        "expert_shared_feed_forward_length",
        "shared_expert_intermediate_size",
    )
}
