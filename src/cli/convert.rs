use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{FolderArgs, Global, steps};
use crate::analysis::{Analysis, Importance, Unreached};
use crate::encode::{EncodeOptions, EncodeReport, encode};
use crate::output::{check_writable, refuse_overwriting};

/// Write a Hugging Face folder as a GGUF model
#[derive(Args)]
#[command(
    after_help = "Examples:\n  moqa convert Qwen3-30B-A3B/ -o qwen3.gguf\n  \
    moqa convert Mixtral-8x7B/ -o mixtral.gguf --outtype q8_0 --split-max-size 40GB\n\n\
    To quantize a folder no GGUF file is needed first: moqa quantize FOLDER -o small.gguf --bpw 4"
)]
pub(super) struct ConvertArgs {
    /// The folder: config.json, safetensors files and a tokenizer
    #[arg(value_name = "FOLDER")]
    model: PathBuf,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Write shards of at most this size
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_bytes)]
    split_max_size: Option<u64>,
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    written: &'a EncodeReport,
    source_bytes: u64,
    architecture: Option<&'a str>,
    tensors: usize,
}

pub(super) fn run(args: ConvertArgs, global: &Global) -> Result<()> {
    ensure!(
        args.model.is_dir(),
        "{}: is not a folder; a Hugging Face model is a folder with config.json and safetensors files",
        args.model.display()
    );
    let source = steps::open_folder(&args.model, &args.folder, global)?;
    refuse_overwriting(&args.output, source.paths())?;
    check_writable(&args.output)?;
    let options = EncodeOptions {
        n_threads: global.n_threads(),
        split_max_bytes: args.split_max_size,
    };
    // Every tensor keeps the type it was opened with.
    let written = encode(
        &source,
        &source.metadata,
        &BTreeMap::new(),
        &Importance::new(&Analysis::default(), Unreached::default()),
        &args.output,
        &options,
        &global.progress(),
    )?;
    let outcome = Outcome {
        written: &written,
        source_bytes: source.total_bytes(),
        architecture: source.metadata.get_str("general.architecture"),
        tensors: source.tensors.len(),
    };
    global.print(&outcome, || {
        let mut s = String::new();
        for file in &written.files {
            s += &format!("wrote {}\n", file.display());
        }
        s + &format!(
            "{} -> {} in {:.1} s\n",
            crate::units::bytes(outcome.source_bytes),
            crate::units::bytes(written.bytes),
            written.seconds
        )
    })
}
