//! What is written is read back the same, and what is read is written back byte for byte.

use std::io::Write;
use std::path::{Path, PathBuf};

use moqa::gguf::{
    Array, DEFAULT_VERSION, GString, GStringArray, GgmlType, Gguf, GgufError, GgufLayout,
    GgufWriter, Metadata, Shape, TensorSpec, Value, ValueType,
};

fn spec(name: &str, dims: &[u64], ty: GgmlType) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dims: Shape::new(dims).unwrap(),
        ty,
    }
}

/// Bytes that differ from place to place.
fn pattern(n: u64, seed: u8) -> Vec<u8> {
    (0..n)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed | 1)
        .collect()
}

fn write(layout: &GgufLayout, data: &[Vec<u8>]) -> Vec<u8> {
    let mut w = GgufWriter::new(Vec::new(), layout).unwrap();
    for (t, bytes) in layout.tensors().iter().zip(data) {
        w.write_tensor(&t.spec.name, bytes).unwrap();
    }
    let out = w.finish().unwrap();
    assert_eq!(out.len() as u64, layout.file_size());
    out
}

/// Writes part `i` of an open model again.
fn rewrite(gguf: &Gguf, i: usize) -> Vec<u8> {
    let tensors = gguf.part_tensors(i).map(|t| t.spec()).collect();
    let layout = GgufLayout::new(gguf.part_metadata(i), tensors, gguf.parts[i].version).unwrap();
    let mut w = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in gguf.part_tensors(i) {
        w.write_tensor(&t.name, gguf.data(t)).unwrap();
    }
    w.finish().unwrap()
}

fn all_values() -> Metadata {
    let nan32 = f32::from_bits(0xffa0_1234);
    let nan64 = f64::from_bits(0x7ff0_0000_dead_beef);
    let strings: GStringArray = [&b""[..], b"a", b"\xff\xfe raw", "日本".as_bytes()]
        .into_iter()
        .collect();
    let arrays = [
        Array::U8(vec![0, 255]),
        Array::I8(vec![-128, 127]),
        Array::U16(vec![0, u16::MAX]),
        Array::I16(vec![i16::MIN, i16::MAX]),
        Array::U32(vec![0, u32::MAX]),
        Array::I32(vec![i32::MIN, i32::MAX]),
        Array::F32(vec![nan32, -0.0, f32::INFINITY]),
        Array::Bool(vec![true, false]),
        Array::Str(strings),
        Array::U64(vec![0, u64::MAX]),
        Array::I64(vec![i64::MIN, i64::MAX]),
        Array::F64(vec![nan64, -0.0]),
        Array::U32(vec![]),
        Array::Str(GStringArray::new()),
        Array::Array(vec![]),
    ];
    let mut m = Metadata::new();
    m.set("zz.first", "keys keep their order");
    m.set("u8", u8::MAX);
    m.set("i8", i8::MIN);
    m.set("u16", u16::MAX);
    m.set("i16", i16::MIN);
    m.set("u32", u32::MAX);
    m.set("i32", i32::MIN);
    m.set("f32", nan32);
    m.set("yes", true);
    m.set("no", false);
    m.set("bytes", GString(vec![0xc3, 0x28, 0]));
    m.set("empty", "");
    m.set("u64", u64::MAX);
    m.set("i64", i64::MIN);
    m.set("f64", nan64);
    for (i, a) in arrays.iter().enumerate() {
        m.set(format!("array.{i}"), a.clone());
    }
    // Eight levels: the most that is allowed.
    let mut nested = Array::Array(arrays.to_vec());
    while nested.depth() < 8 {
        nested = Array::Array(vec![nested, Array::Bool(vec![true])]);
    }
    m.set("nested", nested);
    m
}

#[test]
fn every_value_type_round_trips_in_both_versions() {
    let metadata = all_values();
    let mut types: Vec<_> = metadata.iter().map(|(_, v)| v.value_type()).collect();
    types.sort();
    types.dedup();
    assert_eq!(types, ValueType::ALL);

    for version in [2, 3] {
        let layout = GgufLayout::new(
            &metadata,
            vec![
                spec("a", &[3], GgmlType::F32),
                spec("b", &[256, 2, 2], GgmlType::Q4_K),
                spec("scalar", &[], GgmlType::I64),
                spec("none", &[32, 0], GgmlType::Q8_0),
                spec("trailing", &[1, 1, 1, 1], GgmlType::I8),
            ],
            version,
        )
        .unwrap();
        let data: Vec<_> = (layout.tensors().iter().zip(0u8..))
            .map(|(t, i)| pattern(t.n_bytes, i))
            .collect();
        let bytes = write(&layout, &data);
        let read = Gguf::from_bytes("memory", bytes.clone()).unwrap();
        assert_eq!(read.version, version);
        assert_eq!(read.metadata, metadata);
        assert_eq!(read.tensors.len(), 5);
        for ((t, placed), bytes) in read.tensors.iter().zip(layout.tensors()).zip(&data) {
            assert_eq!(t.spec(), placed.spec);
            assert_eq!(t.file_offset, placed.file_offset);
            assert_eq!(t.file_offset % 32, 0);
            assert_eq!(read.data(t), bytes);
            assert_eq!(read.tensor(&t.name), Some(t));
        }
        assert_eq!(read.tensor("c"), None);
        assert_eq!(read.tensors[1].n_bytes(), 4 * 144);
        assert_eq!((read.tensors[1].ne(0), read.tensors[1].ne(3)), (256, 1));
        assert_eq!(read.tensors[4].dims.len(), 4);
        assert_eq!(rewrite(&read, 0), bytes);
    }
}

#[test]
fn the_smallest_file_is_exactly_what_the_format_says() {
    let metadata: Metadata = [("k", 7u8)].into_iter().collect();
    let layout = GgufLayout::new(
        &metadata,
        vec![spec("t", &[2], GgmlType::I8)],
        DEFAULT_VERSION,
    )
    .unwrap();
    let mut expected = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    expected.extend(b"\x01\0\0\0\0\0\0\0k\0\0\0\0\x07");
    expected.extend(b"\x01\0\0\0\0\0\0\0t\x01\0\0\0\x02\0\0\0\0\0\0\0\x18\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(layout.header(), expected);
    expected.resize(96, 0);
    expected.extend([5, 6]);
    expected.resize(128, 0);
    assert_eq!(layout.data_offset(), 96);
    assert_eq!(write(&layout, &[vec![5, 6]]), expected);
}

#[test]
fn the_alignment_key_is_honoured() {
    for alignment in [1u32, 8, 64, 4096] {
        let metadata: Metadata = [("general.alignment", alignment)].into_iter().collect();
        let layout = GgufLayout::new(
            &metadata,
            vec![spec("a", &[5], GgmlType::I8), spec("b", &[5], GgmlType::I8)],
            3,
        )
        .unwrap();
        let bytes = write(&layout, &[vec![1; 5], vec![2; 5]]);
        let read = Gguf::from_bytes("memory", bytes).unwrap();
        assert_eq!(read.alignment, u64::from(alignment));
        assert_eq!(
            read.tensors[1].offset,
            5u64.next_multiple_of(alignment.into())
        );
        assert_eq!(read.parts[0].data_offset % u64::from(alignment), 0);
        assert_eq!(read.data(&read.tensors[1]), [2; 5]);
    }
    for bad in [Value::U32(0), Value::U32(48), Value::U64(32)] {
        let metadata: Metadata = [("general.alignment", bad)].into_iter().collect();
        let error = GgufLayout::new(&metadata, vec![], 3).unwrap_err();
        assert!(error.to_string().contains("general.alignment"), "{error}");
    }
}

#[test]
fn a_file_without_tensors_round_trips() {
    let layout = GgufLayout::new(&all_values(), vec![], 3).unwrap();
    let bytes = write(&layout, &[]);
    let read = Gguf::from_bytes("memory", bytes.clone()).unwrap();
    assert_eq!(rewrite(&read, 0), bytes);
    // Other writers leave the padding out when no data follow it.
    let bare = Gguf::from_bytes("memory", layout.header().to_vec()).unwrap();
    assert_eq!(bare.metadata, read.metadata);
}

#[test]
fn layouts_refuse_what_no_reader_takes() {
    let empty = Metadata::new();
    let refused = |metadata: &Metadata, tensors: Vec<TensorSpec>, version| {
        let error = GgufLayout::new(metadata, tensors, version).unwrap_err();
        assert!(matches!(error, GgufError::Layout { .. }), "{error}");
        error.to_string()
    };
    let long = "x".repeat(64);
    assert!(refused(&empty, vec![spec(&long, &[1], GgmlType::F32)], 3).contains("63 bytes"));
    let twice = vec![
        spec("t", &[1], GgmlType::F32),
        spec("t", &[2], GgmlType::F32),
    ];
    assert!(refused(&empty, twice, 3).contains("'t': the name occurs twice"));
    assert!(refused(&empty, vec![spec("t", &[33], GgmlType::Q8_0)], 3).contains("multiple"));
    let huge = vec![
        spec("t", &[1 << 60], GgmlType::F64),
        spec("u", &[1 << 60], GgmlType::F64),
    ];
    assert!(refused(&empty, huge, 3).contains("2^64"));
    assert!(refused(&empty, vec![], 1).contains("version"));
    assert!(refused(&[("", 1u8)].into_iter().collect(), vec![], 3).contains("key"));
    let mut deep = Array::U8(vec![]);
    for _ in 0..8 {
        deep = Array::Array(vec![deep]);
    }
    assert!(refused(&[("k", deep)].into_iter().collect(), vec![], 3).contains("nest"));
}

#[test]
fn the_writer_insists_on_order_and_completeness() {
    let layout = GgufLayout::new(
        &Metadata::new(),
        vec![
            spec("a", &[40], GgmlType::I8),
            spec("none", &[0], GgmlType::I8),
            spec("b", &[3], GgmlType::I8),
        ],
        3,
    )
    .unwrap();
    let start = || GgufWriter::new(Vec::new(), &layout).unwrap();

    // Any chunking gives the same bytes.
    let whole = write(&layout, &[vec![1; 40], vec![], vec![2; 3]]);
    for chunk in [1, 7, 40] {
        let mut w = start();
        for piece in [1; 40].chunks(chunk) {
            assert_eq!(w.current().unwrap().spec.name, "a");
            w.write_tensor_bytes(piece).unwrap();
        }
        w.begin_tensor("b").unwrap();
        w.write_tensor_bytes(&[2; 3]).unwrap();
        assert_eq!(w.current(), None);
        assert_eq!(w.position(), layout.file_size());
        assert_eq!(w.finish().unwrap(), whole);
    }

    let mut w = start();
    let error = w.begin_tensor("b").unwrap_err().to_string();
    assert!(error.contains("'b' begins but 'a' comes next"), "{error}");
    let error = w.write_tensor_bytes(&[0; 41]).unwrap_err().to_string();
    assert!(error.contains("takes 40 bytes"), "{error}");
    w.write_tensor_bytes(&[0; 39]).unwrap();
    let error = w.begin_tensor("b").unwrap_err().to_string();
    assert!(error.contains("only 39 of its 40 bytes"), "{error}");
    let error = w.finish().unwrap_err().to_string();
    assert!(error.contains("'a' has only 39 of its 40"), "{error}");

    let mut w = start();
    assert!(w.write_tensor("a", &[0; 39]).is_err());
    w.write_tensor("a", &[0; 40]).unwrap();
    w.write_tensor("b", &[0; 3]).unwrap();
    assert!(w.write_tensor_bytes(&[0]).is_err());
    assert!(w.begin_tensor("c").is_err());
}

#[test]
fn a_full_disk_is_reported_with_tensor_and_position() {
    #[derive(Debug)]
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let n = bytes.len().min(self.0);
            self.0 -= n;
            if n == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            Ok(n)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let layout =
        GgufLayout::new(&Metadata::new(), vec![spec("a", &[40], GgmlType::I8)], 3).unwrap();
    let room = layout.data_offset() as usize + 10;
    let mut w = GgufWriter::new(Full(room), &layout).unwrap();
    let error = w.write_tensor_bytes(&[1; 40]).unwrap_err();
    assert!(matches!(error, GgufError::Write { .. }));
    let start = format!("writing tensor 'a' at byte {}", layout.data_offset());
    assert!(error.to_string().starts_with(&start), "{error}");
    let error = GgufWriter::new(Full(3), &layout).unwrap_err().to_string();
    assert!(error.contains("the header"), "{error}");
}

#[test]
fn the_committed_file_reads_as_its_writer_meant_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gguf_small.gguf");
    let read = Gguf::open(&path).unwrap();
    assert_eq!((read.version, read.alignment), (3, 64));
    let m = &read.metadata;
    assert_eq!(m.get_str("general.architecture"), Some("test"));
    assert_eq!(m.get("test.u8"), Some(&Value::U8(200)));
    assert_eq!(m.get("test.i8"), Some(&Value::I8(-100)));
    assert_eq!(m.get("test.u16"), Some(&Value::U16(60000)));
    assert_eq!(m.get("test.i16"), Some(&Value::I16(-30000)));
    assert_eq!(m.get("test.u32"), Some(&Value::U32(4_000_000_000)));
    assert_eq!(m.get("test.i32"), Some(&Value::I32(-2_000_000_000)));
    assert_eq!(m.get("test.u64"), Some(&Value::U64((1 << 63) + 5)));
    assert_eq!(m.get("test.i64"), Some(&Value::I64(-(1 << 62))));
    assert_eq!(m.get("test.f32"), Some(&Value::F32(0.1)));
    assert_eq!(m.get("test.f64"), Some(&Value::F64(0.1)));
    assert_eq!(m.get("test.bool"), Some(&Value::Bool(true)));
    assert_eq!(m.get_str("test.str"), Some("grüße"));
    let array = |key| m.get_array(key).unwrap().clone();
    assert_eq!(array("test.u8s"), Array::U8(vec![0, 255]));
    assert_eq!(array("test.i16s"), Array::I16(vec![i16::MIN, i16::MAX]));
    assert_eq!(array("test.u64s"), Array::U64(vec![0, u64::MAX]));
    assert_eq!(array("test.f32s"), Array::F32(vec![1.5, -0.0]));
    assert_eq!(array("test.bools"), Array::Bool(vec![true, false, true]));
    let strings = array("test.strs");
    let strings: Vec<_> = strings.as_strings().unwrap().iter().collect();
    assert_eq!(strings, [&b""[..], b"a", "日本".as_bytes()]);

    let up = read.tensor("blk.0.ffn_up_exps.weight").unwrap();
    assert_eq!((&up.dims[..], up.ty), (&[8, 2, 2][..], GgmlType::BF16));
    let counts = read.tensor("counts").unwrap();
    let counts: Vec<_> = (read.data(counts).chunks_exact(4))
        .map(|b| i32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(counts, [0, 1, 2, 3, 4, 5]);
    assert_eq!(read.total_bytes(), std::fs::metadata(&path).unwrap().len());
    assert_eq!(rewrite(&read, 0), std::fs::read(&path).unwrap());
}

/// The shared test models, if this machine has them.
fn shared_models() -> Vec<PathBuf> {
    let shared = std::env::var_os("MOQA_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let mut found = vec![
        shared.join("lab-moe/reference-bf16.gguf"),
        shared.join("lab-moe/llama-imatrix-reference.gguf"),
    ];
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
    found
}

#[test]
fn files_of_llama_cpp_are_rewritten_byte_for_byte() {
    for path in shared_models() {
        let read = Gguf::open(&path).unwrap();
        assert_eq!(read.paths(), [path.as_path()]);
        let original = std::fs::read(&path).unwrap();
        assert!(
            rewrite(&read, 0) == original,
            "{} changed in the round trip",
            path.display()
        );
        // Version 2 differs from 3 in the version alone.
        let mut v2 = original;
        v2[4] = 2;
        let read = Gguf::from_bytes(&path, v2.clone()).unwrap();
        assert_eq!(read.version, 2);
        assert!(rewrite(&read, 0) == v2);
    }
}
