//! The unmodified llama.cpp, the library under test and files to run with them.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of llama.cpp's programs, which `scripts/llama-cpp` builds once.
pub fn llama() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| script("llama-cpp"))
}

/// What is preloaded into its programs, so that they say their last lines.
fn keeps_the_log() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| script("llama-log"))
}

/// The path that a script of the repository prints.
fn script(name: &str) -> PathBuf {
    let out = Command::new(root().join("scripts").join(name))
        .output()
        .unwrap_or_else(|e| panic!("scripts/{name}: {e}"));
    assert!(
        out.status.success(),
        "scripts/{name}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    PathBuf::from(String::from_utf8_lossy(&out.stdout).trim())
}

/// llama.cpp's sources, as its build remembers them.
pub fn llama_source() -> PathBuf {
    let cache = std::fs::read_to_string(llama().join("../CMakeCache.txt")).expect("CMakeCache.txt");
    let home = cache
        .lines()
        .find_map(|l| l.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="));
    PathBuf::from(home.expect("CMAKE_HOME_DIRECTORY in CMakeCache.txt"))
}

/// The library, beside the tests that cargo built with it.
pub fn plugin() -> PathBuf {
    let exe = std::env::current_exe().expect("the test's path");
    let path = exe.with_file_name("libggml_moqa.so");
    assert!(path.is_file(), "{}: cargo did not build it", path.display());
    path
}

/// A model of 6 layers, 16 experts, 2 of them used.
pub fn model() -> PathBuf {
    root().join("tests/models/lab-moe.gguf")
}

/// Text with some thousand tokens.
pub fn text(folder: &Path) -> PathBuf {
    let path = folder.join("text.txt");
    // Not the documentation: figures should not change with it.
    let texts = std::fs::read_dir(root().join("src/analysis/calibration")).expect("the texts");
    let mut files: Vec<PathBuf> = texts
        .map(|f| f.expect("a file").path())
        .filter(|f| f.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    let text: String = files
        .iter()
        .map(|f| std::fs::read_to_string(f).expect("a text of the repository"))
        .collect();
    std::fs::write(&path, text).expect("write the text");
    path
}

fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Both streams of a program's output.
pub fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// A file that llama-quantize makes.
pub fn quantize(folder: &Path, ty: &str, more: &[&str]) -> PathBuf {
    let number = std::fs::read_dir(folder).expect("a folder").count();
    let path = folder.join(format!("{number}-{ty}.gguf"));
    let imatrix = root().join("tests/models/lab-moe.science.imatrix.gguf");
    let mut command = Command::new(llama().join("llama-quantize"));
    command
        .arg("--imatrix")
        .arg(imatrix)
        .args(more)
        .arg(model())
        .arg(&path)
        .args([ty, "1"]);
    let out = run(&mut command);
    assert!(out.status.success(), "{command:?}: {}", said(&out));
    path
}

/// How llama-perplexity is run.
pub struct Perplexity<'a> {
    pub model: &'a Path,
    pub text: &'a Path,
    pub plugin: bool,
    pub environment: &'a [(&'a str, &'a str)],
    pub arguments: &'a [&'a str],
}

/// What llama-perplexity said.
pub struct Said {
    pub success: bool,
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub perplexity: Option<f64>,
    pub text: String,
}

impl Perplexity<'_> {
    pub fn run(&self) -> Said {
        let mut command = Command::new(llama().join("llama-perplexity"));
        command.arg("-m").arg(self.model).arg("-f").arg(self.text);
        command
            .args(["-c", "256", "--chunks", "32", "-t", "2"])
            .args(self.arguments);
        command
            .env_remove("GGML_BACKEND_PATH")
            .env_remove("MOQA_PLUGIN");
        command
            .env("MOQA_LOG", "debug")
            .env("LD_PRELOAD", keeps_the_log());
        if self.plugin {
            command.env("GGML_BACKEND_PATH", plugin());
        }
        command.envs(self.environment.iter().copied());
        let out = run(&mut command);
        let text = said(&out);
        let perplexity = text
            .split("Final estimate: PPL = ")
            .nth(1)
            .and_then(|t| t.split_whitespace().next()?.parse().ok());
        Said {
            success: out.status.success(),
            code: out.status.code(),
            perplexity,
            text,
        }
    }
}

impl Said {
    /// MUL_MAT_ID nodes that the library computed, and how many of them with mixed tensors.
    pub fn computed(&self) -> (u64, u64) {
        let [by_ids, mixed, _] = self.counts();
        (by_ids, mixed)
    }

    /// MUL_MAT nodes that the library computed.
    pub fn dense(&self) -> u64 {
        self.counts()[2]
    }

    fn counts(&self) -> [u64; 3] {
        let mut sums = [0; 3];
        for line in self.text.split("freed a stream: ").skip(1) {
            let line = line.lines().next().unwrap_or_default();
            let numbers: Vec<u64> = line
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|n| n.parse().ok())
                .collect();
            // "… graphs, … MUL_MAT_ID (… of mixed tensors) and … MUL_MAT …"
            for (sum, number) in sums.iter_mut().zip(&numbers[1..]) {
                *sum += number;
            }
        }
        sums
    }
}

/// A tensor in a GGUF file.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub ne: Vec<u64>,
    pub ty: u32,
    /// From the start of the file.
    pub offset: usize,
}

/// The tensors of a GGUF file: enough of a reader to put other bytes in their places.
pub fn tensors(file: &[u8]) -> Vec<Tensor> {
    let mut at = 8;
    let n_tensors = u64_at(file, &mut at);
    let n_kv = u64_at(file, &mut at);
    let mut alignment = 32;
    for _ in 0..n_kv {
        let key = string(file, &mut at);
        let ty = u32_at(file, &mut at);
        if key == "general.alignment" {
            alignment = u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        }
        skip(file, &mut at, ty);
    }
    let mut out: Vec<Tensor> = (0..n_tensors)
        .map(|_| {
            let name = string(file, &mut at);
            let n_dims = u32_at(file, &mut at);
            let ne = (0..n_dims).map(|_| u64_at(file, &mut at)).collect();
            let ty = u32_at(file, &mut at);
            let offset = u64_at(file, &mut at) as usize;
            Tensor {
                name,
                ne,
                ty,
                offset,
            }
        })
        .collect();
    let data = at.next_multiple_of(alignment);
    out.iter_mut().for_each(|t| t.offset += data);
    out
}

fn u32_at(file: &[u8], at: &mut usize) -> u32 {
    *at += 4;
    u32::from_le_bytes(file[*at - 4..*at].try_into().unwrap())
}

fn u64_at(file: &[u8], at: &mut usize) -> u64 {
    *at += 8;
    u64::from_le_bytes(file[*at - 8..*at].try_into().unwrap())
}

fn string(file: &[u8], at: &mut usize) -> String {
    let length = u64_at(file, at) as usize;
    *at += length;
    String::from_utf8_lossy(&file[*at - length..*at]).into_owned()
}

fn skip(file: &[u8], at: &mut usize, ty: u32) {
    match ty {
        0 | 1 | 7 => *at += 1,
        2 | 3 => *at += 2,
        4..=6 => *at += 4,
        8 => _ = string(file, at),
        9 => {
            let of = u32_at(file, at);
            for _ in 0..u64_at(file, at) {
                skip(file, at, of);
            }
        }
        10..=12 => *at += 8,
        other => panic!("value of type {other}"),
    }
}
