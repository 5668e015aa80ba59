//! Damaged and hostile files: always a model or a clear error, within bounds of time and memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use moqa::gguf::{
    Array, GgmlType, Gguf, GgufError, GgufLayout, GgufWriter, Metadata, Shape, TensorSpec,
};
use tempfile::TempDir;

const MEMORY_LIMIT: usize = 256 << 20;
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Counts what each thread has allocated, now and at most.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(grown: usize, shrunk: usize) {
    let now = NOW.get().wrapping_add(grown).wrapping_sub(shrunk);
    NOW.set(now);
    // Memory freed by another thread than allocated it may wrap below zero.
    if now <= isize::MAX as usize {
        PEAK.set(PEAK.get().max(now));
    }
}

// SAFETY: passes every call on to the system's allocator and only counts sizes beside; the counters
// are plain cells without destructors and never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // While it moves, both the old and the new block exist.
        count(new_size, 0);
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs one case within the bounds. Returns its result and peak memory.
fn bounded<T>(case: &str, f: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let start = Instant::now();
    let result = f();
    let took = start.elapsed();
    let peak = PEAK.get() - before;
    assert!(took < TIME_LIMIT, "{case}: took {took:?}");
    assert!(peak < MEMORY_LIMIT, "{case}: allocated {peak} bytes");
    (result, peak)
}

/// Uses all of a model that a damaged file still gave: reads its data, writes it again, reads that.
fn use_all(gguf: &Gguf) {
    for t in &gguf.tensors {
        assert_eq!(gguf.data(t).len() as u64, t.n_bytes());
        assert_eq!(gguf.tensor(&t.name), Some(t));
    }
    let specs = gguf.tensors.iter().map(|t| t.spec()).collect();
    let layout = GgufLayout::new(&gguf.metadata, specs, gguf.version).unwrap();
    if layout.file_size() > 1 << 20 {
        return;
    }
    let mut w = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in &gguf.tensors {
        w.write_tensor(&t.name, gguf.data(t)).unwrap();
    }
    let again = Gguf::from_bytes("again", w.finish().unwrap()).unwrap();
    assert_eq!(again.metadata, gguf.metadata);
    assert_eq!(again.tensors.len(), gguf.tensors.len());
}

fn check_message(case: &str, error: &GgufError) {
    let text = error.to_string();
    assert!(text.len() > 20 && text.len() < 1000, "{case}: {text}");
    assert!(text.contains("; "), "{case} gives no advice: {text}");
    assert!(!text.contains(char::is_control), "{case}: {text:?}");
}

/// Parses bytes within the bounds; the model is used, an error is checked.
fn try_bytes(case: &str, bytes: Vec<u8>) -> Result<(), String> {
    let (result, _) = bounded(case, || {
        let result = Gguf::from_bytes("hostile.gguf", bytes);
        result.as_ref().map(use_all).ok();
        result
    });
    result.map(drop).map_err(|error| {
        check_message(case, &error);
        error.to_string()
    })
}

fn refused(case: &str, bytes: Vec<u8>, expected: &str) {
    let error = try_bytes(case, bytes).expect_err(case);
    assert!(error.contains(expected), "{case}: {error}");
}

/// A small seeded generator (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn spec(name: &str, dims: &[u64], ty: GgmlType) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dims: Shape::new(dims).unwrap(),
        ty,
    }
}

fn model(metadata: &Metadata, tensors: Vec<TensorSpec>) -> (Vec<u8>, usize) {
    let layout = GgufLayout::new(metadata, tensors, 3).unwrap();
    let mut w = GgufWriter::new(Vec::new(), &layout).unwrap();
    for t in layout.tensors() {
        w.write_tensor_bytes(&vec![0x5a; t.n_bytes as usize])
            .unwrap();
    }
    (w.finish().unwrap(), layout.header().len())
}

/// A model with every kind of field, and the length of its header.
fn victim() -> (Vec<u8>, usize) {
    let mut m = Metadata::new();
    m.set("general.architecture", "qwen3moe");
    m.set("general.alignment", 32u32);
    m.set("a.u8", 1u8);
    m.set("a.u16", 2u16);
    m.set("a.i64", -3i64);
    m.set("a.f32", 0.5f32);
    m.set("a.bool", true);
    let tokens = (0..40).map(|i| format!("token{i}")).collect();
    m.set("tokenizer.ggml.tokens", Array::Str(tokens));
    m.set("tokenizer.ggml.scores", Array::F32(vec![1.0; 40]));
    m.set("flags", Array::Bool(vec![true; 9]));
    m.set(
        "nested",
        Array::Array(vec![
            Array::U32(vec![1, 2]),
            Array::Array(vec![Array::U8(vec![7]), Array::Str(["x"].iter().collect())]),
        ]),
    );
    let mut tensors = vec![spec("token_embd.weight", &[256, 40], GgmlType::Q8_0)];
    for i in 0..6 {
        let name = format!("blk.{i}.ffn_up_exps.weight");
        tensors.push(spec(&name, &[256, 8, 4], GgmlType::Q4_K));
        tensors.push(spec(
            &format!("blk.{i}.attn_norm.weight"),
            &[250],
            GgmlType::F32,
        ));
    }
    model(&m, tensors)
}

fn shared_model() -> Option<PathBuf> {
    let shared = std::env::var_os("MOQA_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = shared.join("lab-moe/reference-bf16.gguf");
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no test model at {}", path.display());
    None
}

#[test]
fn the_victim_is_healthy() {
    let (bytes, header) = victim();
    assert!(header > 1500 && bytes.len() > 40_000);
    try_bytes("victim", bytes).unwrap();
}

/// Cuts a file at every 4 KiB and at 200 random places.
fn truncate_everywhere(path: &Path) {
    let len = fs::metadata(path).unwrap().len();
    let data_end = {
        let gguf = Gguf::open(path).unwrap();
        let last = gguf.tensors.last().unwrap();
        last.file_offset + last.n_bytes()
    };
    let mut random = Random(1);
    let mut cuts: Vec<u64> = (0..len).step_by(4096).collect();
    cuts.extend((0..200).map(|_| random.next() % len));
    cuts.extend([1, 3, 4, 7, 8, 23, 24, data_end - 1]);
    cuts.sort_unstable_by(|a, b| b.cmp(a));
    let file = File::options().write(true).open(path).unwrap();
    for cut in cuts {
        file.set_len(cut).unwrap();
        let case = format!("cut at {cut}");
        let (result, _) = bounded(&case, || Gguf::open(path));
        match result {
            Ok(_) => assert!(cut >= data_end, "{case} was accepted"),
            Err(error) => {
                check_message(&case, &error);
                let name = path.file_name().unwrap().to_str().unwrap();
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }
}

#[test]
fn truncated_files_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cut.gguf");
    fs::write(&path, victim().0).unwrap();
    truncate_everywhere(&path);
    if let Some(shared) = shared_model() {
        fs::remove_file(&path).unwrap();
        fs::write(&path, fs::read(shared).unwrap()).unwrap();
        truncate_everywhere(&path);
    }
}

#[test]
fn flipped_bytes_do_no_harm() {
    let (healthy, header) = victim();
    let mut random = Random(2);
    let mut refusals = 0;
    for i in 0..5000 {
        let mut bytes = healthy.clone();
        let at = random.below(header);
        bytes[at] ^= 1 + random.below(255) as u8;
        refusals += usize::from(try_bytes(&format!("flip {i} at {at}"), bytes).is_err());
    }
    // Flips in names and values go unnoticed, flips in lengths, types and offsets do not.
    assert!(
        (1000..4500).contains(&refusals),
        "{refusals} of 5000 refused"
    );
    for i in 0..500 {
        let mut bytes = healthy.clone();
        for _ in 0..8 {
            bytes[random.below(header)] = random.next() as u8;
        }
        let _ = try_bytes(&format!("garble {i}"), bytes);
    }
}

#[test]
fn flipped_bytes_in_a_real_model_do_no_harm() {
    let Some(path) = shared_model() else { return };
    let dir = TempDir::new().unwrap();
    let copy = dir.path().join("flip.gguf");
    fs::write(&copy, fs::read(&path).unwrap()).unwrap();
    let header = Gguf::open(&path).unwrap().parts[0].data_offset as usize;
    let original = fs::read(&path).unwrap();
    let file = File::options().write(true).open(&copy).unwrap();
    let mut random = Random(3);
    for i in 0..1000 {
        use std::os::unix::fs::FileExt;
        let at = random.below(header);
        let flipped = original[at] ^ (1 + random.below(255) as u8);
        file.write_all_at(&[flipped], at as u64).unwrap();
        let case = format!("flip {i} at {at}");
        let (result, _) = bounded(&case, || Gguf::open(&copy));
        if let Err(error) = result {
            check_message(&case, &error);
        }
        file.write_all_at(&[original[at]], at as u64).unwrap();
    }
}

#[test]
fn huge_numbers_anywhere_in_the_header_do_no_harm() {
    // Covers every length, count, dimension and offset field, and everything between.
    let (healthy, header) = victim();
    let left = healthy.len() as u64;
    for value in [
        u64::MAX,
        u64::MAX - 31,
        1 << 63,
        (1 << 63) - 1,
        1 << 61,
        1 << 40,
        1 << 32,
        left,
        left / 8,
        left / 12,
    ] {
        for at in 4..header - 8 {
            let mut bytes = healthy.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let _ = try_bytes(&format!("{value:#x} at {at}"), bytes);
        }
    }
}

/// A header under construction.
struct Raw(Vec<u8>);

impl Raw {
    fn new(n_tensors: u64, n_keys: u64) -> Raw {
        Raw(b"GGUF\x03\0\0\0".to_vec()).u64(n_tensors).u64(n_keys)
    }

    fn u32(mut self, v: u32) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u64(mut self, v: u64) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn str(self, s: &str) -> Raw {
        let mut raw = self.u64(s.len() as u64);
        raw.0.extend(s.as_bytes());
        raw
    }

    fn tensor(self, name: &str, dims: &[u64], ty: GgmlType, offset: u64) -> Raw {
        let mut raw = self.str(name).u32(dims.len() as u32);
        for &d in dims {
            raw = raw.u64(d);
        }
        raw.u32(ty.id()).u64(offset)
    }

    /// The header followed by `n` bytes of data.
    fn data(mut self, n: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
        self.0
    }
}

#[test]
fn each_length_field_is_checked() {
    const HUGE: u64 = u64::MAX;
    refused("tensor count", Raw::new(HUGE, 0).data(64), "tensor count");
    refused("key count", Raw::new(0, HUGE).data(64), "key count");
    let key = || Raw::new(0, 1).str("k");
    refused(
        "key length",
        Raw::new(0, 1).u64(HUGE).data(64),
        "string length",
    );
    refused(
        "string",
        key().u32(8).u64(HUGE).data(64),
        "'k': string length",
    );
    for ty in 0..13 {
        let raw = key().u32(9).u32(ty).u64(HUGE).data(64);
        refused(&format!("array of type {ty}"), raw, "does not fit");
        // Overflows when multiplied with the element size.
        let raw = key().u32(9).u32(ty).u64((1 << 61) + 1).data(64);
        refused(&format!("array of type {ty}"), raw, "does not fit");
    }
    let raw = key().u32(9).u32(8).u64(1).u64(HUGE).data(64);
    refused("string in array", raw, "string length");
    let raw = key().u32(9).u32(9).u64(1).u32(0).u64(HUGE).data(64);
    refused("inner array", raw, "does not fit");
    refused(
        "name length",
        Raw::new(1, 0).u64(HUGE).data(64),
        "string length",
    );
    let raw = Raw::new(1, 0).str("t").u32(u32::MAX).data(64);
    refused("dimension count", raw, "4294967295 dimensions");
    let t = |dims: &[u64], ty, offset| Raw::new(1, 0).tensor("t", dims, ty, offset).data(64);
    refused("dimension", t(&[HUGE], GgmlType::I8, 0), "dimension 0");
    let dims = [1 << 32, 1 << 32, 1 << 32, 1 << 32];
    refused("element count", t(&dims, GgmlType::I8, 0), "elements");
    refused("byte count", t(&[1 << 62], GgmlType::F64, 0), "bytes");
    refused("offset", t(&[8], GgmlType::I8, HUGE), "offset");
    refused("data", t(&[1 << 40], GgmlType::I8, 0), "cut off");
}

#[test]
fn broken_rules_are_named() {
    let two = |a: &str, b: &str, offset| {
        Raw::new(2, 0)
            .tensor(a, &[64], GgmlType::I8, 0)
            .tensor(b, &[64], GgmlType::I8, offset)
            .data(256)
    };
    try_bytes("good", two("a", "b", 64)).unwrap();
    refused(
        "overlap",
        two("a", "b", 32),
        "'b': the data offset is 32 but must be 64",
    );
    refused("overlap", two("a", "b", 32), "overlaps");
    refused("same place", two("a", "b", 0), "overlaps");
    refused("gap", two("a", "b", 96), "leaves a gap");
    refused("unaligned", two("a", "b", 65), "leaves a gap");
    refused("past the end", two("a", "b", 1 << 50), "leaves a gap");
    refused(
        "duplicate",
        two("same", "same", 64),
        "'same': the name occurs twice",
    );
    refused("long name", two("a", &"n".repeat(64), 64), "at most 63");
    refused("zero byte", two("a", "b\0c", 64), "zero byte");
    refused(
        "control characters",
        two("a", "\u{1b}]0;x\u{7}", 0),
        "'\\u{1b}]0;x\\u{7}'",
    );

    let raw = Raw::new(1, 0).str("t").u32(5).u64(1).data(64);
    refused("five dimensions", raw, "5 dimensions");
    for removed in [4, 5, 31, 33, 36, 38, 43, u32::MAX] {
        let raw = Raw::new(1, 0)
            .str("t")
            .u32(1)
            .u64(64)
            .u32(removed)
            .u64(0)
            .data(64);
        refused("removed type", raw, &format!("ggml type {removed}"));
    }
    let raw = Raw::new(1, 0)
        .tensor("t", &[48, 2], GgmlType::Q8_0, 0)
        .data(256);
    refused(
        "partial block",
        raw,
        "rows of 48 elements are not a multiple",
    );

    let keys = |a: &str, b: &str| {
        Raw::new(0, 2)
            .str(a)
            .u32(4)
            .u32(1)
            .str(b)
            .u32(4)
            .u32(1)
            .data(0)
    };
    try_bytes("good keys", keys("a", "b")).unwrap();
    refused("duplicate key", keys("a", "a"), "'a': the key occurs twice");
    refused("empty key", keys("a", ""), "key number 1 is empty");
    refused(
        "value type",
        Raw::new(0, 1).str("k").u32(13).data(8),
        "value type 13",
    );
    refused(
        "boolean",
        Raw::new(0, 1).str("k").u32(7).u32(2).data(0),
        "boolean is 2",
    );
    let raw = Raw::new(0, 1)
        .str("k")
        .u32(9)
        .u32(7)
        .u64(4)
        .u32(0x0100_0201)
        .data(0);
    refused("boolean in array", raw, "boolean is 2");
    let mut raw = Raw::new(0, 1).str("k").u32(9);
    for _ in 0..9 {
        raw = raw.u32(9).u64(1);
    }
    refused("nesting", raw.data(64), "nest deeper than 8");
    let mut raw = keys("abcd", "b");
    raw[32] = 0xff;
    refused("key encoding", raw, "not valid UTF-8");

    for (alignment, ok) in [
        (0u32, false),
        (1, true),
        (24, false),
        (32, true),
        (1 << 31, false),
    ] {
        let raw = Raw::new(1, 1)
            .str("general.alignment")
            .u32(4)
            .u32(alignment);
        let result = try_bytes("alignment", raw.tensor("t", &[8], GgmlType::I8, 0).data(64));
        assert_eq!(result.is_ok(), ok, "{alignment}: {result:?}");
    }
    let raw = Raw::new(0, 1)
        .str("general.alignment")
        .u32(10)
        .u64(32)
        .data(64);
    refused(
        "alignment type",
        raw,
        "general.alignment': the alignment has type u64",
    );
    let raw = Raw::new(0, 1)
        .str("general.alignment")
        .u32(4)
        .u32(1 << 31)
        .data(64);
    try_bytes("large alignment without tensors", raw).unwrap();
}

#[test]
fn other_files_are_recognised() {
    refused("empty", vec![], "empty");
    refused("short", b"GG".to_vec(), "not a GGUF file");
    refused(
        "text",
        b"version https://git-lfs.github.com/spec/v1".to_vec(),
        "git lfs pull",
    );
    refused("ggml", b"lmgg\x01\0\0\0".to_vec(), "before GGUF");
    refused("zip", b"PK\x03\x04 and so on".to_vec(), "PyTorch");
    refused("no version", b"GGUF\x03".to_vec(), "version");
    let version = |v: u32| {
        let mut bytes = victim().0;
        bytes[4..8].copy_from_slice(&v.to_le_bytes());
        bytes
    };
    try_bytes("version 2", version(2)).unwrap();
    refused("version 0", version(0), "version 0");
    refused("version 1", version(1), "version 1");
    refused("version 4", version(4), "version 4, newer");
    refused(
        "big-endian",
        version(3u32.swap_bytes()),
        "big-endian GGUF (version 3",
    );
}

#[test]
fn experts_of_size_zero_are_harmless() {
    let raw = Raw::new(3, 0)
        .tensor(
            "blk.0.ffn_up_exps.weight",
            &[256, 256, 0],
            GgmlType::Q4_K,
            0,
        )
        .tensor(
            "blk.0.ffn_gate_exps.weight",
            &[0, 256, 8],
            GgmlType::Q4_K,
            0,
        )
        .tensor("norm", &[8], GgmlType::I8, 0)
        .data(32);
    let gguf = Gguf::from_bytes("zero", raw.clone()).unwrap();
    assert_eq!(gguf.tensors[0].n_elems(), 0);
    assert_eq!(gguf.data(&gguf.tensors[0]), b"");
    assert_eq!(gguf.data(&gguf.tensors[2]).len(), 8);
    try_bytes("zero", raw).unwrap();
}

/// A sparse file of `len` bytes that starts with `raw`.
fn sparse(path: &Path, raw: Raw, len: u64) {
    fs::write(path, raw.0).unwrap();
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

#[test]
fn plausible_lengths_in_large_files_stay_within_bounds() {
    // The bytes are there (a sparse gigabyte), so that only the memory bound can refuse.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("large.gguf");
    let len = 1u64 << 30;
    let room = len - 4096;
    let key = || Raw::new(0, 1).str("k").u32(9);
    for ty in 0..13 {
        let size: u64 = match ty {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            9 => 12,
            10.. | 8 => 8,
            _ => 4,
        };
        sparse(&path, key().u32(ty).u64(room / size), len);
        let case = format!("array of type {ty}");
        let (result, _) = bounded(&case, || Gguf::open(&path));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("128 MiB"), "{case}: {error}");
        // Just under the bound.
        let most = (127 << 20)
            / if ty == 9 {
                size_of::<Array>() as u64
            } else {
                size
            };
        sparse(&path, key().u32(ty).u64(most), len);
        let (result, _) = bounded(&case, || Gguf::open(&path));
        assert_eq!(
            result.unwrap().metadata.get_array("k").unwrap().len() as u64,
            most
        );
    }
    sparse(&path, Raw::new(0, 1).str("k").u32(8).u64(room), len);
    let (result, _) = bounded("string", || Gguf::open(&path));
    assert!(result.unwrap_err().to_string().contains("128 MiB"));
}

#[test]
fn floods_of_keys_and_tensors_stay_within_bounds() {
    for n in [300_000u64, 1_000_000] {
        let mut keys = Raw::new(0, n);
        let mut tensors = Raw::new(n, 0);
        for i in 0..n {
            keys = keys.str(&format!("{i:x}")).u32(0);
            keys.0.push(1);
            tensors = tensors.tensor(&format!("{i:x}"), &[0], GgmlType::I8, 0);
        }
        for (case, raw) in [("keys", keys), ("tensors", tensors)] {
            let bytes = raw.data(0);
            let ((), _) = bounded(case, || match Gguf::from_bytes(case, bytes) {
                Ok(gguf) => {
                    assert_eq!(n, 300_000);
                    assert_eq!((gguf.metadata.len() + gguf.tensors.len()) as u64, n);
                }
                Err(error) => {
                    assert_eq!(n, 1_000_000);
                    assert!(error.to_string().contains("128 MiB"), "{error}");
                }
            });
        }
    }
}

#[test]
fn things_that_are_no_files_are_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("empty"), b"").unwrap();
    std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let fifo = std::ffi::CString::new(at("fifo").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a valid C string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    for (path, expected) in [
        (at("dir"), "directory"),
        (at("empty"), "empty"),
        (at("missing"), "cannot find the file"),
        (at("dangling"), "cannot find the file"),
        (at("loop"), "cannot find the file"),
        (at("socket"), "not a regular file"),
        (at("fifo"), "not a regular file"),
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (PathBuf::from("/proc/self/status"), "empty"),
        (PathBuf::from(""), "cannot find the file"),
    ] {
        // In a thread of its own, so that a blocking open fails the test instead of hanging it.
        let (send, receive) = std::sync::mpsc::channel();
        let opened = path.clone();
        std::thread::spawn(move || send.send(Gguf::open(opened).map(drop)));
        let result = receive.recv_timeout(TIME_LIMIT);
        let result = result.unwrap_or_else(|_| panic!("{} blocks", path.display()));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{}: {error}", path.display());
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_model_of_65535_missing_shards_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let mut m = Metadata::new();
    m.set("split.no", 0u16);
    m.set("split.count", u16::MAX);
    m.set("split.tensors.count", 0i32);
    let path = dir.path().join("m-00001-of-65535.gguf");
    fs::write(&path, model(&m, vec![]).0).unwrap();
    let (result, _) = bounded("shards", || Gguf::open(&path));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("m-00002-of-65535.gguf"), "{error}");
}
