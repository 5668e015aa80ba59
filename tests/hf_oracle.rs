//! Conversions against llama.cpp's own (`tests/oracle/*/reference-bf16.gguf`, made from the files beside them by
//! convert_hf_to_gguf.py --outtype bf16) and against the logits of the transformers library.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moqa::analysis::{Analysis, Importance, Unreached};
use moqa::encode::{EncodeOptions, encode};
use moqa::gguf::{GgmlType, Gguf, Value};
use moqa::hf::vocab::VocabOptions;
use moqa::hf::{self, OutType};
use moqa::progress::Progress;
use moqa::runtime::{Context, ContextOptions, Model, ModelOptions};

/// The folders: family, and whether its vocabulary is BPE, for which the reference conversions were told the
/// pre-tokenizer's name.
const FAMILIES: &[(&str, bool)] = &[
    ("deepseek_v2", true),
    ("deepseek_v3", true),
    ("dots1", true),
    ("ernie4_5_moe", false),
    ("gpt_oss", true),
    ("granitemoe", true),
    ("lfm2_moe", true),
    ("llama4_text", true),
    ("minimax_m2", true),
    ("mixtral", true),
    ("mixtral_spm", false),
    ("olmoe", true),
    ("qwen2_moe", true),
    ("qwen3_moe", true),
];

/// Models that llama.cpp refuses, the reference conversions as ours: it recognises DeepSeek-V2-Lite, which has no
/// low-rank queries, by its number of layers, and wants as many key heads as query heads of dots.llm1 and OLMoE.
const NOT_RUN: &[&str] = &["deepseek_v2", "dots1", "olmoe"];

/// A model that llama.cpp loads but ends the process on, the reference conversion as ours: with two layers, none
/// attends globally, and the input for these has no buffer.
const ABORTS: &str = "llama4_text";

/// Reference conversions that llama.cpp refuses or ends the process on, for the reasons under [`DIFFERENCES`].
const REFERENCE_FAILS: &[&str] = &["ernie4_5_moe", "minimax_m2"];

/// Keys whose values differ or that are added, each with our value and the reason.
const DIFFERENCES: &[(&str, &str, u32)] = &[
    // The reference divides the dense width by the number of key heads and gets 48, which is the shared experts'
    // width in the published models only; llama.cpp then refuses the tensors, whose width is 32.
    (
        "ernie4_5_moe",
        "ernie4_5-moe.expert_shared_feed_forward_length",
        32,
    ),
    // These families gate by a sigmoid. The published checkpoints say so in a field that transformers does not
    // need and does not write; without the key llama.cpp takes a softmax or ends the process.
    ("deepseek_v3", "deepseek2.expert_gating_func", 2),
    ("dots1", "dots1.expert_gating_func", 2),
    ("minimax_m2", "minimax-m2.expert_gating_func", 2),
];

fn oracle(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle")
        .join(family)
}

fn options(bpe: bool, ty: OutType) -> hf::Options {
    hf::Options {
        out_type: ty,
        vocab: VocabOptions {
            pre_tokenizer: bpe.then(|| "qwen2".to_owned()),
        },
    }
}

fn convert(family: &str, bpe: bool) -> Gguf {
    let out_type = OutType::Fixed(GgmlType::BF16);
    hf::open(&oracle(family), &options(bpe, out_type))
        .unwrap_or_else(|e| panic!("{family}: {e:#}"))
        .gguf
}

#[test]
fn every_folder_is_compared() {
    let mut folders: Vec<String> = std::fs::read_dir(oracle(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with('.'))
        .collect();
    folders.sort();
    assert_eq!(
        folders,
        FAMILIES.iter().map(|(f, _)| *f).collect::<Vec<_>>()
    );
}

#[test]
fn conversions_equal_those_of_llama_cpp() {
    for (family, bpe) in FAMILIES {
        let ours = convert(family, *bpe);
        let theirs = Gguf::open(oracle(family).join("reference-bf16.gguf")).unwrap();
        let ours_only = |key: &str| {
            DIFFERENCES
                .iter()
                .find(|(f, k, _)| f == family && *k == key)
        };
        for (key, value) in ours.metadata.iter() {
            match ours_only(key) {
                Some((.., stated)) => {
                    assert_eq!(*value, Value::U32(*stated), "{family}: {key}");
                    assert_ne!(theirs.metadata.get(key), Some(value), "{family}: {key}");
                }
                None => assert_eq!(theirs.metadata.get(key), Some(value), "{family}: {key}"),
            }
        }
        // No other key is missing or added, and the order is the same.
        let keys = |g: &Gguf| -> Vec<String> {
            g.metadata
                .iter()
                .map(|(k, _)| k.to_owned())
                .filter(|k| ours_only(k).is_none())
                .collect()
        };
        assert_eq!(keys(&ours), keys(&theirs), "{family}");
        let specs = |g: &Gguf| -> Vec<_> { g.tensors.iter().map(|t| t.spec()).collect() };
        assert_eq!(specs(&ours), specs(&theirs), "{family}");
        for (a, b) in ours.tensors.iter().zip(&theirs.tensors) {
            let all = ours.rows(a, 0..a.n_rows()).unwrap();
            assert!(all[..] == *theirs.data(b), "{family}: {}", a.name);
            // Made in pieces that begin anywhere, the rows are the same.
            let mut pieces = Vec::new();
            let mut row = 0;
            while row < a.n_rows() {
                let n = (1 + row % 5).min(a.n_rows() - row);
                pieces.extend_from_slice(&ours.rows(a, row..row + n).unwrap());
                row += n;
            }
            assert!(pieces == all[..], "{family}: {} in pieces", a.name);
        }
    }
}

#[test]
fn written_files_equal_those_of_llama_cpp() {
    let dir = tempfile::tempdir().unwrap();
    for (family, bpe) in FAMILIES {
        let ours = convert(family, *bpe);
        let path = dir.path().join(format!("{family}.gguf"));
        write(&ours, &path);
        let reference = oracle(family).join("reference-bf16.gguf");
        if DIFFERENCES.iter().any(|(f, ..)| f == family) {
            continue;
        }
        assert!(
            std::fs::read(&path).unwrap() == std::fs::read(reference).unwrap(),
            "{family}"
        );
    }
}

fn write(gguf: &Gguf, path: &Path) {
    let options = EncodeOptions {
        n_threads: 2,
        split_max_bytes: None,
    };
    encode(
        gguf,
        &gguf.metadata,
        &BTreeMap::new(),
        &Importance::new(&Analysis::default(), Unreached::default()),
        path,
        &options,
        &Progress::new(true),
    )
    .unwrap();
}

/// The logits of transformers, `[sequence][position * vocabulary]`.
fn hf_logits(family: &str) -> (Vec<Vec<i32>>, Vec<Vec<f32>>) {
    let dir = oracle(family);
    let tokens: Vec<Vec<i32>> =
        serde_json::from_slice(&std::fs::read(dir.join("tokens.json")).unwrap()).unwrap();
    let npy = std::fs::read(dir.join("hf_logits.npy")).unwrap();
    assert_eq!(&npy[..8], b"\x93NUMPY\x01\x00");
    let header = usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let text = std::str::from_utf8(&npy[10..10 + header]).unwrap();
    assert!(
        text.contains("'<f4'") && text.contains("(2, 24, 512)"),
        "{text}"
    );
    let values: Vec<f32> = npy[10 + header..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let per_sequence = values.len() / tokens.len();
    assert_eq!(per_sequence, 24 * 512);
    (
        tokens,
        values.chunks(per_sequence).map(<[f32]>::to_vec).collect(),
    )
}

/// Mean squared difference of a model's logits from those of transformers.
fn distance(model: &Model, family: &str) -> f64 {
    let (tokens, expected) = hf_logits(family);
    let options = ContextOptions {
        n_ctx: tokens[0].len(),
        n_seq: 1,
        n_threads: 1,
        observable: false,
    };
    let mut context = Context::new(model, options).unwrap();
    let mut sum = 0.0;
    for (tokens, expected) in tokens.iter().zip(&expected) {
        let logits = context.evaluate(&[tokens], 0, None).unwrap()[0];
        assert_eq!(logits.len(), expected.len());
        for (a, b) in logits.iter().zip(expected) {
            sum += f64::from(a - b).powi(2);
        }
    }
    sum / (expected.len() * expected[0].len()) as f64
}

/// Loaded without a file, the models run, and their logits are as close to those of transformers as the
/// reference conversions'.
#[test]
fn logits_are_as_close_as_the_references() {
    for (family, bpe) in FAMILIES {
        let ours = convert(family, *bpe);
        let options = ModelOptions::default();
        if *family == ABORTS {
            continue;
        }
        let ours = Model::load_source(&ours, &options);
        if NOT_RUN.contains(family) {
            let theirs = Model::load(&oracle(family).join("reference-bf16.gguf"), &options);
            assert!(ours.is_err() && theirs.is_err());
            continue;
        }
        let a = distance(&ours.unwrap(), family);
        if REFERENCE_FAILS.contains(family) {
            eprintln!("{family}: {a:.3e}");
        } else {
            let theirs = Model::load(&oracle(family).join("reference-bf16.gguf"), &options);
            let b = distance(&theirs.unwrap(), family);
            eprintln!("{family}: {a:.3e}, reference {b:.3e}");
            assert!(a <= b, "{family}: {a} against {b}");
        }
        // The figure says something: logits of another sequence of tokens are much farther away.
        let (_, logits) = hf_logits(family);
        let n = logits[0].len() as f64;
        let spread: f64 = (logits[0].iter().zip(&logits[1]))
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            / n;
        assert!(
            a < spread / 4.0,
            "{family}: {a}, sequences differ by {spread}"
        );
    }
}

#[test]
fn other_types_follow_the_same_rules() {
    for (out_type, expected, file_type) in [
        (OutType::Auto, GgmlType::BF16, 32u32),
        (OutType::Fixed(GgmlType::F16), GgmlType::F16, 1),
        (OutType::Fixed(GgmlType::F32), GgmlType::F32, 0),
        (OutType::Fixed(GgmlType::Q8_0), GgmlType::Q8_0, 7),
    ] {
        let ours = hf::open(&oracle("qwen3_moe"), &options(true, out_type))
            .unwrap()
            .gguf;
        let reference = convert("qwen3_moe", true);
        assert_eq!(
            ours.metadata.get_u64("general.file_type"),
            Some(file_type.into())
        );
        for (a, b) in ours.tensors.iter().zip(&reference.tensors) {
            let ty = if b.ty == GgmlType::F32 {
                GgmlType::F32
            } else {
                expected
            };
            assert_eq!((&a.name, a.ty), (&b.name, ty));
            let mut values = [
                vec![0f32; a.n_elems() as usize],
                vec![0f32; a.n_elems() as usize],
            ];
            for ((gguf, t), out) in [(&ours, a), (&reference, b)].into_iter().zip(&mut values) {
                let rows = gguf.rows(t, 0..t.n_rows()).unwrap();
                moqa::ggml::decode(t.ty, &rows, out).unwrap();
            }
            let [a_values, b_values] = values;
            let largest = b_values.iter().fold(0f32, |m, v| m.max(v.abs()));
            // Half a step of the coarsest type, Q8_0: the largest magnitude of a block over 127.
            let bound = if expected == GgmlType::Q8_0 {
                largest / 250.0
            } else {
                largest / 2048.0
            };
            for (x, y) in a_values.iter().zip(&b_values) {
                assert!((x - y).abs() <= bound, "{}: {x} and {y}", a.name);
            }
        }
    }
}
