//! Interrupted and killed runs: no file under the final name, no temporary file, the source untouched.

// `watch::wait` waits, which the lint does not see.
#![allow(clippy::zombie_processes)]

mod watch;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use moqa::gguf::Gguf;
use tempfile::TempDir;
use watch::{LAB, Random, folder, names, program, run, signal, wait};

/// A folder with a copy of the lab model.
struct Place {
    dir: TempDir,
    source: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let source = fs::read(LAB).unwrap();
        let dir = folder();
        fs::write(dir.path().join("model.gguf"), &source).unwrap();
        Self { dir, source }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.current_dir(self.path()).args(args);
        command
    }

    /// A plan that gives every expert one type: without analysis, writing starts at once.
    fn plan(&self, file: &str, ty: &str) -> PathBuf {
        let gguf = Gguf::open(LAB).unwrap();
        let mut text = String::from("version = 1\n[tensors]\n");
        for t in gguf.tensors.iter().filter(|t| t.name.contains("_exps")) {
            text += &format!("\"{}\" = \"{ty}\"\n", t.name);
        }
        let path = self.path().join(file);
        fs::write(&path, text).unwrap();
        path
    }

    fn assert_untouched(&self) {
        assert!(
            fs::read(self.path().join("model.gguf")).unwrap() == self.source,
            "the source changed"
        );
    }

    fn assert_only(&self, expected: &[&str]) {
        let expected = expected.iter().map(|s| (*s).to_owned()).collect();
        assert_eq!(names(self.path()), expected);
    }

    /// The temporary file of the output, once it has data.
    fn wait_for_writing(&self, target: &str) {
        let started = Instant::now();
        let prefix = format!(".{target}");
        while started.elapsed() < Duration::from_secs(30) {
            for entry in fs::read_dir(self.path()).unwrap().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix)
                    && entry.metadata().is_ok_and(|m| m.len() > 0)
                {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nothing was written");
    }
}

/// Starts a run whose messages are read until one contains `line`.
fn start(mut command: Command, line: Option<&str>) -> Child {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    if let Some(line) = line {
        let mut text = String::new();
        while !text.contains(line) {
            let n = stderr.read_line(&mut text).unwrap();
            assert!(n > 0, "it ended before it said {line:?}: {text}");
        }
    }
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    child
}

/// Interrupts a run and checks that it ends with `status` within two seconds.
fn interrupt(child: &Child, number: i32, status: i32) {
    signal(child, number);
    let started = Instant::now();
    let (ended, _) = wait(child, Duration::from_secs(30));
    let took = started.elapsed();
    assert_eq!(ended.code(), Some(status), "{ended}");
    assert!(took < Duration::from_secs(2), "it took {took:?} to end");
}

#[test]
fn ctrl_c_during_the_calibration_pass() {
    let place = Place::new();
    let args = ["quantize", "model.gguf", "-o", "small.gguf", "--bpw", "4"];
    for delay in [150, 700] {
        let child = start(place.command(&args), None);
        std::thread::sleep(Duration::from_millis(delay));
        interrupt(&child, libc::SIGINT, 130);
        place.assert_only(&["model.gguf"]);
    }
    place.assert_untouched();
}

#[test]
fn ctrl_c_during_the_measurements() {
    let place = Place::new();
    let args = ["analyze", "model.gguf", "-o", "model.moqa", "--chunks", "2"];
    let child = start(
        place.command(&[&args[..], &["--sensitivity", "1000"]].concat()),
        Some("calibration pass: "),
    );
    std::thread::sleep(Duration::from_millis(200));
    interrupt(&child, libc::SIGINT, 130);
    place.assert_only(&["model.gguf"]);
    place.assert_untouched();
}

#[test]
fn interrupts_while_the_file_is_written() {
    let place = Place::new();
    place.plan("slow.toml", "iq3_s");
    let args = ["quantize", "model.gguf", "-o", "small.gguf"];
    let args = [
        &args[..],
        &["--plan", "slow.toml", "--no-analysis", "--threads", "1"],
    ]
    .concat();
    for (number, status) in [
        (libc::SIGINT, 130),
        (libc::SIGTERM, 143),
        (libc::SIGHUP, 129),
    ] {
        let child = start(place.command(&args), None);
        place.wait_for_writing("small.gguf");
        interrupt(&child, number, status);
        place.assert_only(&["model.gguf", "slow.toml"]);
    }

    // An existing file stays as it was.
    fs::write(place.path().join("small.gguf"), b"old").unwrap();
    let child = start(place.command(&args), None);
    place.wait_for_writing("small.gguf");
    interrupt(&child, libc::SIGINT, 130);
    assert_eq!(fs::read(place.path().join("small.gguf")).unwrap(), b"old");
    fs::remove_file(place.path().join("small.gguf")).unwrap();

    // Shards, many files at a time.
    let split = [&args[..], &["--split-max-size", "2MiB"]].concat();
    let child = start(place.command(&split), None);
    place.wait_for_writing("small-00001-of-");
    interrupt(&child, libc::SIGINT, 130);
    place.assert_only(&["model.gguf", "slow.toml"]);
    place.assert_untouched();
}

#[test]
fn crashes_leave_a_message_and_no_file() {
    let place = Place::new();
    place.plan("slow.toml", "iq3_s");
    for (number, words) in [
        (libc::SIGSEGV, "crashed"),
        (libc::SIGFPE, "crashed"),
        (libc::SIGABRT, "abort"),
    ] {
        let mut child = place
            .command(&[
                "quantize",
                "model.gguf",
                "-o",
                "small.gguf",
                "--plan",
                "slow.toml",
            ])
            .args(["--no-analysis", "--threads", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        place.wait_for_writing("small.gguf");
        signal(&child, number);
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        let (status, _) = wait(&child, Duration::from_secs(30));
        assert_eq!(status.code(), Some(1), "{status}: {stderr}");
        assert!(
            stderr.starts_with("moqa: ") && stderr.contains(words),
            "{stderr}"
        );
        place.assert_only(&["model.gguf", "slow.toml"]);
    }
}

#[test]
fn a_hangup_that_the_parent_ignores_stays_ignored() {
    let place = Place::new();
    place.plan("slow.toml", "iq3_s");
    let mut command = place.command(&["quantize", "model.gguf", "-o", "small.gguf"]);
    command.args(["--plan", "slow.toml", "--no-analysis", "--threads", "1"]);
    // SAFETY: signal is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut child = start(command, None);
    place.wait_for_writing("small.gguf");
    signal(&child, libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it ended");
    interrupt(&child, libc::SIGINT, 130);
    place.assert_only(&["model.gguf", "slow.toml"]);
}

#[test]
fn a_source_that_is_cut_meanwhile_ends_the_run_with_a_message() {
    let place = Place::new();
    place.plan("slow.toml", "iq3_s");
    let args = [
        "quantize",
        "model.gguf",
        "-o",
        "small.gguf",
        "--plan",
        "slow.toml",
    ];
    let mut child = place
        .command(&[&args[..], &["--no-analysis", "--threads", "1"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    place.wait_for_writing("small.gguf");
    let source = fs::OpenOptions::new()
        .write(true)
        .open(place.path().join("model.gguf"))
        .unwrap();
    source.set_len(1 << 20).unwrap();
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    let (status, _) = wait(&child, Duration::from_secs(30));
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cut or changed"), "{stderr}");
    place.assert_only(&["model.gguf", "slow.toml"]);
}

#[test]
fn a_reader_that_goes_away_ends_the_run_without_leftovers() {
    let place = Place::new();
    place.plan("fast.toml", "q8_0");
    let args = [
        "quantize",
        "model.gguf",
        "-o",
        "small.gguf",
        "--plan",
        "fast.toml",
    ];
    let mut child = place
        .command(&[&args[..], &["--no-analysis"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let (status, _) = wait(&child, Duration::from_secs(30));
    assert_eq!(status.signal(), Some(libc::SIGPIPE), "{status}");
    assert!(!names(place.path()).iter().any(|n| n.ends_with(".tmp")));
}

#[test]
fn kill_at_any_moment_and_then_a_run_that_succeeds() {
    let place = Place::new();
    place.plan("slow.toml", "iq3_s");
    place.plan("fast.toml", "q8_0");
    let with = |plan: &'static str| {
        place.command(&[
            "quantize",
            "model.gguf",
            "-o",
            "small.gguf",
            "--plan",
            plan,
            "--no-analysis",
            "--threads",
            "2",
        ])
    };
    let outcome = run(with("fast.toml"));
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let whole = outcome.took;
    let target = place.path().join("small.gguf");
    let complete = fs::read(&target).unwrap();
    fs::remove_file(&target).unwrap();

    let mut random = Random(0x5eed_0005);
    let (mut leftovers, mut finished) = (0, 0);
    for i in 0..60 {
        // The whole of a fast run, the moment of renaming included, and the writing of a slow one.
        let (plan, within) = if i % 3 == 0 {
            ("slow.toml", Duration::from_millis(500))
        } else {
            ("fast.toml", whole.mul_f64(1.1))
        };
        let child = start(with(plan), None);
        std::thread::sleep(within.mul_f64(random.below(1000) as f64 / 1000.0));
        signal(&child, libc::SIGKILL);
        let (status, _) = wait(&child, Duration::from_secs(30));
        leftovers += names(place.path())
            .iter()
            .filter(|n| n.ends_with(".tmp"))
            .count();
        if target.exists() {
            // Only a complete file has the name.
            assert!(
                fs::read(&target).unwrap() == complete,
                "an unfinished file, {status}"
            );
            fs::remove_file(&target).unwrap();
            finished += 1;
        }
    }
    place.assert_untouched();
    assert!(
        leftovers > 0,
        "no run was killed while it wrote; the test tests nothing"
    );
    assert!(finished < 60, "every run finished; the test tests nothing");

    let outcome = run(with("fast.toml"));
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(fs::read(&target).unwrap() == complete);
    place.assert_only(&["model.gguf", "small.gguf", "slow.toml", "fast.toml"]);
    place.assert_untouched();
}

#[test]
fn kill_during_an_analysis() {
    let place = Place::new();
    let mut random = Random(0x5eed_0006);
    for _ in 0..6 {
        let child = start(
            place.command(&[
                "quantize",
                "model.gguf",
                "-o",
                "small.gguf",
                "--bpw",
                "4",
                "--chunks",
                "4",
            ]),
            None,
        );
        std::thread::sleep(Duration::from_millis(random.below(900) as u64));
        signal(&child, libc::SIGKILL);
        wait(&child, Duration::from_secs(30));
        assert!(!place.path().join("small.gguf").exists());
    }
    place.assert_untouched();
}
