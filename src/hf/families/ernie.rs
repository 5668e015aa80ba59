//! ERNIE 4.5 MoE.

use anyhow::Result;

use super::{DEFAULT, Family};
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["Ernie4_5_MoeForCausalLM"],
    arch: "ernie4_5-moe",
    names: &[("mlp.moe_statics.e_score_correction", "exp_probs_b")],
    expert_order: &[
        ("gate_proj", "ffn_gate_exps"),
        ("up_proj", "ffn_up_exps"),
        ("down_proj", "ffn_down_exps"),
    ],
    tensor,
    parameters,
    ..DEFAULT
};

fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    // Parts that predict further tokens.
    if name.starts_with("model.mtp_") {
        return Ok(());
    }
    let name = name.replace("ernie.", "model.");
    c.add(&name, tensor)
}

fn parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    for (key, field) in [
        ("expert_count", "moe_num_experts"),
        ("expert_used_count", "moe_k"),
        ("interleave_moe_layer_step", "moe_layer_interval"),
        ("leading_dense_block_count", "moe_layer_start_index"),
    ] {
        let value = c.config.u32(field)?;
        c.set(key, value);
    }
    c.set_u32("expert_feed_forward_length", "moe_intermediate_size")?;
    if let Some(shared) = c.config.opt_u32("moe_num_shared_experts")? {
        c.set("expert_shared_count", shared);
        if shared > 0
            && let Some(width) = c.config.opt_u32("moe_intermediate_size")?
        {
            // The shared experts are one of their joint width. llama.cpp's converter divides the dense width by
            // the number of key heads, which gives the same for the published models, and a model that
            // llama.cpp refuses for others.
            c.set(
                "expert_shared_feed_forward_length",
                width.saturating_mul(shared),
            );
        }
    }
    Ok(())
}
