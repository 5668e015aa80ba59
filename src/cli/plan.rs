use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{BudgetArgs, DataArgs, FolderArgs, Global, NO_BUDGET, StrategyArgs, demand, steps};
use crate::output::{check_writable, write_file};
use crate::plan::Granularity;

/// Choose a type for every tensor under a size budget
#[derive(Args)]
#[command(
    after_help = "Example:\n  moqa plan model.gguf --analysis model.moqa --size 4.2GiB -o plan.toml"
)]
pub(super) struct PlanArgs {
    /// The model (GGUF, of a split model the first file; or a Hugging Face folder)
    model: PathBuf,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    strategy: StrategyArgs,
    /// The plan to write (TOML)
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also write the plan for llama-quantize's --tensor-type-file
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// Write nothing, only print
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    data: DataArgs,
}

pub(super) fn run(args: PlanArgs, global: &Global) -> Result<()> {
    demand(args.budget.is_given(), NO_BUDGET)?;
    demand(
        args.dry_run || args.output.is_some() || args.tensor_type_file.is_some(),
        "name the plan to write with -o FILE, or give --dry-run",
    )?;
    args.strategy.check()?;
    demand(
        args.tensor_type_file.is_none() || args.strategy.granularity()? == Granularity::Tensor,
        "llama-quantize cannot give experts types of their own; --tensor-type-file goes with uniform-experts",
    )?;
    let source = steps::open(&args.model, &args.folder, global)?;
    let read = args.data.files()?;
    for path in args.output.iter().chain(&args.tensor_type_file) {
        source.refuse_overwriting(path, &read)?;
        if !args.dry_run {
            check_writable(path)?;
        }
    }
    let mut analysis = steps::analysis(&source, &args.data, true, global)?;
    steps::report_unreached(&analysis, global);
    let plan = steps::plan(
        &source,
        &mut analysis,
        &args.budget,
        &args.strategy,
        &args.data,
        global,
    )?;
    if !args.dry_run {
        if let Some(path) = &args.output {
            write_file(path, plan.to_toml().as_bytes())?;
        }
        if let Some(path) = &args.tensor_type_file {
            write_file(path, plan.to_tensor_type_file().as_bytes())?;
        }
    }
    global.print(&plan, || steps::describe_plan(&plan))
}
