//! How fast a model evaluates text.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::evaluate::{EvalOptions, Reference, evaluate};
use crate::progress::Progress;
use crate::runtime::Model;

/// Tokens of a pass at most, but one chunk at least.
const TOKENS: usize = 2048;
/// Passes at most, and the time after which no other is begun.
const PASSES: usize = 5;
const ENOUGH: Duration = Duration::from_secs(2);

/// What [`tokens_per_second`] measures, for the reader.
pub(super) fn describe(chunks: &[Vec<i32>]) -> String {
    format!(
        "tokens a second: the evaluation text's first {} tokens processed as prompts, logits and perplexity included, the \
         fastest of up to five passes; every file alike",
        first(chunks).iter().map(Vec::len).sum::<usize>()
    )
}

/// The chunks that are timed.
fn first(chunks: &[Vec<i32>]) -> &[Vec<i32>] {
    let length = chunks.first().map_or(1, Vec::len).max(1);
    &chunks[..chunks.len().min((TOKENS / length).max(1))]
}

/// Tokens of text that the model evaluates in a second, as prompts of the chunks' length: the fastest of some
/// passes over the first chunks, so that a busy machine and a cold file disturb little.
///
/// # Errors
/// The model cannot be evaluated.
pub(super) fn tokens_per_second(
    model: &Model,
    chunks: &[Vec<i32>],
    options: &EvalOptions,
) -> Result<f64> {
    let some = first(chunks);
    let tokens: usize = some.iter().map(Vec::len).sum();
    let started = Instant::now();
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let pass = Instant::now();
        evaluate(
            model,
            some,
            Reference::None,
            None,
            options,
            &Progress::quiet(),
        )?;
        best = best.min(pass.elapsed().as_secs_f64());
        if started.elapsed() > ENOUGH {
            break;
        }
    }
    Ok(tokens as f64 / best.max(1e-9))
}
