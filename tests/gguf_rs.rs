//! Agreement with gguf-rs, an independent reader.
//!
//! gguf-rs drops value types and key order and keeps values as JSON, so that is what is compared.
//! Its tensor sizes are wrong for types outside its table of block sizes (bf16 among them) and are
//! not.

use std::path::{Path, PathBuf};

use moqa::gguf::{Array, Gguf, Value};
use serde_json::{Value as Json, json};

fn array_json(array: &Array) -> Json {
    (0..array.len())
        .map(|i| to_json(&array.get(i).unwrap()))
        .collect()
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::Str(s) => json!(s.to_str_lossy()),
        Value::Array(a) => array_json(a),
        other => match (other.as_u64(), other.as_i64()) {
            (Some(v), _) => json!(v),
            (None, v) => json!(v.unwrap()),
        },
    }
}

fn agree(path: &Path) {
    let ours = Gguf::open(path).unwrap();
    let mut container =
        gguf_rs::get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap();
    let theirs = container.decode().unwrap();
    assert_eq!(theirs.get_version(), format!("v{}", ours.version));
    assert_eq!(theirs.data_offset(), ours.parts[0].data_offset);
    assert_eq!(theirs.alignment(), ours.alignment);

    assert_eq!(theirs.metadata().len(), ours.metadata.len());
    for (key, value) in ours.metadata.iter() {
        assert_eq!(theirs.metadata()[key], to_json(value), "{key}");
    }
    assert_eq!(theirs.tensors().len(), ours.tensors.len());
    for (theirs, ours) in theirs.tensors().iter().zip(&ours.tensors) {
        assert_eq!(theirs.name, ours.name);
        assert_eq!(theirs.kind, ours.ty.id());
        // gguf-rs pads shapes to four dimensions in some versions.
        assert_eq!(theirs.n_dimensions as usize, ours.dims.len());
        assert_eq!(theirs.shape[..ours.dims.len()], ours.dims[..]);
        assert_eq!(theirs.offset, ours.offset);
    }
}

#[test]
fn agrees_on_the_committed_file() {
    agree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf_small.gguf"));
}

#[test]
fn agrees_on_the_shared_models() {
    let shared = std::env::var_os("MOQA_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let lab = shared.join("lab-moe/reference-bf16.gguf");
    if !lab.exists() {
        println!("skipped: no test models in {}", shared.display());
        return;
    }
    agree(&lab);
    agree(&shared.join("lab-moe/llama-imatrix-reference.gguf"));
    for entry in std::fs::read_dir(shared.join("oracle")).unwrap() {
        agree(&entry.unwrap().path().join("reference-bf16.gguf"));
    }
}
