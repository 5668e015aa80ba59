//! Qwen3-Next: gated delta networks and gated attention. Written from llama.cpp's converter; no reference
//! conversion is compared.

use anyhow::{Context, Result, ensure};

use super::{DEFAULT, Family, add_mtp_layers, mtp_name, qwen2_moe};
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["Qwen3NextForCausalLM"],
    arch: "qwen3next",
    names: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
        ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
        ("linear_attn.conv1d", "ssm_conv1d"),
        ("linear_attn.A_log", "ssm_a"),
        ("linear_attn.norm", "ssm_norm"),
        ("linear_attn.out_proj", "ssm_out"),
        ("linear_attn.in_proj_ba", "ssm_ba"),
        ("eh_proj", "nextn.eh_proj"),
        ("enorm", "nextn.enorm"),
        ("hnorm", "nextn.hnorm"),
        ("shared_head.norm", "nextn.shared_head_norm"),
    ],
    extra: |c, folder| add_mtp_layers(c, folder, "mtp.layers."),
    tensor,
    parameters,
    ..DEFAULT
};

fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    let name = &mtp_name(c, name)?;
    if name.ends_with(".linear_attn.dt_bias") {
        return c.add_to_layer(name, "ssm_dt.bias", tensor);
    }
    if name.ends_with(".linear_attn.in_proj_qkvz.weight") {
        return split_projection(c, name, tensor);
    }
    let tensor = if name.ends_with(".A_log") {
        tensor.map(|v| -v.exp())
    } else if name.ends_with(".linear_attn.conv1d.weight") {
        tensor.squeeze(1)?
    } else if name.ends_with("norm.weight") && !name.ends_with("linear_attn.norm.weight") {
        // These norms are stored as their distance from one.
        tensor.map(|v| v + 1.0)
    } else {
        tensor
    };
    qwen2_moe::tensor(c, name, tensor)
}

/// The rows of each key head are its query, key, values and gates; llama.cpp wants all queries, all keys and all
/// values in one matrix, and the gates in another.
fn split_projection(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    let size = |field: &str| -> Result<u64> { Ok(c.config.u32(field)?.into()) };
    let key = size("linear_key_head_dim")?;
    let value = size("linear_value_head_dim")?;
    let (heads, value_heads) = (
        size("linear_num_key_heads")?,
        size("linear_num_value_heads")?,
    );
    ensure!(
        heads > 0 && value_heads.is_multiple_of(heads),
        c.config.error(
            "linear_num_value_heads",
            format!("is {value_heads}, no multiple of the {heads} key heads")
        )
    );
    let values = value_heads / heads * value;
    let width = tensor
        .shape()
        .last()
        .copied()
        .context("has no dimensions")?;
    let parts = tensor
        .reshape(&[heads, 2 * key + 2 * values, width])?
        .split(1, &[key, key, values, values])?;
    let mut flat = parts.into_iter().map(|p| {
        let rows = p.shape()[1] * heads;
        p.reshape(&[rows, width])
    });
    let joined = flat.by_ref().take(3).collect::<Result<Vec<_>>>()?;
    let gates = flat.next().context("lacks the gates")??;
    c.add_to_layer(name, "attn_qkv.weight", Lazy::concat(joined)?)?;
    c.add_to_layer(name, "attn_gate.weight", gates)
}

fn parameters(c: &mut Conversion) -> Result<()> {
    qwen2_moe::parameters(c)?;
    c.set_mtp_layers()?;
    for (key, field) in [
        ("ssm.conv_kernel", "linear_conv_kernel_dim"),
        ("ssm.state_size", "linear_key_head_dim"),
        ("ssm.group_count", "linear_num_key_heads"),
        ("ssm.time_step_rank", "linear_num_value_heads"),
    ] {
        let value = c.config.u32(field)?;
        c.set(key, value);
    }
    let inner = c
        .config
        .u32("linear_value_head_dim")?
        .saturating_mul(c.config.u32("linear_num_value_heads")?);
    c.set("ssm.inner_size", inner);
    if let Some(types) = c.config.opt_strings("layer_types")? {
        let layers = c.config.n_layer()? as usize;
        ensure!(
            types.len() == layers,
            c.config.error(
                "layer_types",
                format!("names {} layers of {layers}", types.len())
            )
        );
        let mut recurrent: Vec<bool> = types.iter().map(|t| *t == "linear_attention").collect();
        recurrent.resize(c.n_layer() as usize, false);
        c.set_flags("attention.recurrent_layers", recurrent);
    }
    let interval = c.config.opt_u32("full_attention_interval")?.unwrap_or(4);
    c.set("full_attention_interval", interval);
    let rope_dims = c.partial_rotary_dims(0.25)?;
    c.set("rope.dimension_count", rope_dims);
    Ok(())
}
