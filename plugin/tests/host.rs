//! Programs in C that load the library as llama.cpp's do.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{llama, llama_source, plugin, quantize, said};

/// Compiles a program of `tests/host` against the llama.cpp of the other tests.
fn compile(folder: &Path, name: &str, libraries: &[&str]) -> PathBuf {
    let program = folder.join(name);
    let source = llama_source();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/host")
        .join(format!("{name}.c"));
    let mut command = Command::new("cc");
    command
        .args(["-std=gnu11", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(here);
    command
        .arg("-I")
        .arg(source.join("include"))
        .arg("-I")
        .arg(source.join("ggml/include"))
        .arg("-I")
        .arg(source.join("ggml/src"));
    command
        .arg("-L")
        .arg(llama())
        .args(libraries)
        .args(["-lm", "-lpthread"]);
    command.arg(format!("-Wl,-rpath,{}", llama().display()));
    let out = command.output().expect("cc");
    assert!(out.status.success(), "{command:?}: {}", said(&out));
    program
}

#[test]
fn ggml_alone() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "direct", &["-lggml", "-lggml-base"]);
    for dense in [None, Some("0"), Some("1")] {
        let mut command = Command::new(&program);
        command.arg(plugin()).env_remove("MOQA_DENSE");
        command.envs(dense.map(|value| ("MOQA_DENSE", value)));
        let out = command.output().unwrap();
        assert!(out.status.success(), "{dense:?}: {}", said(&out));
        eprintln!("{}", String::from_utf8_lossy(&out.stdout));
    }
}

#[test]
fn contexts_at_once_and_one_after_another() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(
        folder.path(),
        "contexts",
        &["-lllama", "-lggml", "-lggml-base"],
    );
    let models = [
        quantize(folder.path(), "Q4_K_M", &[]),
        quantize(folder.path(), "Q8_0", &["--pure"]),
    ];
    // The C program is not beside libggml-cpu, which ggml looks for in the working directory too.
    let out = Command::new(program)
        .args(&models)
        .current_dir(llama())
        .env("GGML_BACKEND_PATH", plugin())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    eprintln!("{}", String::from_utf8_lossy(&out.stdout));
}

/// Python opens its extension modules with `RTLD_LOCAL`: ggml's functions are not in the global scope then.
#[test]
fn a_host_with_local_symbols() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "local", &["-ldl"]);
    let out = Command::new(program)
        .arg(llama().join("libggml.so"))
        .arg(plugin())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
}

/// A process without ggml: a line that says so, and no backend.
#[test]
fn no_host() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "local", &["-ldl"]);
    let out = Command::new(program)
        .arg("none")
        .arg(plugin())
        .output()
        .unwrap();
    assert!(
        !out.status.success() && out.status.code() == Some(3),
        "{}",
        said(&out)
    );
    assert!(
        said(&out).contains("no ggml with the function"),
        "{}",
        said(&out)
    );
}

/// Matrices that are not of experts are left to the program where a GPU could borrow them.
#[test]
fn dense_weights_are_left_alone_beside_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "guard", &["-lggml", "-lggml-base"]);
    for (device, dense, taken) in [
        ("cpu", None, true),
        ("gpu", None, false),
        ("cpu", Some("0"), false),
        ("gpu", Some("1"), true),
    ] {
        let mut command = Command::new(&program);
        command
            .arg(device)
            .arg(plugin())
            .env_remove("MOQA_DENSE")
            .envs(dense.map(|value| ("MOQA_DENSE", value)));
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", said(&out));
        let expected = if taken { "dense: taken" } else { "dense: left" };
        assert!(
            said(&out).contains(expected),
            "{device}, {dense:?}: {}",
            said(&out)
        );
    }
}

/// The header that `moqa run` makes opens only where no GPU can get the experts.
#[test]
fn a_stand_in_stays_closed_beside_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(
        folder.path(),
        "guard",
        &["-Wl,--no-as-needed", "-lllama", "-lggml", "-lggml-base"],
    );
    let stand_in = folder.path().join("stand-in");
    let run = |device: &str, cpu_experts: Option<&str>| {
        std::fs::write(&stand_in, b"MOQA and more").unwrap();
        let mut command = Command::new(&program);
        command
            .arg(device)
            .arg(plugin())
            .env("MOQA_STAND_IN", &stand_in)
            .env_remove("LLAMA_ARG_CPU_MOE");
        if let Some(value) = cpu_experts {
            command.env("LLAMA_ARG_CPU_MOE", value);
        }
        let out = command.output().unwrap();
        // The library itself is loaded all the same.
        assert!(out.status.success(), "{}", said(&out));
        (std::fs::read(&stand_in).unwrap(), said(&out))
    };
    assert_eq!(run("cpu", None).0, b"GGUF and more");
    assert_eq!(run("gpu", Some("1")).0, b"GGUF and more");
    for value in [None, Some("0"), Some("off"), Some("")] {
        let (bytes, text) = run("gpu", value);
        assert_eq!(bytes, b"MOQA and more", "{value:?}");
        for part in ["Pretended0", "LLAMA_ARG_CPU_MOE=1", "-ngl 0"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

/// In a wheel's folder the names of a library are copies in place of links, so that libllama and who opens `libggml.so`
/// have a registry each. The library can be in only one of them, and the header opens only if that is libllama's.
#[test]
fn a_stand_in_stays_closed_in_another_registry_than_that_of_libllama() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "local", &["-ldl"]);
    let copy = folder.path().join("libggml.so");
    std::fs::copy(llama().join("libggml.so"), &copy).unwrap();
    let stand_in = folder.path().join("stand-in");
    let run = |ggml: &Path, libllama: Option<&Path>| {
        std::fs::write(&stand_in, b"MOQA and more").unwrap();
        let out = Command::new(&program)
            .arg(ggml)
            .arg(plugin())
            .args(libllama)
            .env("MOQA_STAND_IN", &stand_in)
            .env_remove("LLAMA_ARG_CPU_MOE")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", said(&out));
        (std::fs::read(&stand_in).unwrap(), said(&out))
    };
    let libllama = llama().join("libllama.so");
    let (bytes, text) = run(&llama().join("libggml.so"), Some(&libllama));
    assert_eq!(bytes, b"GGUF and more", "{text}");
    let (bytes, text) = run(&copy, Some(&libllama));
    assert_eq!(bytes, b"MOQA and more", "{text}");
    assert!(text.contains("libllama uses"), "{text}");
    assert!(text.contains(&copy.display().to_string()), "{text}");
    let (bytes, text) = run(&llama().join("libggml.so"), None);
    assert_eq!(bytes, b"MOQA and more", "{text}");
    assert!(text.contains("no libllama"), "{text}");
}
