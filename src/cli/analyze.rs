use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{DataArgs, FolderArgs, Global, steps};
use crate::analysis::{self, Analysis};
use crate::output::{check_writable, refuse_overwriting};

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

/// An analysis in numbers.
#[derive(Serialize)]
pub(super) struct AnalysisSummary {
    architecture: String,
    model_digest: String,
    datasets: Vec<String>,
    n_ctx: usize,
    n_chunks: usize,
    tensors: usize,
    probes: usize,
    layers: Vec<LayerSummary>,
    unreached: Vec<Unreached>,
}

#[derive(Serialize)]
struct LayerSummary {
    layer: usize,
    n_expert: usize,
    n_used: usize,
    tokens: f64,
    load_entropy: f64,
    least: f64,
    most: f64,
    unreached: Vec<usize>,
    counts: Vec<f64>,
    gate_mass: Vec<f64>,
}

#[derive(Serialize)]
struct Unreached {
    tensor: String,
    experts: Vec<usize>,
}

pub(super) fn summarise(a: &Analysis) -> AnalysisSummary {
    AnalysisSummary {
        architecture: a.origin.architecture.clone(),
        model_digest: a.origin.model_digest.clone(),
        datasets: a.origin.datasets.clone(),
        n_ctx: a.origin.n_ctx,
        n_chunks: a.origin.n_chunks,
        tensors: a.weights.len(),
        probes: a.probes.len(),
        layers: a
            .routers
            .iter()
            .map(|(&layer, r)| LayerSummary {
                layer,
                n_expert: r.counts.len(),
                n_used: r.n_used,
                tokens: r.tokens,
                load_entropy: r.load_entropy(),
                least: r.counts.iter().copied().fold(f64::INFINITY, f64::min),
                most: r.counts.iter().copied().fold(0.0, f64::max),
                unreached: r.unreached(),
                counts: r.counts.clone(),
                gate_mass: r.gate_mass.clone(),
            })
            .collect(),
        unreached: a
            .unreached()
            .into_iter()
            .map(|(tensor, experts)| Unreached {
                tensor: tensor.to_owned(),
                experts,
            })
            .collect(),
    }
}

impl AnalysisSummary {
    pub(super) fn to_text(&self) -> String {
        let mut s = format!(
            "analysis of {} tensors on {} chunks of {} tokens; {} measured effects\n",
            self.tensors, self.n_chunks, self.n_ctx, self.probes
        );
        s += &format!("measured on {}\n", self.datasets.join(", "));
        let digest = if self.model_digest.is_empty() {
            "an unnamed model"
        } else {
            &self.model_digest
        };
        s += &format!("made for {digest}\n");
        if !self.layers.is_empty() {
            s += "layer  experts  used    tokens  load entropy  tokens of an expert, least .. most\n";
        }
        for l in &self.layers {
            s += &format!(
                "{:>5} {:>8} {:>5} {:>9} {:>13.3}  {} .. {}\n",
                l.layer, l.n_expert, l.n_used, l.tokens, l.load_entropy, l.least, l.most
            );
        }
        for u in &self.unreached {
            s += &format!(
                "no token reached of {}: experts {:?}\n",
                u.tensor, u.experts
            );
        }
        s
    }
}

pub(super) fn run(args: AnalyzeArgs, global: &Global) -> Result<()> {
    let source = steps::open(&args.model, &args.folder, global)?;
    // Whether they can be written is better known before the work than after.
    for path in std::iter::once(&args.output).chain(&args.export_imatrix) {
        refuse_overwriting(path, source.gguf.paths())?;
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
    let summary = summarise(&analysis);
    global.print(&summary, || summary.to_text())
}
