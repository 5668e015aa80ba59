//! Zero-shot tasks: agreement with llama-perplexity, and the command line.

mod common;

use std::path::PathBuf;

use common::{lab_model, moqa, moqa_ok, s};
use moqa::analysis::{Corpus, TextPath};
use moqa::metrics::log_sum_exp;
use moqa::progress::Progress;
use moqa::runtime::{Branches, Context, ContextOptions, Model, ModelOptions};
use moqa::tasks::{Format, MakeOptions, Task, TaskOptions, compare, make, read, score, write};

fn text(name: &str) -> PathBuf {
    common::science_text().with_file_name(name)
}

fn model() -> Model {
    Model::load(
        &lab_model(),
        &ModelOptions {
            repack: true,
            ..ModelOptions::default()
        },
    )
    .unwrap()
}

/// What `moqa tasks make --context-words 24 --continuation-words 16` makes of the two texts.
fn tasks() -> Vec<Task> {
    let corpus = Corpus::read(
        &["code_scripting.txt", "professional.txt"].map(|name| TextPath {
            label: String::new(),
            path: text(name),
        }),
    )
    .unwrap();
    let options = MakeOptions {
        context_words: 24,
        continuation_words: 16,
        ..MakeOptions::default()
    };
    make(&corpus.documents, &options).unwrap().tasks
}

const OPTIONS: TaskOptions = TaskOptions {
    n_threads: 2,
    n_ctx: 2048,
};

/// The score was printed by the real llama-perplexity (llama.cpp of October 2026, its own build) for the file
/// that `moqa tasks make --text code_scripting.txt professional.txt --context-words 24
/// --continuation-words 16 -o tasks.bin` writes:
/// `llama-perplexity -m lab-moe.gguf --multiple-choice -bf tasks.bin` says "Final result: 49.2308 +/- 6.2493".
/// The hash is that of tasks.bin, so that the score is known to be of these very tasks.
#[test]
fn the_score_is_that_of_llama_perplexity() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tasks.bin");
    let tasks = tasks();
    write(&path, &tasks, Format::LlamaBinary).unwrap();
    let hash = blake3::hash(&std::fs::read(&path).unwrap()).to_hex();
    assert_eq!(
        hash.as_str(),
        "2bdea9938488fb736e226f460965f7a1c51c991a4da107169fe2cd15df78cce9"
    );
    assert_eq!(read(&path).unwrap(), tasks);

    let report = score(&model(), &tasks, &OPTIONS, &Progress::quiet()).unwrap();
    let percent = format!("{:.4}", report.acc_norm.value * 100.0);
    assert_eq!(percent, "49.2308");
    assert!(report.acc_norm.low > report.chance + 0.05, "{report}");
    assert_eq!((report.n_truncated, report.chance), (0, 0.25));

    // A model does not differ from itself.
    let same = compare(report.clone(), report).unwrap();
    assert_eq!(
        (same.acc.p_value, same.acc_norm.same_choice.value),
        (1.0, 1.0)
    );
    assert_eq!(same.acc.difference, 0.0);
}

/// Each choice evaluated for itself, from the beginning.
fn likelihood_alone(context: &mut Context<'_>, prefix: &[i32], continuation: &[i32]) -> f64 {
    let tokens = [prefix, continuation].concat();
    let logits = context
        .evaluate(&[&tokens], prefix.len() - 1, None)
        .unwrap();
    let n_vocab = logits[0].len() / (continuation.len() + 1);
    logits[0]
        .chunks_exact(n_vocab)
        .zip(continuation)
        .map(|(row, t)| f64::from(row[*t as usize]) - log_sum_exp(row))
        .sum()
}

#[test]
fn shared_prefixes_change_nothing() {
    let model = model();
    // Choices of different lengths, one the beginning of another, and more than are evaluated together.
    let task = |context: &str, choices: &[&str]| Task {
        context: context.to_owned(),
        choices: choices.iter().map(|c| (*c).to_owned()).collect(),
        gold: 0,
    };
    let many: Vec<String> = (0..40).map(|i| format!("number {i} of the list")).collect();
    let tasks = [
        task("The file is", &["not there", "not there any more", "x"]),
        task(
            "Return the",
            &many.iter().map(String::as_str).collect::<Vec<_>>(),
        ),
        task("import os\nimport", &["sys", "re\n\ndef main():"]),
    ];
    let report = score(&model, &tasks, &OPTIONS, &Progress::quiet()).unwrap();
    let options = ContextOptions {
        n_ctx: 256,
        n_seq: 1,
        n_threads: 2,
        observable: false,
    };
    let mut context = Context::new(&model, options).unwrap();
    for (task, result) in tasks.iter().zip(&report.results) {
        assert_eq!(result.log_likelihood.len(), task.choices.len());
        for ((choice, got), n) in task
            .choices
            .iter()
            .zip(&result.log_likelihood)
            .zip(&result.n_tokens)
        {
            let whole = format!("{} {choice}", task.context);
            let tokens = model.vocab().tokenize(&whole, true, false).unwrap();
            let (prefix, continuation) = tokens.split_at(tokens.len() - n);
            let alone = likelihood_alone(&mut context, prefix, continuation);
            assert!((got - alone).abs() < 2e-2, "{whole}: {got} {alone}");
        }
    }

    // Only the end of a long context counts when there is no room for more.
    let short = TaskOptions {
        n_ctx: 16,
        ..OPTIONS
    };
    let long = task(&"one two three ".repeat(30), &["four", "one"]);
    let cut = score(
        &model,
        std::slice::from_ref(&long),
        &short,
        &Progress::quiet(),
    )
    .unwrap();
    assert_eq!(cut.n_truncated, 1);
    let tiny = TaskOptions {
        n_ctx: 2,
        ..OPTIONS
    };
    let wordy = task("one", &["a long choice of many tokens", "b"]);
    let e = score(&model, &[long, wordy], &tiny, &Progress::quiet()).unwrap_err();
    assert!(format!("{e:#}").contains("leaves no room"), "{e:#}");
    assert!(score(&model, &[], &OPTIONS, &Progress::quiet()).is_err());
}

#[test]
fn branches_that_cannot_be_are_refused() {
    let model = model();
    let options = ContextOptions {
        n_ctx: 32,
        n_seq: 2,
        n_threads: 1,
        observable: false,
    };
    let tree = |prefix: &'static [i32], continuations: &[&'static [i32]]| Branches {
        prefix,
        continuations: continuations.to_vec(),
    };
    let mut plain = Context::new(&model, options.clone()).unwrap();
    assert!(plain.evaluate_branches(&[tree(&[1], &[&[2]])]).is_err());
    let mut context = Context::for_branches(&model, options).unwrap();
    for bad in [
        tree(&[], &[&[2]]),
        tree(&[1], &[]),
        tree(&[1], &[&[2], &[]]),
        tree(&[1], &[&[2], &[3], &[4]]),
        tree(&[1; 33], &[&[2]]),
        tree(&[1], &[&[2; 17], &[2; 17]]),
        tree(&[1], &[&[-1]]),
        tree(&[i32::MAX], &[&[1]]),
    ] {
        assert!(
            context
                .evaluate_branches(std::slice::from_ref(&bad))
                .is_err(),
            "{bad:?}"
        );
    }
    assert!(context.evaluate_branches(&[]).is_err());
    let rows = context
        .evaluate_branches(&[tree(&[1, 2], &[&[3, 4, 5], &[6]])])
        .unwrap();
    let n_vocab = model.vocab().n_tokens();
    assert_eq!(rows[0].iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
    assert!(rows[0].iter().flatten().all(|r| r.len() == n_vocab));
}

#[test]
fn the_command_line_makes_converts_and_scores() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (jsonl, bin) = (path("tasks.jsonl"), path("tasks.bin"));
    let science = text("science.txt");
    let made = moqa_ok(&[
        "tasks",
        "make",
        "--text",
        s(&science),
        "-o",
        s(&jsonl),
        "--count",
        "6",
        "--seed",
        "7",
        "--json",
    ]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["n_tasks"], 6);
    assert!(made["n_places"].as_u64().unwrap() > 20, "{made}");
    moqa_ok(&["tasks", "convert", s(&jsonl), "-o", s(&bin)]);
    assert_eq!(read(&jsonl).unwrap(), read(&bin).unwrap());
    assert!(
        std::fs::read(&bin)
            .unwrap()
            .starts_with(&[6, 0, 0, 0, 28, 0, 0, 0])
    );

    let model = lab_model();
    let details = path("details.jsonl");
    let out = moqa_ok(&[
        "tasks",
        "run",
        s(&model),
        "--tasks",
        s(&bin),
        "--against",
        s(&model),
        "--details",
        s(&details),
        "--json",
        "--threads",
        "2",
    ]);
    let out: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["model"]["n_tasks"], 6);
    assert_eq!(out["acc_norm"]["same_choice"]["value"], 1.0);
    assert_eq!(out["model"], out["reference"]);
    let details = std::fs::read_to_string(details).unwrap();
    assert_eq!(details.lines().count(), 6);

    // What cannot be is refused with the reason, and nothing is overwritten.
    let fails = |args: &[&str], message: &str| {
        let out = moqa(args);
        assert!(!out.status.success(), "{args:?}");
        let e = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(e.contains(message), "{e}");
    };
    fails(
        &["tasks", "convert", s(&jsonl), "-o", s(&jsonl)],
        "is the source itself",
    );
    fails(
        &["tasks", "run", s(&model), "--tasks", s(&model)],
        "byte 0: the file claims",
    );
    let copy = path("text.txt");
    std::fs::copy(&science, &copy).unwrap();
    fails(
        &["tasks", "make", "--text", s(&copy), "-o", s(&copy)],
        "is the source itself",
    );
    std::fs::write(&bin, "{\"query\":\"Q\"}\n").unwrap();
    fails(
        &["tasks", "run", s(&model), "--tasks", s(&bin)],
        "line 1: none of the keys choices",
    );
}
