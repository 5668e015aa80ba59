use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{Global, analyze, steps};
use crate::analysis;
use crate::gguf::{Gguf, TensorInfo};
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorReport>,
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
        self.tensors += 1;
        self.parameters += tensor.n_elems();
        self.bytes += tensor.n_bytes();
    }
}

/// The groups, the largest first.
fn by_bytes(groups: BTreeMap<String, Share>) -> Vec<Group> {
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|(name, share)| Group {
            name,
            bits_per_weight: share.bytes as f64 * 8.0 / share.parameters.max(1) as f64,
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
            print!("{}", plan.to_tensor_type_file());
            Ok(())
        }
        Ok(plan) => global.print(&plan, || {
            let mut s = steps::describe_plan(&plan);
            if args.tensors {
                for t in &plan.tensors {
                    s += &format!("{:<48} {}\n", t.name, t.ty);
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

fn inspect_analysis(path: &Path, global: &Global) -> Result<()> {
    print_analysis(&analysis::load(path)?, global)
}

fn print_analysis(a: &analysis::Analysis, global: &Global) -> Result<()> {
    let summary = analyze::summarise(a);
    global.print(&summary, || summary.to_text())
}

fn inspect_model(gguf: &Gguf, args: &InspectArgs, global: &Global) -> Result<()> {
    let view = ModelView::new(gguf).with_context(|| format!("{}", args.file.display()))?;
    if args.tensor_type_file {
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
        print!("{}", plan.to_tensor_type_file());
        return Ok(());
    }
    let report = report_model(gguf, &view, args.tensors);
    global.print(&report, || report.to_text())
}

fn report_model(gguf: &Gguf, view: &ModelView, list: bool) -> ModelReport {
    let mut types: BTreeMap<String, Share> = BTreeMap::new();
    let mut roles: BTreeMap<String, Share> = BTreeMap::new();
    let mut tensors = Vec::new();
    for t in &view.tensors {
        let tensor = &gguf.tensors[t.index];
        let (ty, role) = (tensor.ty.to_string(), t.role.to_string());
        types.entry(ty.clone()).or_default().add(tensor);
        roles.entry(role.clone()).or_default().add(tensor);
        if list {
            tensors.push(TensorReport {
                name: tensor.name.clone(),
                role,
                dims: (0..4).map(|i| tensor.ne(i)).collect(),
                ty,
                bytes: tensor.n_bytes(),
                file_offset: tensor.file_offset,
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
        tensors,
    }
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
                    "{:<24} {:>7} {:>13} {:>13} {:>6.2}\n",
                    g.name,
                    g.share.tensors,
                    g.share.parameters,
                    crate::units::bytes(g.share.bytes),
                    g.bits_per_weight
                );
            }
        }
        if !self.tensors.is_empty() {
            s += "\n";
        }
        for t in &self.tensors {
            s += &format!("{:<48} {:<24} {:<9} {:?}\n", t.name, t.role, t.ty, t.dims);
        }
        s
    }
}
