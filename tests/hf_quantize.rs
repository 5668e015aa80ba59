//! Quantizing a folder without converting it first: the same bytes, in bounded memory.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use moqa::gguf::{GgmlType, Gguf};
use moqa::plan::{Plan, TensorChoice};
use serde_json::json;

fn moqa(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moqa"))
        .args(args)
        .args(["--threads", "2", "--quiet"])
        .current_dir(dir)
        .output()
        .unwrap()
}

fn run(args: &[&str], dir: &Path) {
    let output = moqa(args, dir);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

/// A model whose rows fill k-quants.
fn model() -> support::Model {
    let mut m = support::Model::new(
        "Qwen3MoeForCausalLM",
        json!({"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
            "intermediate_size": 512}),
    );
    m.add("model.embed_tokens.weight", &[512, 256]);
    m.add("lm_head.weight", &[512, 256]);
    m.add("model.norm.weight", &[256]);
    m.layers(
        0..2,
        &[
            ("input_layernorm.weight", &[256]),
            ("post_attention_layernorm.weight", &[256]),
            ("self_attn.q_proj.weight", &[256, 256]),
            ("self_attn.k_proj.weight", &[128, 256]),
            ("self_attn.v_proj.weight", &[128, 256]),
            ("self_attn.o_proj.weight", &[256, 256]),
            ("self_attn.q_norm.weight", &[64]),
            ("self_attn.k_norm.weight", &[64]),
            ("mlp.gate.weight", &[4, 256]),
        ],
    );
    for layer in 0..2 {
        for expert in 0..4 {
            for part in ["gate_proj", "up_proj", "down_proj"] {
                m.add(
                    &format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight"),
                    &[256, 256],
                );
            }
        }
    }
    m
}

const FOLDER: [&str; 2] = ["--pre-tokenizer", "qwen2"];

/// Quantizes the folder and the file converted from it in the same way; the results must be the same bytes.
fn compare(dir: &Path, how: &[&str]) -> Gguf {
    run(
        &[&["quantize", "folder", "-o", "a.gguf"], how, &FOLDER].concat(),
        dir,
    );
    run(
        &[&["quantize", "whole.gguf", "-o", "b.gguf"], how].concat(),
        dir,
    );
    assert!(read(dir, "a.gguf") == read(dir, "b.gguf"), "{how:?}");
    Gguf::open(dir.join("a.gguf")).unwrap()
}

#[test]
fn a_folder_gives_the_bytes_of_its_converted_file() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let source = support::oracle("qwen3_moe");
    std::os::unix::fs::symlink(&source, dir.join("folder")).unwrap();
    run(
        &[&["convert", "folder", "-o", "whole.gguf"], &FOLDER[..]].concat(),
        dir,
    );
    // With an analysis of its own, effects measured: the model is run without a file of it.
    let measured = [
        "--bpw",
        "8",
        "--chunks",
        "2",
        "--ctx",
        "64",
        "--save-analysis",
        "m.moqa",
    ];
    let small = compare(dir, &measured);
    let quantized = small.tensors.iter().filter(|t| t.ty.is_quantized()).count();
    assert!(quantized > 4, "{quantized}");
    // With given statistics, and for a preset's size, which llama.cpp is asked for.
    compare(
        dir,
        &["--bpw", "6", "--analysis", "m.moqa", "--sensitivity", "0"],
    );
    compare(dir, &["--like", "Q4_0", "--analysis", "m.moqa"]);
    let mut left: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["a.gguf", "b.gguf", "folder", "m.moqa", "whole.gguf"]);
}

#[test]
fn shards_and_wide_rows_give_the_same_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    model().write_sharded(&dir.join("folder"), 3);
    run(
        &[&["convert", "folder", "-o", "whole.gguf"], &FOLDER[..]].concat(),
        dir,
    );
    let whole = Gguf::open(dir.join("whole.gguf")).unwrap();
    assert_eq!(
        whole.tensor("blk.1.ffn_up_exps.weight").unwrap().ty,
        GgmlType::BF16
    );
    let choice = |name: &str, ty| TensorChoice {
        experts: Vec::new(),
        name: name.to_owned(),
        ty,
        bytes: 0,
        error: 0.0,
        cost: 0.0,
    };
    let plan = Plan {
        tensors: vec![
            choice("blk.0.ffn_up_exps.weight", GgmlType::Q4_K),
            choice("blk.1.ffn_down_exps.weight", GgmlType::Q2_K),
            choice("blk.1.attn_q.weight", GgmlType::Q8_0),
            choice("output.weight", GgmlType::Q6_K),
        ],
        ..Plan::default()
    };
    std::fs::write(dir.join("p.toml"), plan.to_toml()).unwrap();
    let small = compare(dir, &["--plan", "p.toml", "--no-analysis"]);
    assert_eq!(
        small.tensor("blk.0.ffn_up_exps.weight").unwrap().ty,
        GgmlType::Q4_K
    );
    // And in shards.
    run(
        &[
            &[
                "convert",
                "folder",
                "-o",
                "split.gguf",
                "--split-max-size",
                "1MB",
            ],
            &FOLDER[..],
        ]
        .concat(),
        dir,
    );
    let first = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("split-00001-of-"))
        .unwrap();
    let split = Gguf::open(first).unwrap();
    assert!(split.parts.len() > 1 && split.metadata == whole.metadata);
    for t in &whole.tensors {
        assert!(
            whole.data(t) == split.data(split.tensor(&t.name).unwrap()),
            "{}",
            t.name
        );
    }
}

#[test]
fn sources_are_not_overwritten_and_files_are_no_folders() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    model().write(&dir.join("folder"));
    let before = read(dir, "folder/config.json");
    for target in [
        "folder/config.json",
        "folder/model.safetensors",
        "folder/tokenizer.json",
    ] {
        let output = moqa(
            &[
                "convert",
                "folder",
                "-o",
                target,
                "--pre-tokenizer",
                "qwen2",
            ],
            dir,
        );
        assert!(!output.status.success(), "{target}");
    }
    assert!(read(dir, "folder/config.json") == before);
    let output = moqa(
        &["convert", "folder/model.safetensors", "-o", "x.gguf"],
        dir,
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("not a folder"), "{error}");
    assert!(!dir.join("x.gguf").exists());
}

/// Anonymous and shared memory of a process in bytes: what it needs beyond the mapped files, whose pages the
/// system takes back when it wants.
fn own_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    Some((kib("RssAnon:")? + kib("RssShmem:")?) << 10)
}

/// Writes 9 GiB and reads them twice; run with `--run-ignored all`.
#[test]
#[ignore = "needs 24 GiB of disk and some minutes"]
fn a_large_folder_is_quantized_in_bounded_memory() {
    const HIDDEN: usize = 2048;
    const WIDTH: usize = 2048;
    const EXPERTS: usize = 64;
    const LAYERS: usize = 6;
    let tmp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = tmp.path();
    let folder = dir.join("folder");
    let mut small = support::Model::new(
        "Qwen3MoeForCausalLM",
        json!({"hidden_size": HIDDEN, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
            "num_hidden_layers": LAYERS, "num_experts": EXPERTS, "num_experts_per_tok": 4,
            "moe_intermediate_size": WIDTH}),
    );
    let noise = small.values(1 << 20);
    let block = support::Data::bf16(&[1 << 20], &noise).bytes;
    small.tensors.clear();
    small.write(&folder);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();

    let mut map = serde_json::Map::new();
    let mut total = 0u64;
    let mut shard = |number: usize, tensors: &[(String, Vec<usize>)]| {
        let file = format!("model-{number:05}-of-{:05}.safetensors", LAYERS + 1);
        let mut header = serde_json::Map::new();
        let mut at = 0;
        for (name, shape) in tensors {
            let end = at + 2 * shape.iter().product::<usize>();
            header.insert(
                name.clone(),
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}),
            );
            map.insert(name.clone(), json!(file));
            at = end;
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut out = std::fs::File::create(folder.join(&file)).unwrap();
        out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        out.write_all(&header).unwrap();
        total += at as u64;
        while at > 0 {
            let n = at.min(block.len());
            out.write_all(&block[..n]).unwrap();
            at -= n;
        }
    };
    for layer in 0..LAYERS {
        let mut tensors: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize]| {
            tensors.insert(format!("model.layers.{layer}.{name}"), shape.to_vec());
        };
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
        add("self_attn.q_proj.weight", &[2048, HIDDEN]);
        add("self_attn.k_proj.weight", &[512, HIDDEN]);
        add("self_attn.v_proj.weight", &[512, HIDDEN]);
        add("self_attn.o_proj.weight", &[HIDDEN, 2048]);
        add("self_attn.q_norm.weight", &[128]);
        add("self_attn.k_norm.weight", &[128]);
        add("mlp.gate.weight", &[EXPERTS, HIDDEN]);
        for expert in 0..EXPERTS {
            add(
                &format!("mlp.experts.{expert}.gate_proj.weight"),
                &[WIDTH, HIDDEN],
            );
            add(
                &format!("mlp.experts.{expert}.up_proj.weight"),
                &[WIDTH, HIDDEN],
            );
            add(
                &format!("mlp.experts.{expert}.down_proj.weight"),
                &[HIDDEN, WIDTH],
            );
        }
        shard(layer + 1, &tensors.into_iter().collect::<Vec<_>>());
    }
    shard(
        LAYERS + 1,
        &[
            ("lm_head.weight".to_owned(), vec![512, HIDDEN]),
            ("model.embed_tokens.weight".to_owned(), vec![512, HIDDEN]),
            ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ],
    );
    assert!(total >= 8 << 30, "{total}");
    let index = serde_json::to_vec(&json!({"weight_map": map})).unwrap();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();

    let experts = ["gate", "up", "down"].into_iter().flat_map(|part| {
        (0..LAYERS).map(move |layer| TensorChoice {
            experts: Vec::new(),
            name: format!("blk.{layer}.ffn_{part}_exps.weight"),
            ty: GgmlType::Q4_0,
            bytes: 0,
            error: 0.0,
            cost: 0.0,
        })
    });
    let plan = Plan {
        tensors: experts.collect(),
        ..Plan::default()
    };
    std::fs::write(dir.join("plan.toml"), plan.to_toml()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_moqa"))
        .args([
            "quantize",
            "folder",
            "-o",
            "small.gguf",
            "--pre-tokenizer",
            "qwen2",
            "--quiet",
        ])
        .args(["--plan", "plan.toml", "--no-analysis", "--threads", "2"])
        .current_dir(dir)
        .spawn()
        .unwrap();
    let mut peak = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        peak = peak.max(own_memory(child.id()).unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(status.success());
    eprintln!("{total} bytes of weights, peak of {peak} bytes of memory");
    assert!(peak > 0 && peak < 1 << 30, "{peak}");

    run(
        &[
            "convert",
            "folder",
            "-o",
            "whole.gguf",
            "--pre-tokenizer",
            "qwen2",
        ],
        dir,
    );
    run(
        &[
            "quantize",
            "whole.gguf",
            "-o",
            "other.gguf",
            "--plan",
            "plan.toml",
            "--no-analysis",
        ],
        dir,
    );
    let digest = |name: &str| {
        let mut hasher = blake3::Hasher::new();
        hasher.update_mmap(dir.join(name)).unwrap();
        hasher.finalize()
    };
    assert_eq!(digest("small.gguf"), digest("other.gguf"));
}
