use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::{FolderArgs, Global, steps};
use crate::analysis::{self, Analysis, RouterStats};
use crate::gguf::{GgmlType, TensorInfo};
use crate::model::{Role, TensorView};
use crate::output::write_file;
use crate::plan::{CostModel, Plan, TensorChoice};
use crate::report::{
    Coactivation, DomainShift, ExpertGrid, Grid, ModelInfo, PairMeasure, ReportData, TensorRow,
    render,
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
    source.refuse_overwriting(&args.output, args.plan.iter().chain([&args.analysis]))?;
    let progress = global.progress();
    let analysis = steps::load_analysis(&args.analysis, &source, &progress)?;
    let plan = args.plan.as_deref();
    let plan = plan.map(|path| steps::load_plan(path, &source, &progress));
    let plan = plan.transpose()?;
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
        experts: experts(source, analysis, plan),
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

fn experts(source: &steps::Source, analysis: &Analysis, plan: Option<&Plan>) -> Option<ExpertGrid> {
    let n_expert = analysis.routers.values().map(|r| r.counts.len()).max()?;
    let layers: Vec<usize> = analysis.routers.keys().copied().collect();
    let gate_mass = |r: &RouterStats| {
        let total: f64 = r.gate_mass.iter().sum();
        r.gate_mass
            .iter()
            .map(|m| m / total.max(f64::MIN_POSITIVE))
            .collect()
    };
    let sensitivity = Sensitivity::new(source, analysis);
    let assigned: Option<Vec<Vec<Assigned>>> = plan.map(|p| assigned(source, analysis, p));
    let of_each = |f: &dyn Fn(&Assigned) -> f64| -> Option<Grid> {
        let rows = assigned.as_ref()?.iter();
        Some(rows.map(|row| row.iter().map(f).collect()).collect())
    };
    Some(ExpertGrid {
        activation: analysis.routers.values().map(activation).collect(),
        gate_mass: Some(analysis.routers.values().map(gate_mass).collect()),
        bits: of_each(&|a| a.bits),
        types: assigned.map(|rows| {
            let names = |row: Vec<Assigned>| row.into_iter().map(|a| a.types).collect();
            rows.into_iter().map(names).collect()
        }),
        sensitivity_type: sensitivity
            .as_ref()
            .map_or(String::new(), |s| s.ty.to_string()),
        sensitivity_roles: sensitivity.as_ref().map_or(Vec::new(), |s| {
            s.roles.iter().map(Role::to_string).collect()
        }),
        sensitivity: sensitivity.map(|s| s.rows),
        n_expert,
        layers,
    })
}

/// What quantizing single experts to one type does to the output.
struct Sensitivity {
    ty: GgmlType,
    /// The projections that were measured.
    roles: Vec<Role>,
    /// Nats a token by layer and expert; NaN in layers that were not measured, or not in all these projections.
    rows: Grid,
}

impl Sensitivity {
    /// In the type in which most projections of experts were measured, of several the one of the most usual size. An
    /// expert's effect is taken to be its share of its tensors' effects.
    fn new(source: &steps::Source, analysis: &Analysis) -> Option<Self> {
        let mut by_type: BTreeMap<GgmlType, Vec<(&TensorView, Vec<f64>)>> = BTreeMap::new();
        for probe in &analysis.probes {
            let measured = || {
                let tensor = source.view.tensor(&probe.tensor)?;
                let router = analysis.routers.get(&tensor.layer?)?;
                let traffic = analysis.traffic(&tensor.name);
                let mut each = analysis.errors.shares(&tensor.name, &traffic)?;
                each.iter_mut().for_each(|share| *share *= probe.kld);
                let of_experts = tensor.role.is_expert() && each.len() == router.counts.len();
                of_experts.then_some((tensor, each))
            };
            if let Some(effects) = measured() {
                by_type.entry(probe.ty).or_default().push(effects);
            }
        }
        let unusual = |ty: &GgmlType| (ty.bpw() - steps::USUAL_BPW).abs();
        let (ty, effects) = by_type.into_iter().max_by(|a, b| {
            let by_number = a.1.len().cmp(&b.1.len());
            by_number.then(unusual(&b.0).total_cmp(&unusual(&a.0)))
        })?;
        let mut roles: Vec<Role> = effects.iter().map(|(t, _)| t.role).collect();
        roles.sort_unstable();
        roles.dedup();
        let row = |(layer, router): (&usize, &RouterStats)| {
            let own: Vec<_> = effects
                .iter()
                .filter(|(t, _)| t.layer == Some(*layer))
                .collect();
            // The sum of some would look like an expert that matters less.
            let whole = roles.iter().all(|r| own.iter().any(|(t, _)| t.role == *r));
            let sum = |e: usize| own.iter().map(|(_, each)| each[e]).sum();
            let value = |e| if whole { sum(e) } else { f64::NAN };
            (0..router.counts.len()).map(value).collect()
        };
        let rows = analysis.routers.iter().map(row).collect();
        Some(Self { ty, roles, rows })
    }
}

/// What an expert gets.
struct Assigned {
    /// Bits per weight; NaN for an expert that the model does not have.
    bits: f64,
    /// Its projections' types, each once.
    types: String,
}

/// What a plan gives each expert: the source's type where it names no other.
fn assigned(source: &steps::Source, analysis: &Analysis, plan: &Plan) -> Vec<Vec<Assigned>> {
    let named: HashMap<&str, &TensorChoice> =
        plan.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let of_layer = |(layer, router): (&usize, &RouterStats)| {
        let n = router.counts.len();
        let projections: Vec<&TensorView> = source
            .view
            .tensors
            .iter()
            .filter(|t| t.layer == Some(*layer) && t.role.is_expert() && t.n_expert == n)
            .collect();
        let of_expert = |e: usize| {
            let (mut bits, mut params, mut types) = (0.0, 0.0, Vec::new());
            for t in &projections {
                let ty = match named.get(t.name.as_str()) {
                    Some(choice) => choice.experts.get(e).copied().unwrap_or(choice.ty),
                    None => source.gguf.tensors[t.index].ty,
                };
                bits += ty.bpw() * t.n_params as f64;
                params += t.n_params as f64;
                if !types.contains(&ty.name()) {
                    types.push(ty.name());
                }
            }
            Assigned {
                bits: bits / params,
                types: types.join(" + "),
            }
        };
        (0..n).map(of_expert).collect()
    };
    analysis.routers.iter().map(of_layer).collect()
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
