//! What tensors are, checked against libllama's own plan and against contradictory files.

use std::path::{Path, PathBuf};

use moqa::gguf::{
    DEFAULT_VERSION, GgmlType, Gguf, GgufLayout, GgufWriter, Metadata, Shape, TensorSpec,
    shard_path,
};
use moqa::model::{ModelView, Role, digest};
use moqa::runtime::preset_types;

/// The shared test models, if this machine has them.
fn shared_models() -> Vec<PathBuf> {
    let shared = std::env::var_os("MOQA_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let mut found = vec![shared.join("lab-moe/reference-bf16.gguf")];
    for entry in std::fs::read_dir(shared.join("oracle"))
        .into_iter()
        .flatten()
    {
        found.push(entry.unwrap().path().join("reference-bf16.gguf"));
    }
    found.retain(|p| p.exists());
    if found.is_empty() {
        println!("skipped: no test models in {}", shared.display());
    }
    found.sort();
    found
}

/// The file itself, or a copy with the key that llama.cpp wants of every DeepSeek-V2 but the Lite model and
/// that its converter leaves out where queries are not compressed.
fn loadable(path: &Path, gguf: &Gguf, dir: &Path) -> PathBuf {
    const KEY: &str = "deepseek2.attention.q_lora_rank";
    if gguf.metadata.get_str("general.architecture") != Some("deepseek2")
        || gguf.metadata.contains(KEY)
    {
        return path.to_owned();
    }
    let mut meta = gguf.metadata.clone();
    meta.set(KEY, 0u32);
    let specs = gguf.tensors.iter().map(|t| t.spec()).collect();
    let layout = GgufLayout::new(&meta, specs, DEFAULT_VERSION).unwrap();
    let mut writer = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in &gguf.tensors {
        writer.write_tensor(&t.name, gguf.data(t)).unwrap();
    }
    let copy = dir.join("with-key.gguf");
    std::fs::write(&copy, writer.finish().unwrap()).unwrap();
    copy
}

#[test]
fn quantizable_tensors_are_those_that_libllama_quantizes() {
    let dir = tempfile::tempdir().unwrap();
    for path in shared_models() {
        let gguf = Gguf::open(&path).unwrap();
        let view = ModelView::new(&gguf).unwrap();
        assert_eq!(view.tensors.len(), gguf.tensors.len());
        let source = loadable(&path, &gguf, dir.path());
        // Presets that change every type they may change: nothing in these files has theirs.
        for preset in ["Q4_0", "Q8_0", "Q4_K_M"] {
            let types = preset_types(&source, preset.parse().unwrap(), false).unwrap();
            for (tensor, info) in view.tensors.iter().zip(&gguf.tensors) {
                assert_eq!(tensor.name, info.name);
                assert_eq!(
                    tensor.quantizable,
                    types[&tensor.name] != info.ty,
                    "{}: {} under {preset}: {} -> {} ({:?})",
                    path.display(),
                    tensor.name,
                    info.ty,
                    types[&tensor.name],
                    tensor.reason
                );
            }
        }
    }
}

#[test]
fn every_layer_of_a_moe_model_has_its_parts() {
    for path in shared_models() {
        let gguf = Gguf::open(&path).unwrap();
        let view = ModelView::new(&gguf).unwrap();
        let at = path.display();
        assert!(view.is_moe(), "{at}");
        assert!(
            view.n_expert_used > 0 && view.n_expert_used <= view.n_expert,
            "{at}"
        );
        let count = |layer, role| {
            view.tensors
                .iter()
                .filter(|t| t.layer == Some(layer) && t.role == role)
                .count()
        };
        let mut moe_layers = 0;
        for layer in 0..view.n_layer {
            let downs = count(layer, Role::ExpertDown);
            let routers = view
                .tensors
                .iter()
                .filter(|t| t.layer == Some(layer) && t.class == "blk.ffn_gate_inp.weight")
                .count();
            assert_eq!(downs, routers, "{at}: layer {layer}");
            assert_eq!(
                downs + count(layer, Role::DenseDown),
                1,
                "{at}: layer {layer}"
            );
            let gates = count(layer, Role::ExpertGate) + count(layer, Role::ExpertGateUp);
            assert_eq!(gates, downs, "{at}: layer {layer}");
            assert!(count(layer, Role::Norm) > 0, "{at}: layer {layer}");
            let mixes = view.tensors.iter().any(|t| {
                t.layer == Some(layer) && (t.role.is_attention() || t.role == Role::Recurrent)
            });
            assert!(mixes, "{at}: layer {layer}");
            moe_layers += downs;
        }
        assert!(moe_layers > 0, "{at}");
        for t in &view.tensors {
            assert_ne!(t.role, Role::Other, "{at}: {}", t.name);
            assert_eq!(
                t.n_expert,
                if t.role.is_expert() { view.n_expert } else { 1 },
                "{at}: {}",
                t.name
            );
        }
        let summary = view.summary();
        assert_eq!(
            summary.roles.iter().map(|r| r.tensors).sum::<usize>(),
            gguf.tensors.len()
        );
        assert_eq!(
            summary.params,
            gguf.tensors.iter().map(|t| t.n_elems()).sum::<u64>()
        );
        assert_eq!(
            summary.bytes,
            gguf.tensors.iter().map(|t| t.n_bytes()).sum::<u64>()
        );
        let text = summary.to_string();
        assert!(
            text.starts_with(&view.arch) && text.contains("expert down"),
            "{text}"
        );
    }
}

#[test]
fn an_imatrix_file_is_no_model() {
    let bytes = file(&Metadata::new(), vec![]);
    let error = ModelView::new(&Gguf::from_bytes("x.gguf", bytes).unwrap()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("general.architecture"), "{text}");
}

/// A file with these tensors of F32, filled with their own index.
fn file(meta: &Metadata, tensors: Tensors) -> Vec<u8> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, dims)| TensorSpec {
            name: (*name).to_owned(),
            dims: Shape::new(dims).unwrap(),
            ty: GgmlType::F32,
        })
        .collect();
    let layout = GgufLayout::new(meta, specs, DEFAULT_VERSION).unwrap();
    let mut writer = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in layout.tensors() {
        // From the name, so that order does not matter.
        let fill = t.spec.name.len() as f32;
        let data: Vec<u8> = (0..t.spec.dims.n_elems())
            .flat_map(|_| fill.to_le_bytes())
            .collect();
        writer.write_tensor(&t.spec.name, &data).unwrap();
    }
    writer.finish().unwrap()
}

/// Names and shapes.
type Tensors<'a> = Vec<(&'a str, Vec<u64>)>;

fn moe_metadata() -> Metadata {
    let mut meta = Metadata::new();
    meta.set("general.architecture", "llama");
    meta.set("llama.block_count", 2u32);
    meta.set("llama.embedding_length", 8u32);
    meta.set("llama.expert_count", 4u32);
    meta.set("llama.expert_used_count", 2u32);
    meta
}

fn view(meta: &Metadata, tensors: Tensors) -> Result<ModelView, String> {
    let gguf = Gguf::from_bytes("model.gguf", file(meta, tensors)).unwrap();
    ModelView::new(&gguf).map_err(|e| format!("{e:#}"))
}

#[test]
fn contradictions_about_experts_name_the_tensor() {
    let cases: Vec<(Tensors, &str)> = vec![
        (
            vec![("blk.0.ffn_up_exps.weight", vec![8, 8, 3])],
            "blk.0.ffn_up_exps.weight",
        ),
        (
            vec![("blk.0.ffn_up_exps.weight", vec![8, 8, 0])],
            "holds no experts",
        ),
        (
            vec![("blk.1.ffn_gate_inp.weight", vec![8, 5])],
            "blk.1.ffn_gate_inp.weight",
        ),
        (
            vec![("blk.2.ffn_norm.weight", vec![8])],
            "blk.2.ffn_norm.weight is of layer 2",
        ),
        (
            vec![
                ("blk.0.ffn_up.0.weight", vec![8, 8]),
                ("blk.0.ffn_up.2.weight", vec![8, 8]),
            ],
            "blk.0.ffn_up.2.weight",
        ),
        (
            vec![("blk.0.ffn_up.0.weight", vec![8, 8])],
            "1 of 4 experts",
        ),
        (
            vec![("blk.0.ffn_up.4.weight", vec![8, 8])],
            "blk.0.ffn_up.4.weight",
        ),
    ];
    for (tensors, needle) in cases {
        let error = view(&moe_metadata(), tensors).unwrap_err();
        assert!(error.contains(needle), "{error}");
    }

    let tensors = vec![("blk.0.ffn_up_exps.weight", vec![8, 8, 4])];
    assert!(view(&moe_metadata(), tensors.clone()).is_ok());
    for (key, value) in [
        ("llama.expert_count", 0u32),
        ("llama.expert_used_count", 0),
        ("llama.expert_used_count", 5),
    ] {
        let mut meta = moe_metadata();
        meta.set(key, value);
        let error = view(&meta, tensors.clone()).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
    for key in ["llama.block_count", "llama.embedding_length"] {
        let mut meta = moe_metadata();
        meta.set(key, "two");
        assert!(view(&meta, tensors.clone()).unwrap_err().contains(key));
        meta.remove(key);
        assert!(
            view(&meta, tensors.clone())
                .unwrap_err()
                .contains("is missing")
        );
    }
}

#[test]
fn experts_with_tensors_of_their_own_are_recognised() {
    let names: Vec<String> = (0..4)
        .map(|e| format!("blk.1.ffn_down.{e}.weight"))
        .collect();
    let mut tensors: Tensors = names.iter().map(|n| (n.as_str(), vec![8, 8])).collect();
    tensors.push(("blk.0.ffn_down.weight", vec![8, 8]));
    let view = view(&moe_metadata(), tensors).unwrap();
    assert!(view.is_moe());
    for (e, t) in view.tensors[..4].iter().enumerate() {
        assert_eq!(
            (t.role, t.layer, t.expert, t.n_expert),
            (Role::ExpertDown, Some(1), Some(e), 1)
        );
        assert_eq!(
            (t.class.as_str(), t.quantizable),
            ("blk.ffn_down.E.weight", true)
        );
    }
    let dense = view.tensor("blk.0.ffn_down.weight").unwrap();
    assert_eq!(
        (dense.role, dense.index, dense.expert),
        (Role::DenseDown, 4, None)
    );
}

#[test]
fn the_digest_sees_the_model_and_not_its_packaging() {
    let tensors = vec![("a.weight", vec![8, 8]), ("bb.weight", vec![300, 300])];
    let of = |meta: &Metadata, tensors: &[(&str, Vec<u64>)]| {
        digest(&Gguf::from_bytes("x", file(meta, tensors.to_vec())).unwrap()).unwrap()
    };
    let mut meta = moe_metadata();
    meta.set("tokenizer.ggml.model", "gpt2");
    let reference = of(&meta, &tensors);
    assert!(
        reference.starts_with("blake3:") && reference.len() == 71,
        "{reference}"
    );

    let reversed: Vec<_> = tensors.iter().cloned().rev().collect();
    assert_eq!(of(&meta, &reversed), reference);
    let mut described = Metadata::new();
    described.set("general.name", "another name");
    described.set("tokenizer.chat_template", "{{ x }}");
    described.set("general.alignment", 64u32);
    for (key, value) in meta.iter() {
        described.set(key, value.clone());
    }
    assert_eq!(of(&described, &tensors), reference);

    for (key, value) in [
        ("llama.expert_used_count", 1u32),
        ("tokenizer.ggml.model", 1),
        ("llama.rope", 1),
    ] {
        let mut changed = meta.clone();
        changed.set(key, value);
        assert_ne!(of(&changed, &tensors), reference, "{key}");
    }
    assert_ne!(
        of(&meta, &[("a.weight", vec![64]), tensors[1].clone()]),
        reference
    );
    assert_ne!(
        of(&meta, &[("b.weight", vec![8, 8]), tensors[1].clone()]),
        reference
    );
    assert_ne!(of(&meta, &tensors[..1]), reference);

    // Both ends of the data are covered; the middle of a large tensor, as documented, is not.
    let bytes = file(&meta, tensors.clone());
    let gguf = Gguf::from_bytes("x", bytes.clone()).unwrap();
    let (start, len) = (
        gguf.tensors[1].file_offset as usize,
        gguf.tensors[1].n_bytes() as usize,
    );
    for (at, seen) in [
        (start, true),
        (start + len - 1, true),
        (start + len / 2, false),
    ] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_eq!(
            digest(&Gguf::from_bytes("x", changed).unwrap()).unwrap() != reference,
            seen,
            "byte {at}"
        );
    }

    // Split into files, the model is the same.
    let specs: Vec<TensorSpec> = gguf.tensors.iter().map(|t| t.spec()).collect();
    let dir = tempfile::tempdir().unwrap();
    let shards = GgufLayout::split(&meta, specs, DEFAULT_VERSION, 1000).unwrap();
    assert_eq!(shards.len(), 2);
    for (i, layout) in shards.iter().enumerate() {
        let path = shard_path(&dir.path().join("m"), i, shards.len());
        let mut writer = GgufWriter::new(Vec::new(), layout).unwrap();
        for t in layout.tensors() {
            writer
                .write_tensor(&t.spec.name, gguf.data(gguf.tensor(&t.spec.name).unwrap()))
                .unwrap();
        }
        std::fs::write(path, writer.finish().unwrap()).unwrap();
    }
    let split = Gguf::open(shard_path(&dir.path().join("m"), 0, 2)).unwrap();
    assert_eq!(digest(&split).unwrap(), reference);
}
