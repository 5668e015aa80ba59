//! OLMoE.

use super::{DEFAULT, Family};

pub(super) static FAMILY: Family = Family {
    architectures: &["OlmoeForCausalLM"],
    arch: "olmoe",
    parameters: |c| {
        c.base_parameters()?;
        // The first checkpoints do not state it.
        c.set("attention.layer_norm_rms_epsilon", 1e-5f32);
        Ok(())
    },
    ..DEFAULT
};
