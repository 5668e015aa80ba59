//! Models split into shards: written as llama-gguf-split writes them, read as one model.

use std::fs;
use std::path::{Path, PathBuf};

use moqa::gguf::{
    Array, GgmlType, Gguf, GgufError, GgufLayout, GgufWriter, KEY_SPLIT_COUNT, KEY_SPLIT_NO,
    KEY_SPLIT_TENSORS_COUNT, Metadata, Shape, TensorSpec, Value, shard_path,
};
use tempfile::TempDir;

fn metadata() -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", "qwen3moe");
    m.set(
        "tokenizer.ggml.tokens",
        Array::Str(["a", "b", "c"].iter().collect()),
    );
    m
}

/// Seven tensors of 1000 bytes (1024 padded), the fourth of 5000.
fn tensors() -> Vec<TensorSpec> {
    (0..7)
        .map(|i| TensorSpec {
            name: format!("blk.{i}.weight"),
            dims: Shape::new(&[if i == 3 { 5000 } else { 1000 }]).unwrap(),
            ty: GgmlType::I8,
        })
        .collect()
}

fn data(name: &str, n: u64) -> Vec<u8> {
    (0..n).map(|i| i as u8 ^ name.as_bytes()[4]).collect()
}

fn write_shards(dir: &Path, layouts: &[GgufLayout]) -> Vec<PathBuf> {
    let paths: Vec<_> = (0..layouts.len())
        .map(|i| shard_path(&dir.join("model"), i, layouts.len()))
        .collect();
    for (layout, path) in layouts.iter().zip(&paths) {
        let mut w = GgufWriter::new(fs::File::create(path).unwrap(), layout).unwrap();
        for t in layout.tensors() {
            w.write_tensor(&t.spec.name, &data(&t.spec.name, t.n_bytes))
                .unwrap();
        }
        w.finish().unwrap();
        assert_eq!(fs::metadata(path).unwrap().len(), layout.file_size());
    }
    paths
}

fn split_model(dir: &Path, max_bytes: u64) -> Vec<PathBuf> {
    let layouts = GgufLayout::split(&metadata(), tensors(), 3, max_bytes).unwrap();
    write_shards(dir, &layouts)
}

#[test]
fn shards_follow_the_size_limit() {
    let counts = |max_bytes| -> Vec<usize> {
        GgufLayout::split(&metadata(), tensors(), 3, max_bytes)
            .unwrap()
            .iter()
            .map(|l| l.tensors().len())
            .collect()
    };
    assert_eq!(counts(u64::MAX), [7]);
    assert_eq!(counts(2048), [2, 1, 1, 2, 1]);
    assert_eq!(counts(2047), [1; 7]);
    assert_eq!(counts(0), [1; 7]);
    assert_eq!(counts(6047), [3, 1, 3]);
    assert_eq!(counts(6048), [3, 2, 2]);
}

#[test]
fn any_shard_opens_the_whole_model() {
    let dir = TempDir::new().unwrap();
    let paths = split_model(dir.path(), 2048);
    assert_eq!(paths.len(), 5);
    for opened in &paths {
        let model = Gguf::open(opened).unwrap();
        assert_eq!(model.paths(), paths);
        assert_eq!(model.metadata, metadata());
        let specs: Vec<_> = model.tensors.iter().map(|t| t.spec()).collect();
        assert_eq!(specs, tensors());
        for t in &model.tensors {
            assert_eq!(model.data(t), data(&t.name, t.n_bytes()));
            assert_eq!(model.tensor(&t.name), Some(t));
        }
        assert_eq!(model.tensors[3].part, 2);
        let on_disk: u64 = paths.iter().map(|p| fs::metadata(p).unwrap().len()).sum();
        assert_eq!(model.total_bytes(), on_disk);

        for (i, path) in paths.iter().enumerate() {
            let own = model.part_metadata(i);
            assert_eq!(own.get(KEY_SPLIT_NO), Some(&Value::U16(i as u16)));
            assert_eq!(own.get(KEY_SPLIT_COUNT), Some(&Value::U16(5)));
            assert_eq!(own.get(KEY_SPLIT_TENSORS_COUNT), Some(&Value::I32(7)));
            assert_eq!(own.len(), if i == 0 { 5 } else { 3 });
            let specs = model.part_tensors(i).map(|t| t.spec()).collect();
            let layout = GgufLayout::new(own, specs, 3).unwrap();
            let mut w = GgufWriter::new(Vec::new(), &layout).unwrap();
            for t in model.part_tensors(i) {
                w.write_tensor(&t.name, model.data(t)).unwrap();
            }
            assert_eq!(w.finish().unwrap(), fs::read(path).unwrap());
        }
    }
}

#[test]
fn the_alignment_holds_in_every_shard() {
    let mut m = metadata();
    m.set("general.alignment", 256u32);
    let layouts = GgufLayout::split(&m, tensors(), 2, 3000).unwrap();
    let dir = TempDir::new().unwrap();
    let paths = write_shards(dir.path(), &layouts);
    let model = Gguf::open(&paths[0]).unwrap();
    assert_eq!(model.version, 2);
    assert!(model.parts.len() > 1);
    assert!(model.parts.iter().all(|p| p.alignment == 256));
    assert!(model.tensors.iter().all(|t| t.file_offset % 256 == 0));
}

#[test]
fn one_shard_is_a_plain_model() {
    let dir = TempDir::new().unwrap();
    let paths = split_model(dir.path(), u64::MAX);
    let other = dir.path().join("renamed.gguf");
    fs::rename(&paths[0], &other).unwrap();
    let model = Gguf::open(&other).unwrap();
    assert_eq!(model.tensors.len(), 7);
    assert_eq!(model.metadata.get_u64(KEY_SPLIT_COUNT), Some(1));
}

fn split_error(path: &Path) -> String {
    let error = Gguf::open(path).unwrap_err();
    assert!(matches!(error, GgufError::Split { .. }), "{error}");
    error.to_string()
}

#[test]
fn missing_shards_are_named() {
    let dir = TempDir::new().unwrap();
    let paths = split_model(dir.path(), 2048);
    fs::remove_file(&paths[1]).unwrap();
    fs::remove_file(&paths[3]).unwrap();
    for present in [0, 2, 4] {
        let error = split_error(&paths[present]);
        assert!(
            error.contains("2 of the model's 5 shards are missing"),
            "{error}"
        );
        assert!(error.contains("model-00002-of-00005.gguf"), "{error}");
    }
}

#[test]
fn renamed_and_swapped_shards_are_refused() {
    let dir = TempDir::new().unwrap();
    let paths = split_model(dir.path(), 2048);
    let renamed = dir.path().join("first.gguf");
    fs::copy(&paths[0], &renamed).unwrap();
    let error = split_error(&renamed);
    assert!(error.contains("NAME-00001-of-00005.gguf"), "{error}");

    fs::copy(&paths[2], &paths[1]).unwrap();
    let error = split_error(&paths[0]);
    assert!(error.contains("model-00002-of-00005.gguf"), "{error}");
    assert!(error.contains("shard 2 of 5"), "{error}");
    // The shard that was opened is at fault.
    assert!(split_error(&paths[1]).contains("shard 3 of 5, but not named so"));

    let error = Gguf::from_bytes("x", fs::read(&paths[0]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("one of 5 shards"), "{error}");
}

/// Writes one file with the given split keys.
fn write_with_keys(path: &Path, tensor: &str, keys: &[(&str, Value)]) {
    let m: Metadata = keys.iter().map(|(k, v)| (*k, v.clone())).collect();
    let spec = TensorSpec {
        name: tensor.to_owned(),
        dims: Shape::new(&[32]).unwrap(),
        ty: GgmlType::I8,
    };
    let layout = GgufLayout::new(&m, vec![spec], 3).unwrap();
    let mut w = GgufWriter::new(fs::File::create(path).unwrap(), &layout).unwrap();
    w.write_tensor(tensor, &[0; 32]).unwrap();
    w.finish().unwrap();
}

#[test]
fn wrong_counts_are_refused() {
    let dir = TempDir::new().unwrap();
    let prefix = dir.path().join("m");
    let (a, b) = (shard_path(&prefix, 0, 2), shard_path(&prefix, 1, 2));
    let keys = |no: u16, count: u16, total: i32| {
        [
            (KEY_SPLIT_NO, Value::U16(no)),
            (KEY_SPLIT_COUNT, Value::U16(count)),
            (KEY_SPLIT_TENSORS_COUNT, Value::I32(total)),
        ]
    };
    write_with_keys(&b, "b", &keys(1, 2, 2));

    write_with_keys(&a, "a", &keys(0, 2, 2));
    assert_eq!(Gguf::open(&a).unwrap().tensors.len(), 2);

    write_with_keys(&a, "a", &keys(0, 2, 3));
    assert!(split_error(&a).contains("is 3 but the 2 shards hold 2 tensors"));
    write_with_keys(&a, "a", &keys(0, 2, -1));
    assert!(split_error(&a).contains("split.tensors.count"));
    write_with_keys(&a, "a", &keys(0, 2, 2)[..2]);
    assert!(split_error(&a).contains("split.tensors.count' is missing"));
    write_with_keys(&a, "a", &keys(2, 2, 2));
    assert!(split_error(&a).contains("split.no' is 2 in a model of 2 shards"));
    write_with_keys(&a, "a", &keys(0, 2, 2)[1..]);
    assert!(split_error(&a).contains("split.no' is missing"));
    write_with_keys(&a, "a", &[(KEY_SPLIT_COUNT, Value::U32(2))]);
    assert!(split_error(&a).contains("u32, not u16"));

    write_with_keys(&a, "b", &keys(0, 2, 2));
    assert!(split_error(&a).contains("tensor 'b' is also in"));

    write_with_keys(&a, "a", &keys(0, 2, 2));
    write_with_keys(&b, "b", &keys(1, 3, 2));
    assert!(split_error(&a).contains("shard 2 of 2"));
    fs::write(&b, b"GGUF").unwrap();
    assert!(
        Gguf::open(&a)
            .unwrap_err()
            .to_string()
            .contains("m-00002-of-00002.gguf")
    );
}

#[test]
fn shards_equal_those_of_llama_gguf_split() {
    let Some(bin) = std::env::var_os("MOQA_LLAMA_BIN") else {
        println!("skipped: MOQA_LLAMA_BIN does not name a directory with llama-gguf-split");
        return;
    };
    let dir = TempDir::new().unwrap();
    // Of a million bytes each, the smallest limit the tool takes.
    let specs: Vec<_> = (0..5)
        .map(|i| TensorSpec {
            name: format!("blk.{i}.weight"),
            dims: Shape::new(&[1000, 450 + i]).unwrap(),
            ty: GgmlType::I8,
        })
        .collect();
    let whole = GgufLayout::new(&metadata(), specs.clone(), 3).unwrap();
    let input = dir.path().join("in.gguf");
    let mut w = GgufWriter::new(fs::File::create(&input).unwrap(), &whole).unwrap();
    for t in whole.tensors() {
        w.write_tensor(&t.spec.name, &data(&t.spec.name, t.n_bytes))
            .unwrap();
    }
    w.finish().unwrap();
    let output = std::process::Command::new(Path::new(&bin).join("llama-gguf-split"))
        .args(["--split", "--split-max-size", "1M"])
        .args([&input, &dir.path().join("theirs")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");

    let layouts = GgufLayout::split(&metadata(), specs, 3, 1_000_000).unwrap();
    assert_eq!(layouts.len(), 3);
    for (i, ours) in write_shards(dir.path(), &layouts).iter().enumerate() {
        let theirs = shard_path(&dir.path().join("theirs"), i, layouts.len());
        assert!(
            fs::read(ours).unwrap() == fs::read(theirs).unwrap(),
            "shard {i}"
        );
    }
}
