//! AFMoE (Arcee Trinity). Written from llama.cpp's converter; no reference conversion is compared.

use super::{DEFAULT, Family, mixtral};

pub(super) static FAMILY: Family = Family {
    architectures: &["AfmoeForCausalLM"],
    arch: "afmoe",
    names: &[
        ("self_attn.gate_proj", "attn_gate"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_mlp_layernorm", "ffn_norm"),
        ("post_mlp_layernorm", "post_ffw_norm"),
        ("mlp.router.gate", "ffn_gate_inp"),
    ],
    expert_order: &[
        ("gate_proj", "ffn_gate_exps"),
        ("up_proj", "ffn_up_exps"),
        ("down_proj", "ffn_down_exps"),
    ],
    extra: |c, _| mixtral::add_rope_factors(c),
    tensor: |c, name, tensor| {
        if name.ends_with(".mlp.expert_bias") {
            return c.add_to_layer(name, "exp_probs_b.bias", tensor);
        }
        c.add(name, tensor)
    },
    parameters: |c| {
        mixtral::parameters(c)?;
        c.set_u32("expert_shared_count", "num_shared_experts")?;
        c.set_u32("expert_feed_forward_length", "moe_intermediate_size")?;
        c.set_u32("leading_dense_block_count", "num_dense_layers")?;
        c.set_flag("expert_weights_norm", "route_norm")?;
        c.set_f32("expert_weights_scale", "route_scale")?;
        c.set_u32("attention.sliding_window", "sliding_window")
    },
    ..DEFAULT
};
