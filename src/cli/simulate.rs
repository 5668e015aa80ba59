use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::{DataArgs, FolderArgs, Global, WrongArguments, steps};
use crate::analysis::Unreached;
use crate::encode::{EncodeOptions, output_metadata, simulate};
use crate::gguf::GgmlType;
use crate::output::check_writable;

/// Write what a plan makes of a model as a float GGUF, to measure it without the plugin
///
/// Every tensor that the plan names is quantized and turned back into floats. The file is as large as the
/// source; any llama.cpp runs it, and its outputs are those of the plan but for the rounding of activations.
#[derive(Args)]
#[command(
    after_help = "Example:\n  moqa simulate plan.toml model.gguf --analysis model.moqa -o simulated.gguf"
)]
pub(super) struct SimulateArgs {
    /// The plan
    plan: PathBuf,
    /// The model (GGUF, or a Hugging Face folder)
    model: PathBuf,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Float type of the result
    #[arg(long = "as", value_name = "TYPE", default_value = "f16")]
    float_type: String,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    data: DataArgs,
}

pub(super) fn run(args: SimulateArgs, global: &Global) -> Result<()> {
    let out_type = match args.float_type.parse::<GgmlType>() {
        Ok(ty @ (GgmlType::F16 | GgmlType::BF16 | GgmlType::F32)) => ty,
        _ => bail!(WrongArguments(format!(
            "--as {}: write f16, bf16 or f32",
            args.float_type
        ))),
    };
    let source = steps::open(&args.model, &args.folder, global)?;
    source.refuse_overwriting(&args.output, args.data.files()?.iter().chain([&args.plan]))?;
    check_writable(&args.output)?;
    let plan = steps::load_plan(&args.plan, &source, &global.progress())?;
    ensure!(
        !plan.tensors.is_empty(),
        "{}: the plan names no tensor",
        args.plan.display()
    );
    let analysis = steps::analysis(&source, &args.data, false, global)?;
    let importance = plan.importance(&analysis, Unreached::default())?;
    let refit = steps::refit(&source, &analysis, &plan, &importance, &args.data, global)?;
    let kept: BTreeMap<String, GgmlType> = plan
        .tensors
        .iter()
        .map(|t| (t.name.clone(), out_type))
        .collect();
    let metadata = output_metadata(&source.gguf, &kept, &[]);
    let options = EncodeOptions {
        n_threads: global.n_threads(),
        split_max_bytes: None,
    };
    let written = simulate(
        &source.gguf,
        &metadata,
        &plan,
        out_type,
        &importance,
        &refit,
        &args.output,
        &options,
        &global.progress(),
    )?;
    global.print(&written, || format!("wrote {}\n", args.output.display()))
}
