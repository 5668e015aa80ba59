//! Damaged model files, and what is no model.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use moqa::gguf::{GgmlType, Gguf, GgufLayout, GgufWriter, shard_path};

use super::watch::{Random, TINY};
use super::{all_refuse, attempt, commands, on_all_cores, place, refused};

#[test]
fn truncated_anywhere() {
    let bytes = fs::read(TINY).unwrap();
    let mut random = Random(0x5eed_1001);
    let mut ends: Vec<usize> = (0..bytes.len()).step_by(4096).collect();
    ends.extend((0..200).map(|_| random.below(bytes.len())));
    on_all_cores(ends.len(), |dir, i| {
        fs::write(dir.join("m.gguf"), &bytes[..ends[i]]).unwrap();
        let commands = commands("m.gguf");
        let (args, output) = &commands[i % commands.len()];
        refused(&format!("cut at {}", ends[i]), dir, args, *output, "m.gguf");
    });
}

#[test]
fn random_flips_in_the_header() {
    let bytes = fs::read(TINY).unwrap();
    let gguf = Gguf::open(TINY).unwrap();
    let header = gguf.parts[0].data_offset as usize;
    // The vocabulary takes most of the header; half of the flips go before it.
    let before_vocabulary = 1400;
    let passed_on = AtomicUsize::new(0);
    on_all_cores(5000, |dir, i| {
        let mut random = Random(0x5eed_2001 + i as u64 * 0x9e37_79b9);
        random.next();
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.below(3) {
            let end = if random.below(2) == 0 {
                before_vocabulary
            } else {
                header
            };
            damaged[random.below(end)] ^= 1 + random.below(255) as u8;
        }
        fs::write(dir.join("m.gguf"), damaged).unwrap();
        // All are inspected; of those that pass, half go to llama.cpp, by one command or another.
        let case = format!("flips {i}");
        let outcome = attempt(&case, dir, &["inspect", "m.gguf"], None);
        if outcome.status.success() && i % 2 == 0 {
            let commands = commands("m.gguf");
            let which = [1, 1, 1, 1, 2, 2, 2, 3, 4][i % 9];
            let (args, output) = &commands[which];
            attempt(&format!("{case}, {}", args[0]), dir, args, *output);
            passed_on.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(
        passed_on.into_inner() > 300,
        "hardly any flip reached llama.cpp"
    );
}

#[test]
fn lengths_offsets_and_names_that_cannot_be() {
    let bytes = fs::read(TINY).unwrap();
    let dir = place();
    let gguf = Gguf::open(TINY).unwrap();
    let find = |needle: &[u8]| {
        bytes
            .windows(needle.len())
            .position(|w| w == needle)
            .unwrap()
    };
    let tensor = find(b"blk.0.attn_k.weight");
    // After the name: dimensions (u32, 2 x u64), type (u32), offset (u64).
    let dims = tensor + b"blk.0.attn_k.weight".len() + 4;
    let offset = dims + 16 + 4;
    let patched = |at: usize, with: &[u8]| {
        let mut b = bytes.clone();
        b[at..at + with.len()].copy_from_slice(with);
        b
    };
    let max = u64::MAX.to_le_bytes();
    let size = (bytes.len() as u64).next_multiple_of(32).to_le_bytes();
    let cases = [
        ("tensor count", patched(8, &max)),
        ("key count", patched(16, &max)),
        ("length of a key", patched(24, &max)),
        ("length of a text", patched(find(b"qwen3moe") - 8, &max)),
        (
            "length of a list",
            patched(find(b"tokenizer.ggml.tokens") + 21 + 4 + 4, &max),
        ),
        ("length of a name", patched(tensor - 8, &max)),
        ("a dimension", patched(dims, &max)),
        (
            "an overlapping offset",
            patched(offset, &0u64.to_le_bytes()),
        ),
        ("an offset past the end", patched(offset, &size)),
        ("the largest offset", patched(offset, &max)),
        (
            "experts of no size",
            patched(find(b"blk.0.ffn_up_exps.weight") + 24 + 4 + 16, &[0; 8]),
        ),
        (
            "rows of no size",
            patched(find(b"blk.0.ffn_up_exps.weight") + 24 + 4, &[0; 8]),
        ),
        ("a duplicated name", patched(tensor, b"blk.0.attn_q.weight")),
    ];
    assert_eq!(gguf.tensor("blk.0.attn_k.weight").unwrap().dims.ne(0), 64);
    for (case, bytes) in cases {
        fs::write(dir.path().join("m.gguf"), bytes).unwrap();
        all_refuse(case, dir.path(), "m.gguf", "m.gguf");
    }
}

#[test]
fn weights_that_are_not_finite() {
    let bytes = fs::read(TINY).unwrap();
    let gguf = Gguf::open(TINY).unwrap();
    let dir = place();
    // BF16 and F32 patterns of NaN and both infinities.
    for (name, pattern) in [
        ("blk.0.ffn_up_exps.weight", &0x7fc0u16.to_le_bytes()[..]),
        ("blk.1.ffn_down_exps.weight", &0x7f80u16.to_le_bytes()),
        ("blk.1.attn_q.weight", &0xff80u16.to_le_bytes()),
        ("output.weight", &0x7fc0u16.to_le_bytes()),
        ("token_embd.weight", &0x7f80u16.to_le_bytes()),
        ("blk.0.ffn_gate_inp.weight", &f32::NAN.to_le_bytes()),
        ("blk.0.attn_norm.weight", &f32::INFINITY.to_le_bytes()),
    ] {
        let tensor = gguf.tensor(name).unwrap();
        for at in [0, tensor.n_bytes() as usize / 2 + 4] {
            let mut damaged = bytes.clone();
            let at = tensor.file_offset as usize + at;
            damaged[at..at + pattern.len()].copy_from_slice(pattern);
            fs::write(dir.path().join("m.gguf"), damaged).unwrap();
            // Once quantized, once copied.
            let quantized = if tensor.ty == GgmlType::BF16 && at.is_multiple_of(8) {
                name
            } else {
                "blk.1.attn_k.weight"
            };
            let plan = format!("version = 1\n[tensors]\n\"{quantized}\" = \"q8_0\"\n");
            fs::write(dir.path().join("plan.toml"), plan).unwrap();
            // Whether or not the text runs into it: no file holds it.
            let (args, output) = &commands("m.gguf")[3];
            refused(name, dir.path(), args, *output, "m.gguf");
            let args = [
                "quantize",
                "m.gguf",
                "-o",
                "out",
                "--plan",
                "plan.toml",
                "--no-analysis",
                "-q",
            ];
            refused(name, dir.path(), &args, Some("out"), name);
            for which in [1, 2, 4] {
                let (args, output) = &commands("m.gguf")[which];
                attempt(&format!("{name}, {}", args[0]), dir.path(), args, *output);
            }
        }
    }
}

#[test]
fn things_that_are_no_models() {
    let dir = place();
    let path = dir.path();
    fs::create_dir(path.join("folder.gguf")).unwrap();
    let fifo = CString::new(path.join("pipe.gguf").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is NUL-terminated.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    std::os::unix::net::UnixListener::bind(path.join("socket.gguf")).unwrap();
    std::os::unix::fs::symlink("nowhere", path.join("dangling.gguf")).unwrap();
    std::os::unix::fs::symlink("loop.gguf", path.join("loop.gguf")).unwrap();
    fs::write(path.join("empty.gguf"), b"").unwrap();
    fs::write(path.join("nonsense.gguf"), vec![0xa5; 100_000]).unwrap();
    fs::write(path.join("zeros.gguf"), vec![0; 100_000]).unwrap();
    for name in [
        "folder.gguf",
        "pipe.gguf",
        "socket.gguf",
        "dangling.gguf",
        "loop.gguf",
        "empty.gguf",
        "nonsense.gguf",
        "zeros.gguf",
        "text.txt",
        "/dev/zero",
        "/dev/null",
        "missing.gguf",
        "",
        "text.txt/x",
    ] {
        all_refuse(name, path, name, "");
    }
    // The same things where other files are wanted.
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    for name in [
        "folder.gguf",
        "pipe.gguf",
        "dangling.gguf",
        "empty.gguf",
        "nonsense.gguf",
        "/dev/zero",
        "m.gguf",
    ] {
        for option in ["--analysis", "--imatrix", "--plan", "--against", "--text"] {
            let mut args: Vec<&str> = match option {
                "--against" => vec!["eval", "m.gguf", "--ctx", "32", "--chunks", "1"],
                "--plan" => vec!["quantize", "m.gguf", "-o", "out"],
                _ => vec![
                    "quantize", "m.gguf", "-o", "out", "--bpw", "9", "--chunks", "1",
                ],
            };
            args.extend([option, name]);
            let case = format!("{option} {name}");
            let output = (option != "--against").then_some("out");
            let outcome = attempt(&case, path, &args, output);
            if !(option == "--against" && name == "m.gguf") {
                assert!(!outcome.status.success(), "{case} was accepted");
            }
        }
    }
}

#[test]
fn shards_that_are_missing_or_wrong() {
    let dir = place();
    let path = dir.path();
    let source = Gguf::open(TINY).unwrap();
    let specs = source.tensors.iter().map(|t| t.spec()).collect();
    let layouts = GgufLayout::split(&source.metadata, specs, 3, 100 << 10).unwrap();
    let n = layouts.len();
    assert!(n >= 3);
    let shards: Vec<PathBuf> = (0..n).map(|i| shard_path(&path.join("m"), i, n)).collect();
    for (shard, layout) in shards.iter().zip(&layouts) {
        let mut w = GgufWriter::new(fs::File::create(shard).unwrap(), layout).unwrap();
        for t in layout.tensors() {
            let tensor = source.tensor(&t.spec.name).unwrap();
            w.write_tensor(&t.spec.name, source.data(tensor)).unwrap();
        }
        w.finish().unwrap();
    }
    let first = shards[0].to_str().unwrap();
    for (args, output) in commands(first) {
        let outcome = attempt("whole", path, &args, output);
        assert!(outcome.status.success(), "{}", outcome.stderr);
    }
    let second = fs::read(&shards[1]).unwrap();
    for (case, bytes) in [
        ("missing", None),
        ("empty", Some(vec![])),
        ("cut", Some(second[..second.len() / 2].to_vec())),
        ("another shard", Some(fs::read(&shards[2]).unwrap())),
        ("an unsplit model", Some(fs::read(TINY).unwrap())),
    ] {
        match bytes {
            None => fs::remove_file(&shards[1]).unwrap(),
            Some(bytes) => fs::write(&shards[1], bytes).unwrap(),
        }
        all_refuse(case, path, first, "-of-0000");
        fs::write(&shards[1], &second).unwrap();
    }
    for shard in &shards[1..] {
        fs::remove_file(shard).unwrap();
    }
    all_refuse("alone", path, first, "missing");
}
