use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{BudgetArgs, DataArgs, FolderArgs, Global, NO_BUDGET, StrategyArgs, demand, steps};
use crate::analysis::{self, Analysis, Unreached};
use crate::encode::{EncodeOptions, EncodeReport, encode_mixed, output_metadata};
use crate::gguf::GgmlType;
use crate::mixed::{Mixture, guard_metadata};
use crate::output::{check_writable, write_file};
use crate::plan::Plan;

/// Analyse, plan and write a smaller model
#[derive(Args)]
#[command(
    after_help = "Examples:\n  moqa quantize model.gguf -o small.gguf --bpw 3.5\n  \
    moqa quantize model.gguf -o small.gguf --like Q4_K_M --text calibration/\n  \
    moqa quantize model.gguf -o small.gguf --plan plan.toml --analysis model.moqa\n  \
    moqa quantize model.gguf -o small.gguf --bpw 3 --strategy per-expert   # runs with moqa run"
)]
pub(super) struct QuantizeArgs {
    /// The model (GGUF, of a split model the first file; or a Hugging Face folder)
    model: PathBuf,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    strategy: StrategyArgs,
    /// Use the types of this plan instead of making one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bpw", "size", "like"])]
    plan: Option<PathBuf>,
    /// Quantize without importance data (with --plan)
    #[arg(long, requires = "plan", conflicts_with_all = ["analysis", "imatrix", "text"])]
    no_analysis: bool,
    /// Weigh experts that no token reached by ones, as llama-quantize does, instead of by their layer
    #[arg(long)]
    unreached_ones: bool,
    /// Write shards of at most this size
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_bytes)]
    split_max_size: Option<u64>,
    /// Keep the analysis in this file
    #[arg(long, value_name = "FILE")]
    save_analysis: Option<PathBuf>,
    /// Keep the plan in this file
    #[arg(long, value_name = "FILE")]
    save_plan: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    written: &'a EncodeReport,
    source_bytes: u64,
    /// Whether experts have types of their own: the file needs moqa's plugin.
    mixed: bool,
    plan: &'a Plan,
}

pub(super) fn run(args: QuantizeArgs, global: &Global) -> Result<()> {
    demand(
        args.plan.is_some() || args.budget.is_given(),
        &format!("{NO_BUDGET}, or give --plan FILE"),
    )?;
    args.strategy.check()?;
    let source = steps::open(&args.model, &args.folder, global)?;
    let mut read = args.data.files()?;
    read.extend(args.plan.clone());
    let outputs = [
        (Some(&args.output), None),
        // What was read may be written again with more in it.
        (args.save_analysis.as_ref(), args.data.analysis.as_ref()),
        (args.save_plan.as_ref(), args.plan.as_ref()),
    ];
    for (path, of_its_kind) in outputs.into_iter().filter_map(|(p, kind)| Some((p?, kind))) {
        let others = read
            .iter()
            .filter(|p| of_its_kind.is_none_or(|kind| kind != *p));
        source.refuse_overwriting(path, others)?;
        // Whether it can be written is better known before the work than after.
        check_writable(path)?;
    }

    let given = args.plan.as_deref();
    let given = given.map(|path| steps::load_plan(path, &source, &global.progress()));
    let given = given.transpose()?;
    let mut analysis = if args.no_analysis {
        Analysis::default()
    } else {
        let analysis = steps::analysis(&source, &args.data, given.is_none(), global)?;
        steps::report_unreached(&analysis, global);
        analysis
    };
    if let Some(path) = &args.save_analysis {
        analysis::save(path, &analysis)?;
    }
    let plan = match given {
        Some(plan) => plan,
        None => steps::plan(
            &source,
            &mut analysis,
            &args.budget,
            &args.strategy,
            &args.data,
            global,
        )?,
    };
    if let Some(path) = &args.save_plan {
        write_file(path, plan.to_toml().as_bytes())?;
    }

    let mixture = Mixture::new(&source.gguf, &plan.expert_types())?;
    let types: BTreeMap<String, GgmlType> = mixture.file_types(plan.types());
    let analysis_digest = analysis::digest(&analysis)?;
    let records = steps::records(
        &source,
        &steps::plan_digest(&plan.types(), &plan.expert_types()),
        &analysis_digest,
    );
    let mut metadata = output_metadata(&source.gguf, &types, &records);
    guard_metadata(&mut metadata, &mixture);
    let unreached = if args.unreached_ones {
        Unreached::Ones
    } else {
        Unreached::Pooled
    };
    let importance = plan.importance(&analysis, unreached)?;
    let options = EncodeOptions {
        n_threads: global.n_threads(),
        split_max_bytes: args.split_max_size,
    };
    let refit = steps::refit(&source, &analysis, &plan, &importance, &args.data, global)?;
    let written = encode_mixed(
        &source.gguf,
        &metadata,
        &types,
        &mixture,
        &importance,
        &refit,
        &args.output,
        &options,
        &global.progress(),
    )?;
    let source_bytes = source.gguf.total_bytes();
    let outcome = Outcome {
        written: &written,
        source_bytes,
        mixed: !mixture.is_empty(),
        plan: &plan,
    };
    global.print(&outcome, || {
        let mut s = if args.plan.is_some() {
            String::new()
        } else {
            steps::describe_plan(&plan)
        };
        for file in &written.files {
            s += &format!("wrote {}\n", file.display());
        }
        if !mixture.is_empty() {
            s += "experts have types of their own: run it with moqa run, or make a stock model of it with moqa unpack\n";
        }
        s + &format!(
            "{} -> {} ({:.1} %) in {:.1} s\n",
            crate::units::bytes(source_bytes),
            crate::units::bytes(written.bytes),
            written.bytes as f64 * 100.0 / source_bytes.max(1) as f64,
            written.seconds
        )
    })
}
