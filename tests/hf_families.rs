//! Families, or variants of them, without a reference conversion that llama.cpp runs: small made-up folders must
//! convert to models that it loads and evaluates. Formats of weights: FP8 and MXFP4 against the same values in
//! floats.

mod support;

use moqa::gguf::{GgmlType, Gguf, Value};
use moqa::hf::vocab::VocabOptions;
use moqa::hf::{self, OutType};
use moqa::runtime::{Context, ContextOptions, Model as Loaded, ModelOptions};
use safetensors::tensor::Dtype;
use serde_json::json;

use support::{Data, Model};

fn open(model: &Model) -> Gguf {
    let dir = tempfile::tempdir().unwrap();
    model.write(dir.path());
    let options = hf::Options {
        out_type: OutType::Fixed(GgmlType::BF16),
        vocab: VocabOptions {
            pre_tokenizer: Some("qwen2".into()),
        },
    };
    let converted = hf::open(dir.path(), &options).unwrap_or_else(|e| panic!("{e:#}"));
    assert!(converted.notes.is_empty(), "{:?}", converted.notes);
    // The mapped files stay readable after the folder is gone.
    converted.gguf
}

fn logits(gguf: &Gguf) -> Vec<f32> {
    let model = Loaded::load_source(gguf, &ModelOptions::default()).unwrap();
    let options = ContextOptions {
        n_ctx: 16,
        n_seq: 1,
        n_threads: 1,
        observable: false,
    };
    let mut context = Context::new(&model, options).unwrap();
    let tokens: Vec<i32> = (0..16).map(|i| (i * 31 + 7) % 512).collect();
    let logits = context.evaluate(&[&tokens], 0, None).unwrap()[0].to_vec();
    assert_eq!(logits.len(), 16 * 512);
    assert!(logits.iter().all(|v| v.is_finite()));
    // The output depends on the input: no row repeats.
    assert!(logits[..512] != logits[15 * 512..]);
    logits
}

/// Values of a tensor, float32.
fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let t = gguf.tensor(name).unwrap_or_else(|| panic!("{name}"));
    let mut out = vec![0f32; t.n_elems() as usize];
    moqa::ggml::decode(t.ty, &gguf.rows(t, 0..t.n_rows()).unwrap(), &mut out).unwrap();
    out
}

#[test]
fn glm4_moe_with_a_layer_that_predicts_further_tokens() {
    let mut m = Model::new(
        "Glm4MoeForCausalLM",
        json!({"num_hidden_layers": 2, "num_nextn_predict_layers": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "norm_topk_prob": true,
            "routed_scaling_factor": 1.5, "partial_rotary_factor": 0.5, "n_group": 1, "topk_group": 1}),
    );
    m.attention(0..3, 4, 2);
    m.dense(0..1, "mlp", 96);
    m.experts(1..3, 4, 32);
    m.dense(1..3, "mlp.shared_experts", 32);
    m.layers(
        1..3,
        &[
            ("mlp.gate.weight", &[4, 64]),
            ("mlp.gate.e_score_correction_bias", &[4]),
        ],
    );
    m.layers(
        2..3,
        &[
            ("eh_proj.weight", &[64, 128]),
            ("enorm.weight", &[64]),
            ("hnorm.weight", &[64]),
            ("shared_head.norm.weight", &[64]),
            ("shared_head.head.weight", &[512, 64]),
            ("embed_tokens.weight", &[512, 64]),
        ],
    );
    let gguf = open(&m);
    assert_eq!(
        gguf.metadata.get("glm4moe.block_count"),
        Some(&Value::U32(3))
    );
    assert_eq!(
        gguf.metadata.get("glm4moe.nextn_predict_layers"),
        Some(&Value::U32(1))
    );
    assert_eq!(
        gguf.metadata.get("glm4moe.rope.dimension_count"),
        Some(&Value::U32(8))
    );
    logits(&gguf);
    // A checkpoint without that layer, as some are published.
    m.tensors
        .retain(|name, _| !name.starts_with("model.layers.2."));
    let gguf = open(&m);
    assert_eq!(
        gguf.metadata.get("glm4moe.block_count"),
        Some(&Value::U32(2))
    );
    assert_eq!(gguf.metadata.get("glm4moe.nextn_predict_layers"), None);
    logits(&gguf);
}

#[test]
fn exaone_moe() {
    let mut m = Model::new(
        "ExaoneMoEForCausalLM",
        json!({"num_hidden_layers": 4, "num_nextn_predict_layers": 1, "num_experts": 4, "num_experts_per_tok": 2,
            "num_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "norm_topk_prob": true,
            "routed_scaling_factor": 2.5, "sliding_window": 8, "sliding_window_pattern": "LLLG",
            "scoring_func": "sigmoid", "n_group": 1, "topk_group": 1}),
    );
    m.attention(0..4, 4, 2);
    m.layers(
        0..4,
        &[
            ("self_attn.q_norm.weight", &[16]),
            ("self_attn.k_norm.weight", &[16]),
        ],
    );
    m.dense(0..1, "mlp", 96);
    m.experts(1..4, 4, 32);
    m.dense(1..4, "mlp.shared_experts", 32);
    m.layers(
        1..4,
        &[
            ("mlp.gate.weight", &[4, 64]),
            ("mlp.e_score_correction_bias", &[4]),
        ],
    );
    // The layer that predicts further tokens has names of its own.
    let plain = m.clone();
    for (name, data) in &plain.tensors {
        if let Some(rest) = name.strip_prefix("model.layers.0.") {
            m.tensors
                .insert(format!("mtp.layers.0.{rest}"), data.clone());
        }
    }
    m.add("mtp.fc.weight", &[64, 128]);
    for norm in ["pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"] {
        m.add(&format!("mtp.{norm}.weight"), &[64]);
    }
    let gguf = open(&m);
    assert_eq!(
        gguf.metadata.get("exaone-moe.block_count"),
        Some(&Value::U32(5))
    );
    assert!(gguf.tensor("blk.4.nextn.eh_proj.weight").is_some());
    let with_extra = logits(&gguf);
    assert_eq!(with_extra, logits(&open(&plain)));
}

#[test]
fn afmoe() {
    let mut m = Model::new(
        "AfmoeForCausalLM",
        json!({"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1,
            "moe_intermediate_size": 32, "num_dense_layers": 1, "route_norm": true, "route_scale": 2.0,
            "score_func": "sigmoid", "sliding_window": 8, "n_group": 1, "topk_group": 1}),
    );
    m.attention(0..4, 4, 2);
    m.layers(
        0..4,
        &[
            ("self_attn.gate_proj.weight", &[64, 64]),
            ("self_attn.q_norm.weight", &[16]),
            ("self_attn.k_norm.weight", &[16]),
            ("pre_mlp_layernorm.weight", &[64]),
            ("post_mlp_layernorm.weight", &[64]),
        ],
    );
    m.dense(0..1, "mlp", 96);
    m.experts(1..4, 4, 32);
    m.dense(1..4, "mlp.shared_experts", 32);
    m.layers(
        1..4,
        &[
            ("mlp.router.gate.weight", &[4, 64]),
            ("mlp.expert_bias", &[4]),
        ],
    );
    logits(&open(&m));
}

#[test]
fn hunyuan_moe() {
    let mut m = Model::new(
        "HunYuanMoEV1ForCausalLM",
        json!({"num_hidden_layers": 2, "num_experts": 4, "moe_topk": [2, 2], "num_shared_expert": [1, 1],
            "moe_intermediate_size": [96, 96], "tie_word_embeddings": true}),
    );
    m.attention(0..2, 4, 2);
    m.layers(
        0..2,
        &[
            ("self_attn.query_layernorm.weight", &[16]),
            ("self_attn.key_layernorm.weight", &[16]),
            ("mlp.gate.wg.weight", &[4, 64]),
        ],
    );
    m.experts(0..2, 4, 96);
    m.dense(0..2, "mlp.shared_mlp", 96);
    let gguf = open(&m);
    assert!(gguf.tensor("output.weight").is_none());
    logits(&gguf);
}

#[test]
fn qwen3_next() {
    let mut m = Model::new(
        "Qwen3NextForCausalLM",
        json!({"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32, "partial_rotary_factor": 0.5, "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4}),
    );
    m.layers(
        0..4,
        &[
            ("input_layernorm.weight", &[64]),
            ("post_attention_layernorm.weight", &[64]),
            ("mlp.gate.weight", &[4, 64]),
            ("mlp.shared_expert_gate.weight", &[1, 64]),
        ],
    );
    m.experts(0..4, 4, 32);
    m.dense(0..4, "mlp.shared_expert", 32);
    m.layers(
        0..3,
        &[
            ("linear_attn.in_proj_qkvz.weight", &[192, 64]),
            ("linear_attn.in_proj_ba.weight", &[8, 64]),
            ("linear_attn.conv1d.weight", &[128, 1, 4]),
            ("linear_attn.dt_bias", &[4]),
            ("linear_attn.A_log", &[4]),
            ("linear_attn.norm.weight", &[16]),
            ("linear_attn.out_proj.weight", &[64, 64]),
        ],
    );
    m.layers(
        3..4,
        &[
            ("self_attn.q_proj.weight", &[128, 64]),
            ("self_attn.k_proj.weight", &[32, 64]),
            ("self_attn.v_proj.weight", &[32, 64]),
            ("self_attn.o_proj.weight", &[64, 64]),
            ("self_attn.q_norm.weight", &[16]),
            ("self_attn.k_norm.weight", &[16]),
        ],
    );
    let gguf = open(&m);
    logits(&gguf);

    let source = |name: &str| -> Vec<f32> {
        let data = &m.tensors[&format!("model.layers.0.{name}")];
        let pairs = data.bytes.as_chunks::<2>().0;
        (pairs
            .iter()
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)))
        .collect()
    };
    // Rows of head h in the checkpoint: 16 of the query, 16 of the key, 32 of its two values, 32 of their gates.
    let rows = source("linear_attn.in_proj_qkvz.weight");
    let row = |head: usize, i: usize| &rows[(head * 96 + i) * 64..][..64];
    let mut expected = Vec::new();
    for (start, n) in [(0, 16), (16, 16), (32, 32)] {
        for head in 0..2 {
            (start..start + n).for_each(|i| expected.extend_from_slice(row(head, i)));
        }
    }
    assert_eq!(values(&gguf, "blk.0.attn_qkv.weight"), expected);
    let gates: Vec<f32> = (0..2)
        .flat_map(|head| (64..96).flat_map(move |i| row(head, i).to_vec()))
        .collect();
    assert_eq!(values(&gguf, "blk.0.attn_gate.weight"), gates);
    let a: Vec<f32> = source("linear_attn.A_log")
        .iter()
        .map(|v| -v.exp())
        .collect();
    assert_eq!(values(&gguf, "blk.0.ssm_a"), a);
    let norm: Vec<f32> = source("input_layernorm.weight")
        .iter()
        .map(|v| v + 1.0)
        .collect();
    assert_eq!(values(&gguf, "blk.0.attn_norm.weight"), norm);
    assert_eq!(
        values(&gguf, "blk.0.ssm_norm.weight"),
        source("linear_attn.norm.weight")
    );
}

#[test]
fn bailing_moe_of_both_generations() {
    let common = json!({"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1,
        "moe_intermediate_size": 32, "first_k_dense_replace": 0, "norm_topk_prob": true});
    let build = |architecture: &str| {
        let mut m = Model::new(architecture, common.clone());
        let embedding = m.tensors.remove("model.embed_tokens.weight").unwrap();
        m.tensors
            .insert("model.word_embeddings.weight".into(), embedding);
        m.layers(
            0..2,
            &[
                ("input_layernorm.weight", &[64]),
                ("post_attention_layernorm.weight", &[64]),
                ("attention.query_key_value.weight", &[128, 64]),
                ("attention.dense.weight", &[64, 64]),
                ("mlp.gate.weight", &[4, 64]),
            ],
        );
        m.experts(0..2, 4, 32);
        m.dense(0..2, "mlp.shared_experts", 32);
        m
    };
    let first = build("BailingMoeForCausalLM");
    let gguf = open(&first);
    logits(&gguf);
    // The value part of the joint matrix is the last quarter, unchanged.
    let joint = &first.tensors["model.layers.1.attention.query_key_value.weight"].bytes;
    let v = gguf.tensor("blk.1.attn_v.weight").unwrap();
    assert_eq!(gguf.rows(v, 0..32).unwrap()[..], joint[96 * 128..]);

    // An output layer whose columns have length one.
    let mut normal = first.clone();
    normal.config["norm_head"] = json!(true);
    let normal = open(&normal);
    let (a, b) = (
        values(&normal, "output.weight"),
        values(&gguf, "output.weight"),
    );
    for col in [0, 17, 63] {
        let column = |m: &[f32]| -> Vec<f64> {
            m.iter()
                .skip(col)
                .step_by(64)
                .map(|v| f64::from(*v))
                .collect()
        };
        let (a, b) = (column(&a), column(&b));
        let length = b.iter().map(|v| v * v).sum::<f64>().sqrt();
        for (x, y) in a.iter().zip(&b) {
            // Half a step of bfloat16.
            assert!(
                (x - y / length).abs() <= (y / length).abs() / 256.0,
                "{x} {y}"
            );
        }
    }
    logits(&normal);

    let mut second = build("BailingMoeV2ForCausalLM");
    second.config["routed_scaling_factor"] = json!(2.5);
    second.config["score_function"] = json!("sigmoid");
    second.config["first_k_dense_replace"] = json!(1);
    second.config["n_group"] = json!(1);
    second.config["topk_group"] = json!(1);
    second
        .tensors
        .retain(|name, _| !name.starts_with("model.layers.0.mlp"));
    second.dense(0..1, "mlp", 96);
    second.layers(
        0..2,
        &[
            ("attention.query_layernorm.weight", &[16]),
            ("attention.key_layernorm.weight", &[16]),
        ],
    );
    second.layers(1..2, &[("mlp.gate.expert_bias", &[4])]);
    logits(&open(&second));
}

#[test]
fn phi_moe_with_long_factors() {
    let factors: Vec<f32> = (1..=8).map(|i| i as f32).collect();
    let mut m = Model::new(
        "PhiMoEForCausalLM",
        json!({"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
            "original_max_position_embeddings": 256,
            "rope_scaling": {"type": "longrope", "long_factor": factors, "short_factor": vec![1.0; 8]}}),
    );
    m.attention(0..2, 4, 2);
    for layer in 0..2 {
        for expert in 0..4 {
            for (part, shape) in [("w1", [96, 64]), ("w2", [64, 96]), ("w3", [96, 64])] {
                m.add(
                    &format!(
                        "model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"
                    ),
                    &shape,
                );
            }
        }
    }
    m.layers(
        0..2,
        &[
            ("block_sparse_moe.gate.weight", &[4, 64]),
            ("input_layernorm.bias", &[64]),
            ("post_attention_layernorm.bias", &[64]),
            ("self_attn.q_proj.bias", &[64]),
            ("self_attn.k_proj.bias", &[32]),
            ("self_attn.v_proj.bias", &[32]),
            ("self_attn.o_proj.bias", &[64]),
        ],
    );
    m.add("model.norm.bias", &[64]);
    m.add("lm_head.bias", &[512]);
    let gguf = open(&m);
    assert_eq!(values(&gguf, "rope_factors_long.weight"), factors);
    logits(&gguf);
}

#[test]
fn dots1_and_olmoe_with_as_many_key_heads_as_query_heads() {
    let mut m = Model::new(
        "Dots1ForCausalLM",
        json!({"num_hidden_layers": 2, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "norm_topk_prob": true,
            "routed_scaling_factor": 2.5}),
    );
    m.attention(0..2, 4, 4);
    m.layers(
        0..2,
        &[
            ("self_attn.q_norm.weight", &[16]),
            ("self_attn.k_norm.weight", &[16]),
        ],
    );
    m.dense(0..1, "mlp", 96);
    m.experts(1..2, 4, 32);
    m.dense(1..2, "mlp.shared_experts", 32);
    m.layers(
        1..2,
        &[
            ("mlp.gate.weight", &[4, 64]),
            ("mlp.gate.e_score_correction_bias", &[4]),
        ],
    );
    logits(&open(&m));

    let mut m = Model::new(
        "OlmoeForCausalLM",
        json!({"num_hidden_layers": 2, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
            "intermediate_size": 32, "head_dim": null}),
    );
    m.attention(0..2, 4, 4);
    m.layers(
        0..2,
        &[
            ("self_attn.q_norm.weight", &[64]),
            ("self_attn.k_norm.weight", &[64]),
        ],
    );
    m.experts(0..2, 4, 32);
    m.layers(0..2, &[("mlp.gate.weight", &[4, 64])]);
    logits(&open(&m));
}

#[test]
fn llama4_with_a_layer_that_sees_everything() {
    let mut m = Model::new(
        "Llama4ForCausalLM",
        json!({"num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 32,
            "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2}),
    );
    m.attention(0..4, 4, 2);
    for layer in [0, 2] {
        m.dense(layer..layer + 1, "feed_forward", 96);
    }
    for layer in [1, 3] {
        m.dense(layer..layer + 1, "feed_forward.shared_expert", 32);
        m.layers(
            layer..layer + 1,
            &[
                ("feed_forward.router.weight", &[4, 64]),
                ("feed_forward.experts.gate_up_proj", &[4, 64, 64]),
                ("feed_forward.experts.down_proj", &[4, 32, 64]),
            ],
        );
    }
    logits(&open(&m));
}

#[test]
fn deepseek_v2_lite() {
    // llama.cpp knows it by its 27 layers.
    let mut m = Model::new(
        "DeepseekV2ForCausalLM",
        json!({"num_hidden_layers": 27, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "norm_topk_prob": false,
            "routed_scaling_factor": 1.0, "q_lora_rank": null, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16, "v_head_dim": 16, "head_dim": null,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
                "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    );
    m.layers(
        0..27,
        &[
            ("input_layernorm.weight", &[64]),
            ("post_attention_layernorm.weight", &[64]),
            ("self_attn.q_proj.weight", &[128, 64]),
            ("self_attn.kv_a_proj_with_mqa.weight", &[48, 64]),
            ("self_attn.kv_a_layernorm.weight", &[32]),
            ("self_attn.kv_b_proj.weight", &[128, 32]),
            ("self_attn.o_proj.weight", &[64, 64]),
        ],
    );
    m.dense(0..1, "mlp", 96);
    m.experts(1..27, 4, 32);
    m.dense(1..27, "mlp.shared_experts", 32);
    m.layers(1..27, &[("mlp.gate.weight", &[4, 64])]);
    let gguf = open(&m);
    assert_eq!(
        gguf.metadata
            .get("deepseek2.rope.scaling.yarn_log_multiplier"),
        Some(&Value::F32(0.0707))
    );
    logits(&gguf);
}

#[test]
fn granite_with_a_shared_expert() {
    let mut m = Model::new(
        "GraniteMoeSharedForCausalLM",
        json!({"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32,
            "shared_intermediate_size": 48, "attention_multiplier": 0.25, "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22, "logits_scaling": 6.0}),
    );
    m.attention(0..2, 4, 2);
    m.layers(
        0..2,
        &[
            ("block_sparse_moe.router.layer.weight", &[4, 64]),
            ("block_sparse_moe.input_linear.weight", &[4, 64, 64]),
            ("block_sparse_moe.output_linear.weight", &[4, 64, 32]),
            ("shared_mlp.input_linear.weight", &[96, 64]),
            ("shared_mlp.output_linear.weight", &[64, 48]),
        ],
    );
    logits(&open(&m));
}

/// The float32 value of an FP8 (E4M3) code, by the definition of the format.
fn fp8(code: u8) -> f32 {
    let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let v = if e == 0 {
        m / 8.0 * 2f32.powi(-6)
    } else {
        (1.0 + m / 8.0) * 2f32.powi(e - 7)
    };
    if code & 128 == 0 { v } else { -v }
}

#[test]
fn fp8_weights_equal_the_values_they_stand_for() {
    let dir = support::oracle("deepseek_v3");
    let stored = std::fs::read(dir.join("model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&stored).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut floats = Model::new("DeepseekV3ForCausalLM", config.clone());
    let mut packed = Model::new("DeepseekV3ForCausalLM", config);
    packed.config["quantization_config"] =
        json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [24, 16]});
    let mut n_packed = 0;
    for (name, view) in stored.tensors() {
        let shape = view.shape().to_vec();
        let plain = Data::new(view.dtype(), &shape, view.data().to_vec());
        let is_matrix = shape.len() == 2 && name.contains("proj") && name.ends_with(".weight");
        if !is_matrix {
            floats.tensors.insert(name.clone(), plain.clone());
            packed.tensors.insert(name, plain);
            continue;
        }
        n_packed += 1;
        // Any codes but NaN, and blocks that do not divide the matrix.
        let codes: Vec<u8> = (0..shape[0] * shape[1])
            .map(|i| ((i * 37 + n_packed * 11) % 255) as u8)
            .map(|c| if c == 0x7f { 0x3a } else { c })
            .collect();
        let blocks = [shape[0].div_ceil(24), shape[1].div_ceil(16)];
        let scales: Vec<f32> = (0..blocks[0] * blocks[1])
            .map(|i| 1e-4 * (1.0 + (i % 7) as f32))
            .collect();
        let values: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let (row, col) = (i / shape[1], i % shape[1]);
                fp8(*c) * scales[row / 24 * blocks[1] + col / 16]
            })
            .collect();
        floats
            .tensors
            .insert(name.clone(), Data::f32(&shape, &values));
        packed
            .tensors
            .insert(name.clone(), Data::new(Dtype::F8_E4M3, &shape, codes));
        packed
            .tensors
            .insert(format!("{name}_scale_inv"), Data::f32(&blocks, &scales));
    }
    assert!(n_packed > 20);
    let (a, b) = (open(&packed), open(&floats));
    assert_eq!(a.tensors.len(), b.tensors.len());
    for (x, y) in a.tensors.iter().zip(&b.tensors) {
        assert_eq!(x.spec(), y.spec());
        let rows = 0..x.n_rows();
        assert!(
            a.rows(x, rows.clone()).unwrap() == b.rows(y, rows).unwrap(),
            "{}",
            x.name
        );
    }
    logits(&a);
}

#[test]
fn mxfp4_experts_equal_the_values_they_stand_for() {
    const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let dir = support::oracle("gpt_oss");
    let stored = std::fs::read(dir.join("model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&stored).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut floats = Model::new("GptOssForCausalLM", config.clone());
    let mut packed = Model::new("GptOssForCausalLM", config);
    packed.config["quantization_config"] = json!({"quant_method": "mxfp4"});
    for (name, view) in stored.tensors() {
        let shape = view.shape().to_vec();
        if shape.len() != 3 {
            let plain = Data::new(view.dtype(), &shape, view.data().to_vec());
            floats.tensors.insert(name.clone(), plain.clone());
            packed.tensors.insert(name, plain);
            continue;
        }
        // Floats are [expert, in, out]; packed ones [expert, out, in / 32, 16].
        let [experts, n_in, n_out] = shape[..] else {
            unreachable!()
        };
        let blocks = n_in / 32;
        let code = |e: usize, o: usize, i: usize| ((e * 5 + o * 3 + i * 7) % 16) as u8;
        let exponent = |e: usize, o: usize, b: usize| (118 + (e + o + b) % 6) as u8;
        let mut values = vec![0f32; experts * n_in * n_out];
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for e in 0..experts {
            for o in 0..n_out {
                for b in 0..blocks {
                    let scale = exponent(e, o, b);
                    scales.push(scale);
                    for i in (b * 32..b * 32 + 32).step_by(2) {
                        codes.push(code(e, o, i) | code(e, o, i + 1) << 4);
                        for i in [i, i + 1] {
                            let c = code(e, o, i);
                            let v = FP4[usize::from(c & 7)] * 2f32.powi(i32::from(scale) - 127);
                            values[(e * n_in + i) * n_out + o] = if c & 8 == 0 { v } else { -v };
                        }
                    }
                }
            }
        }
        floats
            .tensors
            .insert(name.clone(), Data::f32(&shape, &values));
        packed.tensors.insert(
            format!("{name}_blocks"),
            Data::new(Dtype::U8, &[experts, n_out, blocks, 16], codes),
        );
        packed.tensors.insert(
            format!("{name}_scales"),
            Data::new(Dtype::U8, &[experts, n_out, blocks], scales),
        );
    }
    let (a, b) = (open(&packed), open(&floats));
    let mut n_packed = 0;
    for x in &a.tensors {
        let y = b.tensor(&x.name).unwrap();
        assert_eq!(x.dims, y.dims);
        n_packed += usize::from(x.ty == GgmlType::MXFP4);
        assert_eq!(values(&a, &x.name), values(&b, &x.name), "{}", x.name);
        // In pieces too.
        let piece = a.rows(x, x.n_rows() / 2..x.n_rows()).unwrap();
        let whole = a.rows(x, 0..x.n_rows()).unwrap();
        assert!(whole.ends_with(&piece));
    }
    assert_eq!((n_packed, a.tensors.len()), (6, b.tensors.len()));
    assert_eq!(a.metadata.get("general.file_type"), Some(&Value::U32(38)));
    logits(&a);
}
