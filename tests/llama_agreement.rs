//! Agreement with llama.cpp: quantized bytes, importance data, perplexity and divergence.

mod common;

use std::collections::BTreeMap;

use common::{lab_model, moqa_ok, s, science_imatrix, science_text};
use moqa::analysis::{Importance, Unreached, imatrix};
use moqa::encode::{EncodeOptions, encode, output_metadata};
use moqa::gguf::{GgmlType, Gguf};
use moqa::progress::Progress;
use moqa::runtime::{preset_types, write_preset};

/// Hash of all tensor data in order of name.
fn data_hash(file: &Gguf) -> String {
    let mut tensors: Vec<_> = file.tensors.iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = blake3::Hasher::new();
    for t in tensors {
        hasher.update(t.name.as_bytes());
        hasher.update(&t.ty.id().to_le_bytes());
        hasher.update(file.data(t));
    }
    hasher.finalize().to_hex().to_string()
}

/// Every quantizable tensor of the model as Q3_K.
fn all_q3_k() -> BTreeMap<String, GgmlType> {
    let model = Gguf::open(lab_model()).unwrap();
    let floats = model.tensors.iter().filter(|t| t.ty == GgmlType::BF16);
    floats.map(|t| (t.name.clone(), GgmlType::Q3_K)).collect()
}

fn importance() -> Importance {
    Importance::new(&imatrix::read(science_imatrix()).unwrap(), Unreached::Ones)
}

fn encode_as(
    types: &BTreeMap<String, GgmlType>,
    target: &std::path::Path,
    n_threads: usize,
) -> Gguf {
    let source = Gguf::open(lab_model()).unwrap();
    let metadata = output_metadata(&source, types, &[]);
    let options = EncodeOptions {
        n_threads,
        split_max_bytes: None,
    };
    encode(
        &source,
        &metadata,
        types,
        &importance(),
        target,
        &options,
        &Progress::quiet(),
    )
    .unwrap();
    Gguf::open(target).unwrap()
}

/// The hash was taken from the file that the real llama-quantize (llama.cpp of October 2026, its own build)
/// wrote: `llama-quantize --pure --imatrix lab-moe.science.imatrix.gguf lab-moe.gguf out.gguf Q3_K_S 2`.
#[test]
fn a_uniform_plan_gives_the_bytes_of_llama_quantize() {
    const LLAMA_QUANTIZE: &str = "fd0875ca4fd24df28d64f8d51db99ed0b0388d87281674b6091f06c05fb5a7d3";
    let dir = tempfile::tempdir().unwrap();
    let types = all_q3_k();
    for n_threads in [1, 3] {
        let ours = encode_as(&types, &dir.path().join("ours.gguf"), n_threads);
        assert_eq!(data_hash(&ours), LLAMA_QUANTIZE, "{n_threads} threads");
    }
}

/// Every type that both can write, spread over the tensors, against libllama's own quantize function.
#[test]
fn every_type_has_the_bytes_of_libllama() {
    let dir = tempfile::tempdir().unwrap();
    let source = Gguf::open(lab_model()).unwrap();
    let all: Vec<GgmlType> = GgmlType::ALL
        .iter()
        .copied()
        .filter(|ty| ty.is_quantized() && moqa::ggml::can_encode(*ty))
        .collect();
    assert!(all.len() >= 24, "{all:?}");
    // Small tensors for all, so that each type occurs several times and the test stays quick.
    let small: Vec<&str> = source
        .tensors
        .iter()
        .filter(|t| t.ty == GgmlType::BF16 && t.name.contains("attn_"))
        .map(|t| t.name.as_str())
        .collect();
    let mut types: BTreeMap<String, GgmlType> = small
        .iter()
        .zip(all.iter().cycle())
        .map(|(n, ty)| (n.to_string(), *ty))
        .collect();
    // Experts: per-expert importance.
    for (i, ty) in [
        GgmlType::IQ2_XXS,
        GgmlType::Q2_K,
        GgmlType::IQ3_S,
        GgmlType::Q4_K,
    ]
    .into_iter()
    .enumerate()
    {
        types.insert(format!("blk.{i}.ffn_down_exps.weight"), ty);
    }
    for t in source.tensors.iter().filter(|t| t.ty == GgmlType::BF16) {
        types.entry(t.name.clone()).or_insert(GgmlType::Q8_0);
    }
    assert!(
        all.iter()
            .filter(|ty| types.values().any(|t| t == *ty))
            .count()
            >= 24
    );
    let theirs = dir.path().join("theirs.gguf");
    let overrides: Vec<(String, GgmlType)> = types
        .iter()
        .map(|(n, ty)| (format!("^{}$", regex::escape(n)), *ty))
        .collect();
    let preset = "Q8_0".parse().unwrap();
    write_preset(
        &lab_model(),
        &theirs,
        preset,
        2,
        Some(&importance().to_llama()),
        &overrides,
        false,
    )
    .unwrap();
    let theirs = Gguf::open(&theirs).unwrap();
    let ours = encode_as(&types, &dir.path().join("ours.gguf"), 2);
    for t in &ours.tensors {
        let other = theirs.tensor(&t.name).unwrap();
        assert_eq!((t.ty, t.dims), (other.ty, other.dims), "{}", t.name);
        assert!(ours.data(t) == theirs.data(other), "{} as {}", t.name, t.ty);
    }
}

#[test]
fn the_dry_run_predicts_what_a_preset_gives() {
    let dir = tempfile::tempdir().unwrap();
    for (name, with_importance) in [("Q4_K_M", false), ("IQ3_XXS", true), ("Q2_K", true)] {
        let preset = name.parse().unwrap();
        let file = dir.path().join(name);
        let data = with_importance.then(|| importance().to_llama());
        write_preset(&lab_model(), &file, preset, 2, data.as_ref(), &[], false).unwrap();
        let types = preset_types(&lab_model(), preset, with_importance).unwrap();
        let written = Gguf::open(&file).unwrap();
        assert_eq!(written.tensors.len(), types.len());
        for t in &written.tensors {
            assert_eq!(types[&t.name], t.ty, "{name}: {}", t.name);
        }
    }
}

/// `llama-imatrix --no-escape -m lab-moe.gguf -f science.txt -c 256 --process-output`, its real build.
#[test]
fn our_statistics_are_those_of_llama_imatrix() {
    let dir = tempfile::tempdir().unwrap();
    let (moqa_file, exported) = (dir.path().join("a.moqa"), dir.path().join("i.gguf"));
    moqa_ok(&[
        "analyze",
        s(&lab_model()),
        "-o",
        s(&moqa_file),
        "--text",
        s(&science_text()),
        "--ctx",
        "256",
        "--sensitivity",
        "0",
        "--export-imatrix",
        s(&exported),
        "-q",
        "--threads",
        "2",
    ]);
    let theirs = imatrix::read(science_imatrix()).unwrap();
    let ours = imatrix::read(&exported).unwrap();
    assert_eq!(
        ours.weights.keys().collect::<Vec<_>>(),
        theirs.weights.keys().collect::<Vec<_>>()
    );
    assert_eq!(ours.origin.n_chunks, 17);
    for (name, w) in &theirs.weights {
        let o = &ours.weights[name];
        assert_eq!(o.counts, w.counts, "{name}");
        for e in 0..w.n_mat() {
            let range = e * w.n_in..(e + 1) * w.n_in;
            let scale: f64 = w.sum_sq[range.clone()]
                .iter()
                .map(|v| f64::from(*v))
                .sum::<f64>()
                / w.n_in as f64;
            let scale_sum = (w.count(e) * scale).sqrt();
            for i in range {
                let (a, b) = (f64::from(o.sum_sq[i]), f64::from(w.sum_sq[i]));
                assert!(
                    (a - b).abs() <= 1e-3 * b + 1e-6 * scale,
                    "{name}[{i}]: {a} and {b}"
                );
                let (a, b) = (f64::from(o.sum[i]), f64::from(w.sum[i]));
                assert!(
                    (a - b).abs() <= 1e-3 * b.abs() + 1e-4 * scale_sum,
                    "sum of {name}[{i}]: {a} and {b}"
                );
            }
        }
    }
}

/// Figures printed by the real llama-perplexity for the same files, `--no-escape -c 256 -f science.txt`:
/// `--kl-divergence-base` for the reference, then `--kl-divergence` for llama-quantize's pure Q3_K_S.
#[test]
fn evaluation_agrees_with_llama_perplexity() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("q3.gguf");
    let types = all_q3_k();
    encode_as(&types, &small, 2);
    let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-3 * b, "{a} and {b}");
    let eval = |args: &[&str]| -> serde_json::Value {
        let common = ["--ctx", "256", "--json", "-q", "--threads", "2"];
        serde_json::from_str(&moqa_ok(&[args, &common].concat())).unwrap()
    };

    let logits = dir.path().join("base.kld");
    let base = eval(&[
        "eval",
        s(&lab_model()),
        "--text",
        s(&science_text()),
        "--save-logits",
        s(&logits),
    ]);
    close(base["perplexity"]["value"].as_f64().unwrap(), 99.1384);

    let live = eval(&[
        "eval",
        s(&small),
        "--against",
        s(&lab_model()),
        "--text",
        s(&science_text()),
    ]);
    let saved = eval(&["eval", s(&small), "--against", s(&logits)]);
    assert_eq!(live["divergence"], saved["divergence"]);
    close(live["perplexity"]["value"].as_f64().unwrap(), 100.620606);
    let d = &live["divergence"];
    close(
        d["reference_perplexity"]["value"].as_f64().unwrap(),
        98.709519,
    );
    close(d["perplexity_ratio"]["value"].as_f64().unwrap(), 1.019361);
    close(d["mean_kld"]["value"].as_f64().unwrap(), 0.045709);
    close(d["median_kld"].as_f64().unwrap(), 0.032988);
    close(d["kld_99"].as_f64().unwrap(), 0.261584);
    close(d["same_top"]["value"].as_f64().unwrap(), 0.83140);
    close(d["rms_delta_p"].as_f64().unwrap(), 0.03477);
}
