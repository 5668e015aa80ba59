use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{Global, steps, summary};
use crate::analysis;
use crate::gguf::{Gguf, TensorInfo};
use crate::mixed::{MixedTensor, mixed_tensors};
use crate::model::ModelView;
use crate::plan::Plan;

/// Show what is in a model, an analysis, an imatrix file or a plan
#[derive(Args)]
#[command(after_help = "Example:\n  moqa inspect small.gguf --tensors")]
pub(super) struct InspectArgs {
    /// A .gguf, .moqa, imatrix or plan file
    file: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print a plan, or the types of a model, for llama-quantize's --tensor-type-file
    #[arg(long)]
    tensor_type_file: bool,
}

#[derive(Serialize)]
struct ModelReport {
    architecture: String,
    name: Option<String>,
    files: Vec<PathBuf>,
    bytes: u64,
    version: u32,
    alignment: u64,
    parameters: u64,
    bits_per_weight: f64,
    n_layer: usize,
    n_expert: usize,
    n_expert_used: usize,
    moqa: Vec<(String, String)>,
    types: Vec<Group>,
    roles: Vec<Group>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mixed: Option<MixedReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorReport>,
}

/// The tensors of a mixed file whose experts have types of their own.
#[derive(Default, Serialize)]
struct MixedReport {
    tensors: usize,
    /// Bytes in their carriers.
    bytes: u64,
    /// Of these, bytes of the experts' blocks.
    expert_bytes: u64,
    /// Headers, padding and seals.
    container_bytes: u64,
    /// What the carriers are larger than their contents.
    slack_bytes: u64,
    carriers: Vec<Group>,
}

/// Tensors of one type, or of one role.
#[derive(Serialize)]
struct Group {
    name: String,
    #[serde(flatten)]
    share: Share,
    bits_per_weight: f64,
}

#[derive(Default, Serialize)]
struct Share {
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

impl Share {
    fn add(&mut self, tensor: &TensorInfo) {
        self.add_part(tensor.n_elems(), tensor.n_bytes());
    }

    fn add_part(&mut self, parameters: u64, bytes: u64) {
        self.tensors += 1;
        self.parameters += parameters;
        self.bytes += bytes;
    }
}

/// The groups, the largest first.
fn by_bytes(groups: BTreeMap<String, Share>) -> Vec<Group> {
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|(name, share)| Group {
            name,
            bits_per_weight: if share.parameters == 0 {
                0.0
            } else {
                share.bytes as f64 * 8.0 / share.parameters as f64
            },
            share,
        })
        .collect();
    groups.sort_by_key(|g| std::cmp::Reverse(g.share.bytes));
    groups
}

#[derive(Serialize)]
struct TensorReport {
    name: String,
    role: String,
    dims: Vec<u64>,
    ty: String,
    bytes: u64,
    file_offset: u64,
    /// Of a mixed tensor: the type that the file states.
    #[serde(skip_serializing_if = "Option::is_none")]
    carrier: Option<String>,
    /// Of a mixed tensor: the type of each expert.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    experts: Vec<String>,
}

pub(super) fn run(args: InspectArgs, global: &Global) -> Result<()> {
    let mut magic = [0u8; 4];
    let meta = std::fs::metadata(&args.file)
        .with_context(|| format!("{}: cannot read", args.file.display()))?;
    ensure!(
        meta.is_file(),
        "{}: not a regular file",
        args.file.display()
    );
    let n = File::open(&args.file)
        .and_then(|mut f| f.read(&mut magic))
        .with_context(|| format!("{}: cannot read", args.file.display()))?;
    if n == 4 && &magic == b"GGUF" {
        let gguf = Gguf::open(&args.file)?;
        return match gguf.metadata.get_str("general.type") {
            Some("moqa-analysis" | "imatrix") => inspect_analysis(&args.file, global),
            _ => inspect_model(&gguf, &args, global),
        };
    }
    match Plan::read(&args.file) {
        Ok(plan) if args.tensor_type_file => {
            ensure!(
                plan.expert_types().is_empty(),
                "{}: llama-quantize cannot give experts types of their own, and this plan does",
                args.file.display()
            );
            print_type_file(&plan, global)
        }
        Ok(plan) => global.print(&plan, || {
            let mut s = steps::describe_plan(&plan);
            if args.tensors {
                for t in &plan.tensors {
                    let experts = t.experts.iter().map(|ty| ty.name());
                    let types = match t.experts.len() {
                        0 => t.ty.name().to_owned(),
                        _ => experts.collect::<Vec<_>>().join(" "),
                    };
                    s += &format!("{:<48} {types}\n", t.name);
                }
            }
            s
        }),
        // Neither GGUF nor TOML: the older imatrix form, or nothing we know.
        Err(not_a_plan) => match analysis::imatrix::read(&args.file) {
            Ok(a) => print_analysis(&a, global),
            Err(_) if args.file.extension().is_some_and(|e| e == "toml") => Err(not_a_plan),
            Err(e) => Err(e.context(format!(
                "{}: neither GGUF, nor a plan, nor an imatrix file",
                args.file.display()
            ))),
        },
    }
}

/// The lines for llama-quantize, as JSON a list of patterns and types.
fn print_type_file(plan: &Plan, global: &Global) -> Result<()> {
    #[derive(Serialize)]
    struct Line {
        pattern: String,
        #[serde(rename = "type")]
        ty: &'static str,
    }
    let lines: Vec<Line> = plan
        .tensor_patterns()
        .map(|(pattern, ty)| Line {
            pattern,
            ty: ty.name(),
        })
        .collect();
    global.print(&lines, || plan.to_tensor_type_file())
}

fn inspect_analysis(path: &Path, global: &Global) -> Result<()> {
    print_analysis(&analysis::load(path)?, global)
}

fn print_analysis(a: &analysis::Analysis, global: &Global) -> Result<()> {
    let summary = summary::summarise(a);
    global.print(&summary, || summary.to_text())
}

fn inspect_model(gguf: &Gguf, args: &InspectArgs, global: &Global) -> Result<()> {
    let view = ModelView::new(gguf).with_context(|| format!("{}", args.file.display()))?;
    let mixed = mixed_tensors(gguf)?;
    if args.tensor_type_file {
        crate::mixed::refuse(gguf).with_context(|| {
            format!(
                "{}: llama-quantize cannot give experts types of their own",
                args.file.display()
            )
        })?;
        let mut plan = Plan::default();
        for t in view.tensors.iter().filter(|t| t.quantizable) {
            let tensor = &gguf.tensors[t.index];
            plan.tensors.push(crate::plan::TensorChoice {
                name: tensor.name.clone(),
                ty: tensor.ty,
                experts: Vec::new(),
                bytes: tensor.n_bytes(),
                error: 0.0,
                cost: 0.0,
            });
        }
        return print_type_file(&plan, global);
    }
    let report = report_model(gguf, &view, &mixed, args.tensors);
    global.print(&report, || report.to_text())
}

fn report_model(gguf: &Gguf, view: &ModelView, mixed: &[MixedTensor], list: bool) -> ModelReport {
    let mut types: BTreeMap<String, Share> = BTreeMap::new();
    let mut roles: BTreeMap<String, Share> = BTreeMap::new();
    let mut tensors = Vec::new();
    for t in &view.tensors {
        let tensor = &gguf.tensors[t.index];
        let (mut ty, role) = (tensor.ty.to_string(), t.role.to_string());
        let parts = mixed.iter().find(|m| m.index == t.index);
        match parts {
            Some(m) => {
                add_experts(&mut types, tensor, m);
                ty = m.summary();
            }
            None => types.entry(ty.clone()).or_default().add(tensor),
        }
        roles.entry(role.clone()).or_default().add(tensor);
        if list {
            tensors.push(TensorReport {
                name: tensor.name.clone(),
                role,
                dims: (0..4).map(|i| tensor.ne(i)).collect(),
                ty,
                bytes: tensor.n_bytes(),
                file_offset: tensor.file_offset,
                carrier: parts.map(|_| tensor.ty.to_string()),
                experts: parts
                    .map(|m| m.types.iter().map(|ty| ty.to_string()).collect())
                    .unwrap_or_default(),
            });
        }
    }
    let (types, roles) = (by_bytes(types), by_bytes(roles));
    let parameters: u64 = types.iter().map(|t| t.share.parameters).sum();
    let data: u64 = types.iter().map(|t| t.share.bytes).sum();
    ModelReport {
        architecture: view.arch.clone(),
        name: gguf.metadata.get_str("general.name").map(str::to_owned),
        files: gguf.paths().into_iter().map(Path::to_owned).collect(),
        bytes: gguf.total_bytes(),
        version: gguf.version,
        alignment: gguf.alignment,
        parameters,
        bits_per_weight: data as f64 * 8.0 / parameters.max(1) as f64,
        n_layer: view.n_layer,
        n_expert: view.n_expert,
        n_expert_used: view.n_expert_used,
        moqa: gguf
            .metadata
            .iter()
            .filter(|(k, _)| k.starts_with("moqa."))
            .filter_map(|(k, v)| Some((k.to_owned(), v.as_str()?.to_owned())))
            .collect(),
        types,
        roles,
        mixed: (!mixed.is_empty()).then(|| report_mixed(gguf, mixed)),
        tensors,
    }
}

/// What is in a mixed tensor beside experts, in the list of types.
const REST: &str = "(carriers' rest)";

/// Adds the experts of a mixed tensor to the types they have.
fn add_experts(types: &mut BTreeMap<String, Share>, tensor: &TensorInfo, mixed: &MixedTensor) {
    let n_elems = tensor.ne(0) * tensor.ne(1);
    let mut shares: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (ty, expert) in mixed.types.iter().zip(&mixed.layout.experts) {
        let share = shares.entry(ty.to_string()).or_default();
        share.0 += n_elems;
        share.1 += expert.row_bytes * tensor.ne(1);
    }
    let rest = tensor.n_bytes() - mixed.expert_bytes();
    shares.insert(REST.to_owned(), (0, rest));
    for (ty, (parameters, bytes)) in shares {
        types.entry(ty).or_default().add_part(parameters, bytes);
    }
}

fn report_mixed(gguf: &Gguf, mixed: &[MixedTensor]) -> MixedReport {
    let mut report = MixedReport::default();
    let mut carriers: BTreeMap<String, Share> = BTreeMap::new();
    for m in mixed {
        let tensor = &gguf.tensors[m.index];
        carriers
            .entry(tensor.ty.to_string())
            .or_default()
            .add(tensor);
        report.tensors += 1;
        report.bytes += tensor.n_bytes();
        report.expert_bytes += m.expert_bytes();
        report.container_bytes += m.layout.sealed_bytes() - m.expert_bytes();
        report.slack_bytes += tensor.n_bytes() - m.layout.sealed_bytes();
    }
    report.carriers = by_bytes(carriers);
    report
}

/// Bits a weight; nothing where there are none.
fn bits(group: &Group) -> String {
    if group.share.parameters == 0 {
        return String::new();
    }
    format!("{:.2}", group.bits_per_weight)
}

impl ModelReport {
    fn to_text(&self) -> String {
        let mut s = format!(
            "{} ({}), {} layers, {}\n",
            self.name.as_deref().unwrap_or("unnamed"),
            self.architecture,
            self.n_layer,
            if self.n_expert > 0 {
                format!(
                    "{} experts of which {} are used",
                    self.n_expert, self.n_expert_used
                )
            } else {
                "no experts".to_owned()
            }
        );
        s += &format!(
            "{} parameters, {} in {} file(s), {:.3} bits per weight, GGUF version {}\n",
            self.parameters,
            crate::units::bytes(self.bytes),
            self.files.len(),
            self.bits_per_weight,
            self.version
        );
        for (k, v) in &self.moqa {
            s += &format!("{k} = {v}\n");
        }
        for (title, groups) in [("type", &self.types), ("role", &self.roles)] {
            s += &format!(
                "\n{title:<24} {:>7} {:>13} {:>13} {:>6}\n",
                "tensors", "parameters", "bytes", "bits"
            );
            for g in groups {
                s += &format!(
                    "{:<24} {:>7} {:>13} {:>13} {:>6}\n",
                    g.name,
                    g.share.tensors,
                    g.share.parameters,
                    crate::units::bytes(g.share.bytes),
                    bits(g)
                );
            }
        }
        if let Some(m) = &self.mixed {
            let carriers: Vec<String> = m
                .carriers
                .iter()
                .map(|g| format!("{} as {}", g.share.tensors, g.name))
                .collect();
            s += &format!(
                "\n{} tensors with experts of different types: {} of blocks, {} of headers, padding and seals, {} left empty by the carriers ({:.1} %); {}\nruns with moqa run; moqa unpack makes a stock model of it\n",
                m.tensors,
                crate::units::bytes(m.expert_bytes),
                crate::units::bytes(m.container_bytes),
                crate::units::bytes(m.slack_bytes),
                100.0 * m.slack_bytes as f64 / m.bytes.max(1) as f64,
                carriers.join(", ")
            );
        }
        if !self.tensors.is_empty() {
            s += "\n";
        }
        for t in &self.tensors {
            s += &format!("{:<48} {:<24} {:<9} {:?}\n", t.name, t.role, t.ty, t.dims);
            if let Some(carrier) = &t.carrier {
                s += &format!("    in {carrier}: {}\n", t.experts.join(" "));
            }
        }
        s
    }
}
