//! The library in the real llama-perplexity: every expert product is computed here, and the perplexity is that of
//! the CPU backend.

mod common;

use common::{Perplexity, quantize, text};
use std::path::Path;

/// Of 6 layers with 3 products each.
const PRODUCTS: u64 = 18;

fn agrees(model: &Path, text: &Path, arguments: &[&str]) {
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

fn presets(types: &[(&str, &[&str])]) {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    for (ty, more) in types {
        agrees(&quantize(folder.path(), ty, more), &text, &[]);
    }
}

#[test]
fn k_quants() {
    presets(&[
        ("Q4_K_M", &[]),
        ("Q2_K", &[]),
        ("Q3_K_M", &[]),
        ("Q5_K_M", &[]),
        ("Q6_K", &[]),
    ]);
}

#[test]
fn i_quants() {
    presets(&[
        ("IQ3_XXS", &[]),
        ("IQ2_XXS", &[]),
        ("IQ2_M", &[]),
        ("IQ4_XS", &[]),
        ("IQ1_S", &[]),
        ("IQ1_M", &[]),
        ("IQ3_S", &["--pure"]),
        ("IQ2_S", &["--pure"]),
    ]);
}

#[test]
fn legacy_types() {
    presets(&[
        ("Q4_0", &["--pure"]),
        ("Q4_1", &["--pure"]),
        ("Q5_0", &["--pure"]),
        ("Q5_1", &["--pure"]),
        ("Q8_0", &["--pure"]),
        ("IQ4_NL", &["--pure"]),
    ]);
}

#[test]
fn ternary_and_four_bit_floats() {
    presets(&[
        ("Q8_0", &["--tensor-type", "ffn_.*_exps=tq2_0"]),
        ("Q8_0", &["--tensor-type", "ffn_.*_exps=tq1_0"]),
        ("Q8_0", &["--tensor-type", "ffn_.*_exps=mxfp4"]),
    ]);
}

#[test]
fn floats() {
    presets(&[("F16", &[]), ("BF16", &[])]);
}

/// The file read into memory instead of mapped: the weights come behind the library's back.
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
