//! Builds the guard against C++ exceptions, and refuses to build an x86-64 binary whose ggml would lack AVX2,
//! FMA and F16C and be slow without a word.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/runtime/guard.cpp");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("src/runtime/guard.cpp")
        .compile("moqa_guard");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    let mut missing = Vec::new();
    for name in ["GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2"] {
        println!("cargo:rerun-if-env-changed={name}");
        if env::var(name).as_deref() != Ok("ON") {
            missing.push(name);
        }
    }
    assert!(
        missing.is_empty(),
        "moqa: {} must be ON in the environment of the build, or ggml is built without them and runs slowly. \
         .cargo/config.toml sets them: build inside the repository.",
        missing.join(", ")
    );
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    assert!(
        !features.split(',').any(|f| f == "fma"),
        "moqa: the Rust target feature fma (from RUSTFLAGS or target-cpu) would reach ggml's quantizers, whose \
         results would then differ from llama.cpp's. Build without it; ggml's kernels have FMA all the same."
    );
}
