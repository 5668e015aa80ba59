//! The library in the real llama-perplexity: every expert product is computed here, and the perplexity is that of
//! the CPU backend.

mod common;

use common::{Perplexity, Said, quantize, text};
use std::path::Path;

const LAYERS: usize = 6;
/// Three a layer.
const PRODUCTS: u64 = 3 * LAYERS as u64;

/// Compares the runs without and with the library; returns the second.
fn agrees(model: &Path, text: &Path, arguments: &[&str]) -> Said {
    let mut run = Perplexity {
        model,
        text,
        plugin: false,
        environment: &[],
        arguments,
    };
    let without = run.run();
    run.plugin = true;
    let with = run.run();
    let name = model.file_name().unwrap().to_string_lossy();
    let (Some(a), Some(b)) = (without.perplexity, with.perplexity) else {
        panic!("{name}: {}\n{}", without.text, with.text);
    };
    let ratio = b / a;
    eprintln!("{name}: {a} without, {b} with, ratio {ratio:.6}");
    assert!(
        (ratio - 1.0).abs() < 0.002,
        "{name}: {a} without and {b} with the plugin"
    );
    let (products, mixed) = with.computed();
    assert!(
        products >= PRODUCTS && products % PRODUCTS == 0 && mixed == 0,
        "{products}, {mixed}"
    );
    assert_eq!(without.computed().0, 0);
    with
}

/// Attention's and the output's weights are computed here too, or not, as `MOQA_DENSE` says.
#[test]
fn dense_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text) = (quantize(folder.path(), "Q4_K_M", &[]), text(folder.path()));
    let run = |plugin, dense: &str| {
        let said = Perplexity {
            model: &model,
            text: &text,
            plugin,
            environment: &[("MOQA_DENSE", dense)],
            arguments: &[],
        }
        .run();
        let perplexity = said
            .perplexity
            .unwrap_or_else(|| panic!("no perplexity: {}", said.text));
        (perplexity, said.computed().0, said.dense())
    };
    let (without, experts_alone, all) = (run(false, "1"), run(true, "0"), run(true, "1"));
    eprintln!("{without:?} {experts_alone:?} {all:?}");
    assert_eq!((without.1, without.2, experts_alone.2), (0, 0, 0));
    // Attention's four matrices in each of 6 layers, for each of the graphs with experts.
    assert!(experts_alone.1 >= PRODUCTS && all.1 == experts_alone.1);
    assert!(all.2 >= all.1 / PRODUCTS * 24, "{all:?}");
    for (perplexity, ..) in [experts_alone, all] {
        assert!((perplexity / without.0 - 1.0).abs() < 0.002);
    }
}

/// A file whose layers' experts are of these types by turns, all else Q8_0: of every type in one run. Files of one type,
/// and how far llama.cpp is from itself on them, are for scripts/check-plugin.
fn by_layers(types: [&str; LAYERS]) {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let arguments: Vec<String> = types
        .iter()
        .enumerate()
        .flat_map(|(layer, ty)| {
            let experts = format!("blk\\.{layer}\\.ffn_.*_exps={ty}");
            ["--tensor-type".to_owned(), experts]
        })
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let with = agrees(&quantize(folder.path(), "Q8_0", &arguments), &text, &[]);
    for (layer, ty) in types.iter().enumerate() {
        for projection in ["gate", "up", "down"] {
            let taken = format!("blk.{layer}.ffn_{projection}_exps.weight: {ty} in the mapped");
            assert!(
                with.text.to_lowercase().contains(&taken),
                "no '{taken}': {}",
                with.text
            );
        }
    }
}

#[test]
fn k_quants() {
    by_layers(["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"]);
}

#[test]
fn i_quants_of_one_and_two_bits() {
    by_layers(["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_xxs"]);
}

#[test]
fn i_quants_of_three_and_four_bits() {
    by_layers(["iq3_xxs", "iq3_s", "iq4_xs", "iq4_nl", "iq3_xxs", "iq4_xs"]);
}

#[test]
fn legacy_types() {
    by_layers(["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_0"]);
}

#[test]
fn ternary_types_and_four_bit_floats() {
    by_layers(["tq2_0", "tq1_0", "mxfp4", "q2_0", "mxfp4", "q1_0"]);
}

#[test]
fn floats() {
    by_layers(["f16", "bf16", "f32", "f16", "bf16", "f32"]);
}

#[test]
fn every_digit_is_the_same_with_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let model = quantize(folder.path(), "Q4_K_M", &[]);
    let run = |threads| {
        let said = Perplexity {
            model: &model,
            text: &text,
            plugin: true,
            environment: &[],
            arguments: &["-t", threads],
        }
        .run();
        assert!(said.computed().0 >= PRODUCTS, "{}", said.text);
        said.perplexity
            .unwrap_or_else(|| panic!("no perplexity: {}", said.text))
    };
    let one = run("1");
    assert_eq!(one, run("1"), "between runs");
    assert_eq!(one, run("2"), "between numbers of threads");
}

#[test]
fn unpacked_experts_give_the_same_digits() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let model = quantize(folder.path(), "IQ3_S", &["--pure"]);
    let run = |repack| {
        let said = Perplexity {
            model: &model,
            text: &text,
            plugin: true,
            environment: &[("MOQA_REPACK", repack)],
            arguments: &[],
        }
        .run();
        assert!(said.computed().0 >= PRODUCTS, "{}", said.text);
        let unpacked = said.text.matches(": unpacked into ").count();
        (said.perplexity.expect("a perplexity"), unpacked)
    };
    let (never, always) = (run("0"), run("1"));
    assert_eq!(never.1, 0);
    // Gate, up and down of six layers at least.
    assert!(always.1 >= 18, "{} tensors", always.1);
    assert_eq!(never.0, always.0);
}

/// The file read into memory instead of mapped: the weights come behind the library's back.
#[test]
fn without_a_mapped_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    agrees(
        &quantize(folder.path(), "Q4_K_M", &[]),
        &text,
        &["--load-mode", "none"],
    );
}

#[test]
fn switched_off_the_program_goes_on_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text) = (quantize(folder.path(), "Q8_0", &[]), text(folder.path()));
    let mut run = Perplexity {
        model: &model,
        text: &text,
        plugin: true,
        environment: &[("MOQA_PLUGIN", "0")],
        arguments: &[],
    };
    let off = run.run();
    assert!(
        off.success && off.text.contains("switched off by MOQA_PLUGIN"),
        "{}",
        off.text
    );
    assert_eq!(off.computed().0, 0);
    run.plugin = false;
    assert_eq!(run.run().perplexity, off.perplexity);
}
