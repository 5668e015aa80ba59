//! Damaged plans, analyses, imatrix files, saved logits and texts, and arguments that cannot be.

use std::fs;

use moqa::analysis::{self, Analysis, WeightStats};

use super::watch::{LAB, Random, TINY};
use super::{QUICK, attempt, call, on_all_cores, place, refused};

#[test]
fn plans_that_are_wrong() {
    let dir = place();
    let path = dir.path();
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    let long = format!("version = 1\n[tensors]\n{}", "a".repeat(1 << 20));
    let deep = format!(
        "version = 1\nx = {}{}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for (text, words) in [
        ("", "plan.toml"),
        ("version = 1\n", "tensors"),
        ("version = 99\n[tensors]\n", "99"),
        ("version = -1\n[tensors]\n", "plan.toml"),
        ("version = \"1\"\n[tensors]\n", "plan.toml"),
        ("version = 1\nsurprise = 3\n[tensors]\n", "surprise"),
        (
            "version = 1\n[tensors]\n\"blk.9.x.weight\" = \"q8_0\"\n",
            "blk.9.x.weight",
        ),
        (
            "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"q8_9\"\n",
            "q8_9",
        ),
        (
            "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = 8\n",
            "plan.toml",
        ),
        (
            "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"i8\"\n",
            "blk.0.attn_q.weight",
        ),
        (
            "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"q8_1\"\n",
            "blk.0.attn_q.weight",
        ),
        // Rows of 64 do not hold blocks of 256.
        (
            "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"q4_K\"\n",
            "blk.0.attn_q.weight",
        ),
        (
            "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"iq2_xs\"\n",
            "blk.0.attn_q.weight",
        ),
        (
            "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"q8_0\"\n\"blk.0.attn_q.weight\" = \"q4_0\"\n",
            "plan.toml",
        ),
        ("not toml at all", "plan.toml"),
        ("version = 1\n[tensors\n", "plan.toml"),
        ("version = 1\0\n", "plan.toml"),
        (&long, "plan.toml"),
        (&deep, "plan.toml"),
    ] {
        fs::write(path.join("plan.toml"), text).unwrap();
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
        refused(&text[..text.len().min(80)], path, &args, Some("out"), words);
        attempt(text, path, &["inspect", "plan.toml"], None);
    }
    fs::write(
        path.join("plan.toml"),
        b"version = 1\n# \xff\xfe\n[tensors]\n",
    )
    .unwrap();
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
    refused("not UTF-8", path, &args, Some("out"), "plan.toml");
}

#[test]
fn types_that_need_importance_without_it() {
    // Rows of 256, which the tiny model lacks.
    let dir = place();
    let plan = "version = 1\n[tensors]\n\"blk.0.ffn_up_exps.weight\" = \"iq2_xs\"\n";
    fs::write(dir.path().join("plan.toml"), plan).unwrap();
    let args = [
        "quantize",
        LAB,
        "-o",
        "out",
        "--plan",
        "plan.toml",
        "--no-analysis",
        "-q",
    ];
    refused("iq2_xs", dir.path(), &args, Some("out"), "importance");
}

#[test]
fn damaged_analyses_and_imatrix_files() {
    let dir = place();
    let path = dir.path();
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    let args = [
        "analyze",
        "m.gguf",
        "-o",
        "good.moqa",
        "--export-imatrix",
        "good.gguf",
        "--text",
        "text.txt",
        "--ctx",
        "32",
        "--chunks",
        "1",
    ];
    assert!(call(path, &args).status.success());
    let args = [
        "analyze",
        "m.gguf",
        "-o",
        "x.moqa",
        "--export-imatrix",
        "good.dat",
        "--analysis",
        "good.moqa",
    ];
    let outcome = call(path, &args);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let good: Vec<(&str, &str, Vec<u8>)> = [
        ("--analysis", "good.moqa"),
        ("--imatrix", "good.gguf"),
        ("--imatrix", "good.dat"),
    ]
    .into_iter()
    .map(|(option, name)| (option, name, fs::read(path.join(name)).unwrap()))
    .collect();
    on_all_cores(240, |dir, i| {
        let mut random = Random(0x5eed_4001 + i as u64 * 0x9e37_79b9);
        random.next();
        let (option, name, bytes) = &good[i % 3];
        let mut damaged = bytes.clone();
        if i % 4 == 0 {
            damaged.truncate(random.below(bytes.len()));
        } else {
            for _ in 0..1 + random.below(4) {
                let end = if random.below(2) == 0 {
                    600
                } else {
                    bytes.len()
                };
                damaged[random.below(end)] ^= 1 + random.below(255) as u8;
            }
        }
        fs::copy(TINY, dir.join("m.gguf")).unwrap();
        fs::write(dir.join(name), damaged).unwrap();
        let args = [
            "quantize",
            "m.gguf",
            "-o",
            "out",
            "--bpw",
            "9",
            option,
            name,
            "--sensitivity",
            "0",
            "--threads",
            "1",
        ];
        attempt(&format!("{name} {i}"), dir, &args, Some("out"));
        attempt(
            &format!("inspect {name} {i}"),
            dir,
            &["inspect", name],
            None,
        );
    });

    // Statistics of another shape, and values that cannot be.
    let stats = |n_in: usize, n_mat: usize, value: f32, count: f64| {
        let mut a = Analysis::default();
        a.weights.insert(
            "blk.0.ffn_up_exps.weight".into(),
            WeightStats {
                n_in,
                counts: vec![count; n_mat],
                sum_sq: vec![value; n_in * n_mat],
                sum: vec![0.0; n_in * n_mat],
            },
        );
        a
    };
    let quantize = |option: &'static str, file: &'static str| {
        [
            "quantize",
            "m.gguf",
            "-o",
            "out",
            "--bpw",
            "9",
            option,
            file,
            "--sensitivity",
            "0",
            "-q",
        ]
    };
    for (case, a) in [
        ("n_in", stats(32, 4, 1.0, 9.0)),
        ("experts", stats(64, 3, 1.0, 9.0)),
    ] {
        analysis::save(path.join("bad.moqa"), &a).unwrap();
        refused(
            case,
            path,
            &quantize("--analysis", "bad.moqa"),
            Some("out"),
            "blk.0.ffn_up_exps.weight",
        );
        analysis::imatrix::write(path.join("bad.gguf"), &a).unwrap();
        refused(
            case,
            path,
            &quantize("--imatrix", "bad.gguf"),
            Some("out"),
            "blk.0.ffn_up_exps.weight",
        );
    }
    analysis::save(path.join("bad.moqa"), &stats(64, 4, 1234.5, 9.0)).unwrap();
    let bytes = fs::read(path.join("bad.moqa")).unwrap();
    let pattern = 1234.5f32.to_le_bytes();
    let at = bytes.windows(4).position(|w| w == pattern).unwrap();
    for value in [f32::NAN, f32::INFINITY, -1.0] {
        let mut damaged = bytes.clone();
        damaged[at..at + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(path.join("bad.moqa"), damaged).unwrap();
        refused(
            &format!("{value}"),
            path,
            &quantize("--analysis", "bad.moqa"),
            Some("out"),
            "bad.moqa",
        );
    }
}

#[test]
fn damaged_saved_logits() {
    let dir = place();
    let path = dir.path();
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    let args = [
        "eval",
        "m.gguf",
        "--text",
        "text.txt",
        "--ctx",
        "32",
        "--chunks",
        "1",
        "--save-logits",
        "good.kld",
    ];
    assert!(call(path, &args).status.success());
    let good = fs::read(path.join("good.kld")).unwrap();
    on_all_cores(80, |dir, i| {
        let mut random = Random(0x5eed_5001 + i as u64 * 0x9e37_79b9);
        random.next();
        let mut damaged = good.clone();
        match i % 4 {
            0 => damaged.truncate(random.below(good.len())),
            // Sizes: n_ctx, n_vocab, n_chunk.
            1 => {
                let at = 8 + 4 * random.below(3);
                let value = [0u32, 1, 7, 1 << 20, i32::MAX as u32, u32::MAX][random.below(6)];
                damaged[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            2 => damaged[8 + random.below(12)] ^= 1 + random.below(255) as u8,
            _ => damaged[random.below(good.len())] ^= 1 + random.below(255) as u8,
        }
        fs::copy(TINY, dir.join("m.gguf")).unwrap();
        fs::write(dir.join("bad.kld"), damaged).unwrap();
        let args = [
            "eval",
            "m.gguf",
            "--against",
            "bad.kld",
            "--threads",
            "1",
            "-q",
        ];
        attempt(&format!("logits {i}"), dir, &args, None);
    });
}

#[test]
fn texts_that_are_none() {
    let dir = place();
    let path = dir.path();
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    fs::write(path.join("latin1.txt"), b"caf\xe9 au lait").unwrap();
    fs::write(path.join("empty.txt"), b"").unwrap();
    fs::write(path.join("short.txt"), b"a").unwrap();
    fs::create_dir(path.join("folder")).unwrap();
    for (name, words) in [
        ("latin1.txt", "not UTF-8 at byte 3"),
        ("empty.txt", "tokens"),
        ("short.txt", "tokens"),
        ("folder", "no .txt"),
        ("missing.txt", "missing.txt"),
    ] {
        for command in [
            &["eval", "m.gguf"][..],
            &["quantize", "m.gguf", "-o", "out", "--bpw", "9"],
        ] {
            let args = [command, &["--text", name, "-q"]].concat();
            refused(
                &format!("{} {name}", args[0]),
                path,
                &args,
                Some("out"),
                words,
            );
        }
    }
    // Odd but valid: NUL bytes, only spaces, one long word.
    for text in [
        "\0\0\0\0\0\0\0\0\0\0",
        "                                ",
        &"a".repeat(20_000),
    ] {
        fs::write(path.join("odd.txt"), text).unwrap();
        let args = [
            "eval", "m.gguf", "--text", "odd.txt", "--ctx", "32", "--chunks", "2", "-q",
        ];
        attempt("odd text", path, &args, None);
    }
}

#[test]
fn arguments_that_cannot_be() {
    let dir = place();
    fs::copy(TINY, dir.path().join("m.gguf")).unwrap();
    let quantize = ["quantize", "m.gguf", "-o", "out"];
    for rest in [
        &[][..],
        &["--bpw", "0"],
        &["--bpw", "nan"],
        &["--bpw", "-3"],
        &["--size", "99999999999999999999999TB"],
        &["--size", "-1"],
        &["--like", "Q4_Z"],
        &["--bpw", "4", "--size", "1GB"],
        &["--bpw", "9", "--chunks", "0"],
        &["--bpw", "9", "--threads", "0"],
        &["--bpw", "9", "--ctx", "4294967296"],
        &["--bpw", "9", "--sensitivity", "inf"],
        &["--bpw", "9", "--split-max-size", "x"],
        &["--no-analysis"],
    ] {
        refused(
            &rest.join(" "),
            dir.path(),
            &[&quantize[..], rest].concat(),
            Some("out"),
            "",
        );
    }
    // These only the plan finds out.
    for budget in [&["--size", "1"], &["--bpw", "0.001"]] {
        let args = [&quantize[..], budget, &QUICK].concat();
        refused(budget[1], dir.path(), &args, Some("out"), "too small");
    }
}
