//! Names that most families share.

/// Modules outside the layers, and their names in GGUF files.
pub(super) const TOP: &[(&str, &str)] = &[
    ("embed_tokens", "token_embd"),
    ("norm", "output_norm"),
    ("lm_head", "output"),
];

/// Modules of a layer, and their names in GGUF files.
pub(super) const LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.gate.e_score_correction", "exp_probs_b"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

/// A tensor's name, taken apart: `model.layers.3.mlp.gate.weight` is layer 3, module `mlp.gate`, suffix `weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HfName<'a> {
    /// The layer, if it is in one.
    pub layer: Option<u32>,
    /// The module within the layer or the model.
    pub module: &'a str,
    /// `weight` or `bias`; empty for a bare parameter.
    pub suffix: &'a str,
}

impl<'a> HfName<'a> {
    /// Takes a name apart.
    pub fn parse(name: &'a str) -> HfName<'a> {
        let rest = name.strip_prefix("model.").unwrap_or(name);
        let (layer, rest) = match rest.strip_prefix("layers.").and_then(|r| r.split_once('.')) {
            Some((number, inner)) => match number.parse() {
                Ok(layer) => (Some(layer), inner),
                Err(_) => (None, rest),
            },
            None => (None, rest),
        };
        let (module, suffix) = match rest.rsplit_once('.') {
            Some((module, suffix @ ("weight" | "bias"))) => (module, suffix),
            _ => (rest, ""),
        };
        HfName {
            layer,
            module,
            suffix,
        }
    }

    /// The number and the projection of a tensor of one expert: `…experts.5.down_proj` is expert 5's `down_proj`.
    pub fn expert(&self) -> Option<(u32, &'a str)> {
        let (_, rest) = self.module.split_once("experts.")?;
        let (number, projection) = rest.split_once('.')?;
        Some((number.parse().ok()?, projection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let n = HfName::parse("model.layers.12.mlp.experts.7.down_proj.weight");
        assert_eq!((n.layer, n.suffix), (Some(12), "weight"));
        assert_eq!(n.expert(), Some((7, "down_proj")));
        let n = HfName::parse("model.layers.0.self_attn.sinks");
        assert_eq!((n.module, n.suffix), ("self_attn.sinks", ""));
        assert_eq!(n.expert(), None);
        let n = HfName::parse("lm_head.weight");
        assert_eq!((n.layer, n.module, n.suffix), (None, "lm_head", "weight"));
        assert_eq!(HfName::parse("model.layers.x.y").layer, None);
        assert_eq!(
            HfName::parse("layers.1.mlp.experts.gate_up_proj").expert(),
            None
        );
    }
}
