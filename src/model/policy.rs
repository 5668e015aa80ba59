//! Which tensors llama.cpp lets be quantized: the rules of `tensor_allows_quantization` in
//! `src/llama-quant.cpp` (llama.cpp of October 2026).

use crate::gguf::{GgmlType, Shape};

/// Names with these parts stay as they are, and why.
const KEPT: &[(&str, &[&str])] = &[
    ("a norm", &["_norm.weight"]),
    (
        "an expert router: low bits select wrong experts",
        &["ffn_gate_inp.weight"],
    ),
    ("a routing table of integers", &["ffn_gate_tid2eid.weight"]),
    (
        "too small to gain",
        &["altup", "laurel", "per_layer_model_proj"],
    ),
    (
        "a small convolution",
        &["ssm_conv1d", "shortconv.conv.weight"],
    ),
    (
        "a small indexer projection",
        &["indexer.k_proj.weight", "indexer.q_proj.weight"],
    ),
    (
        "a small RWKV weight",
        &[
            "time_mix_first.weight",
            "time_mix_w0.weight",
            "time_mix_w1.weight",
            "time_mix_w2.weight",
            "time_mix_v0.weight",
            "time_mix_v1.weight",
            "time_mix_v2.weight",
            "time_mix_a0.weight",
            "time_mix_a1.weight",
            "time_mix_a2.weight",
            "time_mix_g1.weight",
            "time_mix_g2.weight",
            "time_mix_decay_w1.weight",
            "time_mix_decay_w2.weight",
            "time_mix_lerp_fused.weight",
        ],
    ),
    (
        "a relative position bias",
        &["attn_rel_b.weight", ".rel_pos"],
    ),
    (
        "an embedding of positions or patches",
        &[
            ".position_embd",
            "sam.pos_embd",
            ".patch_embd",
            ".patch_merger",
        ],
    ),
    ("a part of a vision encoder", &["sam.neck.", "sam.net_"]),
    ("an audio codebook", &["a.rvq.codebook", "mm.a.code_embd"]),
];

/// Whole names that stay as they are.
const KEPT_WHOLE: &[&str] = &["position_embd.weight", "token_types.weight"];

/// What GLM-5-Next keeps besides.
const KEPT_GLM5_NEXT: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

/// Why llama.cpp keeps this tensor's type; `None` if it may be quantized. Row lengths are another matter: a
/// row must hold whole blocks of the type that is chosen.
pub(super) fn kept_because(
    arch: &str,
    name: &str,
    dims: &Shape,
    ty: GgmlType,
) -> Option<&'static str> {
    // ggml drops trailing dimensions of 1.
    let n_dims = (0..4).rev().find(|&i| dims.ne(i) > 1).map_or(1, |i| i + 1);
    if n_dims < 2 {
        return Some("a vector");
    }
    if !name.ends_with("weight") {
        return Some("not a weight");
    }
    if matches!(
        ty,
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64
    ) {
        return Some("of a type that llama.cpp does not quantize from");
    }
    for (reason, parts) in KEPT {
        if parts.iter().any(|p| name.contains(p)) {
            return Some(reason);
        }
    }
    if KEPT_WHOLE.contains(&name) {
        return Some("an embedding of positions or token types");
    }
    if arch == "glm5-next" && KEPT_GLM5_NEXT.iter().any(|p| name.contains(p)) {
        return Some("kept by llama.cpp for this architecture");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(arch: &str, name: &str, dims: &[u64]) -> bool {
        kept_because(arch, name, &Shape::new(dims).unwrap(), GgmlType::BF16).is_some()
    }

    #[test]
    fn shape_name_and_architecture_decide() {
        assert!(!kept("x", "blk.0.ffn_up_exps.weight", &[32, 64, 8]));
        assert!(!kept("x", "blk.0.ffn_up_exps.weight", &[32, 1, 8]));
        assert!(kept("x", "blk.0.attn_q.weight", &[32, 1, 1]));
        assert!(kept("x", "blk.0.attn_q.weight", &[32]));
        assert!(kept("x", "blk.0.ffn_up_exps.bias", &[32, 8]));
        assert!(kept("x", "blk.0.ffn_gate_inp.weight", &[32, 8]));
        assert!(!kept("x", "blk.0.ffn_gate_inp_shexp.weight", &[32, 8]));
        assert!(kept("x", "blk.0.shortconv.conv.weight", &[3, 8]));
        assert!(!kept("x", "blk.0.shortconv.in_proj.weight", &[32, 8]));
        assert!(kept("x", "token_types.weight", &[32, 8]));
        assert!(!kept("x", "output.weight", &[32, 8]));
        assert!(kept("glm5-next", "blk.0.attn_k_b.weight", &[32, 8, 2]));
        assert!(!kept("deepseek2", "blk.0.attn_k_b.weight", &[32, 8, 2]));
        let table = Shape::new(&[8, 32]).unwrap();
        assert!(kept_because("x", "blk.0.a.weight", &table, GgmlType::I32).is_some());
    }
}
