//! Running the program and watching what it leaves behind.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A random Qwen3-MoE model of 140 thousand parameters, made for tests: 2 layers of 4 experts.
pub const TINY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/oracle/qwen3_moe/reference-bf16.gguf"
);
/// A trained model of 42 MB.
pub const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/lab-moe.gguf");

/// A folder in memory where there is one: the program syncs what it writes, and a disk makes that slow.
pub fn folder() -> TempDir {
    let shm = Path::new("/dev/shm");
    tempfile::tempdir_in(shm)
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moqa"));
    command.stdin(Stdio::null());
    command
}

/// How a run ended and what it needed.
pub struct Outcome {
    pub status: ExitStatus,
    pub took: Duration,
    pub cpu: Duration,
    pub memory: u64,
    pub stdout: String,
    pub stderr: String,
}

/// Runs to the end; a run of a minute is killed and fails the test.
pub fn run(mut command: Command) -> Outcome {
    let out = tempfile::tempfile().unwrap();
    let err = tempfile::tempfile().unwrap();
    command
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap());
    let started = Instant::now();
    // `wait` waits for it, which the lint does not see.
    #[allow(clippy::zombie_processes)]
    let child = command.spawn().unwrap();
    let (status, usage) = wait(&child, Duration::from_secs(60));
    let took = started.elapsed();
    let seconds = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    Outcome {
        status,
        took,
        cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        // KiB on Linux, bytes on macOS.
        memory: usage.ru_maxrss as u64 * if cfg!(target_os = "linux") { 1024 } else { 1 },
        stdout: text(out),
        stderr: text(err),
    }
}

fn text(mut file: File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child, at most so long, and returns what it used.
pub fn wait(child: &Child, limit: Duration) -> (ExitStatus, libc::rusage) {
    let pid = child.id() as libc::pid_t;
    let started = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: a zeroed rusage is valid, and both pointers live during the call.
        let (done, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            let done = libc::wait4(pid, &mut status, libc::WNOHANG, &mut usage);
            (done, usage)
        };
        assert!(done >= 0, "waiting failed");
        if done == pid {
            return (ExitStatus::from_raw(status), usage);
        }
        if started.elapsed() > limit {
            signal(child, libc::SIGKILL);
            panic!("the program still ran after {limit:?}");
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

pub fn signal(child: &Child, signal: i32) {
    // SAFETY: the child was not waited for yet, so its number is its own.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// Has the child run under a limit; `libc::RLIMIT_FSIZE` say.
pub fn limit(command: &mut Command, resource: i32, value: u64) {
    // SAFETY: setrlimit is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit {
                rlim_cur: value,
                rlim_max: value,
            };
            match libc::setrlimit(resource as _, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// Names in a folder.
pub fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// A small seeded generator (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
