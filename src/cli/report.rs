use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::{FolderArgs, Global, steps};
use crate::analysis::{self, Analysis, RouterStats};
use crate::gguf::TensorInfo;
use crate::model::layer_of;
use crate::output::{refuse_overwriting, write_file};
use crate::plan::{CostModel, Plan, TensorChoice};
use crate::report::{
    Coactivation, DomainShift, ExpertGrid, ModelInfo, PairMeasure, ReportData, TensorRow, render,
};

/// Program and version, as reports name them.
pub(super) const REPORT_VERSION: &str = concat!("moqa ", env!("CARGO_PKG_VERSION"));

/// Write an HTML page of what an analysis and a plan say
#[derive(Args)]
#[command(
    after_help = "Example:\n  moqa report model.gguf --analysis model.moqa --plan plan.toml -o report.html"
)]
pub(super) struct ReportArgs {
    /// The model (GGUF, of a split model the first file; or a Hugging Face folder)
    model: PathBuf,
    /// Its analysis
    #[arg(long, value_name = "FILE")]
    analysis: PathBuf,
    /// A plan for it
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// The page to write; it needs no other file and no network
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    folder: FolderArgs,
}

pub(super) fn run(args: ReportArgs, global: &Global) -> Result<()> {
    let source = steps::open(&args.model, &args.folder, global)?;
    refuse_overwriting(&args.output, source.gguf.paths())?;
    let mut analysis = analysis::load(&args.analysis)?;
    analysis::imatrix::fit_to_model(&mut analysis, &source.gguf)?;
    let plan = match &args.plan {
        Some(path) => {
            let mut plan = Plan::read(path)?;
            plan.fit_to_model(&source.gguf)?;
            Some(plan)
        }
        None => None,
    };
    let data = ReportData {
        title: format!("What moqa found in {}", short_name(&args.model)),
        model: describe_model(&source),
        generated_by: REPORT_VERSION.to_owned(),
        ..describe_analysis(&source, &analysis, plan.as_ref())
    };
    write_file(&args.output, render(&data).as_bytes())?;
    global.print(&data, || format!("wrote {}\n", args.output.display()))
}

/// A model's name in a heading: its file's or folder's, without what leads there.
pub(super) fn short_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The model in a report.
pub(super) fn describe_model(source: &steps::Source) -> ModelInfo {
    ModelInfo {
        architecture: source.view.arch.clone(),
        name: source
            .gguf
            .metadata
            .get_str("general.name")
            .unwrap_or_default()
            .to_owned(),
        n_layer: source.view.n_layer,
        n_expert: source.view.n_expert,
        n_expert_used: source.view.n_expert_used,
        parameters: source.gguf.tensors.iter().map(TensorInfo::n_elems).sum(),
        bytes: source.gguf.total_bytes(),
    }
}

/// The sections that an analysis, and a plan if there is one, fill.
pub(super) fn describe_analysis(
    source: &steps::Source,
    analysis: &Analysis,
    plan: Option<&Plan>,
) -> ReportData {
    ReportData {
        experts: experts(analysis, plan),
        domains: domains(analysis),
        coactivation: coactivation(analysis),
        tensors: plan.map(|p| tensors(source, analysis, p)),
        ..ReportData::default()
    }
}

/// Share of the tokens that each expert got.
fn activation(router: &RouterStats) -> Vec<f64> {
    router
        .counts
        .iter()
        .map(|c| c / router.tokens.max(1.0))
        .collect()
}

fn experts(analysis: &Analysis, plan: Option<&Plan>) -> Option<ExpertGrid> {
    let n_expert = analysis.routers.values().map(|r| r.counts.len()).max()?;
    let layers: Vec<usize> = analysis.routers.keys().copied().collect();
    let gate_mass = |r: &RouterStats| {
        let total: f64 = r.gate_mass.iter().sum();
        r.gate_mass
            .iter()
            .map(|m| m / total.max(f64::MIN_POSITIVE))
            .collect()
    };
    // What an expert adds to the divergence in a type that was measured: its share of its tensors' effects.
    let sensitivity = |layer: &usize, r: &RouterStats| {
        let mut row = vec![0.0; r.counts.len()];
        for p in &analysis.probes {
            if p.ty == crate::gguf::GgmlType::Q3_K && layer_of(&p.tensor) == Some(*layer) {
                let shares = analysis
                    .errors
                    .shares(&p.tensor, &analysis.traffic(&p.tensor));
                if let Some(shares) = shares.filter(|s| s.len() == row.len()) {
                    row.iter_mut()
                        .zip(shares)
                        .for_each(|(v, s)| *v += p.kld * s);
                }
            }
        }
        row
    };
    let of_layer = |layer: usize, plan: &Plan| -> Vec<Vec<crate::gguf::GgmlType>> {
        let n = analysis.routers[&layer].counts.len();
        let of_experts = |name: &str| name.contains("_exps.");
        let tensors: Vec<_> = plan
            .tensors
            .iter()
            .filter(|t| layer_of(&t.name) == Some(layer) && of_experts(&t.name))
            .collect();
        (0..n)
            .map(|e| {
                tensors
                    .iter()
                    .map(|t| t.experts.get(e).copied().unwrap_or(t.ty))
                    .collect()
            })
            .collect()
    };
    let bits = plan.map(|p| {
        let mean = |types: &Vec<crate::gguf::GgmlType>| {
            types.iter().map(|t| t.bpw()).sum::<f64>() / types.len().max(1) as f64
        };
        layers
            .iter()
            .map(|l| of_layer(*l, p).iter().map(mean).collect())
            .collect()
    });
    let types = plan.map(|p| {
        let names = |types: &Vec<crate::gguf::GgmlType>| {
            let mut names: Vec<&str> = types.iter().map(|t| t.name()).collect();
            names.dedup();
            names.join(" + ")
        };
        layers
            .iter()
            .map(|l| of_layer(*l, p).iter().map(names).collect())
            .collect()
    });
    Some(ExpertGrid {
        activation: analysis.routers.values().map(activation).collect(),
        gate_mass: Some(analysis.routers.values().map(gate_mass).collect()),
        sensitivity: (!analysis.probes.is_empty()).then(|| {
            analysis
                .routers
                .iter()
                .map(|(l, r)| sensitivity(l, r))
                .collect()
        }),
        bits,
        types,
        n_expert,
        layers,
    })
}

fn domains(analysis: &Analysis) -> Option<DomainShift> {
    if analysis.domains.len() < 2 {
        return None;
    }
    let all = &analysis.domains;
    Some(DomainShift {
        names: all.iter().map(|d| d.name.clone()).collect(),
        divergence: analysis::routing::domain_divergence(all),
        per_domain: all
            .iter()
            .map(|d| (d.name.clone(), d.routers.values().map(activation).collect()))
            .collect(),
    })
}

fn coactivation(analysis: &Analysis) -> Option<Vec<Coactivation>> {
    let layers: Vec<Coactivation> = analysis
        .coactivation
        .iter()
        .filter_map(|(layer, c)| {
            let router = analysis.routers.get(layer)?;
            Some(Coactivation {
                layer: *layer,
                n_expert: c.n_expert,
                measure: PairMeasure::Counts,
                matrix: c
                    .counts
                    .chunks(c.n_expert.max(1))
                    .map(<[f64]>::to_vec)
                    .collect(),
                frequency: activation(router),
                tokens: router.tokens as u64,
            })
        })
        .collect();
    (!layers.is_empty()).then_some(layers)
}

fn tensors(source: &steps::Source, analysis: &Analysis, plan: &Plan) -> Vec<TensorRow> {
    let costs = CostModel::new(&source.view, analysis);
    plan.tensors
        .iter()
        .map(|t| {
            // A plan that was read from a file brings its types only.
            let error = analysis
                .errors
                .relative(&t.name, t.ty, &analysis.traffic(&t.name))
                .filter(|_| t.experts.is_empty());
            TensorRow {
                name: t.name.clone(),
                role: source
                    .view
                    .tensor(&t.name)
                    .map(|v| v.role.to_string())
                    .unwrap_or_default(),
                ty: if t.experts.is_empty() {
                    t.ty.to_string()
                } else {
                    "by expert".to_owned()
                },
                bytes: t.bytes,
                parts: parts(source, t),
                error: error.unwrap_or(f64::NAN),
                cost: error.map_or(f64::NAN, |e| costs.cost(&t.name, e)),
            }
        })
        .collect()
}

/// The types of a tensor's experts where they have their own, with their bytes.
fn parts(source: &steps::Source, choice: &TensorChoice) -> Vec<(String, u64)> {
    let Some(tensor) = source.gguf.tensor(&choice.name) else {
        return Vec::new();
    };
    let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
    for ty in &choice.experts {
        let row = ty.row_bytes(tensor.ne(0)).unwrap_or(0);
        *bytes.entry(ty.to_string()).or_default() += row.saturating_mul(tensor.ne(1));
    }
    bytes.into_iter().collect()
}
