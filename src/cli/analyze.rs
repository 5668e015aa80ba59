use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{DataArgs, FolderArgs, Global, steps, summary};
use crate::analysis;
use crate::output::check_writable;

/// Measure which experts and channels the data reaches, and what quantizing each tensor does
#[derive(Args)]
#[command(after_help = "Example:\n  moqa analyze model.gguf -o model.moqa --text calibration/")]
pub(super) struct AnalyzeArgs {
    /// The model (GGUF, of a split model the first file; or a Hugging Face folder)
    model: PathBuf,
    /// The analysis file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Also write a llama.cpp imatrix file; a name ending in .dat gives the older form
    #[arg(long, value_name = "FILE")]
    export_imatrix: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    data: DataArgs,
}

pub(super) fn run(args: AnalyzeArgs, global: &Global) -> Result<()> {
    let source = steps::open(&args.model, &args.folder, global)?;
    // Whether they can be written is better known before the work than after.
    let read = args.data.files()?;
    for path in std::iter::once(&args.output).chain(&args.export_imatrix) {
        // An analysis may be written again with more in it.
        let again = args.data.analysis.as_ref().filter(|_| *path == args.output);
        let others = read.iter().filter(|p| again.is_none_or(|a| a != *p));
        source.refuse_overwriting(path, others)?;
        check_writable(path)?;
    }
    let analysis = steps::analysis(&source, &args.data, true, global)?;
    steps::report_unreached(&analysis, global);
    analysis::save(&args.output, &analysis)?;
    if let Some(path) = &args.export_imatrix {
        if path.extension().is_some_and(|e| e == "dat") {
            analysis::imatrix::write_dat(path, &analysis)?;
        } else {
            analysis::imatrix::write(path, &analysis)?;
        }
    }
    let summary = summary::summarise(&analysis);
    global.print(&summary, || summary.to_text())
}
