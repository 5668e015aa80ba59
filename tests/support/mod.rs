//! Small Hugging Face folders, made up for tests.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};

/// A tensor as it is stored.
#[derive(Clone)]
pub struct Data {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Data {
    pub fn bf16(shape: &[usize], values: &[f32]) -> Data {
        let bytes = values
            .iter()
            .flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        Data::new(Dtype::BF16, shape, bytes)
    }

    pub fn f32(shape: &[usize], values: &[f32]) -> Data {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Data::new(Dtype::F32, shape, bytes)
    }

    pub fn new(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Data {
        let n: usize = shape.iter().product();
        assert_eq!(n * dtype.bitsize() / 8, bytes.len(), "{shape:?}");
        Data {
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }
}

/// A folder to be written.
#[derive(Clone)]
pub struct Model {
    pub config: Json,
    pub tensors: BTreeMap<String, Data>,
    seed: u64,
}

impl Model {
    /// A model with embeddings and a final norm; `config` is completed with what every model states.
    pub fn new(architecture: &str, config: Json) -> Model {
        let mut all = json!({
            "architectures": [architecture],
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 96,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "vocab_size": 512,
            "bos_token_id": 0,
            "eos_token_id": 0,
        });
        for (key, value) in config.as_object().unwrap() {
            all[key] = value.clone();
        }
        let mut model = Model {
            config: all,
            tensors: BTreeMap::new(),
            seed: 1,
        };
        model.add("model.embed_tokens.weight", &[512, 64]);
        model.add("lm_head.weight", &[512, 64]);
        model.add("model.norm.weight", &[64]);
        model
    }

    /// Values from -0.5 to 0.5, other in each tensor.
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.seed = self
                    .seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let unit = (self.seed >> 40) as f32 / (1u64 << 24) as f32;
                // Representable in bfloat16.
                f32::from_bits((unit - 0.5).to_bits() & 0xffff_0000)
            })
            .collect()
    }

    /// Adds a tensor of made-up values; norms lie around one.
    pub fn add(&mut self, name: &str, shape: &[usize]) {
        let mut values = self.values(shape.iter().product());
        let scale = 1.0 / (*shape.last().unwrap() as f32).sqrt();
        for v in &mut values {
            *v = if name.ends_with("norm.weight") {
                1.0 + *v / 4.0
            } else {
                *v * 4.0 * scale
            };
            *v = f32::from_bits(v.to_bits() & 0xffff_0000);
        }
        self.tensors
            .insert(name.to_owned(), Data::bf16(shape, &values));
    }

    /// Adds tensors to layers, named within them.
    pub fn layers(&mut self, layers: std::ops::Range<usize>, tensors: &[(&str, &[usize])]) {
        for layer in layers {
            for (name, shape) in tensors {
                self.add(&format!("model.layers.{layer}.{name}"), shape);
            }
        }
    }

    /// Norms and plain attention of head size 16.
    pub fn attention(&mut self, layers: std::ops::Range<usize>, heads: usize, kv_heads: usize) {
        self.layers(
            layers,
            &[
                ("input_layernorm.weight", &[64]),
                ("post_attention_layernorm.weight", &[64]),
                ("self_attn.q_proj.weight", &[heads * 16, 64]),
                ("self_attn.k_proj.weight", &[kv_heads * 16, 64]),
                ("self_attn.v_proj.weight", &[kv_heads * 16, 64]),
                ("self_attn.o_proj.weight", &[64, heads * 16]),
            ],
        );
    }

    /// A dense feed-forward network under a name: `mlp`, say.
    pub fn dense(&mut self, layers: std::ops::Range<usize>, name: &str, width: usize) {
        for layer in layers {
            for (part, shape) in [
                ("gate_proj", [width, 64]),
                ("up_proj", [width, 64]),
                ("down_proj", [64, width]),
            ] {
                self.add(
                    &format!("model.layers.{layer}.{name}.{part}.weight"),
                    &shape,
                );
            }
        }
    }

    /// Experts one by one.
    pub fn experts(&mut self, layers: std::ops::Range<usize>, n: usize, width: usize) {
        for expert in 0..n {
            self.dense(layers.clone(), &format!("mlp.experts.{expert}"), width);
        }
    }

    /// Writes the folder; the tokenizer is that of the reference models.
    pub fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(
            dir.join("config.json"),
            serde_json::to_vec_pretty(&self.config).unwrap(),
        )
        .unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(oracle("qwen3_moe").join(file), dir.join(file)).unwrap();
        }
        write_tensors(&dir.join("model.safetensors"), &self.tensors);
    }

    /// Writes the folder with the tensors spread over `n` files and an index.
    pub fn write_sharded(&self, dir: &Path, n: usize) {
        self.write(dir);
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        let mut map = serde_json::Map::new();
        for shard in 0..n {
            let file = format!("model-{:05}-of-{n:05}.safetensors", shard + 1);
            let part: BTreeMap<_, _> = (self.tensors.iter().enumerate())
                .filter(|(i, _)| i * n / self.tensors.len() == shard)
                .map(|(_, (k, v))| (k.clone(), v.clone()))
                .collect();
            map.extend(part.keys().map(|k| (k.clone(), json!(file))));
            write_tensors(&dir.join(&file), &part);
        }
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(
            dir.join("model.safetensors.index.json"),
            serde_json::to_vec(&index).unwrap(),
        )
        .unwrap();
    }
}

pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Data>) {
    let views = tensors.iter().map(|(name, t)| {
        (
            name,
            TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap(),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The folder of a reference conversion.
pub fn oracle(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle")
        .join(family)
}
