//! K-EXAONE (EXAONE-MoE). Written from llama.cpp's converter; no reference conversion is compared.

use anyhow::Result;

use super::{DEFAULT, Family, add_mtp_layers, mtp_name};
use crate::hf::parameters::GATING_SIGMOID;
use crate::hf::{Conversion, Lazy};

pub(super) static FAMILY: Family = Family {
    architectures: &["ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"],
    arch: "exaone-moe",
    names: &[
        ("mlp.e_score_correction", "exp_probs_b"),
        ("eh_proj", "nextn.eh_proj"),
        ("enorm", "nextn.enorm"),
        ("hnorm", "nextn.hnorm"),
        ("shared_head.norm", "nextn.shared_head_norm"),
    ],
    extra: |c, folder| {
        add_mtp_layers(c, folder, "mtp.layers.")?;
        match c.llama3_rope_factors(16.0)? {
            Some(factors) => c.add_named("rope_freqs.weight", Lazy::constant(factors)),
            None => Ok(()),
        }
    },
    tensor: |c, name, tensor| {
        let name = mtp_name(c, name)?;
        c.add(&name, tensor)
    },
    parameters,
    ..DEFAULT
};

fn parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    c.gate_by_default(GATING_SIGMOID);
    let vocab = c.config.u32("vocab_size")?;
    c.set("vocab_size", vocab);
    if let Some(window) = c.config.opt_u32("sliding_window")? {
        c.set("attention.sliding_window", window);
        if let Some(pattern) = sliding_pattern(c)? {
            c.set_flags("attention.sliding_window_pattern", pattern);
        }
    }
    let (width, shared) = (
        c.config.u32("moe_intermediate_size")?,
        c.config.u32("num_shared_experts")?,
    );
    c.set("expert_feed_forward_length", width);
    c.set("expert_shared_count", shared);
    c.set(
        "expert_shared_feed_forward_length",
        width.saturating_mul(shared),
    );
    let scale = c.config.f32("routed_scaling_factor")?;
    c.set("expert_weights_scale", scale);
    let norm = c.config.flag("norm_topk_prob")?;
    c.set("expert_weights_norm", norm);
    let dense = match c.config.opt_u32("first_k_dense_replace")? {
        Some(n) => n,
        None => c.config.opt_u32("first_last_k_dense_replace")?.unwrap_or(0),
    };
    c.set("leading_dense_block_count", dense);
    c.set_mtp_layers()?;
    c.set("rope.scaling.type", "none");
    Ok(())
}

/// Which layers attend to a window only: stated for each layer, as letters that repeat (L for a window), or
/// as the distance of the layers that see everything.
fn sliding_pattern(c: &Conversion) -> Result<Option<Vec<bool>>> {
    if let Some(types) = c.config.opt_strings("layer_types")? {
        return Ok(Some(
            types.iter().map(|t| *t == "sliding_attention").collect(),
        ));
    }
    let layers = c.config.n_layer()? as usize;
    let Some(pattern) = c.config.get("sliding_window_pattern") else {
        return Ok(None);
    };
    if let Some(letters) = pattern.as_str() {
        return Ok(Some(
            letters
                .bytes()
                .cycle()
                .take(layers)
                .map(|l| l == b'L')
                .collect(),
        ));
    }
    let every = c.config.u32("sliding_window_pattern")? as usize;
    Ok((every > 0).then(|| (1..=layers).map(|i| !i.is_multiple_of(every)).collect()))
}
