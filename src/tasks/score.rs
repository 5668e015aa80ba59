//! Scoring a model on tasks.

use anyhow::{Context as _, Result, ensure};
use rayon::prelude::*;

use super::Task;
use super::report::{TaskReport, TaskResult};
use crate::metrics::log_sum_exp;
use crate::progress::Progress;
use crate::runtime::{Branches, Context, ContextOptions, Model, Vocab};

/// How tasks are scored.
#[derive(Clone, Debug)]
pub struct TaskOptions {
    /// Worker threads.
    pub n_threads: usize,
    /// Tokens of context and choice at most; longer contexts lose their beginning.
    pub n_ctx: usize,
}

/// Choices evaluated together. Models with a recurrent state keep one for each.
const N_SEQ: usize = 16;
/// Tokens evaluated together, unless a single task needs more.
const N_TOKENS: usize = 2048;
/// Bytes of logits computed together, unless a single choice needs more.
const LOGITS_BYTES: usize = 256 << 20;

/// Scores `model` on `tasks` as llama-perplexity does. Context, a space and choice are tokenized as one text,
/// and a choice's tokens are those after the longest beginning that all of the task's choices share. `acc`
/// counts the tasks whose right choice has the largest log-likelihood, `acc_norm` those whose right choice has
/// the largest log-likelihood per token; the latter is what llama-perplexity reports for `--hellaswag` and
/// `--multiple-choice`. Of equals the first counts.
///
/// # Errors
/// There is no task, a choice does not fit `n_ctx`, or the model cannot be evaluated or computes no numbers.
pub fn score(
    model: &Model,
    tasks: &[Task],
    options: &TaskOptions,
    progress: &Progress,
) -> Result<TaskReport> {
    ensure!(!tasks.is_empty(), "there is no task to score");
    let vocab = model.vocab();
    let prepared: Vec<Prepared> = tasks
        .iter()
        .enumerate()
        .map(|(i, task)| {
            Prepared::new(vocab, task, options.n_ctx)
                .with_context(|| format!("task {i} cannot be scored"))
        })
        .collect::<Result<_>>()?;

    let n_vocab = vocab.n_tokens();
    let longest = |f: &dyn Fn(&Branches<'_>) -> usize| {
        prepared
            .iter()
            .flat_map(|p| (0..p.continuations.len()).map(|c| f(&p.branches(c..c + 1))))
            .max()
            .unwrap_or(1)
    };
    let limits = Limits {
        n_tokens: N_TOKENS.max(longest(&|b| b.n_tokens())),
        n_rows: (LOGITS_BYTES / (4 * n_vocab.max(1))).max(longest(&|b| b.n_rows())),
        n_seq: N_SEQ,
    };
    let context_options = ContextOptions {
        n_ctx: limits.n_tokens,
        n_seq: limits.n_seq,
        n_threads: options.n_threads,
        observable: false,
    };
    let mut context = Context::for_branches(model, context_options)?;
    let mut sums: Vec<Vec<f64>> = vec![Vec::new(); tasks.len()];
    let bar = progress.bar("scoring", tasks.len() as u64, "tasks");
    for batch in batches(&prepared, &limits) {
        let trees: Vec<Branches<'_>> = batch
            .iter()
            .map(|part| prepared[part.task].branches(part.choices.clone()))
            .collect();
        let logits = context.evaluate_branches(&trees)?;
        let work: Vec<(usize, &[&[f32]], &[i32])> = batch
            .iter()
            .zip(&trees)
            .zip(&logits)
            .flat_map(|((part, tree), rows)| {
                rows.iter()
                    .zip(&tree.continuations)
                    .map(|(r, c)| (part.task, r.as_slice(), *c))
            })
            .collect();
        let likelihoods: Vec<f64> = work
            .par_iter()
            .map(|(_, rows, tokens)| log_likelihood(rows, tokens))
            .collect();
        for ((task, _, _), value) in work.iter().zip(likelihoods) {
            ensure!(
                value.is_finite(),
                "{}: the model computes no numbers for task {task} (log-likelihood {value}); the file is \
                 damaged or its weights overflow",
                model.path().display()
            );
            sums[*task].push(value);
        }
        let done = batch
            .iter()
            .filter(|p| p.choices.end == tasks[p.task].choices.len())
            .count();
        bar.inc(done as u64);
    }
    bar.finish();
    let results = tasks
        .iter()
        .zip(&prepared)
        .zip(sums)
        .map(|((task, prepared), log_likelihood)| {
            let n_tokens = prepared.continuations.iter().map(Vec::len).collect();
            TaskResult::new(task.gold, log_likelihood, n_tokens, prepared.truncated)
        })
        .collect();
    Ok(TaskReport::new(results))
}

/// Log-likelihood of `tokens`, nats, by the rows of logits that predict them.
fn log_likelihood(rows: &[&[f32]], tokens: &[i32]) -> f64 {
    rows.iter()
        .zip(tokens)
        .map(|(row, token)| f64::from(row[*token as usize]) - log_sum_exp(row))
        .sum()
}

/// A task as tokens.
struct Prepared {
    prefix: Vec<i32>,
    continuations: Vec<Vec<i32>>,
    truncated: bool,
}

impl Prepared {
    fn new(vocab: Vocab<'_>, task: &Task, n_ctx: usize) -> Result<Self> {
        if let Some(fault) = task.fault() {
            anyhow::bail!(fault);
        }
        let texts = task
            .choices
            .iter()
            .map(|c| vocab.tokenize(&format!("{} {c}", task.context), true, false))
            .collect::<Result<Vec<_>>>()?;
        let bos = vocab.add_bos().then(|| vocab.bos());
        split(texts, bos, n_ctx)
    }

    fn branches(&self, choices: std::ops::Range<usize>) -> Branches<'_> {
        Branches {
            prefix: &self.prefix,
            continuations: self.continuations[choices]
                .iter()
                .map(Vec::as_slice)
                .collect(),
        }
    }
}

/// Splits token sequences after what they share, and shortens that from the left, after a leading `bos`, until
/// each sequence has at most `n_ctx` tokens.
fn split(mut texts: Vec<Vec<i32>>, bos: Option<i32>, n_ctx: usize) -> Result<Prepared> {
    let shortest = texts.iter().map(Vec::len).min().unwrap_or(0);
    let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
    let shared = (0..shortest)
        .take_while(|&k| texts.iter().all(|t| t[k] == texts[0][k]))
        .count()
        // A choice that is the beginning of another, or equals it, keeps its last token.
        .min(shortest.saturating_sub(1));
    ensure!(
        shared > 0,
        "no token of the context stands before all of its choices"
    );
    let continuations = texts.iter_mut().map(|t| t.split_off(shared)).collect();
    let mut prefix = texts.swap_remove(0);
    let excess = longest.saturating_sub(n_ctx);
    if excess > 0 {
        let kept = usize::from(bos == Some(prefix[0]));
        ensure!(
            kept + excess < shared,
            "its longest choice takes {} tokens, which leaves no room for a context in {n_ctx}; allow more \
             tokens",
            longest - shared
        );
        prefix.drain(kept..kept + excess);
    }
    Ok(Prepared {
        prefix,
        continuations,
        truncated: excess > 0,
    })
}

struct Limits {
    n_tokens: usize,
    n_rows: usize,
    n_seq: usize,
}

/// Choices of one task that are evaluated together.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    task: usize,
    choices: std::ops::Range<usize>,
}

/// Groups of choices, in order, that keep the limits. A task is divided only when it does not fit alone.
fn batches(tasks: &[Prepared], limits: &Limits) -> Vec<Vec<Part>> {
    let mut out: Vec<Vec<Part>> = Vec::new();
    let (mut tokens, mut rows, mut seqs) = (0, 0, 0);
    for (i, task) in tasks.iter().enumerate() {
        let n = task.continuations.len();
        let mut start = 0;
        while start < n {
            let size = |end: usize| {
                let b = task.branches(start..end);
                (b.n_tokens(), b.n_rows(), end - start)
            };
            let fits = |(t, r, s): (usize, usize, usize), used: (usize, usize, usize)| {
                used.0 + t <= limits.n_tokens
                    && used.1 + r <= limits.n_rows
                    && used.2 + s <= limits.n_seq
            };
            // As many of the task's choices as an empty context takes; one always fits.
            let end = (start + 1..=n)
                .take_while(|&end| fits(size(end), (0, 0, 0)))
                .last()
                .unwrap_or(start + 1);
            let part = Part {
                task: i,
                choices: start..end,
            };
            let size = size(end);
            match out.last_mut() {
                Some(batch) if fits(size, (tokens, rows, seqs)) => batch.push(part),
                _ => {
                    out.push(vec![part]);
                    (tokens, rows, seqs) = (0, 0, 0);
                }
            }
            tokens += size.0;
            rows += size.1;
            seqs += size.2;
            start = end;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(prefix: usize, lengths: &[usize]) -> Prepared {
        Prepared {
            prefix: vec![0; prefix],
            continuations: lengths.iter().map(|n| vec![1; *n]).collect(),
            truncated: false,
        }
    }

    #[test]
    fn texts_are_split_after_what_they_share() {
        let p = split(
            vec![vec![9, 1, 2, 3], vec![9, 1, 4], vec![9, 1, 2, 5, 6]],
            Some(9),
            5,
        )
        .unwrap();
        assert_eq!(p.prefix, [9, 1]);
        assert_eq!(p.continuations, [vec![2, 3], vec![4], vec![2, 5, 6]]);
        assert!(!p.truncated);
        // One is the beginning of the other.
        let p = split(vec![vec![1, 2, 3], vec![1, 2, 3, 4]], None, 5).unwrap();
        assert_eq!(
            (p.prefix, p.continuations),
            (vec![1, 2], vec![vec![3], vec![3, 4]])
        );
        let p = split(vec![vec![1, 2], vec![1, 2]], None, 5).unwrap();
        assert_eq!(p.continuations, [[2], [2]]);
        assert!(split(vec![vec![1, 2], vec![2, 2]], None, 5).is_err());
        assert!(split(vec![vec![1], vec![1]], None, 5).is_err());
    }

    #[test]
    fn long_contexts_lose_their_beginning() {
        let texts = vec![vec![9, 1, 2, 3, 4, 5], vec![9, 1, 2, 3, 4, 6, 7]];
        let p = split(texts.clone(), Some(9), 5).unwrap();
        assert_eq!((p.prefix.as_slice(), p.truncated), (&[9, 3, 4][..], true));
        let p = split(texts.clone(), None, 5).unwrap();
        assert_eq!(p.prefix, [2, 3, 4]);
        assert_eq!(split(texts.clone(), None, 3).unwrap().prefix, [4]);
        assert_eq!(split(texts.clone(), Some(9), 4).unwrap().prefix, [9, 4]);
        assert!(split(texts.clone(), Some(9), 3).is_err());
        let e = split(texts, None, 2).err().unwrap().to_string();
        assert!(e.contains("takes 2 tokens"), "{e}");
    }

    #[test]
    fn batches_keep_their_limits_and_lose_nothing() {
        let tasks = [
            prepared(10, &[3, 4]),
            prepared(5, &[1, 1, 1]),
            prepared(20, &[9; 7]),
            prepared(2, &[2, 2]),
            prepared(30, &[1]),
        ];
        let limits = Limits {
            n_tokens: 40,
            n_rows: 20,
            n_seq: 4,
        };
        let batches = batches(&tasks, &limits);
        let mut next: Vec<usize> = vec![0; tasks.len()];
        for batch in &batches {
            let trees: Vec<_> = batch
                .iter()
                .map(|p| tasks[p.task].branches(p.choices.clone()))
                .collect();
            assert!(trees.iter().map(Branches::n_tokens).sum::<usize>() <= 40);
            assert!(trees.iter().map(Branches::n_rows).sum::<usize>() <= 20);
            assert!(batch.iter().map(|p| p.choices.len()).sum::<usize>() <= 4);
            for part in batch {
                assert_eq!(part.choices.start, next[part.task]);
                next[part.task] = part.choices.end;
            }
        }
        assert_eq!(next, [2, 3, 7, 2, 1]);
        // 20 + 2 x 8 tokens: the task of seven choices is divided into pairs.
        assert!(batches.iter().any(|b| b[0]
            == Part {
                task: 2,
                choices: 2..4
            }));
        // The first two do not fit in one batch of four choices.
        assert_eq!(
            batches[0],
            [Part {
                task: 0,
                choices: 0..2
            }]
        );
    }

    #[test]
    fn likelihoods_are_sums_of_log_softmax() {
        let row = [0.0f32, 1.0, 2.0];
        let norm = (1.0 + 1f64.exp() + 2f64.exp()).ln();
        let got = log_likelihood(&[&row, &row], &[2, 0]);
        assert!((got - (2.0 - 2.0 * norm)).abs() < 1e-6, "{got}");
        assert!(log_likelihood(&[&[f32::NAN, 1.0]], &[1]).is_nan());
    }
}
