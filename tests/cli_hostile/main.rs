//! Hostile input to the whole program: a clear error or success, exit code 0, 1 or 2, no panic, no abort, no
//! file left, within bounds of time and memory.

mod files;
mod inputs;
mod metadata;
mod targets;
#[path = "../watch/mod.rs"]
mod watch;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use moqa::gguf::Gguf;
use tempfile::TempDir;
use watch::{Outcome, TINY, folder, names, program, run};

const MEMORY_LIMIT: u64 = 256 << 20;

/// Of processor time: other work on the machine must not fail the test.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Of time on the clock: what waits for something waits longer than this.
const WAIT_LIMIT: Duration = Duration::from_secs(15);

/// The settings with which the tiny model takes a blink.
const QUICK: [&str; 11] = [
    "--text",
    "text.txt",
    "--ctx",
    "32",
    "--chunks",
    "1",
    "--sensitivity",
    "0",
    "--threads",
    "1",
    "-q",
];

/// A folder with a text to calibrate on.
fn place() -> TempDir {
    let dir = folder();
    let text = "It was a bright cold day in April, and the clocks were striking. ".repeat(8);
    fs::write(dir.path().join("text.txt"), text).unwrap();
    dir
}

fn call(dir: &Path, args: &[&str]) -> Outcome {
    let mut command = program();
    command.current_dir(dir).args(args);
    run(command)
}

/// Checks what holds for every run.
fn check(case: &str, outcome: &Outcome) {
    let text = &outcome.stderr;
    let code = outcome.status.code();
    assert!(
        matches!(code, Some(0..=2)),
        "{case}: {}: {text}",
        outcome.status
    );
    assert!(!text.contains("panicked"), "{case}: {text}");
    if code != Some(0) {
        assert!(
            text.contains("moqa: ") || text.contains("error: "),
            "{case}: no message: {text}"
        );
        assert!((20..4000).contains(&text.trim().len()), "{case}: {text}");
        assert!(!text.contains("fatal runtime error"), "{case}: {text}");
    }
    assert!(
        outcome.cpu < TIME_LIMIT,
        "{case}: {:?} of processor time",
        outcome.cpu
    );
    assert!(outcome.took < WAIT_LIMIT, "{case}: took {:?}", outcome.took);
    assert!(
        outcome.memory < MEMORY_LIMIT,
        "{case}: {} bytes of memory",
        outcome.memory
    );
}

/// Runs where `output` is a file to be made: there and the only new one after success, and not there after
/// an error. It is removed again.
fn attempt(case: &str, dir: &Path, args: &[&str], output: Option<&str>) -> Outcome {
    let before = names(dir);
    let outcome = call(dir, args);
    check(case, &outcome);
    let mut expected = before;
    if let Some(output) = output.filter(|_| outcome.status.success()) {
        expected.insert(output.to_owned());
    }
    assert_eq!(names(dir), expected, "{case}: {}", outcome.stderr);
    if let Some(output) = output {
        let _ = fs::remove_file(dir.join(output));
    }
    outcome
}

/// An attempt that must fail, with these words.
fn refused(case: &str, dir: &Path, args: &[&str], output: Option<&str>, words: &str) {
    let outcome = attempt(case, dir, args, output);
    assert!(!outcome.status.success(), "{case} was accepted");
    assert!(outcome.stderr.contains(words), "{case}: {}", outcome.stderr);
}

/// The commands that read a model, with the file they make.
fn commands(model: &str) -> Vec<(Vec<&str>, Option<&str>)> {
    let with = |args: &[&'static str]| {
        let mut all = vec![args[0], model];
        all.extend(&args[1..]);
        all
    };
    let quick = |args: &[&'static str]| [with(args), QUICK.to_vec()].concat();
    vec![
        (with(&["inspect"]), None),
        (
            with(&[
                "eval",
                "--text",
                "text.txt",
                "--ctx",
                "32",
                "--chunks",
                "1",
                "--threads",
                "1",
                "-q",
            ]),
            None,
        ),
        (quick(&["analyze", "-o", "out"]), Some("out")),
        (quick(&["quantize", "-o", "out", "--bpw", "9"]), Some("out")),
        (
            quick(&["plan", "-o", "out", "--like", "Q4_K_M"]),
            Some("out"),
        ),
    ]
}

/// Every command refuses the model with these words.
fn all_refuse(case: &str, dir: &Path, model: &str, words: &str) {
    for (args, output) in commands(model) {
        refused(&format!("{case}, {}", args[0]), dir, &args, output, words);
    }
}

/// Distributes cases over the cores, each with a folder of its own.
fn on_all_cores(n: usize, case: impl Fn(&Path, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                let dir = place();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        return;
                    }
                    case(dir.path(), i);
                }
            });
        }
    });
}

#[test]
fn the_tiny_model_itself_is_accepted() {
    let dir = place();
    fs::copy(TINY, dir.path().join("m.gguf")).unwrap();
    for (args, output) in commands("m.gguf") {
        let outcome = attempt(args[0], dir.path(), &args, output);
        assert!(outcome.status.success(), "{}", outcome.stderr);
    }
    // By default settings too, the effects on the output measured.
    let args = [
        "quantize", "m.gguf", "-o", "out", "--bpw", "9", "--text", "text.txt", "--ctx", "32",
    ];
    let outcome = call(dir.path(), &args);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(Gguf::open(dir.path().join("out")).is_ok());
}
