//! imatrix files of both forms, the `.moqa` file, and what hostile files do to their readers.

use std::path::{Path, PathBuf};

use moqa::analysis::{
    Analysis, Coactivation, Domain, Probe, RouterStats, TensorErrors, WeightStats, digest, imatrix,
    load, save,
};
use moqa::gguf::{
    DEFAULT_VERSION, GgmlType, Gguf, GgufLayout, GgufWriter, Metadata, Shape, TensorSpec, Value,
};

fn shared(file: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("MOQA_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = shared.join(file);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// Statistics of experts, one of them unreached, of an ordinary weight, and of several matrices with one
/// count; values that no decimal notation keeps.
fn analysis() -> Analysis {
    let values = |n: usize, seed: f32| -> Vec<f32> {
        (0..n).map(|i| (seed + i as f32).sqrt() * 1e3).collect()
    };
    let signed = |n: usize, seed: f32| -> Vec<f32> {
        (0..n).map(|i| (seed + i as f32).sin() * 1e2).collect()
    };
    let mut a = Analysis::default();
    a.origin.architecture = "qwen3moe".into();
    a.origin.model_digest = "blake3:00".into();
    a.origin.datasets = vec!["calib/α.txt".into(), String::new()];
    a.origin.n_ctx = 256;
    a.origin.n_chunks = 7;
    let mut experts = values(3 * 8, 2.0);
    experts[8..16].fill(0.0);
    a.weights.insert(
        "blk.0.ffn_up_exps.weight".into(),
        WeightStats {
            n_in: 8,
            counts: vec![700.0, 0.0, 16_777_217.0],
            sum_sq: experts,
            sum: signed(24, 1.0),
        },
    );
    a.weights.insert(
        "blk.0.attn_q.weight".into(),
        WeightStats {
            n_in: 8,
            counts: vec![1792.0],
            sum_sq: values(8, 3.0),
            sum: Vec::new(),
        },
    );
    a.weights.insert(
        "blk.0.attn_k_b.weight".into(),
        WeightStats {
            n_in: 4,
            counts: vec![1792.5],
            sum_sq: values(12, 5.0),
            sum: signed(12, 2.0),
        },
    );
    let mut router = RouterStats::new(3, 2);
    router.tokens = 1792.0;
    router.counts = vec![700.0, 0.0, 2884.0];
    router.gate_mass = vec![1.0 / 3.0, 0.0, -0.1];
    router.gate_mass_sq = vec![1e-300, 0.0, std::f64::consts::PI];
    let of_domain = |name: &str| Domain {
        name: name.into(),
        routers: [(0, router.clone()), (11, router.clone())].into(),
        ..Domain::default()
    };
    a.domains = vec![of_domain("code"), of_domain("prose")];
    a.domains[1].keep_channels(&a.weights);
    assert!(!a.domains[1].weights.is_empty());
    let mut together = Coactivation::new(3);
    together.add(&[0, 2]);
    a.coactivation.insert(11, together);
    let errors = TensorErrors {
        energy: vec![1.0, 1e-300, 0.1 + 0.2],
        by_type: [
            (GgmlType::Q4_K, vec![0.01, 0.02, 0.03]),
            (GgmlType::IQ2_XS, vec![0.1, 0.2, 0.3]),
        ]
        .into(),
    };
    a.errors.insert("blk.0.ffn_up_exps.weight", errors);
    a.routers.insert(0, router.clone());
    a.routers.insert(11, router);
    a.probes.push(Probe {
        tensor: "blk.0.attn_q.weight".into(),
        ty: GgmlType::IQ2_XXS,
        kld: 0.1 + 0.2,
        by_domain: vec![0.25, 0.5],
    });
    a.probes.push(Probe {
        tensor: "blk.0.attn_q.weight".into(),
        ty: GgmlType::Q4_K,
        kld: 0.0,
        by_domain: vec![0.0, 1e-9],
    });
    a
}

/// What the GGUF form of an imatrix file keeps of [`analysis`].
fn as_imatrix(mut a: Analysis) -> Analysis {
    a.origin.architecture.clear();
    a.origin.model_digest.clear();
    a.routers.clear();
    a.domains.clear();
    a.coactivation.clear();
    a.errors = Default::default();
    a.probes.clear();
    for w in a.weights.values_mut() {
        w.counts.iter_mut().for_each(|c| *c = f64::from(*c as f32));
        if w.counts.len() == 1 {
            w.n_in = w.sum_sq.len();
        }
    }
    a
}

/// A model with the tensors that [`analysis`] is about, less those in `without`.
fn model(tensors: &[(&str, &[u64])]) -> Gguf {
    let specs = tensors
        .iter()
        .map(|(name, dims)| TensorSpec {
            name: (*name).into(),
            dims: Shape::new(dims).unwrap(),
            ty: GgmlType::F32,
        })
        .collect();
    let layout = GgufLayout::new(&Metadata::new(), specs, DEFAULT_VERSION).unwrap();
    let mut writer = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in layout.tensors() {
        writer
            .write_tensor(&t.spec.name, &vec![0; t.n_bytes as usize])
            .unwrap();
    }
    Gguf::from_bytes("model.gguf", writer.finish().unwrap()).unwrap()
}

#[test]
fn the_moqa_file_is_lossless_and_deterministic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.moqa");
    for a in [analysis(), Analysis::default()] {
        save(&path, &a).unwrap();
        assert_eq!(load(&path).unwrap(), a);
        let first = std::fs::read(&path).unwrap();
        assert_eq!(
            digest(&a).unwrap(),
            format!("blake3:{}", blake3::hash(&first).to_hex())
        );
        save(&path, &load(&path).unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }
    // Nothing else is left in the folder.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let mut other = analysis();
    other.probes[0].kld = 0.3;
    assert_ne!(digest(&other).unwrap(), digest(&analysis()).unwrap());
}

#[test]
fn what_is_not_valid_is_not_saved_and_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.moqa");
    save(&path, &analysis()).unwrap();
    let before = std::fs::read(&path).unwrap();
    type Spoil<'a> = (&'a dyn Fn(&mut Analysis), &'a str);
    let spoil: [Spoil; 6] = [
        (
            &|a| a.weights.get_mut("blk.0.attn_q.weight").unwrap().sum_sq[3] = f32::NAN,
            "blk.0.attn_q.weight",
        ),
        (
            &|a| {
                a.weights
                    .get_mut("blk.0.attn_q.weight")
                    .unwrap()
                    .sum_sq
                    .clear()
            },
            "blk.0.attn_q.weight",
        ),
        (
            &|a| a.routers.get_mut(&11).unwrap().gate_mass.push(0.0),
            "layer 11",
        ),
        (
            &|a| a.routers.get_mut(&11).unwrap().counts[0] = -1.0,
            "layer 11",
        ),
        (&|a| a.probes[0].kld = f64::INFINITY, "iq2_xxs"),
        (
            &|a| {
                let w = a.weights["blk.0.attn_q.weight"].clone();
                a.weights.insert("moqa.router.0".into(), w);
            },
            "moqa.router.0",
        ),
    ];
    for (spoil, needle) in spoil {
        let mut a = analysis();
        spoil(&mut a);
        let text = format!("{:#}", save(&path, &a).unwrap_err());
        assert!(text.contains("a.moqa") && text.contains(needle), "{text}");
        assert!(digest(&a).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// The file with its metadata changed by `edit` and the tensors that `keep` lets through.
fn rewritten(path: &Path, edit: impl Fn(&mut Metadata), keep: impl Fn(&str) -> bool) -> Vec<u8> {
    let gguf = Gguf::open(path).unwrap();
    let mut meta = gguf.metadata.clone();
    edit(&mut meta);
    let kept: Vec<_> = gguf.tensors.iter().filter(|t| keep(&t.name)).collect();
    let layout = GgufLayout::new(
        &meta,
        kept.iter().map(|t| t.spec()).collect(),
        DEFAULT_VERSION,
    )
    .unwrap();
    let mut writer = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in kept {
        writer.write_tensor(&t.name, gguf.data(t)).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn a_moqa_file_that_contradicts_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.moqa");
    let bad = dir.path().join("bad.moqa");
    save(&path, &analysis()).unwrap();
    let refused = |bytes: Vec<u8>, needle: &str| {
        std::fs::write(&bad, bytes).unwrap();
        let text = format!("{:#}", load(&bad).unwrap_err());
        assert!(text.contains("bad.moqa") && text.contains(needle), "{text}");
    };
    let all = |_: &str| true;
    let version = "moqa.analysis.version";
    refused(
        rewritten(&path, |m| drop(m.set(version, 2u32)), all),
        "update moqa",
    );
    refused(
        rewritten(&path, |m| drop(m.set(version, 1u64)), all),
        version,
    );
    let keys: Vec<String> = Gguf::open(&path)
        .unwrap()
        .metadata
        .iter()
        .map(|(k, _)| k.to_owned())
        .collect();
    for key in keys.iter().filter(|k| k.starts_with("moqa.")) {
        refused(rewritten(&path, |m| drop(m.remove(key)), all), key);
        refused(
            rewritten(&path, |m| drop(m.set(key.as_str(), true)), all),
            key,
        );
    }
    for tensor in Gguf::open(&path).unwrap().tensors {
        // Plain sums and co-activation may be absent.
        if !tensor.name.ends_with(".in_sum") && !tensor.name.ends_with(".together") {
            let stem = tensor.name.rsplit_once('.').unwrap().0;
            refused(rewritten(&path, |_| (), |n| n != tensor.name), stem);
        }
    }
    let strings = |s: &[&str]| Value::Array(moqa::gguf::Array::Str(s.iter().collect()));
    refused(
        rewritten(
            &path,
            |m| drop(m.set("moqa.probes.type", strings(&["q4_K", "q9"]))),
            all,
        ),
        "q9",
    );
    refused(
        rewritten(
            &path,
            |m| drop(m.set("moqa.probes.type", strings(&["q4_K"]))),
            all,
        ),
        "the arrays of moqa.probes have",
    );
    let layers = |l: &[u64]| Value::Array(moqa::gguf::Array::U64(l.to_vec()));
    refused(
        rewritten(&path, |m| drop(m.set("moqa.routers", layers(&[0]))), all),
        "belong to an analysis",
    );
    refused(
        rewritten(&path, |m| drop(m.set("moqa.routers", layers(&[0, 0]))), all),
        "twice",
    );
}

#[test]
fn the_gguf_form_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.gguf");
    imatrix::write(&path, &analysis()).unwrap();
    let mut read = imatrix::read(&path).unwrap();
    assert_eq!(read, as_imatrix(analysis()));
    assert_eq!(load(&path).unwrap(), read);

    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.metadata.get_str("general.type"), Some("imatrix"));
    let names: Vec<&str> = gguf.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names[..3],
        [
            "blk.0.attn_k_b.weight.in_sum2",
            "blk.0.attn_k_b.weight.counts",
            "blk.0.attn_k_b.weight.in_sum"
        ]
    );
    assert_eq!(
        &gguf
            .tensor("blk.0.ffn_up_exps.weight.in_sum2")
            .unwrap()
            .dims[..],
        [8, 3]
    );
    assert_eq!(
        &gguf.tensor("blk.0.ffn_up_exps.weight.counts").unwrap().dims[..],
        [1, 3]
    );
    assert_eq!(
        &gguf.tensor("blk.0.attn_k_b.weight.in_sum2").unwrap().dims[..],
        [12]
    );

    // The model gives back the rows, and drops what it lacks.
    let model = model(&[
        ("blk.0.ffn_up_exps.weight", &[8, 16, 3]),
        ("blk.0.attn_k_b.weight", &[4, 5, 3]),
    ]);
    assert_eq!(
        imatrix::fit_to_model(&mut read, &model).unwrap(),
        ["blk.0.attn_q.weight"]
    );
    assert_eq!(read.weights.len(), 2);
    assert_eq!(read.weights["blk.0.attn_k_b.weight"].n_in, 4);
    assert_eq!(
        read.weights["blk.0.ffn_up_exps.weight"],
        as_imatrix(analysis()).weights["blk.0.ffn_up_exps.weight"]
    );
}

#[test]
fn statistics_of_another_shape_are_refused_unchanged() {
    for dims in [[8, 16, 4], [4, 16, 6], [16, 16, 3], [0, 16, 3]] {
        let mut a = analysis();
        let gguf = model(&[
            ("blk.0.attn_q.weight", &[8, 8]),
            ("blk.0.ffn_up_exps.weight", &dims),
        ]);
        let text = format!("{:#}", imatrix::fit_to_model(&mut a, &gguf).unwrap_err());
        assert!(
            text.contains("blk.0.ffn_up_exps.weight") && text.contains(&format!("{dims:?}")),
            "{text}"
        );
        assert!(text.contains("3 matrices of 8"), "{text}");
        assert_eq!(a, analysis());
    }
}

#[test]
fn the_older_form_keeps_the_means() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.dat");
    let a = analysis();
    imatrix::write_dat(&path, &a).unwrap();
    let read = load(&path).unwrap();
    assert_eq!(read.origin.n_chunks, 7);
    // The last dataset's name, which is empty here.
    assert!(read.origin.datasets.is_empty());
    assert_eq!(read.weights.len(), 3);
    for (name, ours) in &a.weights {
        let theirs = &read.weights[name];
        assert!(theirs.sum.is_empty() && theirs.counts.len() == 1);
        assert_eq!(
            (theirs.n_in, theirs.sum_sq.len()),
            (ours.sum_sq.len(), ours.sum_sq.len())
        );
        for i in 0..ours.sum_sq.len() {
            let count = ours.count(i / ours.n_in);
            let expected = if count > 0.0 {
                f64::from(ours.sum_sq[i]) / count
            } else {
                1.0
            };
            let mean = f64::from(theirs.sum_sq[i]) / theirs.counts[0];
            assert!(
                (mean - expected).abs() <= 4e-7 * expected,
                "{name}[{i}]: {mean} {expected}"
            );
        }
    }

    // Bytes as documented, without the optional trailer and without calls: the values are the means.
    let mut bytes = Vec::new();
    for n in [1i32, 1] {
        bytes.extend(n.to_le_bytes());
    }
    bytes.push(b'w');
    for n in [0i32, 2] {
        bytes.extend(n.to_le_bytes());
    }
    for v in [0.25f32, 3.0] {
        bytes.extend(v.to_le_bytes());
    }
    std::fs::write(&path, &bytes).unwrap();
    let w = &imatrix::read(&path).unwrap().weights["w"];
    assert_eq!(
        (
            w.sum_sq[0] / w.counts[0] as f32,
            w.sum_sq[1] / w.counts[0] as f32
        ),
        (0.25, 3.0)
    );
}

#[test]
fn damaged_files_give_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad");
    let refused = |bytes: &[u8]| -> String {
        std::fs::write(&path, bytes).unwrap();
        let text = format!("{:#}", load(&path).unwrap_err());
        assert!(text.contains("bad"), "{text}");
        text
    };
    let (dat, gguf, moqa) = (
        dir.path().join("d"),
        dir.path().join("g"),
        dir.path().join("m"),
    );
    let mut a = analysis();
    a.origin.datasets = vec!["text".into()];
    imatrix::write_dat(&dat, &a).unwrap();
    imatrix::write(&gguf, &a).unwrap();
    save(&moqa, &a).unwrap();

    // The older form may end after its entries or after the chunk count.
    let bytes = std::fs::read(&dat).unwrap();
    let trailer = bytes.len() - 12;
    for len in 0..bytes.len() {
        if len != trailer && len != trailer + 4 {
            refused(&bytes[..len]);
        }
    }
    refused(&[&bytes[..], b"x"].concat());
    for whole in [std::fs::read(&gguf).unwrap(), std::fs::read(&moqa).unwrap()] {
        // The last 32 bytes may be padding only.
        for len in 0..whole.len() - 32 {
            refused(&whole[..len]);
        }
    }

    // Lengths that are not there must not be allocated or believed.
    for field in [i32::MAX, -1, i32::MIN] {
        for at in [0, 4] {
            let mut bad = bytes.clone();
            bad[at..at + 4].copy_from_slice(&field.to_le_bytes());
            refused(&bad);
        }
        // After the first name: calls, then values.
        let at = 8 + "blk.0.attn_k_b.weight".len();
        let mut bad = bytes.clone();
        bad[at + 4..at + 8].copy_from_slice(&field.to_le_bytes());
        assert!(refused(&bad).contains("blk.0.attn_k_b.weight"));
    }
    let at = 8 + "blk.0.attn_k_b.weight".len() + 8;
    for v in [f32::NAN, f32::INFINITY, -1.0, f32::MAX] {
        let mut bad = bytes.clone();
        bad[at..at + 4].copy_from_slice(&v.to_le_bytes());
        assert!(refused(&bad).contains("blk.0.attn_k_b.weight"));
    }

    let all = |_: &str| true;
    assert!(refused(&rewritten(&gguf, |_| (), |n| n.contains("nothing"))).contains("imatrix"));
    assert!(
        refused(&rewritten(
            &gguf,
            |_| (),
            |n| !n.ends_with("q.weight.counts")
        ))
        .contains("blk.0.attn_q.weight.counts")
    );
    assert!(
        refused(&rewritten(
            &gguf,
            |_| (),
            |n| !n.ends_with("q.weight.in_sum2")
        ))
        .contains("blk.0.attn_q.weight.in_sum2")
    );
    assert!(
        refused(&rewritten(
            &gguf,
            |m| drop(m.set("imatrix.chunk_count", -1i32)),
            all
        ))
        .contains("imatrix.chunk_count")
    );
    // Counts of another type are those of an analysis, not of an imatrix file.
    assert!(
        refused(&rewritten(
            &moqa,
            |m| drop(m.set("general.type", "imatrix")),
            all
        ))
        .contains("f64")
    );

    assert!(imatrix::write(dir.path().join("e"), &Analysis::default()).is_err());
    assert!(imatrix::write_dat(dir.path().join("e"), &Analysis::default()).is_err());
    assert!(!dir.path().join("e").exists());
    assert!(load(dir.path()).is_err());
    assert!(load(dir.path().join("missing")).is_err());
}

#[test]
fn every_single_bit_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flip");
    let files = [
        dir.path().join("d"),
        dir.path().join("g"),
        dir.path().join("m"),
    ];
    imatrix::write_dat(&files[0], &analysis()).unwrap();
    imatrix::write(&files[1], &analysis()).unwrap();
    save(&files[2], &analysis()).unwrap();
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            // Either outcome is right; what is loaded must be fit to be saved.
            if let Ok(a) = load(&path) {
                digest(&a).unwrap();
            }
        }
    }
}

#[test]
fn llama_imatrix_files_are_read_and_written_alike() {
    let (Some(path), Some(model)) = (
        shared("lab-moe/llama-imatrix-reference.gguf"),
        shared("lab-moe/reference-bf16.gguf"),
    ) else {
        return;
    };
    let mut a = imatrix::read(&path).unwrap();
    let original = Gguf::open(&path).unwrap();
    assert!(a.origin.n_ctx > 0 && a.origin.n_chunks > 0 && !a.origin.datasets.is_empty());
    let model = Gguf::open(model).unwrap();
    assert_eq!(imatrix::fit_to_model(&mut a, &model).unwrap(), [""; 0]);
    let experts = &a.weights["blk.0.ffn_down_exps.weight"];
    assert_eq!(
        (experts.n_in, experts.n_mat(), experts.counts.len()),
        (256, 16, 16)
    );
    // Every token goes to two experts.
    let tokens = a.weights["blk.0.attn_q.weight"].counts[0];
    assert_eq!(experts.counts.iter().sum::<f64>(), 2.0 * tokens);

    // What is written has the same tensors, byte for byte, but the derived ones.
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours.gguf");
    imatrix::write(&ours, &a).unwrap();
    let ours = Gguf::open(&ours).unwrap();
    let kept: Vec<_> = original
        .tensors
        .iter()
        .filter(|t| !t.name.ends_with(".stats"))
        .collect();
    assert_eq!(ours.tensors.len(), kept.len());
    for (ours_t, theirs) in ours.tensors.iter().zip(kept) {
        assert_eq!(ours_t.spec(), theirs.spec());
        assert!(
            ours.data(ours_t) == original.data(theirs),
            "{}",
            theirs.name
        );
    }
    for key in [
        "general.type",
        "imatrix.datasets",
        "imatrix.chunk_count",
        "imatrix.chunk_size",
    ] {
        assert_eq!(ours.metadata.get(key), original.metadata.get(key), "{key}");
    }
}
