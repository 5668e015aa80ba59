use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Global, files_of, steps};
use crate::analysis::{Corpus, TextPath, begin_chunks, chunk_tokens};
use crate::evaluate::{EvalOptions, LogitsReader, LogitsWriter, Reference, evaluate};
use crate::output::{check_writable, refuse_overwriting};
use crate::runtime::{Model, ModelOptions};

/// Measure perplexity, and KL divergence and top-token agreement against a reference
#[derive(Args)]
#[command(after_help = "Example:\n  moqa eval small.gguf --against model.gguf --text held-out/")]
pub(super) struct EvalArgs {
    /// The model to measure (GGUF; of a split model the first file)
    model: PathBuf,
    /// Reference: a model with the same vocabulary, or log-probabilities saved by --save-logits or by
    /// llama-perplexity --kl-divergence-base
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Text: files, or folders of text and source files [default: the built-in text]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    text: Vec<TextPath>,
    /// Tokens of a chunk
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    ctx: u32,
    /// Use at most this many chunks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Save the model's log-probabilities, as a reference for later
    #[arg(long, value_name = "FILE")]
    save_logits: Option<PathBuf>,
}

/// Loads a model for evaluation, its file checked by our own reader first.
fn load(path: &Path, global: &Global) -> Result<Model> {
    let options = ModelOptions {
        repack: true,
        ..ModelOptions::default()
    };
    steps::load(&steps::open_to_run(path, global)?, &options)
}

fn is_logits_file(path: &Path) -> Result<bool> {
    let meta = std::fs::metadata(path)
        .with_context(|| format!("{}: cannot read this reference", path.display()))?;
    if !meta.is_file() {
        bail!("{}: not a regular file", path.display());
    }
    let mut magic = [0u8; 8];
    let n = File::open(path)
        .and_then(|mut f| f.read(&mut magic))
        .with_context(|| format!("{}", path.display()))?;
    Ok(n == 8 && &magic == b"_logits_")
}

pub(super) fn run(args: EvalArgs, global: &Global) -> Result<()> {
    let progress = global.progress();
    if let Some(path) = &args.save_logits {
        let models = std::iter::once(&args.model).chain(&args.against);
        let texts = files_of(&args.text)?;
        refuse_overwriting(path, models.chain(&texts).map(PathBuf::as_path))?;
        check_writable(path)?;
    }
    let model = load(&args.model, global)?;
    let mut saved = None;
    let mut other = None;
    if let Some(path) = &args.against {
        if is_logits_file(path)? {
            saved = Some(LogitsReader::open(path)?);
        } else {
            other = Some(load(path, global)?);
        }
    }
    let chunks = match &saved {
        Some(file) => {
            if !args.text.is_empty() {
                bail!("saved log-probabilities bring their own text; leave --text out");
            }
            // llama-perplexity saves the text's own tokens and evaluates chunks that begin as the vocabulary asks.
            let mut chunks = file.chunks().to_vec();
            begin_chunks(model.vocab(), &mut chunks);
            chunks
        }
        None => {
            let corpus = if args.text.is_empty() {
                progress.note("note: measuring on the built-in calibration text; give --text for a fair figure");
                Corpus::built_in()
            } else {
                Corpus::read(&args.text)?
            };
            chunk_tokens(model.vocab(), &corpus.concatenated(), args.ctx as usize)?
        }
    };
    let n = args
        .chunks
        .map_or(chunks.len(), |n| chunks.len().min(n as usize));
    let chunks = &chunks[..n];
    let mut writer = match &args.save_logits {
        Some(path) => Some(LogitsWriter::create(
            path,
            model.vocab().n_tokens(),
            chunks,
        )?),
        None => None,
    };
    let reference = match (&mut saved, &other) {
        (Some(file), _) => Reference::File(file),
        (None, Some(model)) => Reference::Model(model),
        (None, None) => Reference::None,
    };
    let options = EvalOptions {
        n_threads: global.n_threads(),
    };
    let report = evaluate(
        &model,
        chunks,
        reference,
        writer.as_mut(),
        &options,
        &progress,
    )?;
    if let Some(writer) = writer {
        writer.finish()?;
    }
    global.print(&report, || report.to_string())
}
