//! Generates the bindings from `ggml-backend-impl.h`, which lies in the sources of the registry crate
//! llama-cpp-sys-2 and is not among the headers it installs. Nothing of ggml is compiled or linked.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Overrides the search: a folder that has `include/ggml.h` and `src/ggml-backend-impl.h`.
const OVERRIDE: &str = "MOQA_GGML_SOURCE";
const HEADER: &str = "src/ggml-backend-impl.h";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={OVERRIDE}");
    let ggml = match env::var_os(OVERRIDE) {
        Some(folder) => PathBuf::from(folder),
        None => ggml_of_llama_cpp_sys(),
    };
    let header = ggml.join(HEADER);
    assert!(
        header.is_file(),
        "ggml-backend-sys: there is no {}; set {OVERRIDE} to a folder of ggml's sources",
        header.display()
    );
    println!("cargo:rerun-if-changed={}", header.display());
    bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_arg(format!("-I{}", ggml.join("include").display()))
        .clang_arg(format!("-I{}", ggml.join("src").display()))
        .allowlist_type("ggml_.*")
        .allowlist_function("ggml_.*")
        .allowlist_var("GGML_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate_comments(false)
        .layout_tests(true)
        .generate()
        .expect("bindings of ggml-backend-impl.h")
        .write_to_file(Path::new(&env::var("OUT_DIR").expect("OUT_DIR")).join("bindings.rs"))
        .expect("write the bindings");
}

/// The folder of ggml in llama-cpp-sys-2's sources, as cargo knows it: a registry, a vendored copy or a path.
fn ggml_of_llama_cpp_sys() -> PathBuf {
    // Without the network if the sources are here, which they are once anything of the workspace was built.
    let json = metadata(&["--offline"])
        .or_else(|_| metadata(&[]))
        .unwrap_or_else(|message| panic!("ggml-backend-sys: cargo metadata failed: {message}"));
    json["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == "llama-cpp-sys-2")
        .and_then(|p| Path::new(p["manifest_path"].as_str()?).parent())
        .map(|p| p.join("llama.cpp/ggml"))
        .unwrap_or_else(|| {
            panic!("ggml-backend-sys: llama-cpp-sys-2 is not among the workspace's packages; set {OVERRIDE}")
        })
}

fn metadata(more: &[&str]) -> Result<serde_json::Value, String> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?);
    let out = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(more)
        .arg("--manifest-path")
        .arg(here.join("Cargo.toml"))
        .output()
        .map_err(|e| e.to_string())?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())
}
