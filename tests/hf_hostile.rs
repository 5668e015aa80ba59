//! Folders that are damaged, incomplete or made to harm: each is refused with an error that names the file and
//! the field.

mod support;

use std::path::Path;

use moqa::hf;
use moqa::hf::vocab::VocabOptions;
use safetensors::tensor::Dtype;
use serde_json::json;

use support::{Data, Model};

fn model() -> Model {
    let mut m = Model::new(
        "Qwen3MoeForCausalLM",
        json!({"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    );
    m.attention(0..2, 4, 2);
    m.layers(
        0..2,
        &[
            ("self_attn.q_norm.weight", &[16]),
            ("self_attn.k_norm.weight", &[16]),
            ("mlp.gate.weight", &[4, 64]),
        ],
    );
    m.experts(0..2, 4, 32);
    m
}

fn try_open(dir: &Path) -> Result<Vec<String>, String> {
    let options = hf::Options {
        vocab: VocabOptions {
            pre_tokenizer: Some("qwen2".into()),
        },
        ..hf::Options::default()
    };
    match hf::open(dir, &options) {
        Ok(c) => Ok(c.notes),
        Err(e) => Err(format!("{e:#}")),
    }
}

/// Spoils a folder of three shards with an index and checks that the error has every one of `words`.
fn refused(what: &str, spoil: impl FnOnce(&Path), words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    model().write_sharded(dir.path(), 3);
    spoil(dir.path());
    check(what, dir.path(), words);
}

/// Spoils a model before it is written as one file.
fn refused_model(what: &str, spoil: impl FnOnce(&mut Model), words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut m = model();
    spoil(&mut m);
    m.write(dir.path());
    check(what, dir.path(), words);
}

fn check(what: &str, dir: &Path, words: &[&str]) {
    let error = try_open(dir).expect_err(what);
    for word in words {
        assert!(error.contains(word), "{what}: '{word}' is not in: {error}");
    }
}

const INDEX: &str = "model.safetensors.index.json";
const SECOND: &str = "model-00002-of-00003.safetensors";

fn edit_index(dir: &Path, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = dir.join(INDEX);
    let mut index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(index["weight_map"].as_object_mut().unwrap());
    std::fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
}

fn edit_file(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn whole_folders_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    model().write(dir.path());
    assert_eq!(try_open(dir.path()).unwrap(), [String::new(); 0]);
    let dir = tempfile::tempdir().unwrap();
    model().write_sharded(dir.path(), 3);
    assert_eq!(try_open(dir.path()).unwrap(), [String::new(); 0]);
}

#[test]
fn files_that_are_missing() {
    refused(
        "a shard",
        |d| std::fs::remove_file(d.join(SECOND)).unwrap(),
        &[INDEX, "weight_map", SECOND],
    );
    refused(
        "the index",
        |d| std::fs::remove_file(d.join(INDEX)).unwrap(),
        &[INDEX],
    );
    refused(
        "the index and all shards but one",
        |d| {
            for file in [INDEX, SECOND, "model-00003-of-00003.safetensors"] {
                std::fs::remove_file(d.join(file)).unwrap();
            }
        },
        &["model-00001-of-00003.safetensors", INDEX],
    );
    refused(
        "config.json",
        |d| std::fs::remove_file(d.join("config.json")).unwrap(),
        &["config.json"],
    );
    refused(
        "the tokenizer",
        |d| std::fs::remove_file(d.join("tokenizer.json")).unwrap(),
        &["tokenizer"],
    );
    let empty = tempfile::tempdir().unwrap();
    check("an empty folder", empty.path(), &["config.json"]);
}

#[test]
fn pickles_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    model().write(dir.path());
    std::fs::rename(
        dir.path().join("model.safetensors"),
        dir.path().join("pytorch_model.bin"),
    )
    .unwrap();
    check(
        "a pickle",
        dir.path(),
        &["pytorch_model.bin", "safetensors"],
    );
}

#[test]
fn indices_that_are_wrong() {
    let tensor = "model.layers.0.mlp.gate.weight";
    for bad in [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        "config.json",
        "a\\b.safetensors",
        "",
    ] {
        refused(
            bad,
            |d| edit_index(d, |map| map[tensor] = json!(bad)),
            &[INDEX, "weight_map", tensor],
        );
    }
    refused(
        "a number",
        |d| edit_index(d, |map| map[tensor] = json!(7)),
        &[INDEX, "weight_map", tensor],
    );
    refused(
        "the wrong file",
        |d| {
            edit_index(d, |map| {
                map[tensor] = json!("model-00003-of-00003.safetensors")
            })
        },
        &[INDEX, "weight_map", tensor, "model-00003"],
    );
    refused(
        "a tensor that is not there",
        |d| {
            edit_index(d, |map| {
                drop(map.insert("model.extra.weight".into(), json!(SECOND)))
            })
        },
        &[INDEX, "model.extra.weight", SECOND],
    );
    refused(
        "a tensor that is not listed",
        |d| edit_index(d, |map| drop(map.shift_remove(tensor))),
        &[INDEX, tensor],
    );
    refused(
        "no map",
        |d| std::fs::write(d.join(INDEX), "{}").unwrap(),
        &[INDEX, "weight_map"],
    );
    refused(
        "no JSON",
        |d| std::fs::write(d.join(INDEX), "{\"a\": ").unwrap(),
        &[INDEX, "JSON"],
    );
    refused(
        "deep JSON",
        |d| std::fs::write(d.join(INDEX), "[".repeat(1 << 20)).unwrap(),
        &[INDEX, "JSON"],
    );
}

#[test]
fn safetensors_files_that_are_damaged() {
    type Edit = fn(&mut Vec<u8>);
    let edits: &[(&str, Edit)] = &[
        ("no bytes", |b| b.clear()),
        ("five bytes", |b| b.truncate(5)),
        ("half a header", |b| b.truncate(60)),
        ("lacking its last byte", |b| b.truncate(b.len() - 1)),
        ("with a byte too many", |b| b.push(0)),
        ("a header of 2^63 bytes", |b| b[7] = 0x80),
        ("a header longer than the file", |b| b[3] = 1),
        ("a header that is no JSON", |b| b[8] = b'!'),
        ("no text", |b| b[9] = 0xff),
    ];
    for (what, edit) in edits {
        refused(what, |d| edit_file(&d.join(SECOND), edit), &[SECOND]);
    }
    // Offsets that overlap, and shapes whose size overflows.
    for (from, to) in [
        ("\"shape\":[64,", "\"shape\":[65,"),
        ("[64,64]", "[4294967296,4294967297]"),
    ] {
        refused(
            to,
            |d| {
                edit_file(&d.join(SECOND), |b| {
                    let n = u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
                    let header = String::from_utf8(b[8..8 + n].to_vec()).unwrap();
                    assert!(header.contains(from), "{header}");
                    let header = header.replacen(from, to, 1);
                    let mut new = (header.len() as u64).to_le_bytes().to_vec();
                    new.extend(header.as_bytes());
                    new.extend(&b[8 + n..]);
                    *b = new;
                });
            },
            &[SECOND],
        );
    }
    refused(
        "a folder in place of a file",
        |d| {
            std::fs::remove_file(d.join(SECOND)).unwrap();
            std::fs::create_dir(d.join(SECOND)).unwrap();
        },
        &[SECOND],
    );
}

#[test]
fn parameters_that_contradict_the_tensors() {
    for (field, value) in [
        ("hidden_size", json!(128)),
        ("vocab_size", json!(1024)),
        ("moe_intermediate_size", json!(48)),
        ("num_experts", json!(3)),
        ("num_experts", json!(5)),
        ("num_key_value_heads", json!(4)),
        ("num_hidden_layers", json!(1)),
        ("num_hidden_layers", json!(3)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(4_000_000_000u32)),
        ("num_hidden_layers", json!("2")),
        ("num_hidden_layers", json!(-1)),
        ("num_hidden_layers", json!(2.5)),
        ("hidden_size", json!(1e300)),
        ("num_attention_heads", json!({})),
        ("rms_norm_eps", json!("small")),
        ("architectures", json!("Qwen3MoeForCausalLM")),
        ("architectures", json!([])),
        ("architectures", json!(["BertModel"])),
        ("architectures", json!(null)),
    ] {
        let what = format!("{field} {value}");
        // A number of experts that leaves some out is told by what is missing or too much.
        let named = if field == "num_experts" {
            "config.json"
        } else {
            field
        };
        refused_model(&what, |m| m.config[field] = value, &["config.json", named]);
    }
    refused_model(
        "an unknown architecture",
        |m| m.config["architectures"] = json!(["NewMoeForCausalLM"]),
        &[
            "config.json",
            "architectures",
            "NewMoeForCausalLM",
            "MixtralForCausalLM",
        ],
    );
    refused_model(
        "an unknown quantization",
        |m| m.config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4}),
        &["config.json", "quantization_config", "gptq"],
    );
    refused_model(
        "wrong block sizes",
        |m| {
            m.config["quantization_config"] =
                json!({"quant_method": "fp8", "weight_block_size": [0, 128]})
        },
        &["config.json", "weight_block_size"],
    );
    let dir = tempfile::tempdir().unwrap();
    model().write(dir.path());
    std::fs::write(dir.path().join("config.json"), "[1]").unwrap();
    check("an array", dir.path(), &["config.json", "object"]);
}

#[test]
fn tensors_that_are_missing_or_unknown() {
    let without = |name: &'static str| move |m: &mut Model| drop(m.tensors.remove(name).unwrap());
    refused_model(
        "an expert's",
        without("model.layers.1.mlp.experts.2.up_proj.weight"),
        &["layer 1", "up_proj", "expert 2"],
    );
    refused_model(
        "a norm",
        without("model.layers.1.input_layernorm.weight"),
        &["blk.1.attn_norm.weight"],
    );
    refused_model(
        "the embedding",
        without("model.embed_tokens.weight"),
        &["embed_tokens"],
    );
    refused_model(
        "an unknown one",
        |m| m.add("model.layers.0.mlp.new.weight", &[4]),
        &["model.safetensors", "model.layers.0.mlp.new.weight"],
    );
    refused_model(
        "one of no layer",
        |m| m.add("model.layers.9.mlp.gate.weight", &[4, 64]),
        &["layer 9", "num_hidden_layers"],
    );
    refused_model(
        "an expert too many",
        |m| m.add("model.layers.0.mlp.experts.4.up_proj.weight", &[32, 64]),
        &["experts.4", "num_experts"],
    );
    refused_model(
        "an expert of another shape",
        |m| m.add("model.layers.0.mlp.experts.2.up_proj.weight", &[32, 48]),
        &["model.safetensors", "experts.2.up_proj"],
    );
    refused_model(
        "a tensor without elements",
        |m| m.add("model.layers.0.mlp.gate.weight", &[0, 64]),
        &["mlp.gate.weight"],
    );
    refused_model(
        "five dimensions",
        |m| m.add("model.layers.0.mlp.gate.weight", &[1, 1, 1, 4, 64]),
        &["mlp.gate.weight", "dimensions"],
    );
}

#[test]
fn data_that_cannot_be_converted() {
    let gate = "model.layers.0.mlp.gate.weight";
    let put = |dtype: Dtype, size: usize| {
        move |m: &mut Model| {
            let data = Data::new(dtype, &[4, 64], vec![0; 256 * size]);
            m.tensors.insert(gate.into(), data);
        }
    };
    refused_model(
        "integers",
        put(Dtype::I64, 8),
        &["model.safetensors", gate, "I64"],
    );
    refused_model(
        "bytes",
        put(Dtype::U8, 1),
        &["model.safetensors", gate, "U8"],
    );
    refused_model(
        "FP8 without scales",
        put(Dtype::F8_E4M3, 1),
        &["model.safetensors", gate, "scales"],
    );
    refused_model(
        "scales of the wrong shape",
        |m| {
            put(Dtype::F8_E4M3, 1)(m);
            m.config["quantization_config"] =
                json!({"quant_method": "fp8", "weight_block_size": [2, 32]});
            m.tensors
                .insert(format!("{gate}_scale_inv"), Data::f32(&[2, 3], &[1.0; 6]));
        },
        &["model.safetensors", "scale_inv", "[2, 2]"],
    );
    refused_model(
        "scales of a missing weight",
        |m| {
            m.tensors
                .insert("model.x_scale_inv".into(), Data::f32(&[1, 1], &[1.0]));
        },
        &["model.safetensors", "model.x_scale_inv"],
    );
}

/// A value that is no number is found when the tensor is made, and named.
#[test]
fn values_that_are_not_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = model();
    let name = "model.layers.1.mlp.experts.3.down_proj.weight";
    let data = m.tensors.get_mut(name).unwrap();
    data.bytes[100..102].copy_from_slice(&0x7fc0u16.to_le_bytes());
    m.write(dir.path());
    let options = hf::Options {
        vocab: VocabOptions {
            pre_tokenizer: Some("qwen2".into()),
        },
        ..hf::Options::default()
    };
    let gguf = hf::open(dir.path(), &options).unwrap().gguf;
    let tensor = gguf.tensor("blk.1.ffn_down_exps.weight").unwrap();
    let error = gguf
        .rows(tensor, 0..tensor.n_rows())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("blk.1.ffn_down_exps.weight"),
        "{error}"
    );
    assert!(gguf.rows(tensor, 0..tensor.ne(1)).is_ok());
}
