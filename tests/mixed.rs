//! Mixed files: experts of one tensor in types of their own.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{lab_model, moqa, moqa_ok, s, science_imatrix, science_text};
use moqa::gguf::{Array, GStringArray, GgmlType, Gguf, Value, shard_path};
use moqa::mixed::{KEY_TENSORS, MixedTensor, mixed_tensors};
use moqa::runtime::{Model, ModelOptions};
use moqa_mixed::{Layout, Shape};

const TYPES: [GgmlType; 6] = [
    GgmlType::Q4_K,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q8_0,
    GgmlType::IQ4_XS,
    GgmlType::Q4_0,
];

/// The type of an expert of a layer in the plan below.
fn type_of(layer: usize, expert: usize) -> GgmlType {
    TYPES[(layer * 5 + expert * expert) % TYPES.len()]
}

fn is_experts(name: &str) -> bool {
    name.ends_with("_exps.weight")
}

fn layer_of(name: &str) -> usize {
    name.split('.').nth(1).unwrap().parse().unwrap()
}

/// A plan that gives the experts of all layers types of their own, and other tensors one type.
fn write_plan(path: &Path) {
    let mut text = String::from("version = 1\n[tensors]\n");
    for t in &Gguf::open(lab_model()).unwrap().tensors {
        if is_experts(&t.name) {
            let each: Vec<String> = (0..t.ne(2) as usize)
                .map(|e| format!("\"{}\"", type_of(layer_of(&t.name), e)))
                .collect();
            writeln!(text, "\"{}\" = [{}]", t.name, each.join(", ")).unwrap();
        } else if t.ty == GgmlType::BF16 {
            writeln!(text, "\"{}\" = \"q6_K\"", t.name).unwrap();
        }
    }
    fs::write(path, text).unwrap();
}

struct Made {
    dir: tempfile::TempDir,
    plan: PathBuf,
    file: PathBuf,
}

impl Made {
    fn new() -> Made {
        let dir = tempfile::tempdir().unwrap();
        let (plan, file) = (dir.path().join("plan.toml"), dir.path().join("small.gguf"));
        write_plan(&plan);
        quantize(&plan, &file, &[]);
        Made { dir, plan, file }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn quantize(plan: &Path, to: &Path, more: &[&str]) {
    let (model, imatrix) = (lab_model(), science_imatrix());
    let base = [
        "quantize",
        s(&model),
        "--plan",
        s(plan),
        "--imatrix",
        s(&imatrix),
        "-o",
        s(to),
        "-q",
    ];
    moqa_ok(&[&base[..], more].concat());
}

fn fails(args: &[&str], words: &str) {
    let out = moqa(args);
    let told = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {told}");
    assert!(told.contains(words), "{args:?}: {told}");
    assert!(!told.contains("panicked"), "{args:?}: {told}");
}

/// Bytes of an expert's blocks.
fn expert<'a>(gguf: &'a Gguf, mixed: &MixedTensor, e: usize) -> &'a [u8] {
    let at = mixed.layout.experts[e];
    let start = at.offset as usize;
    let n = (at.row_bytes * mixed.layout.shape.n_out) as usize;
    &gguf.data(&gguf.tensors[mixed.index])[start..start + n]
}

#[test]
fn what_is_written_is_read_and_unpacks_to_what_was_simulated() {
    let made = Made::new();
    let (source, file) = (
        Gguf::open(lab_model()).unwrap(),
        Gguf::open(&made.file).unwrap(),
    );
    let mixed = mixed_tensors(&file).unwrap();
    assert_eq!(mixed.len(), 18);
    for m in &mixed {
        let t = &file.tensors[m.index];
        assert!(is_experts(&t.name));
        let expected: Vec<GgmlType> = (0..16).map(|e| type_of(layer_of(&t.name), e)).collect();
        assert_eq!(m.types, expected);
        // The carrier has room, and no smaller one would.
        let smaller = moqa::mixed::carrier::carriers(&t.dims)
            .into_iter()
            .rfind(|c| c.1 < t.n_bytes());
        let needed = m.layout.sealed_bytes();
        assert!(needed <= t.n_bytes() && needed > smaller.unwrap().1);
        let data = file.data(t);
        let empty = m.layout.bytes as usize..data.len() - moqa_mixed::SEAL_BYTES as usize;
        assert!(data[empty].iter().all(|b| *b == 0));
    }
    // What llama.cpp's loader looks at is the source's but for types.
    for (t, old) in file.tensors.iter().zip(&source.tensors) {
        assert_eq!((&t.name, t.dims), (&old.name, old.dims));
    }
    assert_eq!(
        file.metadata.get_str("general.architecture"),
        Some("moqa-qwen3moe")
    );
    for (k, v) in source.metadata.iter() {
        if k != "general.architecture" && k != "general.file_type" {
            assert_eq!(file.metadata.get(k), Some(v), "{k}");
        }
    }

    // Unpacked, the experts are those of the simulation, value for value; the rest is as it was.
    let (simulated, unpacked) = (made.at("simulated.gguf"), made.at("unpacked.gguf"));
    let (model, imatrix) = (lab_model(), science_imatrix());
    moqa_ok(&[
        "simulate",
        s(&made.plan),
        s(&model),
        "--imatrix",
        s(&imatrix),
        "-o",
        s(&simulated),
        "-q",
    ]);
    moqa_ok(&["unpack", s(&made.file), "-o", s(&unpacked), "-q"]);
    let (a, b) = (
        Gguf::open(&simulated).unwrap(),
        Gguf::open(&unpacked).unwrap(),
    );
    for (x, y) in a.tensors.iter().zip(&b.tensors) {
        assert_eq!((&x.name, x.dims), (&y.name, y.dims));
        if is_experts(&x.name) {
            assert_eq!((x.ty, y.ty), (GgmlType::F16, GgmlType::F16));
            assert!(a.data(x) == b.data(y), "{}", x.name);
        } else {
            let kept = file.tensor(&x.name).unwrap();
            assert!(
                y.ty == kept.ty && b.data(y) == file.data(kept),
                "{}",
                x.name
            );
        }
    }
    let keys: Vec<&str> = b.metadata.iter().map(|(k, _)| k).collect();
    assert!(keys.iter().all(|k| !k.starts_with("split.")) && !keys.contains(&KEY_TENSORS));
    assert_eq!(
        b.metadata.get("general.architecture"),
        source.metadata.get("general.architecture")
    );
    Model::load(&unpacked, &ModelOptions::default()).unwrap();

    // Or to a quantized type, which may need importance data.
    let plain = made.at("plain.gguf");
    let to = |ty: &'static str| ["unpack", s(&made.file), "-o", s(&plain), "--as", ty, "-q"];
    moqa_ok(&to("q5_K"));
    let p = Gguf::open(&plain).unwrap();
    let experts = p.tensors.iter().filter(|t| is_experts(&t.name));
    assert!(experts.clone().count() == 18 && experts.clone().all(|t| t.ty == GgmlType::Q5_K));
    Model::load(&plain, &ModelOptions::default()).unwrap();
    fails(&to("iq2_xs"), "needs importance data");
    fails(&to("i8"), "cannot quantize");
    fails(
        &["unpack", s(&plain), "-o", s(&made.at("x.gguf"))],
        "nothing to unpack",
    );
}

/// Each expert has the bytes that it has in a stock file of its type, quantized with the same importance.
#[test]
fn experts_are_those_of_stock_files() {
    let made = Made::new();
    let file = Gguf::open(&made.file).unwrap();
    let mixed = mixed_tensors(&file).unwrap();
    for ty in [GgmlType::Q3_K, GgmlType::IQ4_XS] {
        let plan = made.at("stock.toml");
        let mut text = String::from("version = 1\n[tensors]\n");
        for m in &mixed {
            writeln!(text, "\"{}\" = \"{ty}\"", file.tensors[m.index].name).unwrap();
        }
        fs::write(&plan, text).unwrap();
        let stock = made.at("stock.gguf");
        quantize(&plan, &stock, &[]);
        let stock = Gguf::open(&stock).unwrap();
        let mut compared = 0;
        for m in &mixed {
            let t = stock.tensor(&file.tensors[m.index].name).unwrap();
            let all = stock.data(t);
            let n = all.len() / 16;
            for e in (0..16).filter(|e| m.types[*e] == ty) {
                assert!(
                    all[e * n..(e + 1) * n] == *expert(&file, m, e),
                    "{}",
                    t.name
                );
                compared += 1;
            }
        }
        assert!(compared > 18, "{compared}");
    }
}

#[test]
fn inspect_shows_what_the_experts_are() {
    let made = Made::new();
    let file = Gguf::open(&made.file).unwrap();
    let mixed = mixed_tensors(&file).unwrap();
    let text = moqa_ok(&["inspect", s(&made.file), "--json", "--tensors"]);
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["architecture"], "qwen3moe");
    let mut expected: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for m in &mixed {
        for (e, ty) in m.types.iter().enumerate() {
            let entry = expected.entry(ty.to_string()).or_default();
            entry.0 += 256 * 256;
            entry.1 += expert(&file, m, e).len() as u64;
        }
    }
    let types = shown["types"].as_array().unwrap();
    for (ty, (parameters, bytes)) in &expected {
        let group = types.iter().find(|g| g["name"] == ty.as_str()).unwrap();
        assert_eq!(group["parameters"].as_u64().unwrap(), *parameters, "{ty}");
        assert_eq!(group["bytes"].as_u64().unwrap(), *bytes, "{ty}");
    }
    let sum = |key: &str| -> u64 { types.iter().map(|g| g[key].as_u64().unwrap()).sum() };
    assert_eq!(
        sum("bytes"),
        file.tensors.iter().map(|t| t.n_bytes()).sum::<u64>()
    );
    assert_eq!(sum("parameters"), shown["parameters"].as_u64().unwrap());
    let m = &shown["mixed"];
    let part = |key: &str| m[key].as_u64().unwrap();
    assert_eq!(
        part("expert_bytes") + part("container_bytes") + part("slack_bytes"),
        part("bytes")
    );
    assert_eq!(
        part("expert_bytes"),
        expected.values().map(|v| v.1).sum::<u64>()
    );
    let tensors = shown["tensors"].as_array().unwrap();
    let first = tensors
        .iter()
        .find(|t| t["name"] == "blk.0.ffn_up_exps.weight")
        .unwrap();
    assert_eq!(first["experts"][3], type_of(0, 3).name());
    let text = moqa_ok(&["inspect", s(&made.file), "--tensors"]);
    assert!(text.contains("18 tensors with experts of different types"));
    fails(
        &["inspect", s(&made.file), "--tensor-type-file"],
        "this is a mixed file",
    );
}

/// llama.cpp itself, and commands that would take the carriers for what they say they are.
#[test]
fn nothing_runs_it_by_mistake() {
    let made = Made::new();
    let refused = Model::load(&made.file, &ModelOptions::default())
        .err()
        .expect("llama.cpp refuses a mixed file")
        .to_string();
    assert!(
        refused.contains("unknown model architecture: 'moqa-qwen3moe'"),
        "{refused}"
    );
    let (file, out) = (s(&made.file), made.at("out"));
    let out = s(&out);
    let words = "this is a mixed file, whose experts have types of their own; llama.cpp runs it with `moqa run`, and `moqa unpack` makes a stock model of it";
    fails(&["quantize", file, "-o", out, "--bpw", "2"], words);
    fails(&["analyze", file, "-o", out], words);
    fails(&["plan", file, "-o", out, "--bpw", "2"], words);
    assert!(!Path::new(out).exists());

    // Evaluating it here is evaluating what it holds.
    let unpacked = made.at("unpacked.gguf");
    moqa_ok(&["unpack", file, "-o", s(&unpacked), "-q"]);
    let text = science_text();
    let eval = |path: &str| {
        let args = [
            "eval",
            path,
            "--text",
            s(&text),
            "--ctx",
            "128",
            "--chunks",
            "4",
            "--json",
            "-q",
        ];
        moqa_ok(&args)
    };
    assert_eq!(eval(file), eval(s(&unpacked)));
}

#[test]
fn a_split_mixed_file_begins_with_a_header() {
    let made = Made::new();
    quantize(
        &made.plan,
        &made.at("parts.gguf"),
        &["--split-max-size", "4MiB"],
    );
    let first = fs::read_dir(made.dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| s(p).contains("parts-00001-of-"))
        .unwrap();
    let (split, whole) = (Gguf::open(&first).unwrap(), Gguf::open(&made.file).unwrap());
    assert!(split.parts.len() > 3);
    assert_eq!(split.part_tensors(0).count(), 0);
    assert_eq!(
        mixed_tensors(&split).unwrap(),
        mixed_tensors(&whole).unwrap()
    );
    let (a, b) = (made.at("a.gguf"), made.at("b.gguf"));
    moqa_ok(&["unpack", s(&first), "-o", s(&a), "-q"]);
    moqa_ok(&["unpack", s(&made.file), "-o", s(&b), "-q"]);
    assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap());
    assert!(Model::load(&first, &ModelOptions::default()).is_err());
}

/// A file with a changed header of one mixed tensor.
struct Damage {
    bytes: Vec<u8>,
    at: usize,
    length: usize,
    layout: Layout,
    shape: Shape,
}

impl Damage {
    fn of(path: &Path) -> Damage {
        let gguf = Gguf::open(path).unwrap();
        let m = mixed_tensors(&gguf).unwrap().swap_remove(4);
        Damage {
            bytes: fs::read(path).unwrap(),
            at: gguf.tensors[m.index].file_offset as usize,
            length: gguf.tensors[m.index].n_bytes() as usize,
            shape: m.layout.shape,
            layout: m.layout,
        }
    }

    fn problem(&self, bytes: Vec<u8>) -> String {
        let gguf = Gguf::from_bytes("damaged.gguf", bytes).unwrap();
        match mixed_tensors(&gguf) {
            Ok(_) => String::new(),
            Err(e) => format!("{e:#}"),
        }
    }

    /// With the header and the seal that a layout, whatever it says, has.
    fn with(&self, layout: &Layout) -> String {
        let mut bytes = self.bytes.clone();
        let header = layout.to_header();
        bytes[self.at..self.at + header.len()].copy_from_slice(&header);
        let seal = layout.to_seal(self.length as u64);
        bytes[self.at + self.length - seal.len()..self.at + self.length].copy_from_slice(&seal);
        self.problem(bytes)
    }
}

#[test]
fn damaged_headers_are_refused() {
    let made = Made::new();
    let damage = Damage::of(&made.file);
    let n = damage.layout.to_header().len();
    assert_eq!(damage.with(&damage.layout), "");
    let seal = damage.length - moqa_mixed::SEAL_BYTES as usize..damage.length;
    for byte in (0..n).step_by(3).chain(seal.step_by(3)) {
        let mut bytes = damage.bytes.clone();
        bytes[damage.at + byte] ^= 0x41;
        let problem = damage.problem(bytes);
        assert!(
            problem.contains("damaged.gguf: tensor blk.1.ffn_") && problem.contains("offset"),
            "byte {byte}: {problem}"
        );
    }

    // Headers with a right checksum that lie.
    let refused = |change: &dyn Fn(&mut Layout), words: &str| {
        let mut layout = damage.layout.clone();
        change(&mut layout);
        let problem = damage.with(&layout);
        assert!(problem.contains(words), "{words}: {problem}");
    };
    refused(&|l| l.bytes = u64::MAX, "needs 18446744073709551615");
    refused(&|l| l.bytes += 64, "needs");
    refused(&|l| l.shape.n_in = 1 << 60, "and the model says");
    refused(
        &|l| {
            l.shape = Shape {
                n_out: u64::MAX,
                ..damage.shape
            };
        },
        "and the model says",
    );
    refused(&|l| l.experts[3].offset = u64::MAX, "expert 3");
    refused(&|l| l.experts[3].offset = l.experts[2].offset, "expert 3");
    refused(&|l| l.experts[5].row_bytes = u64::MAX, "expert 5");
    refused(&|l| l.experts[0].type_id = 9999, "expert 0");
    // Types without blocks of weights.
    for ty in [GgmlType::F64, GgmlType::I8, GgmlType::Q8_K] {
        refused(&|l| l.experts[0].type_id = ty.id(), "unknown");
    }
    // Experts that together are larger than the tensor.
    let types = vec![GgmlType::F32.id(); 16];
    let large = Layout::new(damage.shape, &types, |_| {
        Some(moqa_mixed::Block { elems: 1, bytes: 4 })
    })
    .unwrap();
    let problem = damage.with(&large);
    assert!(problem.contains("needs 4194"), "{problem}");

    // The program says it too, and leaves nothing.
    let (bad, out) = (made.at("bad.gguf"), made.at("out.gguf"));
    let mut bytes = damage.bytes.clone();
    bytes[damage.at + 70] ^= 1;
    fs::write(&bad, &bytes).unwrap();
    for args in [
        &["inspect", s(&bad)][..],
        &["unpack", s(&bad), "-o", s(&out), "-q"],
        &["eval", s(&bad), "-q"],
    ] {
        fails(args, "its checksum does not agree");
    }
    // Blocks that are not valid: the scale of a q8_0 block is no number.
    let q8 = damage
        .layout
        .experts
        .iter()
        .find(|e| e.type_id == GgmlType::Q8_0.id());
    let at = damage.at + q8.unwrap().offset as usize;
    let mut bytes = damage.bytes.clone();
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    fs::write(&bad, &bytes).unwrap();
    fails(
        &["unpack", s(&bad), "-o", s(&out), "-q"],
        "values that are not finite or not valid q8_0",
    );
    assert!(!out.exists());
}

/// The list of mixed tensors and the tensors must agree, whichever is wrong.
#[test]
fn the_list_of_mixed_tensors_is_checked() {
    let made = Made::new();
    let file = Gguf::open(&made.file).unwrap();
    let names: Vec<Vec<u8>> = file
        .metadata
        .get_array(KEY_TENSORS)
        .unwrap()
        .as_strings()
        .unwrap()
        .iter()
        .map(<[u8]>::to_vec)
        .collect();
    let problem = |value: Option<Value>| {
        let mut gguf = Gguf::open(&made.file).unwrap();
        match value {
            Some(value) => gguf.metadata.set(KEY_TENSORS, value),
            None => gguf.metadata.remove(KEY_TENSORS),
        };
        format!("{:#}", mixed_tensors(&gguf).unwrap_err())
    };
    let list = |names: &[Vec<u8>]| {
        let mut strings = GStringArray::new();
        names.iter().for_each(|n| strings.push(n));
        Some(Value::Array(Array::Str(strings)))
    };
    assert!(problem(None).contains("moqa.mixed"));
    assert!(problem(Some(Value::U32(3))).contains("no list of names"));
    assert!(problem(list(&names[1..])).contains("does not name it"));
    let mut more = names.clone();
    more.push(b"blk.9.ffn_up_exps.weight".to_vec());
    assert!(problem(list(&more)).contains("which the file does not have"));
    more.pop();
    more.push(b"output_norm.weight".to_vec());
    assert!(problem(list(&more)).contains("does not begin with MOQAMIX1"));
    more.pop();
    more.push(names[0].clone());
    assert!(problem(list(&more)).contains("twice"));
}

/// A shell script that shows what it was started with.
fn start(
    made: &Made,
    options: &[&str],
    script: &str,
    args: &[&str],
) -> (Option<i32>, String, String) {
    let command = [&["sh", "-c", script, "program"][..], args].concat();
    start_program(made, options, &command)
}

/// Only where experts stay in main memory does the variable say so, which lets the plugin open a header beside a GPU.
#[test]
#[cfg(target_os = "linux")]
fn run_sets_the_variable_for_programs_that_heed_it() {
    let made = Made::new();
    let file = s(&made.file).to_owned();
    for (name, more, expected) in [
        ("llama-cli", &[][..], "1"),
        ("llama-bench", &[], "unset"),
        ("llama-simple", &[], "unset"),
        ("llama-bench", &["-ngl", "99"], "unset"),
        ("llama-bench", &["-ngl", "0,99"], "unset"),
        (
            "llama-bench",
            &["-ngl", "0", "--n-gpu-layers", "4"],
            "unset",
        ),
        ("llama-bench", &["-p", "0", "-ngl"], "unset"),
        ("llama-bench", &["--n-gpu-layers", "0"], "1"),
        ("llama-simple", &["-ngl", "0"], "1"),
    ] {
        let program = made.at(name);
        if !program.exists() {
            std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        }
        let show = "echo ${LLAMA_ARG_CPU_MOE-unset}";
        let command = [&[s(&program), "-c", show, "sh", "-m", &file], more].concat();
        let (code, out, err) = start_program(&made, &[], &command);
        assert_eq!(
            (code, out.trim_end(), err.as_str()),
            (Some(0), expected, ""),
            "{name} {more:?}"
        );
    }
}

/// `moqa run` replaces itself by the program: its status and output.
fn start_program(made: &Made, options: &[&str], command: &[&str]) -> (Option<i32>, String, String) {
    let plugin = made.at("libggml-moqa.so");
    fs::write(&plugin, b"not loaded by these programs").unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_moqa"))
        .arg("run")
        .args(["--plugin", s(&plugin)])
        .args(options)
        .arg("--")
        .args(command)
        .env("XDG_CACHE_HOME", made.dir.path())
        .env("MOQA", env!("CARGO_BIN_EXE_moqa"))
        .env_remove("LLAMA_ARG_CPU_MOE")
        .env_remove("LLAMA_ARG_MODEL")
        .output()
        .unwrap();
    (
        out.status.code(),
        String::from_utf8(out.stdout).unwrap(),
        String::from_utf8(out.stderr).unwrap(),
    )
}

#[test]
#[cfg(target_os = "linux")]
fn run_gives_a_program_a_header_that_only_the_plugin_opens() {
    let made = Made::new();
    let file = s(&made.file).to_owned();
    let show = "echo $1 $2; echo $GGML_BACKEND_PATH; echo $LLAMA_ARG_CPU_MOE; head -c 4 $2; exit 7";
    let (code, out, err) = start(&made, &[], show, &["-m", &file]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((code, err.as_str()), (Some(7), ""));
    assert!(lines[0].ends_with("/small-00001-of-00002.gguf"), "{out}");
    assert!(lines[1].ends_with("/libggml-moqa.so"));
    assert_eq!(lines[2..], ["1", "MOQA"]);

    // Outside of that program there is nothing.
    let model = Path::new(lines[0].strip_prefix("-m ").unwrap());
    assert!(fs::symlink_metadata(model).is_ok() && fs::metadata(model).is_err());

    // Closed it is no model; once open it is the whole model without the guard.
    let closed = "$MOQA inspect $2 --json";
    let (code, _, err) = start(&made, &[], closed, &["-m", &file]);
    assert!(code == Some(1) && err.contains("neither GGUF"), "{err}");
    let open = "printf GGUF | dd of=$MOQA_STAND_IN conv=notrunc status=none; $MOQA inspect $2 --json --tensors";
    let (code, out, err) = start(&made, &[], open, &["--model", &file]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    let gguf = Gguf::open(&made.file).unwrap();
    assert_eq!(shown["architecture"], "qwen3moe");
    let tensors = shown["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), gguf.tensors.len());
    for (t, own) in tensors.iter().zip(&gguf.tensors) {
        assert_eq!(t["name"], own.name.as_str());
        assert_eq!(t["file_offset"].as_u64(), Some(own.file_offset));
    }

    // A split model, and several models as llama-bench takes them.
    let parts = made.at("parts.gguf");
    quantize(&made.plan, &parts, &["--split-max-size", "4MiB"]);
    let n = fs::read_dir(made.dir.path())
        .unwrap()
        .filter(|e| s(&e.as_ref().unwrap().path()).contains("/parts-"))
        .count();
    let first = shard_path(&made.at("parts"), 0, n);
    let (code, out, err) = start(&made, &[], open, &["-m", s(&first)]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let shown: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["files"].as_array().unwrap().len(), n);
    let both = format!("{file},{}", s(&lab_model()));
    let (_, out, _) = start(&made, &[], "echo $2", &["-m", &both]);
    let (a, b) = out.trim().split_once(',').unwrap();
    assert!(a.ends_with("-00001-of-00002.gguf") && b == s(&lab_model()));
}

#[test]
fn run_passes_on_what_is_not_its_business() {
    let made = Made::new();
    let file = s(&made.file).to_owned();
    let model = s(&lab_model()).to_owned();
    let show = "echo $*; echo $MOQA_STAND_IN";
    let (_, out, err) = start(&made, &[], show, &["-m", &model, "-n", "3"]);
    assert_eq!((out, err), (format!("-m {model} -n 3\n\n"), String::new()));
    let (_, out, err) = start(&made, &[], show, &["--version"]);
    assert!(out.starts_with("--version") && err.contains("no model is named"));
    let (_, out, err) = start(&made, &[], show, &["-m", "/no/model.gguf"]);
    assert!(out.starts_with("-m /no/model.gguf") && err.contains("/no/model.gguf"));

    // Metadata by arguments, if the program loads the plugin.
    let program = made.at("program");
    let script = |devices: &str| {
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --list-devices ]; then echo {devices}; else {show}; fi\n"
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let override_with =
        |args: &[&str]| start_program(&made, &["--override"], &[&[s(&program)][..], args].concat());
    script("load_backend: loaded MOQA backend from $GGML_BACKEND_PATH");
    let (_, out, _) = override_with(&["-m", &file, "-n", "3"]);
    let expected = format!("-m {file} -n 3 --override-kv general.architecture=str:qwen3moe\n\n");
    assert_eq!(out, expected);
    let given = [
        "--override-kv",
        "general.architecture=str:other",
        "-m",
        &file,
    ];
    let (_, out, _) = override_with(&given);
    assert_eq!(out, format!("{}\n\n", given.join(" ")));
    script("no devices");
    let (code, out, err) = override_with(&["-m", &file]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("does not load the plugin"), "{err}");
    let (code, _, _) = override_with(&["-m", &model]);
    assert_eq!(code, Some(0));

    // Ended by a signal: so is moqa.
    let (code, _, _) = start(&made, &[], "kill -TERM $$", &["-m", &model]);
    assert_eq!(code, None);
    fails(
        &["run", "--plugin", "/no/plugin.so", "--", "true"],
        "no such plugin",
    );
}

#[test]
fn the_plugin_is_found_installed_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let built = dir.path().join("libggml_moqa.so");
    fs::write(&built, b"a library").unwrap();
    let call = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_moqa"))
            .args(args)
            .env("MOQA_PLUGIN_PATH", dir.path())
            .env("HOME", dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
        (out.status.code(), text)
    };
    let (code, text) = call(&["plugin", "path"]);
    let found = fs::canonicalize(&built).unwrap();
    assert_eq!((code, text.trim()), (Some(0), s(&found)));
    let (code, text) = call(&["plugin", "install"]);
    let installed = dir.path().join(".local/lib/moqa/libggml-moqa.so");
    assert!(code == Some(0) && text.contains("export GGML_BACKEND_PATH="));
    assert_eq!(fs::read(&installed).unwrap(), b"a library");

    let program = dir.path().join("program");
    let check = |body: &str| {
        fs::write(&program, body).unwrap();
        call(&["plugin", "check", "--", "sh", s(&program)])
    };
    let (code, text) = check("echo load_backend: loaded MOQA backend from $GGML_BACKEND_PATH >&2");
    assert!(code == Some(0) && text.contains("loads"), "{text}");
    let (code, text) = check("test $MOQA_LOG = debug && echo moqa: 0.1.0, AVX2");
    assert!(code == Some(0) && text.contains("AVX2"), "{text}");
    let (code, text) =
        check("echo moqa: hello; echo load_backend: failed to initialize $GGML_BACKEND_PATH");
    assert!(code == Some(1) && text.contains("did not load"), "{text}");
    assert_eq!(check("echo Available devices:").0, Some(1));
    fs::remove_file(&built).unwrap();
    let (code, text) = call(&["plugin", "path"]);
    assert!(
        code == Some(1) && text.contains("there is no plugin"),
        "{text}"
    );
}
