//! Scoring a model on text, alone or against a reference.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::logits_file::{CodedRow, LogitsReader, LogitsWriter};
use super::report::{Divergence, Estimate, EvalReport, percentile};
use crate::metrics::{argmax, log_sum_exp};
use crate::progress::Progress;
use crate::runtime::{Context, ContextOptions, Model};

/// How an evaluation runs.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// Worker threads.
    pub n_threads: usize,
}

/// What a model is compared with.
pub enum Reference<'a> {
    /// Nothing: perplexity only.
    None,
    /// Another model with the same vocabulary.
    Model(&'a Model),
    /// Its log-probabilities, saved before; the chunks must be the file's.
    File(&'a mut LogitsReader),
}

/// Scores `model` on `chunks` (all of one length) as llama-perplexity does: the second half of each chunk
/// counts. Log-probabilities of the reference pass through the 16-bit form of llama.cpp's files, so that a
/// saved file and a live model give the same figures. With `save`, the model's own log-probabilities are
/// written.
///
/// # Errors
/// The vocabularies differ, or a model cannot be evaluated.
pub fn evaluate(
    model: &Model,
    chunks: &[Vec<i32>],
    mut reference: Reference<'_>,
    mut save: Option<&mut LogitsWriter>,
    options: &EvalOptions,
    progress: &Progress,
) -> Result<EvalReport> {
    let n_ctx = chunks.first().map_or(0, Vec::len);
    ensure!(
        n_ctx >= 4,
        "chunks of {n_ctx} tokens are too short to score; give more text"
    );
    let n_vocab = model.vocab().n_tokens();
    let theirs = match &reference {
        Reference::None => n_vocab,
        Reference::Model(m) => m.vocab().n_tokens(),
        Reference::File(f) => f.n_vocab(),
    };
    ensure!(
        theirs == n_vocab,
        "the reference has {theirs} tokens in its vocabulary and the model {n_vocab}"
    );

    let context_options = ContextOptions::for_chunks(n_ctx, n_vocab, options.n_threads);
    let n_seq = context_options.n_seq;
    let mut context = Context::new(model, context_options.clone())?;
    let mut reference_context = match &reference {
        Reference::Model(m) => Some(Context::new(m, context_options)?),
        _ => None,
    };
    let first = n_ctx / 2;
    let rows = n_ctx - 1 - first;
    let mut scores = Vec::with_capacity(chunks.len() * rows);
    let bar = progress.bar("evaluating", chunks.len() as u64, "chunks");
    for group in chunks.chunks(n_seq) {
        let sequences: Vec<&[i32]> = group.iter().map(Vec::as_slice).collect();
        let coded: Option<Vec<CodedRow>> = match (&mut reference, &mut reference_context) {
            (Reference::Model(_), Some(context)) => Some(code(
                &context.evaluate(&sequences, first, None)?,
                n_vocab,
                rows,
            )),
            (Reference::File(file), _) => Some(
                (0..group.len() * rows)
                    .map(|_| file.next_row())
                    .collect::<Result<_>>()?,
            ),
            _ => None,
        };
        let logits = context.evaluate(&sequences, first, None)?;
        if let Some(writer) = &mut save {
            for row in code(&logits, n_vocab, rows) {
                writer.push(&row)?;
            }
        }
        let work: Vec<(&[f32], i32)> = logits
            .iter()
            .zip(group)
            .flat_map(|(l, chunk)| {
                l.chunks_exact(n_vocab)
                    .take(rows)
                    .zip(chunk[first + 1..].iter().copied())
            })
            .collect();
        let group_scores: Vec<Score> = work
            .par_iter()
            .enumerate()
            .map(|(i, (row, target))| {
                Score::new(row, *target as usize, coded.as_ref().map(|c| &c[i]))
            })
            .collect();
        scores.extend(group_scores);
        bar.inc(group.len() as u64);
    }
    bar.finish();
    Ok(summarise(&scores, n_ctx, chunks.len()))
}

/// The rows that are scored; the last position of a chunk predicts nothing.
fn code(logits: &[&[f32]], n_vocab: usize, rows: usize) -> Vec<CodedRow> {
    let all: Vec<&[f32]> = logits
        .iter()
        .flat_map(|l| l.chunks_exact(n_vocab).take(rows))
        .collect();
    all.par_iter().map(|row| CodedRow::encode(row)).collect()
}

/// One position.
struct Score {
    nll: f64,
    reference: Option<ReferenceScore>,
}

struct ReferenceScore {
    nll: f64,
    kld: f64,
    same_top: bool,
}

/// Log-probabilities below this are left out of the divergence, as llama-perplexity does.
const LOG_PROB_FLOOR: f32 = -16.0;

impl Score {
    fn new(logits: &[f32], target: usize, reference: Option<&CodedRow>) -> Self {
        let norm = log_sum_exp(logits);
        let reference = reference.map(|r| {
            let mut kld = 0.0;
            for (i, l) in logits.iter().enumerate() {
                let lp = r.log_prob(i);
                if lp > LOG_PROB_FLOOR {
                    kld += f64::from(lp.exp()) * (f64::from(lp) - (f64::from(*l) - norm));
                }
            }
            ReferenceScore {
                nll: -f64::from(r.log_prob(target)),
                kld,
                same_top: argmax(logits) == r.top(),
            }
        });
        Self {
            nll: norm - f64::from(logits[target]),
            reference,
        }
    }
}

fn summarise(scores: &[Score], n_ctx: usize, n_chunks: usize) -> EvalReport {
    let exp = |e: Estimate| Estimate {
        value: e.value.exp(),
        error: e.value.exp() * e.error,
    };
    let nll: Vec<f64> = scores.iter().map(|s| s.nll).collect();
    let references: Vec<&ReferenceScore> =
        scores.iter().filter_map(|s| s.reference.as_ref()).collect();
    let divergence = (!references.is_empty()).then(|| {
        let of = |f: &dyn Fn(&ReferenceScore) -> f64| {
            references.iter().map(|r| f(r)).collect::<Vec<f64>>()
        };
        let reference_nll = of(&|r| r.nll);
        let mut kld = of(&|r| r.kld);
        let mean_kld = Estimate::of(&kld);
        let kld_by_chunk = kld
            .chunks(kld.len().div_ceil(n_chunks.max(1)).max(1))
            .map(|c| c.iter().sum::<f64>() / c.len() as f64)
            .collect();
        kld.sort_by(f64::total_cmp);
        let difference: Vec<f64> = nll.iter().zip(&reference_nll).map(|(a, b)| a - b).collect();
        let delta: f64 = nll
            .iter()
            .zip(&reference_nll)
            .map(|(a, b)| ((-a).exp() - (-b).exp()).powi(2))
            .sum::<f64>();
        Divergence {
            reference_perplexity: exp(Estimate::of(&reference_nll)),
            perplexity_ratio: exp(Estimate::of(&difference)),
            mean_kld,
            median_kld: percentile(&kld, 0.5),
            kld_99: percentile(&kld, 0.99),
            max_kld: percentile(&kld, 1.0),
            same_top: Estimate::of(&of(&|r| f64::from(u8::from(r.same_top)))),
            kld_by_chunk,
            rms_delta_p: (delta / nll.len() as f64).sqrt(),
        }
    });
    EvalReport {
        tokens: scores.len(),
        n_ctx,
        n_chunks,
        perplexity: exp(Estimate::of(&nll)),
        divergence,
    }
}
