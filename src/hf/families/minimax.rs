//! MiniMax-M2.

use super::{DEFAULT, Family, NUMBERED};

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
