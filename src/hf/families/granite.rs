//! Granite-MoE, with and without a shared expert.

use anyhow::Result;

use super::{DEFAULT, Family, mixtral};
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"],
    arch: "granitemoe",
    names: &[
        ("block_sparse_moe.router.layer", "ffn_gate_inp"),
        ("block_sparse_moe.output_linear", "ffn_down_exps"),
        ("shared_mlp.output_linear", "ffn_down_shexp"),
    ],
    extra: |c, _| mixtral::add_rope_factors(c),
    tensor,
    parameters,
    ..DEFAULT
};

/// Gate and up projections are one matrix, gate above up.
fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    let halves = if name.ends_with("block_sparse_moe.input_linear.weight") {
        Some((
            1,
            "intermediate_size",
            ["ffn_gate_exps.weight", "ffn_up_exps.weight"],
        ))
    } else if name.ends_with("shared_mlp.input_linear.weight") {
        Some((
            0,
            "shared_intermediate_size",
            ["ffn_gate_shexp.weight", "ffn_up_shexp.weight"],
        ))
    } else {
        None
    };
    let Some((axis, field, names)) = halves else {
        let tensor = mixtral::permute_attention(c, name, tensor)?;
        return c.add(name, tensor);
    };
    let width = c.config.u32(field)?.into();
    for (gguf, part) in names.iter().zip(tensor.split(axis, &[width, width])?) {
        c.add_to_layer(name, gguf, part)?;
    }
    Ok(())
}

fn parameters(c: &mut Conversion) -> Result<()> {
    // llama.cpp takes the head size of this architecture from the width.
    c.config.set("head_dim", serde_json::Value::Null);
    mixtral::parameters(c)?;
    for (key, field) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        if c.config.opt_f32(field)?.is_some_and(|v| v != 0.0) {
            c.set_f32(key, field)?;
        }
    }
    if c.config
        .opt_u32("shared_intermediate_size")?
        .is_some_and(|n| n > 0)
    {
        c.set_u32(
            "expert_shared_feed_forward_length",
            "shared_intermediate_size",
        )?;
    }
    Ok(())
}
