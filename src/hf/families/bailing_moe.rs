//! Ling (Bailing-MoE), first and second generation. Written from llama.cpp's converter; no reference conversion
//! is compared.

use anyhow::{Result, ensure};

use super::{DEFAULT, Family, add_mtp_layers};
use crate::hf::parameters::GATING_SIGMOID;
use crate::hf::{Conversion, Lazy};

pub(super) static FIRST: Family = Family {
    architectures: &["BailingMoeForCausalLM"],
    arch: "bailingmoe",
    names: &[
        ("word_embeddings", "token_embd"),
        ("attention.dense", "attn_output"),
    ],
    tensor: first_tensor,
    parameters: first_parameters,
    ..DEFAULT
};

pub(super) static SECOND: Family = Family {
    architectures: &["BailingMoeV2ForCausalLM"],
    arch: "bailingmoe2",
    names: &[
        ("word_embeddings", "token_embd"),
        ("attention.dense", "attn_output"),
        ("attention.query_key_value", "attn_qkv"),
        ("attention.query_layernorm", "attn_q_norm"),
        ("attention.key_layernorm", "attn_k_norm"),
        ("final_layernorm", "layer_output_norm"),
        ("eh_proj", "nextn.eh_proj"),
        ("enorm", "nextn.enorm"),
        ("hnorm", "nextn.hnorm"),
    ],
    extra: |c, folder| add_mtp_layers(c, folder, "model.layers."),
    tensor: |c, name, tensor| {
        if name.ends_with(".mlp.gate.expert_bias") {
            return c.add_to_layer(name, "exp_probs_b.bias", tensor);
        }
        c.add(name, tensor)
    },
    parameters: second_parameters,
    ..DEFAULT
};

fn first_tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    if name.ends_with(".attention.query_key_value.weight") {
        let dim = u64::from(c.config.head_dim()?);
        let heads = u64::from(c.config.u32("num_attention_heads")?);
        let kv_heads = u64::from(c.config.u32("num_key_value_heads")?);
        let parts = tensor.split(0, &[heads * dim, kv_heads * dim, kv_heads * dim])?;
        let [q, k, v] =
            <[Lazy; 3]>::try_from(parts).map_err(|_| anyhow::anyhow!("not three parts"))?;
        c.add_to_layer(name, "attn_q.weight", q.permute_rotary(heads)?)?;
        c.add_to_layer(name, "attn_k.weight", k.permute_rotary(kv_heads)?)?;
        return c.add_to_layer(name, "attn_v.weight", v);
    }
    ensure!(
        name != "lm_head.weight" || !c.config.flag("norm_head")?,
        "{}",
        c.config.error(
            "norm_head",
            "asks for a normalised output layer, which is not supported; convert the model with llama.cpp's convert_hf_to_gguf.py"
        )
    );
    c.add(name, tensor)
}

fn first_parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    let rope_dims = c.config.head_dim()?;
    c.set("rope.dimension_count", rope_dims);
    for (key, field) in [
        ("leading_dense_block_count", "first_k_dense_replace"),
        ("vocab_size", "vocab_size"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        let value = c.config.u32(field)?;
        c.set(key, value);
    }
    c.set("expert_weights_scale", 1.0f32);
    let shared = c.config.u32("num_shared_experts")?;
    c.set("expert_shared_count", shared);
    let norm = c.config.flag("norm_topk_prob")?;
    c.set("expert_weights_norm", norm);
    Ok(())
}

fn second_parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    c.gate_by_default(GATING_SIGMOID);
    let rope_dims = c.partial_rotary_dims(0.5)?;
    c.set("rope.dimension_count", rope_dims);
    for (key, field) in [
        ("leading_dense_block_count", "first_k_dense_replace"),
        ("vocab_size", "vocab_size"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        let value = c.config.u32(field)?;
        c.set(key, value);
    }
    let shared = c.config.u32("num_shared_experts")?;
    let shared_width = match c.config.opt_u32("moe_shared_expert_intermediate_size")? {
        Some(n) => n,
        None => c
            .config
            .u32("moe_intermediate_size")?
            .saturating_mul(shared),
    };
    c.set("expert_shared_feed_forward_length", shared_width);
    let scale = c.config.f32("routed_scaling_factor")?;
    c.set("expert_weights_scale", scale);
    c.set("expert_shared_count", shared);
    let norm = c.config.flag("norm_topk_prob")?;
    c.set("expert_weights_norm", norm);
    c.set_mtp_layers()
}
