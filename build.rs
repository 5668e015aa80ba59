//! Refuses to build an x86-64 binary whose ggml would silently lack AVX2, FMA and F16C.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    let enabled = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let missing: Vec<&str> = ["avx2", "fma", "f16c", "bmi2"]
        .into_iter()
        .filter(|f| !enabled.split(',').any(|e| e == *f))
        .collect();
    assert!(
        missing.is_empty(),
        "moqa: the target features {} are off, and ggml would be built without them and run slowly.\n\
         They are set in .cargo/config.toml; a RUSTFLAGS variable replaces that file's flags. \
         Unset RUSTFLAGS or add -C target-feature=+avx,+avx2,+fma,+f16c,+bmi1,+bmi2,+sse4.2,+popcnt to it.",
        missing.join(", ")
    );
}
