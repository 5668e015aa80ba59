//! Phi-3.5-MoE. Written from llama.cpp's converter; no reference conversion is compared.

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;

use super::{DEFAULT, Family, NUMBERED};
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["PhiMoEForCausalLM"],
    arch: "phimoe",
    names: &[("block_sparse_moe.gate", "ffn_gate_inp")],
    expert_order: NUMBERED,
    extra: |c, _| add_long_rope(c),
    parameters,
    ..DEFAULT
};

/// Rotary dimensions, and the length of the context before it was extended.
fn rope_sizes(c: &Conversion) -> Result<(u32, u32)> {
    let rope = c.config.rope();
    let part = c.rope_f32(&rope, "partial_rotary_factor")?.unwrap_or(1.0);
    let heads = c.config.u32("num_attention_heads")?.max(1);
    let dims = (f64::from(part) * f64::from(c.config.u32("hidden_size")?)) as u32 / heads;
    let original = rope
        .get("original_max_position_embeddings")
        .and_then(crate::hf::config::as_u32)
        .with_context(|| {
            format!(
                "{:#}",
                c.config
                    .error("original_max_position_embeddings", "is missing")
            )
        })?;
    Ok((dims, original))
}

/// The factors of the frequencies for long and short contexts (LongRoPE).
fn add_long_rope(c: &mut Conversion) -> Result<()> {
    let rope = c.config.rope();
    if rope.get("long_factor").is_none_or(Json::is_null) {
        return Ok(());
    }
    let (dims, original) = rope_sizes(c)?;
    let context = f64::from(c.config.u32("max_position_embeddings")?);
    let scale = context / f64::from(original.max(2));
    let attention = match rope.get("rope_type").and_then(Json::as_str) {
        Some("su" | "longrope") if scale > 1.0 => {
            (1.0 + scale.ln() / f64::from(original.max(2)).ln()).sqrt()
        }
        Some("yarn") if scale > 1.0 => 0.1 * scale.ln() + 1.0,
        Some("su" | "longrope" | "yarn") => 1.0,
        _ => {
            return Err(c.config.error(
                "rope_scaling.type",
                "is none of su, longrope, yarn, though there are long factors",
            ));
        }
    };
    c.set("rope.scaling.attn_factor", attention as f32);
    for (field, name) in [
        ("long_factor", "rope_factors_long.weight"),
        ("short_factor", "rope_factors_short.weight"),
    ] {
        let factors: Option<Vec<f32>> = rope
            .get(field)
            .and_then(Json::as_array)
            .and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        let factors = factors.filter(|f| f.len() as u32 == dims / 2);
        ensure!(
            factors.is_some(),
            c.config.error(
                &format!("rope_scaling.{field}"),
                format!("is not an array of {} numbers", dims / 2)
            )
        );
        c.add_named(name, Lazy::constant(factors.unwrap_or_default()))?;
    }
    Ok(())
}

fn parameters(c: &mut Conversion) -> Result<()> {
    let (rope_dims, original) = rope_sizes(c)?;
    let size = |field: &str| c.config.u32(field);
    let sizes = [
        ("context_length", size("max_position_embeddings")?),
        ("rope.scaling.original_context_length", original),
        ("embedding_length", size("hidden_size")?),
        ("feed_forward_length", size("intermediate_size")?),
        ("block_count", c.n_layer()),
        ("attention.head_count", size("num_attention_heads")?),
        ("attention.head_count_kv", size("num_key_value_heads")?),
    ];
    for (key, value) in sizes {
        c.set(key, value);
    }
    let epsilon = c.config.f32("rms_norm_eps")?;
    c.set("attention.layer_norm_rms_epsilon", epsilon);
    c.set("rope.dimension_count", rope_dims);
    let rope = c.config.rope();
    if let Some(theta) = c.rope_f32(&rope, "rope_theta")? {
        c.set("rope.freq_base", theta);
    }
    let file_type = c.file_type();
    c.set_general("general.file_type", file_type);
    let window = c.config.opt_u32("sliding_window")?.unwrap_or(0);
    c.set("attention.sliding_window", window);
    let used = c
        .config
        .u32_of(&["num_experts_per_tok", "num_experts_per_token"])?;
    c.set("expert_used_count", used);
    let experts = c.config.n_expert()?;
    c.set("expert_count", experts);
    Ok(())
}
