//! The main job as a user runs it.

mod common;

use common::{lab_model, moqa, moqa_ok, s, science_imatrix, science_text};
use moqa::gguf::{GgmlType, Gguf};
use moqa::runtime::{Model, ModelOptions};

/// ggml itself on our table of types.
#[test]
fn types_are_those_of_the_linked_ggml() {
    use llama_cpp_sys_2 as sys;
    for &ty in GgmlType::ALL {
        // SAFETY: pure functions of a valid type id.
        let (name, size, elems, quantized) = unsafe {
            (
                std::ffi::CStr::from_ptr(sys::ggml_type_name(ty.id())),
                sys::ggml_type_size(ty.id()),
                sys::ggml_blck_size(ty.id()),
                sys::ggml_is_quantized(ty.id()),
            )
        };
        assert_eq!(name.to_str().unwrap(), ty.name());
        assert_eq!(
            (size as u64, elems as u64, quantized),
            (ty.block_bytes(), ty.block_elems(), ty.is_quantized())
        );
    }
    let newest = GgmlType::ALL.iter().map(|t| t.id()).max().unwrap();
    assert_eq!(newest + 1, sys::GGML_TYPE_COUNT);
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn analysis_plan_and_file_work_together() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (model, text) = (lab_model(), science_text());
    let analysis = at("a.moqa");
    let a = json(&moqa_ok(&[
        "analyze",
        s(&model),
        "-o",
        s(&analysis),
        "--text",
        s(&text),
        "--ctx",
        "256",
        "--sensitivity",
        "8",
        "--json",
        "-q",
    ]));
    assert_eq!(a["layers"].as_array().unwrap().len(), 6);
    assert!(a["probes"].as_u64().unwrap() > 20);

    // A dry run writes nothing and says what the plan would be.
    let plan = at("plan.toml");
    let types = at("types.txt");
    let args = [
        "plan",
        s(&model),
        "--analysis",
        s(&analysis),
        "--like",
        "Q3_K_M",
        "-o",
        s(&plan),
        "--json",
        "-q",
    ];
    let dry = json(&moqa_ok(&[&args[..], &["--dry-run"]].concat()));
    assert!(!plan.exists());
    let made = json(&moqa_ok(
        &[&args[..], &["--tensor-type-file", s(&types)]].concat(),
    ));
    assert_eq!(dry, made, "the plan is deterministic");
    assert!(made["file_bytes"].as_u64().unwrap() <= made["budget_bytes"].as_u64().unwrap());
    // The budget is used: what is left is less than one step of a small tensor.
    assert!(made["file_bytes"].as_f64().unwrap() > 0.99 * made["budget_bytes"].as_f64().unwrap());
    assert!(made["bound"].as_f64().unwrap() <= made["objective"].as_f64().unwrap());
    let lines = std::fs::read_to_string(&types).unwrap();
    assert_eq!(lines.lines().count(), 43);

    // The file has exactly the bytes that were planned, and the types.
    let small = at("small.gguf");
    let before = std::fs::read(&model).unwrap();
    moqa_ok(&[
        "quantize",
        s(&model),
        "--plan",
        s(&plan),
        "--analysis",
        s(&analysis),
        "-o",
        s(&small),
        "-q",
    ]);
    assert_eq!(
        std::fs::metadata(&small).unwrap().len(),
        made["file_bytes"].as_u64().unwrap()
    );
    assert_eq!(
        std::fs::read(&model).unwrap(),
        before,
        "the source is not touched"
    );
    let (source, written) = (Gguf::open(&model).unwrap(), Gguf::open(&small).unwrap());
    let planned = moqa::plan::Plan::read(&plan).unwrap().types();
    for (t, old) in written.tensors.iter().zip(&source.tensors) {
        assert_eq!((&t.name, t.dims), (&old.name, old.dims));
        assert_eq!(t.ty, planned.get(&t.name).copied().unwrap_or(old.ty));
    }
    // Metadata: the source's keys in order, its values, then ours.
    let old_keys: Vec<&str> = source.metadata.iter().map(|(k, _)| k).collect();
    let new_keys: Vec<&str> = written.metadata.iter().map(|(k, _)| k).collect();
    assert_eq!(new_keys[..old_keys.len()], old_keys);
    for (k, v) in source
        .metadata
        .iter()
        .filter(|(k, _)| *k != "general.file_type")
    {
        assert_eq!(written.metadata.get(k), Some(v), "{k}");
    }
    for key in ["moqa.version", "moqa.source", "moqa.plan", "moqa.analysis"] {
        assert!(
            written.metadata.get_str(key).is_some_and(|v| !v.is_empty()),
            "{key}"
        );
    }

    // One command does the same as the three.
    let direct = at("direct.gguf");
    moqa_ok(&[
        "quantize",
        s(&model),
        "--analysis",
        s(&analysis),
        "--like",
        "Q3_K_M",
        "-o",
        s(&direct),
        "-q",
    ]);
    assert_eq!(
        std::fs::read(&direct).unwrap(),
        std::fs::read(&small).unwrap()
    );

    // It is good: a fraction of what a uniform file of that size loses.
    let e = json(&moqa_ok(&[
        "eval",
        s(&small),
        "--against",
        s(&model),
        "--text",
        s(&text),
        "--ctx",
        "256",
        "--json",
        "-q",
    ]));
    let kld = e["divergence"]["mean_kld"]["value"].as_f64().unwrap();
    assert!(kld > 0.0 && kld < 0.012, "{kld}");

    // Every kind of file can be looked at.
    for file in [&model, &small, &analysis, &plan, &science_imatrix()] {
        assert!(moqa_ok(&["inspect", s(file)]).lines().count() > 2);
        json(&moqa_ok(&["inspect", s(file), "--json"]));
    }
}

#[test]
fn a_split_model_is_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = lab_model();
    let plan = at("plan.toml");
    let types: String = Gguf::open(&model)
        .unwrap()
        .tensors
        .iter()
        .filter(|t| t.ty == GgmlType::BF16)
        .map(|t| format!("\"{}\" = \"q4_0\"\n", t.name))
        .collect();
    std::fs::write(&plan, format!("version = 1\n[tensors]\n{types}")).unwrap();
    let whole = at("whole.gguf");
    moqa_ok(&[
        "quantize",
        s(&model),
        "--plan",
        s(&plan),
        "--no-analysis",
        "-o",
        s(&whole),
        "-q",
    ]);
    let out = json(&moqa_ok(&[
        "quantize",
        s(&model),
        "--plan",
        s(&plan),
        "--no-analysis",
        "-o",
        s(&at("parts.gguf")),
        "--split-max-size",
        "3MiB",
        "--json",
        "-q",
    ]));
    let files: Vec<&str> = out["written"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f.as_str().unwrap())
        .collect();
    assert!(
        files.len() >= 4 && files[0].ends_with("parts-00001-of-00005.gguf"),
        "{files:?}"
    );
    let (one, many) = (Gguf::open(&whole).unwrap(), Gguf::open(files[0]).unwrap());
    for t in &one.tensors {
        assert!(
            one.data(t) == many.data(many.tensor(&t.name).unwrap()),
            "{}",
            t.name
        );
    }
    // llama.cpp reads the shards, and so do we as a source.
    Model::load(files[0].as_ref(), &ModelOptions::default()).unwrap();
    let again = at("again.gguf");
    moqa_ok(&[
        "quantize",
        files[0],
        "--plan",
        s(&plan),
        "--no-analysis",
        "-o",
        s(&again),
        "-q",
    ]);
    let again = Gguf::open(&again).unwrap();
    assert!(
        again
            .tensors
            .iter()
            .all(|t| again.data(t) == one.data(one.tensor(&t.name).unwrap()))
    );
}

#[test]
fn budgets_and_arguments_that_cannot_be_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    let model = lab_model();
    let fails = |args: &[&str], code: i32, words: &str| {
        let r = moqa(args);
        let text = String::from_utf8_lossy(&r.stderr).into_owned();
        assert_eq!(r.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
        assert!(!out.exists());
    };
    let imatrix = science_imatrix();
    let base = [
        "quantize",
        s(&model),
        "-o",
        s(&out),
        "--imatrix",
        s(&imatrix),
        "--sensitivity",
        "0",
        "-q",
    ];
    fails(&[&base[..], &["--size", "1MiB"]].concat(), 1, "too small");
    fails(&base, 2, "--bpw");
    fails(&[&base[..], &["--bpw", "x"]].concat(), 2, "bits per weight");
    fails(
        &[&base[..], &["--like", "Q9"]].concat(),
        2,
        "not a llama.cpp preset",
    );
    fails(
        &[&base[..], &["--bpw", "3", "--size", "9MiB"]].concat(),
        2,
        "cannot be used with",
    );
    fails(
        &["quantize", s(&model), "-o", s(&model), "--bpw", "4"],
        1,
        "is the source itself",
    );
    fails(&["frobnicate"], 2, "unrecognized");
    for command in ["quantize", "analyze", "plan", "inspect", "eval"] {
        assert!(
            moqa_ok(&[command, "--help"]).contains("Example"),
            "{command}"
        );
    }
}

/// An expert that no token reached is reported by layer and number.
#[test]
fn unreached_experts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    std::fs::write(&text, "one two three four five six seven eight").unwrap();
    let analysis = dir.path().join("a.moqa");
    let model = lab_model();
    let out = moqa(&[
        "analyze",
        s(&model),
        "-o",
        s(&analysis),
        "--text",
        s(&text),
        "--sensitivity",
        "0",
    ]);
    assert!(out.status.success());
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(
        told.contains("no calibration token reached expert")
            && told.contains("blk.0.ffn_gate_exps.weight"),
        "{told}"
    );
    let shown = json(&moqa_ok(&["inspect", s(&analysis), "--json"]));
    assert!(!shown["unreached"].as_array().unwrap().is_empty());
    // A plan can still be made from it.
    let small = dir.path().join("small.gguf");
    moqa_ok(&[
        "quantize",
        s(&model),
        "--analysis",
        s(&analysis),
        "--sensitivity",
        "0",
        "--bpw",
        "4",
        "-o",
        s(&small),
        "-q",
    ]);
    Model::load(&small, &ModelOptions::default()).unwrap();
}

/// Domains, strategies, plans by expert, the report and the comparison.
#[test]
fn strategies_report_and_comparison() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = lab_model();
    let text = |name: &str| science_text().with_file_name(name);
    let analysis = at("a.moqa");
    let (science, code) = (
        format!("science={}", text("science.txt").display()),
        format!("code={}", text("code_systems.txt").display()),
    );
    let analyze = [
        "analyze",
        s(&model),
        "-o",
        s(&analysis),
        "--ctx",
        "128",
        "--chunks",
        "16",
    ];
    moqa_ok(
        &[
            &analyze[..],
            &["--sensitivity", "3", "-q", "--text", &science, &code],
        ]
        .concat(),
    );
    let known = moqa::analysis::load(&analysis).unwrap();
    let names: Vec<&str> = known.domains.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["science", "code"]);
    assert!(known.probes.iter().all(|p| p.by_domain.len() == 2));
    let router = &known.routers[&3];
    let sum: f64 = known.domains.iter().map(|d| d.routers[&3].counts[5]).sum();
    assert_eq!(router.counts[5], sum);
    // Two experts a token: a row of the co-activation table sums to twice the tokens of its expert.
    let together = &known.coactivation[&3];
    let row: f64 = together.counts[5 * 16..6 * 16].iter().sum();
    assert_eq!(row, 2.0 * router.counts[5]);
    assert_eq!(together.counts[5 * 16 + 5], router.counts[5]);

    // What stage 1 found is shown.
    let shown = json(&moqa_ok(&["inspect", s(&analysis), "--json"]));
    let layer = &shown["layers"][3];
    assert_eq!(layer["load_entropy"], router.load_entropy());
    assert_eq!(layer["load_gini"], router.load_gini());
    let divergence = known.domains[0].routers[&3].divergence(&known.domains[1].routers[&3]);
    let mean = shown["domains"]["divergence"][0][1].as_f64().unwrap();
    assert!(mean > 0.0 && mean < 6.0 * divergence / std::f64::consts::LN_2);
    let mover = &shown["domains"]["movers"][1][0];
    assert_ne!(mover["share"], mover["mean"]);
    let bond = &shown["together"][3]["pairs"][0];
    assert!(bond["lift"].as_f64().unwrap() > 1.0, "{bond}");
    let down = &known.distributions["blk.3.ffn_down_exps.weight"];
    assert_eq!(down.len(), 16);
    assert!(
        down.iter()
            .all(|m| m.outlier_max >= m.outlier_mean && m.outlier_mean > 1.0)
    );
    assert!(down.iter().all(|m| (0.01..=1.0).contains(&m.concentration)));
    let roles = shown["distribution"].as_array().unwrap();
    let role = roles.iter().find(|r| r["role"] == "expert down").unwrap();
    assert_eq!(role["matrices"], 96);
    let all = known
        .distributions
        .iter()
        .filter(|(name, _)| name.contains("ffn_down_exps"));
    let worst = all
        .flat_map(|(_, m)| m)
        .map(|m| m.outlier_max)
        .fold(0.0, f64::max);
    assert_eq!(role["outlier"]["worst"], worst);
    let text_shown = moqa_ok(&["inspect", s(&analysis)]);
    for part in [
        "entropy",
        "Gini",
        "divergence of the domains",
        "science",
        "times as often",
        "kurtosis",
    ] {
        assert!(text_shown.contains(part), "{part}: {text_shown}");
    }
    let made_for = |line: &&str| !line.contains("blake3:") && !line.contains(".txt");
    let widest = text_shown
        .lines()
        .filter(made_for)
        .map(|l| l.chars().count())
        .max();
    assert!(widest.unwrap() <= 100, "{text_shown}");

    let plan = |name: &str, more: &[&str]| {
        let file = at(name);
        let base = [
            "plan",
            s(&model),
            "--analysis",
            s(&analysis),
            "--like",
            "Q3_K_M",
            "-o",
            s(&file),
            "--json",
            "-q",
        ];
        (file.clone(), json(&moqa_ok(&[&base[..], more].concat())))
    };
    let (_, balanced) = plan("balanced.toml", &[]);
    let (_, workload) = plan(
        "workload.toml",
        &[
            "--strategy",
            "workload,per-expert",
            "--weight",
            "code=0.95",
            "--no-measure",
        ],
    );
    let (_, robust) = plan("robust.toml", &["--strategy", "robust"]);
    for p in [&balanced, &workload, &robust] {
        assert!(p["file_bytes"].as_u64() <= p["budget_bytes"].as_u64());
    }
    let (mixed, by_expert) = plan("mixed.toml", &["--strategy", "per-expert"]);
    assert!(by_expert["file_bytes"].as_u64() <= by_expert["budget_bytes"].as_u64());
    assert!(by_expert["objective"].as_f64() < balanced["objective"].as_f64());
    assert_ne!(by_expert["objective"], workload["objective"]);
    assert!(
        by_expert["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .any(|t| t["experts"].is_array())
    );

    let (_, bound) = plan(
        "bound.toml",
        &[
            "--pin",
            "attn_v=q8_0",
            "--max-type",
            "q8_0",
            "--min-type",
            "q2_K",
            "--types",
            "q2_K,q3_K,q4_K,q6_K",
        ],
    );
    for t in bound["tensors"].as_array().unwrap() {
        let (name, ty) = (t["name"].as_str().unwrap(), t["ty"].as_str().unwrap());
        assert!(
            ["q2_K", "q3_K", "q4_K", "q6_K", "q8_0"].contains(&ty),
            "{name}: {ty}"
        );
        assert!(!name.contains("attn_v") || ty == "q8_0", "{name}: {ty}");
    }

    // A plan by expert is written as a mixed file, and can be simulated.
    let small = at("small.gguf");
    moqa_ok(&[
        "quantize",
        s(&model),
        "--plan",
        s(&mixed),
        "--analysis",
        s(&analysis),
        "-o",
        s(&small),
        "-q",
    ]);
    let written = Gguf::open(&small).unwrap();
    assert!(moqa::mixed::is_guarded(&written.metadata));
    let simulated = at("simulated.gguf");
    moqa_ok(&[
        "simulate",
        s(&mixed),
        s(&model),
        "--analysis",
        s(&analysis),
        "-o",
        s(&simulated),
        "-q",
    ]);
    let science = text("science.txt");
    let eval = |file: &std::path::Path| {
        let args = [
            "eval",
            s(file),
            "--against",
            s(&model),
            "--text",
            s(&science),
            "--ctx",
            "128",
            "--json",
            "-q",
        ];
        json(&moqa_ok(&args))["divergence"]["mean_kld"]["value"]
            .as_f64()
            .unwrap()
    };
    let kld = eval(&simulated);
    assert!(kld > 1e-4 && kld < 0.02, "{kld}");
    let of_mixed = eval(&small);
    assert!((of_mixed - kld).abs() < 0.2 * kld, "{of_mixed} and {kld}");

    let page = at("r.html");
    moqa_ok(&[
        "report",
        s(&model),
        "--analysis",
        s(&analysis),
        "--plan",
        s(&mixed),
        "-o",
        s(&page),
        "-q",
    ]);
    let html = std::fs::read_to_string(&page).unwrap();
    for part in [
        "Experts chosen together",
        "science",
        "Assigned type",
        "expert down",
    ] {
        assert!(html.contains(part), "{part}");
    }

    let tasks = at("tasks.jsonl");
    let make = ["tasks", "make", "--text", s(&science), "--count", "12"];
    moqa_ok(&[&make[..], &["-o", s(&tasks), "-q"]].concat());
    // Enough for some tasks.
    let short = at("short.txt");
    let words = std::fs::read_to_string(&science).unwrap();
    let words: Vec<&str> = words.split(' ').take(900).collect();
    std::fs::write(&short, words.join(" ")).unwrap();
    let compared = at("c.html");
    let found = json(&moqa_ok(&[
        "compare",
        s(&model),
        "--tasks",
        s(&tasks),
        "--analysis",
        s(&analysis),
        "--budgets",
        "Q3_K_M",
        "--per-expert",
        "--ctx",
        "128",
        "--eval-text",
        s(&science),
        "--eval-chunks",
        "8",
        "--html",
        s(&compared),
        "--json",
        "-q",
    ]));
    let points = &found["points"];
    // What the text says of its figures.
    let notes = found["notes"].to_string();
    assert!(notes.contains("guessing gets"), "{notes}");
    assert!(notes.contains("first 1024 tokens"), "{notes}");
    let kinds: Vec<&str> = points
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["original", "preset", "moqa", "moqa per expert"]);
    let of = |i: usize, what: &str| points[i][what].as_f64().unwrap();
    assert!(of(2, "bytes") <= of(1, "bytes") && of(3, "bytes") <= of(1, "bytes"));
    assert!(
        of(2, "kld") < of(1, "kld") && of(3, "kld") < of(2, "kld"),
        "{points}"
    );
    // Every figure of every row, where it can be measured.
    for (i, kind) in kinds.iter().enumerate() {
        assert!((of(i, "ppl") / of(0, "ppl") - of(i, "ppl_ratio")).abs() < 1e-3);
        assert!((0.5..=1.0).contains(&of(i, "same_top")));
        assert_eq!(points[i]["quantize_seconds"].is_null(), i == 0);
        assert_eq!(points[i]["tokens_per_second"].is_null(), i == 3, "{kind}");
    }
    // The tasks are those of the file, and the accuracies those of `tasks run`.
    let run = json(&moqa_ok(&[
        "tasks",
        "run",
        s(&model),
        "--tasks",
        s(&tasks),
        "--json",
        "-q",
    ]));
    assert_eq!(points[0]["accuracy"], run["acc_norm"]["value"]);
    assert_eq!(points[0]["accuracy_interval"][0], run["acc_norm"]["low"]);
    assert_eq!(points[0]["tasks"], 12);
    assert!(points[0].get("accuracy_tests").is_none());
    let tests = |i: usize| points[i]["accuracy_tests"].as_array().unwrap();
    let against = |i: usize| -> Vec<&str> {
        let names = tests(i).iter().map(|t| t["against"].as_str().unwrap());
        names.collect()
    };
    assert_eq!(against(1), ["original"]);
    assert_eq!(against(2), ["original", "Q3_K_M"]);
    for i in 1..4 {
        let t = &tests(i)[0];
        let difference = of(i, "accuracy") - of(0, "accuracy");
        assert!((t["difference"].as_f64().unwrap() - difference).abs() < 1e-12);
        assert!((0.0..=1.0).contains(&t["p_value"].as_f64().unwrap()));
    }
    let html = std::fs::read_to_string(&compared).unwrap();
    for part in [
        "Q3_K_M",
        "Accuracy",
        "against original",
        "12 multiple-choice tasks",
        "Tokens per second",
    ] {
        assert!(html.contains(part), "{part}");
    }

    // Without a file tasks are cut out of the text; the table shows all that was measured.
    let shown = moqa_ok(&[
        "compare",
        s(&model),
        "--analysis",
        s(&analysis),
        "--budgets",
        "Q3_K_M",
        "--ctx",
        "128",
        "--eval-text",
        s(&short),
        "--eval-chunks",
        "2",
        "-q",
    ]);
    for part in [
        "PPL",
        "KLD",
        "quant s",
        "tokens/s",
        "right %",
        "against Q3_K_M",
        "cut out of the evaluation text",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let both = moqa(&[
        "compare",
        s(&model),
        "--eval-text",
        "x",
        "--tasks",
        "x",
        "--no-tasks",
    ]);
    assert_eq!(both.status.code(), Some(2));
}

/// The program is refused by a message, not by an illegal instruction, where AVX2 is missing. Needs qemu-user.
#[test]
fn an_older_cpu_gets_a_message() {
    let run = |cpu: &str| {
        std::process::Command::new("qemu-x86_64")
            .args(["-cpu", cpu, env!("CARGO_BIN_EXE_moqa"), "--version"])
            .output()
    };
    let (Ok(old), Ok(new)) = (run("Nehalem"), run("Haswell")) else {
        eprintln!("skipped: qemu-x86_64 is not installed");
        return;
    };
    assert_eq!(old.status.code(), Some(1));
    assert!(old.stdout.is_empty());
    assert!(String::from_utf8_lossy(&old.stderr).contains("needs a CPU with AVX2"));
    assert!(new.status.success() && String::from_utf8_lossy(&new.stdout).starts_with("moqa "));
}
