//! Llama 4, its text model.

use anyhow::{Result, ensure};

use super::{DEFAULT, Family, mixtral};
use crate::hf::{Config, Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
    arch: "llama4",
    names: &[
        ("feed_forward.router", "ffn_gate_inp"),
        ("feed_forward.gate_proj", "ffn_gate"),
        ("feed_forward.up_proj", "ffn_up"),
        ("feed_forward.down_proj", "ffn_down"),
        ("feed_forward.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("feed_forward.shared_expert.up_proj", "ffn_up_shexp"),
        ("feed_forward.shared_expert.down_proj", "ffn_down_shexp"),
    ],
    prepare,
    extra: |c, _| mixtral::add_rope_factors(c),
    tensor,
    parameters,
    ..DEFAULT
};

/// `intermediate_size` is the experts' width here, and the dense layers' has a name of its own.
fn prepare(config: &mut Config) -> Result<()> {
    let (experts, dense) = (
        config.u32("intermediate_size")?,
        config.u32("intermediate_size_mlp")?,
    );
    config.set("intermediate_size_moe", experts);
    config.set("intermediate_size", dense);
    Ok(())
}

/// Experts of a layer are together and transposed, gate before up.
fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    if name.ends_with("feed_forward.experts.gate_up_proj") {
        let tensor = tensor.transpose(1, 2)?;
        let rows = tensor.shape()[1];
        ensure!(
            rows.is_multiple_of(2),
            "gate and up projections of {rows} rows"
        );
        let parts = tensor.split(1, &[rows / 2, rows / 2])?;
        for (gguf, part) in ["ffn_gate_exps.weight", "ffn_up_exps.weight"]
            .iter()
            .zip(parts)
        {
            c.add_to_layer(name, gguf, part)?;
        }
        return Ok(());
    }
    if name.ends_with("feed_forward.experts.down_proj") {
        return c.add_to_layer(name, "ffn_down_exps.weight", tensor.transpose(1, 2)?);
    }
    c.add(name, tensor)
}

fn parameters(c: &mut Conversion) -> Result<()> {
    mixtral::parameters(c)?;
    let (step, width) = (
        c.config.u32("interleave_moe_layer_step")?,
        c.config.u32("intermediate_size_moe")?,
    );
    c.set("interleave_moe_layer_step", step);
    c.set("expert_feed_forward_length", width);
    let types = c.config.opt_strings("layer_types")?;
    if types.is_some_and(|t| t.iter().all(|t| *t == "full_attention")) {
        c.set("attention.sliding_window", 0u32);
    }
    Ok(())
}
