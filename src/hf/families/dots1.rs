//! dots.llm1.

use super::{DEFAULT, Family, qwen2_moe};
use crate::hf::parameters::GATING_SIGMOID;

pub(super) static FAMILY: Family = Family {
    architectures: &["Dots1ForCausalLM"],
    arch: "dots1",
    tensor: qwen2_moe::tensor,
    parameters: |c| {
        qwen2_moe::parameters(c)?;
        c.gate_by_default(GATING_SIGMOID);
        let (dense, shared) = (
            c.config.u32("first_k_dense_replace")?,
            c.config.u32("n_shared_experts")?,
        );
        c.set("leading_dense_block_count", dense);
        c.set("expert_shared_count", shared);
        let scale = c.config.f32("routed_scaling_factor")?;
        c.set("expert_weights_scale", scale);
        let norm = c.config.flag("norm_topk_prob")?;
        c.set("expert_weights_norm", norm);
        Ok(())
    },
    ..DEFAULT
};
