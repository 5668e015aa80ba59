//! MiniMax-M2.

use super::{DEFAULT, Family, NUMBERED};
use crate::hf::parameters::GATING_SIGMOID;

pub(super) static FAMILY: Family = Family {
    architectures: &["MiniMaxM2ForCausalLM"],
    arch: "minimax-m2",
    names: &[
        ("block_sparse_moe.gate", "ffn_gate_inp"),
        ("block_sparse_moe.e_score_correction", "exp_probs_b"),
    ],
    expert_order: NUMBERED,
    parameters: |c| {
        c.base_parameters()?;
        c.gate_by_default(GATING_SIGMOID);
        let (width, rope_dims) = (
            c.config.u32("intermediate_size")?,
            c.config.u32("rotary_dim")?,
        );
        c.set("expert_feed_forward_length", width);
        c.set("rope.dimension_count", rope_dims);
        Ok(())
    },
    ..DEFAULT
};
