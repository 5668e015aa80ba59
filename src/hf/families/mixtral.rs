//! Mixtral: Llama with experts.

use anyhow::Result;

use super::{DEFAULT, Family, NUMBERED};
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["MixtralForCausalLM"],
    arch: "llama",
    names: &[("block_sparse_moe.gate", "ffn_gate_inp")],
    expert_order: NUMBERED,
    extra: |c, _| add_rope_factors(c),
    tensor,
    parameters,
    ..DEFAULT
};

fn tensor(c: &mut Conversion, name: &str, tensor: Lazy) -> Result<()> {
    let tensor = permute_attention(c, name, tensor)?;
    c.add(name, tensor)
}

/// Queries and keys in llama.cpp's rotary layout, as all architectures derived from Llama want them.
pub(super) fn permute_attention(c: &Conversion, name: &str, tensor: Lazy) -> Result<Lazy> {
    let heads = if name.contains(".q_proj.") {
        c.config.u32("num_attention_heads")?
    } else if name.contains(".k_proj.") {
        match c.config.opt_u32("num_key_value_heads")? {
            Some(n) => n,
            None => c.config.u32("num_attention_heads")?,
        }
    } else {
        return Ok(tensor);
    };
    tensor.permute_rotary(heads.into())
}

/// The factors of a context extended as Llama 3.
pub(super) fn add_rope_factors(c: &mut Conversion) -> Result<()> {
    match c.llama3_rope_factors(8.0)? {
        Some(factors) => c.add_named("rope_freqs.weight", Lazy::constant(factors)),
        None => Ok(()),
    }
}

/// Parameters of architectures derived from Llama.
pub(super) fn parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    let vocab = c.config.u32("vocab_size")?;
    c.set("vocab_size", vocab);
    let rope_dims = c.config.head_dim()?;
    c.set("rope.dimension_count", rope_dims);
    Ok(())
}
