//! Qwen3-MoE.

use super::{DEFAULT, Family, qwen2_moe};

pub(super) static FAMILY: Family = Family {
    architectures: &["Qwen3MoeForCausalLM"],
    arch: "qwen3moe",
    tensor: qwen2_moe::tensor,
    parameters: qwen2_moe::parameters,
    ..DEFAULT
};
