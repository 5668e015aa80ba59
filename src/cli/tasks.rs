use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use super::{Global, steps};
use crate::analysis::{Corpus, TextPath};
use crate::gguf::Gguf;
use crate::output::{check_writable, refuse_overwriting, write_file};
use crate::runtime::ModelOptions;
use crate::tasks::{
    Format, MakeOptions, Task, TaskOptions, TaskReport, TaskResult, compare, make, read, score,
    write,
};

/// Make zero-shot multiple-choice tasks from any text, and score models on such tasks
#[derive(Args)]
#[command(
    after_help = "Examples:\n  moqa tasks make --text held-out/ -o tasks.jsonl\n  moqa tasks run small.gguf --tasks tasks.jsonl --against model.gguf\n  moqa tasks convert tasks.jsonl -o tasks.bin"
)]
pub(super) struct TasksArgs {
    #[command(subcommand)]
    command: TasksCommand,
}

#[derive(Subcommand)]
enum TasksCommand {
    Make(MakeArgs),
    Run(RunArgs),
    Convert(ConvertArgs),
}

/// Cut tasks out of a text: which of several pieces of the same document continues this one?
#[derive(Args)]
struct MakeArgs {
    /// Text that the models were neither trained nor calibrated on: files, or folders of text and source files;
    /// each file is a document
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    text: Vec<TextPath>,
    #[command(flatten)]
    output: OutputArgs,
    /// Make at most this many tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Choices of a task
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=100))]
    choices: u8,
    /// Words of a context
    #[arg(long, value_name = "WORDS", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    context_words: u32,
    /// Words of a choice
    #[arg(long, value_name = "WORDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    continuation_words: u32,
    /// Another number chooses other places and other wrong answers
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

/// Score a model on tasks, alone or against another model
#[derive(Args)]
struct RunArgs {
    /// The model to score (GGUF; of a split model the first file)
    model: PathBuf,
    /// Tasks: JSON lines (context: query, context, ctx or question; choices or endings; gold, label or
    /// answer), or a file for llama-perplexity's --multiple-choice or --hellaswag
    #[arg(long, value_name = "FILE")]
    tasks: PathBuf,
    /// Compare with this model on the same tasks
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Score only the first tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Tokens of context and choice at most; longer contexts lose their beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    ctx: u32,
    /// Also write each task's log-likelihoods and the model's choice (JSON lines)
    #[arg(long, value_name = "FILE")]
    details: Option<PathBuf>,
}

/// Rewrite a file of tasks in another form
#[derive(Args)]
struct ConvertArgs {
    /// Tasks, in any form that `tasks run` reads
    input: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
struct OutputArgs {
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Its form [default: llama for names that end in .bin, else jsonl]
    #[arg(long, value_enum)]
    format: Option<OutputFormat>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OutputFormat {
    /// JSON lines, for lm-evaluation-harness style tools
    Jsonl,
    /// Binary, for llama-perplexity --multiple-choice --binary-file FILE
    Llama,
}

impl OutputArgs {
    fn write(&self, tasks: &[Task]) -> Result<()> {
        let is_bin = self
            .output
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("bin"));
        let format = match self.format {
            Some(OutputFormat::Jsonl) => Format::Jsonl,
            Some(OutputFormat::Llama) => Format::LlamaBinary,
            None if is_bin => Format::LlamaBinary,
            None => Format::Jsonl,
        };
        write(&self.output, tasks, format)
    }
}

pub(super) fn run(args: TasksArgs, global: &Global) -> Result<()> {
    match args.command {
        TasksCommand::Make(args) => run_make(&args, global),
        TasksCommand::Run(args) => run_score(&args, global),
        TasksCommand::Convert(args) => run_convert(&args, global),
    }
}

fn run_make(args: &MakeArgs, global: &Global) -> Result<()> {
    let corpus = Corpus::read(&args.text)?;
    let sources = corpus.names.iter().map(Path::new);
    refuse_overwriting(&args.output.output, sources)?;
    let options = MakeOptions {
        count: args.count.map(|n| n as usize),
        choices: args.choices.into(),
        context_words: args.context_words as usize,
        continuation_words: args.continuation_words as usize,
        seed: args.seed,
    };
    let made = make(&corpus.documents, &options)?;
    if options.count.is_some_and(|n| made.n_tasks < n) {
        global.progress().note(format!(
            "note: the text gives only {} tasks; give more text or ask for fewer words",
            made.n_tasks
        ));
    }
    args.output.write(&made.tasks)?;
    global.print(&made, || made.to_string())
}

fn run_score(args: &RunArgs, global: &Global) -> Result<()> {
    let mut tasks = read(&args.tasks)?;
    if let Some(n) = args.count {
        tasks.truncate(n as usize);
    }
    if let Some(path) = &args.details {
        let sources = [&args.model, &args.tasks].into_iter().chain(&args.against);
        refuse_overwriting(path, sources.map(PathBuf::as_path))?;
        check_writable(path)?;
    }
    // The reference is checked before the model is scored, and loaded after it is dropped.
    if let Some(path) = &args.against {
        Gguf::open(path)?;
    }
    let report = score_file(&args.model, &tasks, args, global)?;
    let each = args.details.as_ref().map(|_| details(&report.results));
    match &args.against {
        None => global.print(&report, || report.to_string())?,
        Some(path) => {
            let reference = score_file(path, &tasks, args, global)?;
            let comparison = compare(report, reference)?;
            global.print(&comparison, || comparison.to_string())?;
        }
    }
    // After the result is printed, which a full disk must not cost.
    match args.details.as_ref().zip(each) {
        Some((path, each)) => write_file(path, &each?),
        None => Ok(()),
    }
}

fn score_file(path: &Path, tasks: &[Task], args: &RunArgs, global: &Global) -> Result<TaskReport> {
    let load = ModelOptions {
        repack: true,
        ..ModelOptions::default()
    };
    let model = steps::load(&steps::open_to_run(path, global)?, &load)?;
    let options = TaskOptions {
        n_threads: global.n_threads(),
        n_ctx: match model.n_ctx_train() {
            0 => args.ctx as usize,
            trained => trained.min(args.ctx as usize),
        },
    };
    score(&model, tasks, &options, &global.progress())
}

fn details(results: &[TaskResult]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for result in results {
        serde_json::to_writer(&mut out, result)?;
        out.push(b'\n');
    }
    Ok(out)
}

fn run_convert(args: &ConvertArgs, global: &Global) -> Result<()> {
    refuse_overwriting(&args.output.output, [args.input.as_path()])?;
    let tasks = read(&args.input)?;
    args.output.write(&tasks)?;
    let result = serde_json::json!({ "n_tasks": tasks.len() });
    global.print(&result, || format!("{} tasks\n", tasks.len()))
}
