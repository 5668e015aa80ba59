//! DeepSeek-V2, V2-Lite and V3, with multi-head latent attention.

use anyhow::Result;

use super::{DEFAULT, Family};
use crate::hf::parameters::GATING_SIGMOID;
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"],
    arch: "deepseek2",
    names: &[
        ("self_attn.q_a_proj", "attn_q_a"),
        ("self_attn.q_a_layernorm", "attn_q_a_norm"),
        ("self_attn.q_b_proj", "attn_q_b"),
        ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
        ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ],
    tensor,
    parameters,
    ..DEFAULT
};

fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    if name == "lm_head.weight" && c.config.flag("tie_word_embeddings")? {
        return Ok(());
    }
    // Layers beyond the last predict further tokens; llama.cpp does not run them for this architecture.
    let layer = crate::hf::names::HfName::parse(name).layer;
    if layer.is_some_and(|l| l >= c.n_layer()) {
        return Ok(());
    }
    if !name.ends_with("self_attn.kv_b_proj.weight") {
        return c.add(name, tensor);
    }
    // llama.cpp absorbs the decompression of keys into the queries: it wants the part of the keys transposed,
    // and that of the values for itself.
    let (heads, keys, values) = (
        c.config.u32("num_key_value_heads")?.into(),
        c.config.u32("qk_nope_head_dim")?.into(),
        c.config.u32("v_head_dim")?.into(),
    );
    let rank = tensor.shape().last().copied().unwrap_or(0);
    let tensor = tensor.reshape(&[heads, keys + values, rank])?;
    let key_part = tensor.clone().slice(1, 0, keys, 1)?.transpose(1, 2)?;
    let value_part = tensor.slice(1, keys, values, 1)?;
    c.add_to_layer(name, "attn_k_b.weight", key_part)?;
    c.add_to_layer(name, "attn_v_b.weight", value_part)
}

fn parameters(c: &mut Conversion) -> Result<()> {
    // In latent form all heads share one key and value.
    c.config.set("num_key_value_heads", 1);
    if c.config.get("rms_norm_eps").is_none() {
        c.config.set("rms_norm_eps", 1e-6);
    }
    c.base_parameters()?;
    if c.config.architecture()? == "DeepseekV3ForCausalLM" {
        c.gate_by_default(GATING_SIGMOID);
    }
    let has_experts = c.config.get("n_routed_experts").is_some();
    let dense = match c.config.opt_u32("first_k_dense_replace")? {
        Some(n) => n,
        None if has_experts => 0,
        None => c.n_layer(),
    };
    c.set("leading_dense_block_count", dense);
    let vocab = c.config.u32("vocab_size")?;
    c.set("vocab_size", vocab);
    c.set_u32("attention.q_lora_rank", "q_lora_rank")?;
    let rank = c.config.opt_u32("kv_lora_rank")?.unwrap_or(512);
    let (rope, nope) = (
        c.config.u32("qk_rope_head_dim")?,
        c.config.u32("qk_nope_head_dim")?,
    );
    let values = c.config.u32("v_head_dim")?;
    c.set("attention.kv_lora_rank", rank);
    c.set("attention.key_length", rank.saturating_add(rope));
    c.set("attention.value_length", rank);
    c.set("attention.key_length_mla", nope.saturating_add(rope));
    c.set("attention.value_length_mla", values);
    let width = c
        .config
        .u32_of(&["moe_intermediate_size", "intermediate_size"])?;
    c.set("expert_feed_forward_length", width);
    let shared = c.config.opt_u32("n_shared_experts")?.unwrap_or(0);
    c.set("expert_shared_count", shared);
    c.set_f32("expert_weights_scale", "routed_scaling_factor")?;
    if c.config.flag("norm_topk_prob")? {
        c.set("expert_weights_norm", true);
    }
    c.set("rope.dimension_count", rope);
    let rope_parameters = c.config.rope();
    if let Some(scale) = rope_parameters
        .get("mscale_all_dim")
        .and_then(|v| v.as_f64())
    {
        // llama.cpp keeps a tenth of it for this architecture.
        c.set("rope.scaling.yarn_log_multiplier", (0.1 * scale) as f32);
    }
    Ok(())
}
