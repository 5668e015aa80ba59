//! The command line.

mod ablate;
mod analyze;
mod compare;
mod convert;
mod eval;
mod inspect;
mod plan;
mod plugin;
mod quantize;
mod report;
mod run;
mod simulate;
mod speed;
mod steps;
mod summary;
mod tasks;
mod unpack;
mod zero_shot;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};

use crate::analysis::{Stage, Stages, TextPath};
use crate::gguf::GgmlType;
use crate::hf::vocab::VocabOptions;
use crate::hf::{self, OutType};
use crate::plan::{Budget, Candidates, Granularity, Pin, Scenario, default_types};
use crate::progress::Progress;
use crate::runtime::Preset;

/// Makes Mixture-of-Experts models small for llama.cpp: measures which experts, tensors and channels
/// matter, and spends the bytes there.
#[derive(Parser)]
#[command(name = "moqa", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
struct Global {
    /// Print the result as JSON on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Worker threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print neither progress nor notes
    #[arg(long, short, global = true)]
    quiet: bool,
}

impl Global {
    fn n_threads(&self) -> usize {
        match self.threads {
            Some(n) => n.into(),
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }

    fn progress(&self) -> Progress {
        Progress::new(self.quiet)
    }

    /// Prints a result: as JSON, or for a person.
    fn print(&self, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            self.write(&(serde_json::to_string_pretty(value)? + "\n"))
        } else {
            self.write(&text())
        }
    }

    /// Writes to standard output.
    fn write(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("cannot write the result to standard output")
    }
}

/// Arguments that cannot be, beyond what the parser sees: exit status 2.
#[derive(Debug)]
struct WrongArguments(String);

impl std::fmt::Display for WrongArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongArguments {}

/// Ends with [`WrongArguments`] unless `right`.
fn demand(right: bool, otherwise: &str) -> Result<()> {
    ensure!(right, WrongArguments(otherwise.to_owned()));
    Ok(())
}

#[derive(Subcommand)]
enum Command {
    Quantize(quantize::QuantizeArgs),
    Convert(convert::ConvertArgs),
    Analyze(analyze::AnalyzeArgs),
    Plan(plan::PlanArgs),
    Inspect(inspect::InspectArgs),
    Compare(compare::CompareArgs),
    Ablate(ablate::AblateArgs),
    Report(report::ReportArgs),
    Simulate(simulate::SimulateArgs),
    Unpack(unpack::UnpackArgs),
    Run(run::RunArgs),
    Plugin(plugin::PluginArgs),
    Eval(eval::EvalArgs),
    Tasks(tasks::TasksArgs),
}

/// How a Hugging Face folder is read.
#[derive(Args, Clone, Default)]
struct FolderArgs {
    /// Type of the large tensors of a folder: bf16, f16, f32, q8_0, or auto for the checkpoint's own
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    outtype: OutType,
    /// llama.cpp's name of a folder's pre-tokenizer, where it is not recognised
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,
}

impl FolderArgs {
    fn options(&self) -> hf::Options {
        hf::Options {
            out_type: self.outtype,
            vocab: VocabOptions {
                pre_tokenizer: self.pre_tokenizer.clone(),
            },
        }
    }
}

/// How large the result may be.
#[derive(Args, Clone)]
#[group(multiple = false)]
struct BudgetArgs {
    /// Bits per weight of the tensor data, 3.5 say
    #[arg(long, value_name = "BITS", value_parser = parse_bpw)]
    bpw: Option<f64>,
    /// Size of the whole file: 4.2GiB, 900MB, or bytes
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_bytes)]
    size: Option<u64>,
    /// No more bytes than this preset of llama-quantize would give, Q4_K_M say
    #[arg(long, value_name = "PRESET")]
    like: Option<Preset>,
}

fn parse_bpw(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v > 0.0 && v <= 64.0 => Ok(v),
        _ => Err(format!(
            "'{text}' is not a number of bits per weight, such as 3.5"
        )),
    }
}

/// A scenario of data, or how experts are combined.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum StrategyName {
    /// All domains of the calibration text count alike (default)
    Balanced,
    /// Domains count by --weight
    Workload,
    /// The domain that fares worst counts
    Robust,
    /// One type a tensor; runs in any llama.cpp (default)
    UniformExperts,
    /// A type for each expert; runs in llama.cpp with moqa's plugin (`moqa run`)
    PerExpert,
}

/// What our plans are measured against, and on what.
#[derive(Args)]
struct AgainstArgs {
    /// Presets whose bytes are the budgets
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "Q2_K,IQ3_XXS,Q3_K_M,IQ4_XS,Q4_K_M"
    )]
    budgets: Vec<Preset>,
    /// Text to evaluate on, which should not be the calibration text
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    eval_text: Vec<TextPath>,
}

/// What the plan aims at and may use.
#[derive(Args, Clone)]
struct StrategyArgs {
    /// Scenario of data, and how experts are combined: one of each, separated by a comma
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES")]
    strategy: Vec<StrategyName>,
    /// Weight of a domain in the workload strategy, LABEL=SHARE; what is missing to 1 goes to the others
    #[arg(long, value_name = "LABEL=SHARE", value_parser = parse_weight)]
    weight: Vec<(String, f64)>,
    /// Choose workload and robust plans by what is expected of them, without measuring some on the model
    #[arg(long)]
    no_measure: bool,
    /// Types to choose from
    #[arg(long, value_delimiter = ',', value_name = "TYPES")]
    types: Vec<GgmlType>,
    /// No type smaller than this
    #[arg(long, value_name = "TYPE")]
    min_type: Option<GgmlType>,
    /// No type larger than this
    #[arg(long, value_name = "TYPE")]
    max_type: Option<GgmlType>,
    /// Give tensors whose name matches this type
    #[arg(long, value_name = "REGEX=TYPE")]
    pin: Vec<Pin>,
}

fn parse_weight(text: &str) -> Result<(String, f64), String> {
    match text.rsplit_once('=').map(|(l, w)| (l, w.parse::<f64>())) {
        Some((label, Ok(w))) if w.is_finite() && w >= 0.0 => Ok((label.to_owned(), w)),
        _ => Err(format!("'{text}' is not LABEL=SHARE, such as code=0.7")),
    }
}

impl AgainstArgs {
    /// The presets, each once.
    fn presets(&self) -> Vec<Preset> {
        each_once(self.budgets.iter().copied())
    }
}

/// The values without those that were there before.
fn each_once<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut once = Vec::new();
    for value in values {
        if !once.contains(&value) {
            once.push(value);
        }
    }
    once
}

/// The files of texts.
fn files_of(texts: &[TextPath]) -> Result<Vec<PathBuf>> {
    let files: Vec<Vec<PathBuf>> = texts.iter().map(TextPath::files).collect::<Result<_>>()?;
    Ok(files.concat())
}

impl StrategyArgs {
    /// Refuses names that exclude each other: better known before the work than after.
    fn check(&self) -> Result<()> {
        self.granularity()?;
        self.scenario()?;
        Ok(())
    }

    /// The same with a type for each expert.
    fn per_expert(mut self) -> Self {
        self.strategy.retain(|s| *s != StrategyName::UniformExperts);
        self.strategy.push(StrategyName::PerExpert);
        self
    }

    /// Whether it says how experts share types.
    fn has_granularity(&self) -> bool {
        use StrategyName::{PerExpert, UniformExperts};
        let says = |s: &StrategyName| matches!(s, PerExpert | UniformExperts);
        self.strategy.iter().any(says)
    }

    fn granularity(&self) -> Result<Granularity> {
        let has = |name| self.strategy.contains(&name);
        match (
            has(StrategyName::UniformExperts),
            has(StrategyName::PerExpert),
        ) {
            (true, true) => bail!(WrongArguments(
                "uniform-experts and per-expert exclude each other".to_owned()
            )),
            (_, true) => Ok(Granularity::Expert),
            _ => Ok(Granularity::Tensor),
        }
    }

    fn scenario(&self) -> Result<Scenario> {
        let has = |name| self.strategy.contains(&name);
        let named = [
            has(StrategyName::Balanced),
            has(StrategyName::Workload),
            has(StrategyName::Robust),
        ];
        demand(
            named.iter().filter(|n| **n).count() <= 1,
            "balanced, workload and robust exclude each other",
        )?;
        demand(
            self.weight.is_empty() || !(named[0] || named[2]),
            "--weight goes with the workload strategy",
        )?;
        let twice = |i: usize| self.weight[..i].iter().any(|w| w.0 == self.weight[i].0);
        demand(
            !(1..self.weight.len()).any(twice),
            "--weight names a domain twice",
        )?;
        demand(
            !named[1] || self.weight.iter().any(|w| w.1 > 0.0),
            "the workload strategy needs --weight LABEL=SHARE for at least one domain",
        )?;
        Ok(if named[2] {
            Scenario::Robust
        } else if named[1] || !self.weight.is_empty() {
            Scenario::Workload(self.weight.clone())
        } else {
            Scenario::Balanced
        })
    }

    fn candidates(&self) -> Candidates {
        let types = if self.types.is_empty() {
            default_types()
        } else {
            self.types.clone()
        };
        Candidates::new(types, self.min_type, self.max_type, self.pin.clone())
    }
}

/// Where statistics come from.
#[derive(Args, Clone)]
struct DataArgs {
    /// Use an analysis made before (.moqa)
    #[arg(long, value_name = "FILE")]
    analysis: Option<PathBuf>,
    /// Use a llama.cpp imatrix file (GGUF or .dat); several are added up. With --text both are used
    #[arg(long, value_name = "FILE")]
    imatrix: Vec<PathBuf>,
    /// Calibration text: files, or folders of text and source files, with LABEL= before the path where texts
    /// of several domains are told apart [default: the built-in text]
    #[arg(long, value_name = "[LABEL=]PATH", num_args = 1..)]
    text: Vec<TextPath>,
    /// Tokens of a calibration chunk
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    ctx: u32,
    /// Use at most this many chunks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Effort for measuring what each tensor does to the output, in tokens evaluated per calibration
    /// token; 0 measures nothing
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0, value_parser = parse_effort)]
    sensitivity: f64,
    /// Leave a stage of the analysis out, to see what it is worth: activation (1), mapping (2), correlation (3)
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    without: Vec<Stage>,
    /// Do not fit the scales of experts and the routers to the quantized model: weights are then exactly those that
    /// llama-quantize gives with the same types and importance data
    #[arg(long)]
    no_refit: bool,
}

impl DataArgs {
    fn stages(&self) -> Stages {
        Stages::without(&self.without)
    }

    /// The files that are read.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let files = self.analysis.iter().chain(&self.imatrix).cloned();
        Ok(files.chain(files_of(&self.text)?).collect())
    }
}

fn parse_effort(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if (0.0..=1e6).contains(&v) => Ok(v),
        _ => Err(format!(
            "'{text}' is not an effort; write 0 for none or a factor such as 4"
        )),
    }
}

/// What a command says that knows no budget.
const NO_BUDGET: &str = "say how large the result may be: --bpw BITS, --size SIZE or --like PRESET";

impl BudgetArgs {
    fn is_given(&self) -> bool {
        self.bpw.is_some() || self.size.is_some() || self.like.is_some()
    }

    /// The budget; for `--like` the preset's size is asked of llama.cpp.
    fn resolve(&self, source: &crate::gguf::Gguf, with_importance: bool) -> Result<Budget> {
        if let Some(bpw) = self.bpw {
            Ok(Budget::BitsPerWeight(bpw))
        } else if let Some(size) = self.size {
            Ok(Budget::Bytes(size))
        } else if let Some(preset) = self.like {
            Ok(Budget::Bytes(steps::preset_bytes(
                source,
                preset,
                with_importance,
            )?))
        } else {
            bail!(WrongArguments(NO_BUDGET.to_owned()))
        }
    }
}

/// Runs the program on the process's arguments. Exit code 0, 1 for a failure, 2 for arguments that cannot be.
/// An interrupt ends it with 128 plus the signal's number (see [`crate::exit`]).
pub fn main() -> ExitCode {
    let installed = crate::exit::install();
    crate::runtime::end_on_abort();
    let cli = Cli::parse();
    let result = installed.and_then(|()| {
        // Parallel loops outside our own pools follow --threads too.
        rayon::ThreadPoolBuilder::new()
            .num_threads(cli.global.n_threads())
            .build_global()?;
        match cli.command {
            Command::Quantize(args) => quantize::run(args, &cli.global),
            Command::Convert(args) => convert::run(args, &cli.global),
            Command::Analyze(args) => analyze::run(args, &cli.global),
            Command::Plan(args) => plan::run(args, &cli.global),
            Command::Inspect(args) => inspect::run(args, &cli.global),
            Command::Ablate(args) => ablate::run(args, &cli.global),
            Command::Compare(args) => compare::run(args, &cli.global),
            Command::Report(args) => report::run(args, &cli.global),
            Command::Simulate(args) => simulate::run(args, &cli.global),
            Command::Unpack(args) => unpack::run(args, &cli.global),
            Command::Run(args) => run::run(args),
            Command::Plugin(args) => plugin::run(args, &cli.global),
            Command::Eval(args) => eval::run(args, &cli.global),
            Command::Tasks(args) => tasks::run(args, &cli.global),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("moqa: {e:#}");
            if e.is::<WrongArguments>() {
                return ExitCode::from(2);
            }
            ExitCode::FAILURE
        }
    }
}
