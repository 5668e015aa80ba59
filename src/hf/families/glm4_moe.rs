//! GLM-4.5 and its kin. Written from llama.cpp's converter; no reference conversion is compared.

use anyhow::Result;

use super::{DEFAULT, Family, add_mtp_layers};
use crate::hf::Conversion;
use crate::hf::parameters::GATING_SIGMOID;

pub(super) static FAMILY: Family = Family {
    architectures: &["Glm4MoeForCausalLM"],
    arch: "glm4moe",
    names: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("eh_proj", "nextn.eh_proj"),
        ("embed_tokens", "nextn.embed_tokens"),
        ("enorm", "nextn.enorm"),
        ("hnorm", "nextn.hnorm"),
        ("shared_head.head", "nextn.shared_head_head"),
        ("shared_head.norm", "nextn.shared_head_norm"),
    ],
    extra: |c, folder| add_mtp_layers(c, folder, "model.layers."),
    parameters,
    ..DEFAULT
};

fn parameters(c: &mut Conversion) -> Result<()> {
    c.base_parameters()?;
    let rope_dims = c.partial_rotary_dims(0.5)?;
    c.set("rope.dimension_count", rope_dims);
    c.set_u32("expert_feed_forward_length", "moe_intermediate_size")?;
    c.set_u32("expert_shared_count", "n_shared_experts")?;
    c.set_u32("leading_dense_block_count", "first_k_dense_replace")?;
    c.set("expert_gating_func", GATING_SIGMOID);
    c.set_f32("expert_weights_scale", "routed_scaling_factor")?;
    c.set_flag("expert_weights_norm", "norm_topk_prob")?;
    c.set_mtp_layers()
}
