//! gpt-oss, its experts in MXFP4 or in floats.

use anyhow::{Context, Result};

use super::{DEFAULT, Family};
use crate::hf::names::HfName;
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["GptOssForCausalLM"],
    arch: "gpt-oss",
    names: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("mlp.router", "ffn_gate_inp"),
    ],
    tensor,
    parameters: |c| {
        c.base_parameters()?;
        let (window, width) = (
            c.config.u32("sliding_window")?,
            c.config.u32("intermediate_size")?,
        );
        c.set("attention.sliding_window", window);
        c.set("expert_feed_forward_length", width);
        Ok(())
    },
    ..DEFAULT
};

/// Experts of a layer are together, gate and up projections in alternate rows; floats are stored transposed.
fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    let Some((_, part)) = name.split_once(".mlp.experts.") else {
        if name.ends_with(".self_attn.sinks") {
            return c.add_to_layer(name, "attn_sinks.weight", tensor);
        }
        return c.add(name, tensor);
    };
    const GATE_UP: [&str; 2] = ["ffn_gate_exps", "ffn_up_exps"];
    match part {
        "down_proj" => c.add_to_layer(name, "ffn_down_exps.weight", tensor.transpose(1, 2)?),
        "down_proj_bias" => c.add_to_layer(name, "ffn_down_exps.bias", tensor),
        "gate_up_proj" => {
            let tensor = tensor.transpose(1, 2)?;
            for (start, gguf) in GATE_UP.iter().enumerate() {
                let rows = alternate(&tensor, 1, start as u64)?;
                c.add_to_layer(name, &format!("{gguf}.weight"), rows)?;
            }
            Ok(())
        }
        "gate_up_proj_bias" => {
            for (start, gguf) in GATE_UP.iter().enumerate() {
                let values = alternate(&tensor, 1, start as u64)?;
                c.add_to_layer(name, &format!("{gguf}.bias"), values)?;
            }
            Ok(())
        }
        // Blocks come right before their scales.
        "down_proj_blocks" | "gate_up_proj_blocks" => {
            c.keep(name, tensor);
            Ok(())
        }
        "down_proj_scales" | "gate_up_proj_scales" => {
            let layer = HfName::parse(name).layer.context("is of no layer")?;
            let blocks_name = format!("{}_blocks", name.trim_end_matches("_scales"));
            let blocks = c
                .take(&blocks_name)
                .with_context(|| format!("has no {blocks_name}"))?;
            if part == "down_proj_scales" {
                return c.add_mxfp4(&format!("blk.{layer}.ffn_down_exps.weight"), blocks, tensor);
            }
            for (start, gguf) in GATE_UP.iter().enumerate() {
                let name = format!("blk.{layer}.{gguf}.weight");
                let codes = alternate(&blocks, 1, start as u64)?;
                c.add_mxfp4(&name, codes, alternate(&tensor, 1, start as u64)?)?;
            }
            Ok(())
        }
        _ => c.add(name, tensor),
    }
}

/// Every second element of a dimension, from `start` on.
fn alternate(tensor: &Lazy, axis: usize, start: u64) -> Result<Lazy> {
    let size = tensor.shape().get(axis).copied().unwrap_or(0);
    tensor.clone().slice(axis, start, size / 2, 2)
}
