//! `moqa ablate` and `moqa report` as a user runs them, on a model that takes a blink.

mod common;
#[path = "watch/mod.rs"]
mod watch;

use std::fs;
use std::path::{Path, PathBuf};

use common::{moqa, moqa_ok, s};
use moqa::gguf::GgmlType;
use tempfile::TempDir;
use watch::{TINY, folder};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

/// A folder with the model, texts of two domains, text to evaluate on, and an analysis.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: folder() };
        fs::copy(TINY, place.at("m.gguf")).unwrap();
        let sentence = |words: &str, n: usize| -> String {
            (0..n)
                .map(|i| format!("{words} {i}, {}. ", i * i))
                .collect()
        };
        fs::write(place.at("a.txt"), sentence("The clocks were striking", 20)).unwrap();
        fs::write(place.at("b.txt"), sentence("let x = match y", 20)).unwrap();
        fs::create_dir(place.at("held-out")).unwrap();
        let held_out = sentence("It was a bright cold day", 10);
        fs::write(place.at("held-out/c.txt"), held_out).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn labelled(&self) -> [String; 2] {
        ["a", "b"].map(|d| format!("{d}={}", self.at(&format!("{d}.txt")).display()))
    }

    /// Measures an analysis of both domains.
    fn analyze(&self) -> PathBuf {
        let file = self.at("a.moqa");
        let [a, b] = self.labelled();
        moqa_ok(&[
            "analyze",
            s(&self.at("m.gguf")),
            "-o",
            s(&file),
            "--text",
            &a,
            &b,
            "--ctx",
            "32",
            "--sensitivity",
            "1",
            "--threads",
            "1",
            "-q",
        ]);
        file
    }

    fn ablate(&self, more: &[&str]) -> std::process::Output {
        let (model, text) = (self.at("m.gguf"), self.at("held-out"));
        let base = ["ablate", s(&model), "--eval-text", s(&text), "--ctx", "32"];
        moqa(&[&base[..], &["--threads", "1"], more].concat())
    }

    fn report(&self, output: &Path, more: &[&str]) -> std::process::Output {
        let (model, analysis) = (self.at("m.gguf"), self.at("a.moqa"));
        let base = ["report", s(&model), "--analysis", s(&analysis), "-o"];
        moqa(&[&base[..], &[s(output)], more].concat())
    }
}

fn stderr(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn stdout(out: &std::process::Output) -> String {
    assert!(out.status.success(), "{}: {}", out.status, stderr(out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The stages are worth something to plans for a mix of domains too, though without the first no domain is known.
#[test]
fn plans_for_domains_can_be_ablated() {
    let place = Place::new();
    let analysis = place.analyze();
    let page = place.at("page.html");
    let base = ["--analysis", s(&analysis), "--eval-chunks", "3"];
    let strategies: [&[&str]; 2] = [
        &["--weight", "a=0.7", "--html", s(&page)],
        &["--strategy", "robust,uniform-experts", "--no-measure"],
    ];
    for strategy in strategies {
        let more = ["--budgets", "Q4_K_M,Q4_K,q4_k_m", "--json"];
        let found = json(&stdout(
            &place.ablate(&[&base[..], strategy, &more].concat()),
        ));
        // One preset by three names is one budget.
        let bars = found["bars"].as_array().unwrap();
        let stages: Vec<&str> = bars.iter().map(|b| b["stage"].as_str().unwrap()).collect();
        assert_eq!(stages, ["activation", "mapping", "correlation"]);
        for (bar, mean) in bars.iter().zip(found["stages"].as_array().unwrap()) {
            let of = |what: &str| bar[what].as_f64().unwrap();
            let change = of("kld") / of("full_kld") - 1.0;
            assert!((mean["loss"].as_f64().unwrap() - change).abs() < 1e-6);
            let end = |i: usize| bar["interval"][i].as_f64().unwrap();
            assert!(end(0) <= change && change <= end(1), "{bar}");
            assert_eq!(bar["interval"], mean["interval"]);
        }
    }
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("Whiskers are 95 % intervals of the change"));

    // A domain that nobody knows is found out before the work.
    let unknown = ["--weight", "c=0.7"];
    let out = place.ablate(&[&base[..], &unknown].concat());
    assert!(stderr(&out).contains("--weight c: the analysis has no such domain; it has a, b"));
    let [a, b] = place.labelled();
    let out = place.ablate(&["--text", &a, &b, "--weight", "c=0.7"]);
    assert!(stderr(&out).contains("it has a, b"), "{}", stderr(&out));
    let out = place.ablate(&["--text", s(&place.at("a.txt")), "--strategy", "robust"]);
    assert!(stderr(&out).contains("text of several domains"));
}

#[test]
fn one_chunk_gives_no_interval() {
    let place = Place::new();
    let analysis = place.analyze();
    let short = place.at("short.txt");
    fs::write(&short, "It was a bright cold day in April.").unwrap();
    let model = place.at("m.gguf");
    let base = [
        "ablate",
        s(&model),
        "--eval-text",
        s(&short),
        "-q",
        "--threads",
        "1",
    ];
    let more = ["--analysis", s(&analysis), "--budgets", "Q4_K_M"];
    let args = [&base[..], &more].concat();
    let text = moqa_ok(&args);
    assert!(text.contains("on the average of the budgets\n"), "{text}");
    let found = json(&moqa_ok(&[&args[..], &["--json"]].concat()));
    for value in ["bars", "stages"].map(|part| &found[part][0]) {
        assert!(value.get("interval").is_none(), "{value}");
    }
}

#[test]
fn a_page_replaces_nothing_that_is_read() {
    let place = Place::new();
    let analysis = place.analyze();
    let plan = place.at("plan.toml");
    let model = place.at("m.gguf");
    let of = [
        "plan",
        s(&model),
        "--threads",
        "1",
        "--analysis",
        s(&analysis),
        "--like",
    ];
    moqa_ok(&[&of[..], &["Q4_K_M", "-o", s(&plan), "-q"]].concat());
    std::os::unix::fs::symlink("m.gguf", place.at("link")).unwrap();
    let [a, b] = place.labelled();
    let names = [
        "m.gguf",
        "link",
        "a.moqa",
        "plan.toml",
        "a.txt",
        "held-out/c.txt",
    ];
    let before: Vec<Vec<u8>> = names.map(|n| fs::read(place.at(n)).unwrap()).into();
    let refused = |out: std::process::Output, case: &str| {
        assert_eq!(out.status.code(), Some(1), "{case}");
        let text = stderr(&out);
        assert!(text.contains("choose another name"), "{case}: {text}");
    };
    for name in ["m.gguf", "link", "a.moqa", "a.txt", "held-out/c.txt"] {
        let target = place.at(name);
        let more = ["--html", s(&target), "--analysis", s(&analysis)];
        refused(
            place.ablate(&[&more[..], &["--text", &a, &b]].concat()),
            name,
        );
    }
    for name in ["m.gguf", "link", "a.moqa", "plan.toml"] {
        refused(place.report(&place.at(name), &["--plan", s(&plan)]), name);
    }
    let after: Vec<Vec<u8>> = names.map(|n| fs::read(place.at(n)).unwrap()).into();
    assert!(before == after);
}

/// A layer that was not measured is not one that costs nothing.
#[test]
fn effects_are_shown_in_the_type_that_was_measured() {
    let place = Place::new();
    let file = place.analyze();
    let page = place.at("page.html");
    let shown = || json(&stdout(&place.report(&page, &["--json", "-q"])));
    let mut analysis = moqa::analysis::load(&file).unwrap();
    // Its rows are too short for k-quants.
    let q4 = |p: &&moqa::analysis::Probe| p.ty == GgmlType::Q4_0;
    let is_of = |layer: usize| move |name: &str| name.starts_with(&format!("blk.{layer}."));
    let sum = |layer: usize| -> f64 {
        let probes = analysis.probes.iter().filter(q4);
        let own = probes.filter(|p| is_of(layer)(&p.tensor) && p.tensor.contains("_exps."));
        own.map(|p| p.kld).sum()
    };
    let whole = shown();
    let experts = &whole["experts"];
    assert_eq!(experts["sensitivity_type"], "q4_0");
    assert_eq!(experts["sensitivity_roles"].as_array().unwrap().len(), 3);
    for layer in 0..2 {
        let row = experts["sensitivity"][layer].as_array().unwrap();
        let all: f64 = row.iter().map(|v| v.as_f64().unwrap()).sum();
        assert!(all > 0.0 && (all - sum(layer)).abs() < 1e-9 * all);
    }

    let down_of_1 = |name: &str| is_of(1)(name) && name.contains("ffn_down_exps");
    analysis
        .probes
        .retain(|p| p.ty == GgmlType::Q4_0 && !down_of_1(&p.tensor));
    moqa::analysis::save(&file, &analysis).unwrap();
    let part = shown();
    let part = &part["experts"]["sensitivity"];
    assert_eq!(part[0], experts["sensitivity"][0]);
    assert!(part[1].as_array().unwrap().iter().all(|v| v.is_null()));
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("quantized to q4_0 (expert gate, expert up, expert down)"));

    analysis.probes.retain(|p| !p.tensor.contains("_exps."));
    moqa::analysis::save(&file, &analysis).unwrap();
    assert!(shown()["experts"]["sensitivity"].is_null());
}

#[test]
fn tensors_that_a_plan_does_not_name_keep_their_type() {
    let place = Place::new();
    place.analyze();
    let plan = place.at("plan.toml");
    let recipe = "version = 1\n[tensors]\n\"blk.0.ffn_down_exps.weight\" = \"q8_0\"\n";
    fs::write(&plan, recipe).unwrap();
    let out = place.report(&place.at("page.html"), &["--plan", s(&plan), "--json"]);
    assert!(!stderr(&out).contains("warning"), "{}", stderr(&out));
    let experts = &json(&stdout(&out))["experts"];
    assert_eq!(experts["types"][0][0], "q8_0 + bf16");
    assert_eq!(experts["types"][1][3], "bf16");
    assert_eq!(experts["bits"][1][3], 16.0);
    // Projections are of one size.
    assert_eq!(experts["bits"][0][0], (16.0 + 16.0 + 8.5) / 3.0);
}

#[test]
fn what_is_of_another_model_is_said() {
    let place = Place::new();
    let file = place.analyze();
    let mut analysis = moqa::analysis::load(&file).unwrap();
    analysis.origin.model_digest = "blake3:00".into();
    let stray = analysis.weights.values().next().unwrap().clone();
    analysis.weights.insert("blk.9.stray.weight".into(), stray);
    moqa::analysis::save(&file, &analysis).unwrap();
    let plan = place.at("plan.toml");
    let recipe = "version = 1\nmodel_digest = \"blake3:00\"\n[tensors]\n\"blk.0.attn_q.weight\" = \"q8_0\"\n";
    fs::write(&plan, recipe).unwrap();
    let out = place.report(&place.at("page.html"), &["--plan", s(&plan)]);
    let text = stderr(&out);
    for part in [
        "a.moqa was made for another model than",
        "statistics of blk.9.stray.weight",
        "the plan was made for another model",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    stdout(&out);
    let (model, simulated) = (place.at("m.gguf"), place.at("simulated.gguf"));
    let args = [
        "simulate",
        s(&plan),
        s(&model),
        "-o",
        s(&simulated),
        "--threads",
        "1",
    ];
    let out = moqa(&[&args[..], &["--analysis", s(&file)]].concat());
    stdout(&out);
    assert!(stderr(&out).contains("the plan was made for another model"));
}
