//! The command line at its edges: what is read is not overwritten, arguments that cannot be are told from failures, and
//! statistics of several sources go together.

mod common;
#[path = "watch/mod.rs"]
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{lab_model, moqa, moqa_ok, s, science_text};
use moqa::analysis::{self, Importance, Unreached};
use moqa::encode::{EncodeOptions, encode, output_metadata};
use moqa::gguf::{Gguf, Value};
use moqa::progress::Progress;
use serde_json::Value as Json;
use tempfile::TempDir;
use watch::TINY;

/// A folder with a small model, an analysis of it, and texts of two domains.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::copy(TINY, place.at("m.gguf")).unwrap();
        for (name, from) in [("a", "science"), ("b", "fiction"), ("c", "news")] {
            let text = fs::read(science_text().with_file_name(format!("{from}.txt"))).unwrap();
            fs::write(place.at(&format!("{name}.txt")), &text[..8000]).unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The arguments, those that begin with an @ being files of the folder, also behind a `LABEL=`.
    fn args(&self, line: &str) -> Vec<String> {
        let file = |word: &str| match word.split_once('@') {
            Some((label, name)) => format!("{label}{}", s(&self.at(name))),
            None => word.to_owned(),
        };
        line.split_whitespace().map(file).collect()
    }

    fn ok(&self, line: &str) -> String {
        let args = self.args(line);
        moqa_ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What is said beside the result.
    fn notes(&self, line: &str) -> String {
        let args = self.args(line);
        let out = moqa(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{line}: {told}");
        told
    }

    fn json(&self, line: &str) -> Json {
        serde_json::from_str(&self.ok(&format!("{line} --json -q"))).unwrap()
    }

    fn fails(&self, line: &str, status: i32, words: &str) {
        let args = self.args(line);
        let out = moqa(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(status), "{line}: {told}");
        assert!(told.contains(words), "{line}: {told}");
    }
}

/// llama-perplexity saves the text's own tokens, and evaluates chunks that begin with the beginning of a sequence.
#[test]
fn saved_chunks_begin_as_the_vocabulary_asks() {
    let place = Place::new();
    let source = Gguf::open(lab_model()).unwrap();
    let mut metadata = output_metadata(&source, &BTreeMap::new(), &[]);
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let options = EncodeOptions {
        n_threads: 2,
        split_max_bytes: None,
    };
    let importance = Importance::new(&analysis::Analysis::default(), Unreached::default());
    let (model, none) = (place.at("bos.gguf"), BTreeMap::new());
    let quiet = Progress::quiet();
    encode(
        &source,
        &metadata,
        &none,
        &importance,
        &model,
        &options,
        &quiet,
    )
    .unwrap();
    place.ok("eval @bos.gguf --text @a.txt --ctx 128 --chunks 4 --save-logits @ours.kld -q");
    let mut file = fs::read(place.at("ours.kld")).unwrap();
    let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let (n_ctx, n_chunk) = (number(8), number(16));
    assert_eq!((n_ctx, n_chunk), (128, 4));
    for chunk in 1..n_chunk {
        let at = 20 + chunk * n_ctx * 4;
        file[at..at + 4].copy_from_slice(&(100 + chunk as u32).to_le_bytes());
    }
    fs::write(place.at("theirs.kld"), file).unwrap();
    let ours = place.json("eval @bos.gguf --against @ours.kld");
    let theirs = place.json("eval @bos.gguf --against @theirs.kld");
    assert!(ours["divergence"]["mean_kld"]["value"].as_f64().unwrap() < 1e-4);
    assert_eq!(ours, theirs);
}

#[test]
fn imatrix_files_are_enough_and_add_up() {
    let place = Place::new();
    place
        .ok("analyze @m.gguf -o @m.moqa --text @a.txt --sensitivity 0 --export-imatrix @i.gguf -q");
    place.ok("analyze @m.gguf -o @m.moqa --text @b.txt --sensitivity 0 --export-imatrix @i.dat -q");
    // Effects are measured on the built-in text, whose domains the imatrix does not have.
    for given in ["@i.gguf", "@i.dat", "@i.gguf @i.dat"] {
        let given = given.replace(' ', " --imatrix ");
        let plan = place.json(&format!(
            "plan @m.gguf --imatrix {given} --bpw 9 --dry-run --chunks 13 --ctx 64"
        ));
        assert!(plan["objective"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn effects_keep_to_their_domains() {
    let place = Place::new();
    place.ok("analyze @m.gguf -o @none.moqa --text a=@a.txt b=@b.txt --ctx 64 --chunks 16 --sensitivity 0 -q");
    let levels = |text: &str| {
        place.ok(&format!(
            "analyze @m.gguf --analysis @none.moqa --text {text} --ctx 64 --chunks 16 -o @both.moqa -q"
        ));
        let found = analysis::load(place.at("both.moqa")).unwrap();
        assert!(found.probes.iter().all(|p| p.by_domain.len() == 2));
        assert_eq!(found.probe_tokens.len(), 2);
        found.domain_levels
    };
    let (one, other) = (levels("a=@a.txt b=@b.txt"), levels("b=@b.txt a=@a.txt"));
    assert!((one[0] - one[1]).abs() > 1e-3, "{one:?}");
    for (a, b) in one.iter().zip(&other) {
        assert!((a - b).abs() < 1e-4, "{one:?} {other:?}");
    }

    // Text of another domain is judged by all in what was measured before, and plans for it go by what is expected.
    place.ok("analyze @m.gguf --analysis @both.moqa --text c=@c.txt -o @three.moqa --ctx 64 --chunks 8 -q");
    let three = analysis::load(place.at("three.moqa")).unwrap();
    assert_eq!(three.domain_levels[2], 1.0);
    assert_eq!((three.probe_tokens.len(), three.probe_tokens[2]), (3, 0.0));
    assert!(three.probes.iter().all(|p| p.by_domain[2] == p.kld));
    assert!(!three.checks.covers(3) && three.checks.covers(2));
    for strategy in ["--weight c=0.7", "--strategy robust"] {
        let plan = format!("plan @m.gguf --analysis @three.moqa --bpw 9 --dry-run {strategy}");
        assert!(place.notes(&plan).contains("are not measured"), "{plan}");
        let plan = format!("{plan} --no-measure");
        assert!(!place.notes(&plan).contains("are not measured"), "{plan}");
    }
}

#[test]
fn what_is_read_is_not_overwritten() {
    let place = Place::new();
    place.ok("analyze @m.gguf -o @m.moqa --text @a.txt --sensitivity 0 -q");
    place.ok("plan @m.gguf --analysis @m.moqa --sensitivity 0 --bpw 9 -o @p.toml -q");
    place.ok("tasks make --text @a.txt -o @t.jsonl --count 3 -q");
    fs::copy(place.at("m.gguf"), place.at("preset-Q8_0.gguf")).unwrap();
    let files = [
        "m.gguf",
        "m.moqa",
        "p.toml",
        "a.txt",
        "t.jsonl",
        "preset-Q8_0.gguf",
    ];
    let read = || files.map(|name| fs::read(place.at(name)).unwrap());
    let before = read();
    let compare = "compare @m.gguf --analysis @m.moqa --budgets Q8_0 --eval-text @a.txt";
    for line in [
        &format!("{compare} --html @m.gguf"),
        &format!("{compare} --html @m.moqa"),
        &format!("{compare} --html @a.txt"),
        &format!("{compare} --tasks @t.jsonl --html @t.jsonl"),
        &format!("{compare} --keep @").replace("@m.gguf", "@preset-Q8_0.gguf"),
        "plan @m.gguf --analysis @m.moqa --bpw 9 -o @m.moqa",
        "quantize @m.gguf --analysis @m.moqa --bpw 9 -o @m.moqa",
        "quantize @m.gguf --analysis @m.moqa --plan @p.toml -o @p.toml",
        "quantize @m.gguf --analysis @m.moqa --bpw 9 -o @x.gguf --save-plan @m.moqa",
        "analyze @m.gguf --text @a.txt -o @a.txt",
        "analyze @m.gguf --analysis @m.moqa --text @a.txt -o @x.moqa --export-imatrix @m.moqa",
        "simulate @p.toml @m.gguf --analysis @m.moqa -o @p.toml",
        "eval @m.gguf --text @a.txt --save-logits @a.txt",
        "tasks run @m.gguf --tasks @t.jsonl --details @t.jsonl",
    ] {
        place.fails(line, 1, "another file that is read");
        assert!(read() == before, "{line}");
    }
    // What a folder within a folder holds is read too; a page beside texts is not, and may be written again.
    fs::create_dir_all(place.at("texts/deep")).unwrap();
    fs::copy(place.at("a.txt"), place.at("texts/deep/a.txt")).unwrap();
    let eval = "eval @m.gguf --text @texts --ctx 64 --chunks 1 --save-logits";
    place.fails(
        &format!("{eval} @texts/deep/a.txt"),
        1,
        "another file that is read",
    );
    for _ in 0..2 {
        place.ok(&format!("{eval} @texts/saved.kld -q"));
    }
    // An analysis and a plan may be written again.
    place.ok("analyze @m.gguf --analysis @m.moqa --text @b.txt --sensitivity 0 -o @m.moqa -q");
    place
        .ok("quantize @m.gguf --analysis @m.moqa --plan @p.toml --save-plan @p.toml -o @x.gguf -q");
}

#[test]
fn arguments_that_cannot_be_end_with_their_own_status() {
    let place = Place::new();
    let plan = "plan @m.gguf --text @a.txt --dry-run";
    for (line, words) in [
        ("plan @m.gguf -o @p.toml", "how large"),
        ("plan @m.gguf --bpw 9", "-o FILE"),
        ("quantize @m.gguf -o @x.gguf", "how large"),
        (
            "quantize @m.gguf -o @x.gguf --bpw 9 --strategy balanced,robust",
            "exclude",
        ),
        ("simulate @p.toml @m.gguf -o @x.gguf --as q4_K", "f16"),
        (
            &format!("{plan} --bpw 9 --strategy uniform-experts,per-expert"),
            "exclude",
        ),
        (
            &format!("{plan} --bpw 9 --strategy robust --weight a=1"),
            "workload",
        ),
        (&format!("{plan} --bpw 9 --strategy workload"), "--weight"),
        (
            &format!("{plan} --bpw 9 --weight a=1 --weight a=0"),
            "twice",
        ),
        (
            &format!("{plan} --bpw 9 --strategy per-expert --tensor-type-file @t.txt"),
            "llama-quantize",
        ),
        (
            "compare @m.gguf --eval-text @a.txt --strategy balanced,robust",
            "exclude",
        ),
    ] {
        place.fails(line, 2, words);
    }
    // What only the data show is a failure.
    place.fails(&format!("{plan} --bpw 0.1 --sensitivity 0"), 1, "too small");
    place.fails("inspect @none.gguf", 1, "none.gguf");
}

#[test]
fn a_full_disk_is_a_failure_and_no_panic() {
    let full = || {
        Stdio::from(
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        )
    };
    for more in [&[][..], &["--json"]] {
        let out = Command::new(env!("CARGO_BIN_EXE_moqa"))
            .args(["inspect", s(&lab_model())])
            .args(more)
            .stdout(full())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{told}");
        assert!(told.contains("cannot write the result"), "{told}");
    }
}

#[test]
fn a_plan_is_shown_as_far_as_it_is_known() {
    let place = Place::new();
    fs::write(
        place.at("p.toml"),
        "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"q8_0\"\n\
         \"blk.0.ffn_up_exps.weight\" = [\"q4_0\", \"q8_0\", \"q4_0\", \"q5_0\"]\n",
    )
    .unwrap();
    let shown = place.ok("inspect @p.toml --tensors");
    assert!(!shown.contains("0 B"), "{shown}");
    for part in ["q8_0", "mixed", "2 experts", "q4_0 q8_0 q4_0 q5_0"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json = place.json("inspect @p.toml");
    for figure in ["bytes", "error", "cost"] {
        assert!(json["tensors"][0][figure].is_null(), "{json}");
    }
    place.fails("inspect @p.toml --tensor-type-file", 1, "llama-quantize");

    fs::write(
        place.at("p.toml"),
        "version = 1\n[tensors]\n\"blk.0.attn_q.weight\" = \"q8_0\"\n",
    )
    .unwrap();
    let lines = place.ok("inspect @p.toml --tensor-type-file");
    assert_eq!(lines, "^blk\\.0\\.attn_q\\.weight$=q8_0\n");
    let json = place.json("inspect @p.toml --tensor-type-file");
    assert_eq!(json[0]["pattern"], "^blk\\.0\\.attn_q\\.weight$");
    assert_eq!(json[0]["type"], "q8_0");
}

#[test]
fn compare_makes_the_plans_that_are_asked_for_once() {
    let place = Place::new();
    place.ok("analyze @m.gguf -o @m.moqa --text @a.txt --sensitivity 0 -q");
    let compare = "compare @m.gguf --analysis @m.moqa --eval-text @b.txt --eval-chunks 2 --ctx 64 --sensitivity 0 --no-tasks";
    let kinds = |more: &str| -> Vec<String> {
        let found = place.json(&format!("{compare} {more}"));
        let points = found["points"].as_array().unwrap();
        let kind = |p: &Json| p["kind"].as_str().unwrap().to_owned();
        points.iter().map(kind).collect()
    };
    let found = kinds("--budgets Q5_K,q5_k_m --strategy per-expert --keep @kept");
    assert_eq!(found, ["original", "preset", "moqa per expert"]);
    let kept = fs::read_dir(place.at("kept")).unwrap();
    let mut kept: Vec<String> = kept
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["preset-Q5_K_M.gguf", "simulated-Q5_K_M.gguf"]);
    Gguf::open(place.at("kept").join(&kept[0])).unwrap();
}
