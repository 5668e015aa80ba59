//! What several test programs share.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The model that the repository ships: a trained MoE of 21 million weights.
pub fn lab_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/lab-moe.gguf")
}

/// llama-imatrix's file for the built-in science text, chunks of 256, output tensor included.
pub fn science_imatrix() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/lab-moe.science.imatrix.gguf")
}

/// A text that is in the repository.
pub fn science_text() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/analysis/calibration/science.txt")
}

/// Runs the program.
pub fn moqa(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moqa"))
        .args(args)
        .output()
        .expect("the program starts")
}

/// Runs the program, which must succeed, and returns its standard output.
pub fn moqa_ok(args: &[&str]) -> String {
    let out = moqa(args);
    assert!(
        out.status.success(),
        "moqa {args:?}: {}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).expect("output is UTF-8")
}

/// A path as an argument.
pub fn s(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
