//! The part a tensor plays.

use std::fmt;

use serde::Serialize;

use super::name::TensorName;

/// What a tensor does in the model. The names that decide are those of llama.cpp's `src/llama-arch.cpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Token embeddings (`token_embd`, `per_layer_token_embd`, those of a NextN layer).
    TokenEmbedding,
    /// The output projection (`output`, that of a NextN layer).
    Output,
    /// Any normalisation.
    Norm,
    /// The expert router: `ffn_gate_inp`, its bias, the selection bias `exp_probs_b`, and a routing table by
    /// token (`ffn_gate_tid2eid`).
    Router,
    /// Gate projections of experts.
    ExpertGate,
    /// Up projections of experts.
    ExpertUp,
    /// Down projections of experts.
    ExpertDown,
    /// Gate and up projections of experts in one tensor.
    ExpertGateUp,
    /// Gate projection of the shared expert.
    SharedExpertGate,
    /// Up projection of the shared expert.
    SharedExpertUp,
    /// Down projection of the shared expert.
    SharedExpertDown,
    /// The gate that weighs the shared expert (`ffn_gate_inp_shexp`).
    SharedExpertRouter,
    /// Gate projection of a feed-forward network without experts.
    DenseGate,
    /// Up projection of a feed-forward network without experts.
    DenseUp,
    /// Down projection of a feed-forward network without experts.
    DenseDown,
    /// Query projection.
    AttentionQ,
    /// Key projection.
    AttentionK,
    /// Value projection.
    AttentionV,
    /// Query, key and value projections in one tensor.
    AttentionQkv,
    /// Output projection of attention.
    AttentionOutput,
    /// Multi-head latent attention: query compression (`attn_q_a`).
    MlaQDown,
    /// Multi-head latent attention: query expansion (`attn_q_b`).
    MlaQUp,
    /// Multi-head latent attention: key-value compression with the rotary key (`attn_kv_a_mqa`).
    MlaKvDown,
    /// Multi-head latent attention: key-value expansion (`attn_kv_b`).
    MlaKvUp,
    /// Multi-head latent attention: key expansion, one matrix a head (`attn_k_b`).
    MlaKUp,
    /// Multi-head latent attention: value expansion, one matrix a head (`attn_v_b`).
    MlaVUp,
    /// Other parts of attention: gates, indexers, compressors, sinks.
    AttentionOther,
    /// State-space, RWKV and short-convolution blocks.
    Recurrent,
    /// The bias of any operation but the router.
    Bias,
    /// Everything else.
    Other,
}

impl Role {
    /// The role of the tensor with this name.
    pub fn of_name(name: &str) -> Role {
        Role::of(&TensorName::parse(name))
    }

    /// The role of a tensor of this name.
    pub(super) fn of(name: &TensorName) -> Role {
        let stem = name.stem.as_str();
        match stem {
            "ffn_gate_inp" | "ffn_gate_tid2eid" => return Role::Router,
            _ if stem.starts_with("exp_probs_b") => return Role::Router,
            "ffn_gate_inp_shexp" => return Role::SharedExpertRouter,
            _ => {}
        }
        if name.suffix == "bias" {
            return Role::Bias;
        }
        let is_norm_word =
            |word: &str| word.starts_with("norm") || matches!(word, "enorm" | "hnorm");
        if stem.split(['.', '_']).any(is_norm_word) {
            return Role::Norm;
        }
        if name.suffix.ends_with("scale") {
            return Role::Other;
        }
        if name.expert.is_some() {
            return match stem {
                "ffn_gate" => Role::ExpertGate,
                "ffn_up" => Role::ExpertUp,
                _ => Role::ExpertDown,
            };
        }
        match stem {
            "token_embd" | "per_layer_token_embd" | "nextn.embed_tokens" => Role::TokenEmbedding,
            "output" | "nextn.shared_head_head" => Role::Output,
            "ffn_gate_exps" | "ffn_gate_chexps" => Role::ExpertGate,
            "ffn_up_exps" | "ffn_up_chexps" => Role::ExpertUp,
            "ffn_down_exps" | "ffn_down_chexps" => Role::ExpertDown,
            "ffn_gate_up_exps" => Role::ExpertGateUp,
            "ffn_gate_shexp" => Role::SharedExpertGate,
            "ffn_up_shexp" => Role::SharedExpertUp,
            "ffn_down_shexp" => Role::SharedExpertDown,
            "ffn_gate" => Role::DenseGate,
            "ffn_up" => Role::DenseUp,
            "ffn_down" => Role::DenseDown,
            "attn_q" => Role::AttentionQ,
            "attn_k" => Role::AttentionK,
            "attn_v" => Role::AttentionV,
            "attn_qkv" => Role::AttentionQkv,
            "attn_output" | "attn_o" => Role::AttentionOutput,
            "attn_q_a" => Role::MlaQDown,
            "attn_q_b" => Role::MlaQUp,
            "attn_kv_a_mqa" => Role::MlaKvDown,
            "attn_kv_b" => Role::MlaKvUp,
            "attn_k_b" => Role::MlaKUp,
            "attn_v_b" => Role::MlaVUp,
            _ => {
                let starts = |prefixes: &[&str]| prefixes.iter().any(|p| stem.starts_with(p));
                if starts(&["ssm_", "shortconv", "time_mix_", "channel_mix_"]) {
                    Role::Recurrent
                } else if starts(&["attn_", "cross_attn_", "indexer"]) {
                    Role::AttentionOther
                } else {
                    Role::Other
                }
            }
        }
    }

    /// Whether this is a projection of routed experts.
    pub fn is_expert(self) -> bool {
        matches!(
            self,
            Role::ExpertGate | Role::ExpertUp | Role::ExpertDown | Role::ExpertGateUp
        )
    }

    /// Whether this is a projection of the shared expert.
    pub fn is_shared_expert(self) -> bool {
        matches!(
            self,
            Role::SharedExpertGate | Role::SharedExpertUp | Role::SharedExpertDown
        )
    }

    /// Whether this is a projection of a feed-forward network without experts.
    pub fn is_dense_ffn(self) -> bool {
        matches!(self, Role::DenseGate | Role::DenseUp | Role::DenseDown)
    }

    /// Whether this is a part of attention.
    pub fn is_attention(self) -> bool {
        matches!(
            self,
            Role::AttentionQ
                | Role::AttentionK
                | Role::AttentionV
                | Role::AttentionQkv
                | Role::AttentionOutput
                | Role::MlaQDown
                | Role::MlaQUp
                | Role::MlaKvDown
                | Role::MlaKvUp
                | Role::MlaKUp
                | Role::MlaVUp
                | Role::AttentionOther
        )
    }

    /// A name for people: `expert down`, `MLA q up`.
    pub fn label(self) -> &'static str {
        match self {
            Role::TokenEmbedding => "token embedding",
            Role::Output => "output",
            Role::Norm => "norm",
            Role::Router => "router",
            Role::ExpertGate => "expert gate",
            Role::ExpertUp => "expert up",
            Role::ExpertDown => "expert down",
            Role::ExpertGateUp => "expert gate+up",
            Role::SharedExpertGate => "shared expert gate",
            Role::SharedExpertUp => "shared expert up",
            Role::SharedExpertDown => "shared expert down",
            Role::SharedExpertRouter => "shared expert router",
            Role::DenseGate => "dense gate",
            Role::DenseUp => "dense up",
            Role::DenseDown => "dense down",
            Role::AttentionQ => "attention q",
            Role::AttentionK => "attention k",
            Role::AttentionV => "attention v",
            Role::AttentionQkv => "attention qkv",
            Role::AttentionOutput => "attention output",
            Role::MlaQDown => "MLA q down",
            Role::MlaQUp => "MLA q up",
            Role::MlaKvDown => "MLA kv down",
            Role::MlaKvUp => "MLA kv up",
            Role::MlaKUp => "MLA k up",
            Role::MlaVUp => "MLA v up",
            Role::AttentionOther => "attention, other",
            Role::Recurrent => "recurrent",
            Role::Bias => "bias",
            Role::Other => "other",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_roles() {
        for (name, role) in [
            ("token_embd.weight", Role::TokenEmbedding),
            ("token_embd_norm.weight", Role::Norm),
            ("output.weight", Role::Output),
            ("output_norm.weight", Role::Norm),
            ("blk.0.attn_q_norm.weight", Role::Norm),
            ("blk.0.attn_kv_a_norm.weight", Role::Norm),
            ("blk.0.indexer.k_norm.bias", Role::Bias),
            ("blk.4.nextn.enorm.weight", Role::Norm),
            ("blk.0.ffn_norm_exps.weight", Role::Norm),
            ("blk.0.ffn_gate_inp.weight", Role::Router),
            ("blk.0.ffn_gate_inp.bias", Role::Router),
            ("blk.0.exp_probs_b.bias", Role::Router),
            ("blk.0.ffn_gate_tid2eid.weight", Role::Router),
            ("blk.0.ffn_gate_inp_shexp.weight", Role::SharedExpertRouter),
            ("blk.0.ffn_gate_exps.weight", Role::ExpertGate),
            ("blk.0.ffn_gate_exps.bias", Role::Bias),
            ("blk.0.ffn_up_exps.scale", Role::Other),
            ("blk.0.ffn_gate_up_exps.weight", Role::ExpertGateUp),
            ("blk.0.ffn_down.3.weight", Role::ExpertDown),
            ("blk.0.ffn_up_shexp.weight", Role::SharedExpertUp),
            ("blk.0.ffn_down.weight", Role::DenseDown),
            ("blk.0.attn_qkv.weight", Role::AttentionQkv),
            ("blk.0.attn_output.weight", Role::AttentionOutput),
            ("blk.0.attn_kv_a_mqa.weight", Role::MlaKvDown),
            ("blk.0.attn_k_b.weight", Role::MlaKUp),
            ("blk.0.attn_sinks.weight", Role::AttentionOther),
            ("blk.0.indexer.k_proj.weight", Role::AttentionOther),
            ("blk.0.ssm_a", Role::Recurrent),
            ("blk.0.ssm_norm.weight", Role::Norm),
            ("blk.0.shortconv.in_proj.weight", Role::Recurrent),
            ("rope_freqs.weight", Role::Other),
            ("something_new", Role::Other),
        ] {
            assert_eq!(Role::of(&TensorName::parse(name)), role, "{name}");
        }
    }
}
