//! Hunyuan-A13B. Written from llama.cpp's converter; no reference conversion is compared.

use anyhow::{Result, ensure};
use serde_json::Value as Json;

use super::{DEFAULT, Family};
use crate::hf::Conversion;

pub(super) static FAMILY: Family = Family {
    architectures: &["HunYuanMoEV1ForCausalLM"],
    arch: "hunyuan-moe",
    names: &[
        ("mlp.gate.wg", "ffn_gate_inp"),
        ("mlp.shared_mlp.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_mlp.up_proj", "ffn_up_shexp"),
        ("mlp.shared_mlp.down_proj", "ffn_down_shexp"),
        ("self_attn.query_layernorm", "attn_q_norm"),
        ("self_attn.key_layernorm", "attn_k_norm"),
    ],
    tensor: |c, name, tensor| {
        if name == "lm_head.weight" && c.config.flag("tie_word_embeddings")? {
            return Ok(());
        }
        c.add(name, tensor)
    },
    parameters,
    ..DEFAULT
};

fn parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    let shared_width = c.config.u32("intermediate_size")?;
    c.set("expert_shared_feed_forward_length", shared_width);
    for (key, field) in [
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_used_count", "moe_topk"),
        ("expert_shared_count", "num_shared_expert"),
    ] {
        let value = same_everywhere(c, field)?;
        c.set(key, value);
    }
    let rope = c.config.rope();
    if rope.get("rope_type").and_then(Json::as_str) == Some("dynamic") {
        // Frequencies are scaled once and for all, as the model's own code does for its longest context:
        // base * alpha^(dim / (dim - 2)).
        let alpha = c.rope_f32(&rope, "alpha")?.unwrap_or(1000.0);
        let base = c.rope_f32(&rope, "rope_theta")?.unwrap_or(10_000.0);
        let heads = c.config.u32("num_attention_heads")?.max(1);
        let dim = c.config.u32("hidden_size")? / heads;
        ensure!(
            alpha == 1000.0 && base == 10_000.0 && dim == 128,
            c.config.error(
                "rope_parameters",
                format!("asks for alpha {alpha}, theta {base} and heads of {dim}; llama.cpp is known to run 1000, 10000 and 128")
            )
        );
        let scaled = f64::from(base) * f64::from(alpha).powf(128.0 / 126.0);
        c.set("rope.freq_base", scaled as f32);
        c.set("rope.scaling.type", "none");
        c.set("rope.scaling.factor", 1.0f32);
        c.set("rope.scaling.original_context_length", 256u32 << 10);
        c.set("context_length", 256u32 << 10);
    }
    Ok(())
}

/// The size that a field states for all layers, as one number or as the same for each.
fn same_everywhere(c: &Conversion, field: &str) -> Result<u32> {
    if !c.config.get(field).is_some_and(Json::is_array) {
        return c.config.u32(field);
    }
    let sizes = c.config.opt_u32s(field)?.unwrap_or_default();
    match sizes.first() {
        Some(first) if sizes.iter().all(|n| n == first) => Ok(*first),
        _ => Err(c.config.error(field, "differs between layers")),
    }
}
