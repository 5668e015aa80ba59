//! The command line.

mod analyze;
mod eval;
mod inspect;
mod plan;
mod quantize;
mod steps;
mod tasks;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::output::remove_temporaries_on_interrupt;
use crate::plan::Budget;
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
            println!("{}", serde_json::to_string_pretty(value)?);
        } else {
            print!("{}", text());
        }
        Ok(())
    }
}

#[derive(Subcommand)]
enum Command {
    Quantize(quantize::QuantizeArgs),
    Analyze(analyze::AnalyzeArgs),
    Plan(plan::PlanArgs),
    Inspect(inspect::InspectArgs),
    Eval(eval::EvalArgs),
    Tasks(tasks::TasksArgs),
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

/// Where statistics come from.
#[derive(Args, Clone)]
struct DataArgs {
    /// Use an analysis made before (.moqa)
    #[arg(long, value_name = "FILE")]
    analysis: Option<PathBuf>,
    /// Use a llama.cpp imatrix file (GGUF or .dat); several are added up. With --text both are used
    #[arg(long, value_name = "FILE")]
    imatrix: Vec<PathBuf>,
    /// Calibration text: files, or folders of .txt and .md files [default: the built-in text]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    text: Vec<PathBuf>,
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
}

fn parse_effort(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if (0.0..=1e6).contains(&v) => Ok(v),
        _ => Err(format!(
            "'{text}' is not an effort; write 0 for none or a factor such as 4"
        )),
    }
}

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
            anyhow::bail!(
                "say how large the result may be: --bpw BITS, --size SIZE or --like PRESET"
            )
        }
    }
}

/// Runs the program on the process's arguments. Exit code 0, 1 for a failure, 2 for arguments that cannot be.
pub fn main() -> ExitCode {
    // A reader that closes our output early ends us quietly, as other tools.
    // SAFETY: sets the default action before any thread exists.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let cli = Cli::parse();
    let result = remove_temporaries_on_interrupt().and_then(|()| {
        // Parallel loops outside our own pools follow --threads too.
        rayon::ThreadPoolBuilder::new()
            .num_threads(cli.global.n_threads())
            .build_global()?;
        match cli.command {
            Command::Quantize(args) => quantize::run(args, &cli.global),
            Command::Analyze(args) => analyze::run(args, &cli.global),
            Command::Plan(args) => plan::run(args, &cli.global),
            Command::Inspect(args) => inspect::run(args, &cli.global),
            Command::Eval(args) => eval::run(args, &cli.global),
            Command::Tasks(args) => tasks::run(args, &cli.global),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("moqa: {e:#}");
            ExitCode::FAILURE
        }
    }
}
