//! LFM2-MoE: short convolutions and attention.

use anyhow::{Result, ensure};

use super::{DEFAULT, Family, NUMBERED};
use crate::hf::parameters::GATING_SIGMOID;
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["Lfm2MoeForCausalLM"],
    arch: "lfm2moe",
    names: &[
        ("embedding_norm", "token_embd_norm"),
        ("operator_norm", "attn_norm"),
        ("ffn_norm", "ffn_norm"),
        ("self_attn.out_proj", "attn_output"),
        ("self_attn.q_layernorm", "attn_q_norm"),
        ("self_attn.k_layernorm", "attn_k_norm"),
        ("conv.conv", "shortconv.conv"),
        ("conv.in_proj", "shortconv.in_proj"),
        ("conv.out_proj", "shortconv.out_proj"),
        ("feed_forward.gate", "ffn_gate_inp"),
        ("feed_forward.w1", "ffn_gate"),
        ("feed_forward.w2", "ffn_down"),
        ("feed_forward.w3", "ffn_up"),
    ],
    expert_order: NUMBERED,
    tensor,
    parameters,
    ..DEFAULT
};

fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    if name.ends_with(".conv.conv.weight") {
        return c.add(name, tensor.squeeze(1)?);
    }
    if name.ends_with(".feed_forward.expert_bias") {
        return c.add_to_layer(name, "exp_probs_b.bias", tensor);
    }
    c.add(name, tensor)
}

fn parameters(c: &mut Conversion) -> Result<()> {
    // Only layers with attention have keys and values.
    let heads = c.config.u32("num_key_value_heads")?;
    let types = c.config.opt_strings("layer_types")?.unwrap_or_default();
    ensure!(
        types.len() == c.n_layer() as usize,
        c.config.error(
            "layer_types",
            format!("names {} layers of {}", types.len(), c.n_layer())
        )
    );
    let per_layer: Vec<u32> = types
        .iter()
        .map(|t| if *t == "full_attention" { heads } else { 0 })
        .collect();
    c.config.set("num_key_value_heads", per_layer);
    c.base_parameters()?;
    for (key, field) in [
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("leading_dense_block_count", "num_dense_layers"),
    ] {
        let value = c.config.u32(field)?;
        c.set(key, value);
    }
    c.set("expert_gating_func", GATING_SIGMOID);
    for (key, field) in [
        ("vocab_size", "vocab_size"),
        ("shortconv.l_cache", "conv_L_cache"),
    ] {
        let value = c.config.u32(field)?;
        c.set(key, value);
    }
    Ok(())
}
