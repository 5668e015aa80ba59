//! The figures of tasks: one model's, and two models' compared.

use std::fmt;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::stats::{mcnemar_exact, paired_interval, wilson_interval};

/// A share of tasks and its 95 % confidence interval (Wilson).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Proportion {
    /// Tasks that count.
    pub count: usize,
    /// All tasks.
    pub of: usize,
    /// `count / of`; 0 when there are none.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Proportion {
    /// `count` of `of` tasks.
    pub fn new(count: usize, of: usize) -> Self {
        let (low, high) = wilson_interval(count as u64, of as u64);
        Self {
            count,
            of,
            value: count as f64 / of.max(1) as f64,
            low,
            high,
        }
    }
}

impl fmt::Display for Proportion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} % [{:.2}, {:.2}]",
            self.value * 100.0,
            self.low * 100.0,
            self.high * 100.0
        )
    }
}

/// How a model answered one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskResult {
    /// Index of the right choice.
    pub gold: usize,
    /// The choice of the largest log-likelihood.
    pub chosen: usize,
    /// The choice of the largest log-likelihood per token.
    pub chosen_norm: usize,
    /// Log-likelihood of each choice given the context, nats.
    pub log_likelihood: Vec<f64>,
    /// Tokens of each choice.
    pub n_tokens: Vec<usize>,
    /// Whether the context lost its beginning.
    pub truncated: bool,
}

impl TaskResult {
    pub(super) fn new(
        gold: usize,
        log_likelihood: Vec<f64>,
        n_tokens: Vec<usize>,
        truncated: bool,
    ) -> Self {
        let per_token = log_likelihood
            .iter()
            .zip(&n_tokens)
            .map(|(l, n)| l / *n as f64);
        Self {
            gold,
            chosen: first_largest(log_likelihood.iter().copied()),
            chosen_norm: first_largest(per_token),
            log_likelihood,
            n_tokens,
            truncated,
        }
    }
}

fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

/// How a model did on tasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskReport {
    /// Number of tasks.
    pub n_tasks: usize,
    /// Share of tasks whose right choice is the likeliest.
    pub acc: Proportion,
    /// Share of tasks whose right choice is the likeliest per token; llama-perplexity's score.
    pub acc_norm: Proportion,
    /// Share of tasks that guessing gets right.
    pub chance: f64,
    /// Tasks whose context lost its beginning.
    pub n_truncated: usize,
    /// Each task.
    #[serde(skip)]
    pub results: Vec<TaskResult>,
}

impl TaskReport {
    pub(super) fn new(results: Vec<TaskResult>) -> Self {
        let n = results.len();
        let count = |f: &dyn Fn(&TaskResult) -> bool| results.iter().filter(|r| f(r)).count();
        let chance: f64 = results
            .iter()
            .map(|r| 1.0 / r.n_tokens.len().max(1) as f64)
            .sum();
        Self {
            n_tasks: n,
            acc: Proportion::new(count(&|r| r.chosen == r.gold), n),
            acc_norm: Proportion::new(count(&|r| r.chosen_norm == r.gold), n),
            chance: chance / n.max(1) as f64,
            n_truncated: count(&|r| r.truncated),
            results,
        }
    }
}

impl fmt::Display for TaskReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} tasks; guessing gets {:.2} % right; 95 % confidence intervals in brackets",
            self.n_tasks,
            self.chance * 100.0
        )?;
        writeln!(f, "acc              {}", self.acc)?;
        writeln!(f, "acc_norm         {}", self.acc_norm)?;
        if self.n_truncated > 0 {
            writeln!(
                f,
                "{} contexts were too long and lost their beginning",
                self.n_truncated
            )?;
        }
        Ok(())
    }
}

/// Two models on the same tasks, by one way of choosing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Tasks both get right.
    pub both_right: usize,
    /// Tasks only the model gets right.
    pub only_model: usize,
    /// Tasks only the reference gets right.
    pub only_reference: usize,
    /// Tasks both get wrong.
    pub both_wrong: usize,
    /// The model's accuracy minus the reference's.
    pub difference: f64,
    /// Lower bound of the difference's 95 % confidence interval (Tango).
    pub difference_low: f64,
    /// Upper bound.
    pub difference_high: f64,
    /// Two-sided p-value of McNemar's exact test: how often models of equal accuracy differ as much or more.
    pub p_value: f64,
    /// Share of tasks on which both take the same choice, right or wrong.
    pub same_choice: Proportion,
}

impl Paired {
    fn new(
        model: &[TaskResult],
        reference: &[TaskResult],
        chosen: impl Fn(&TaskResult) -> usize,
    ) -> Self {
        let n = model.len();
        let mut counts = [[0usize; 2]; 2];
        let mut same = 0;
        for (m, r) in model.iter().zip(reference) {
            let right = |t: &TaskResult| usize::from(chosen(t) == t.gold);
            counts[right(m)][right(r)] += 1;
            same += usize::from(chosen(m) == chosen(r));
        }
        let [[both_wrong, only_reference], [only_model, both_right]] = counts;
        let (a, b) = (only_model as u64, only_reference as u64);
        let (difference_low, difference_high) = paired_interval(a, b, n as u64);
        Self {
            both_right,
            only_model,
            only_reference,
            both_wrong,
            difference: (a as f64 - b as f64) / n.max(1) as f64,
            difference_low,
            difference_high,
            p_value: mcnemar_exact(a, b),
            same_choice: Proportion::new(same, n),
        }
    }
}

/// Two models compared on the same tasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskComparison {
    /// The model.
    pub model: TaskReport,
    /// What it is compared with.
    pub reference: TaskReport,
    /// The comparison by log-likelihood.
    pub acc: Paired,
    /// The comparison by log-likelihood per token.
    pub acc_norm: Paired,
}

/// Compares two models' results on the same tasks.
///
/// # Errors
/// The reports are not of the same tasks.
pub fn compare(model: TaskReport, reference: TaskReport) -> Result<TaskComparison> {
    let shape = |r: &TaskReport| -> Vec<(usize, usize)> {
        r.results
            .iter()
            .map(|t| (t.gold, t.log_likelihood.len()))
            .collect()
    };
    ensure!(
        shape(&model) == shape(&reference),
        "the reports are of different tasks and cannot be compared"
    );
    Ok(TaskComparison {
        acc: Paired::new(&model.results, &reference.results, |r| r.chosen),
        acc_norm: Paired::new(&model.results, &reference.results, |r| r.chosen_norm),
        model,
        reference,
    })
}

impl fmt::Display for TaskComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.model)?;
        for (name, reference, paired) in [
            ("acc", &self.reference.acc, &self.acc),
            ("acc_norm", &self.reference.acc_norm, &self.acc_norm),
        ] {
            writeln!(f, "against the reference, {name}")?;
            writeln!(f, "  reference      {reference}")?;
            writeln!(
                f,
                "  difference     {:+.2} points [{:+.2}, {:+.2}], p = {:.3} (McNemar, exact)",
                paired.difference * 100.0,
                paired.difference_low * 100.0,
                paired.difference_high * 100.0,
                paired.p_value
            )?;
            writeln!(
                f,
                "  right          both {}, only the model {}, only the reference {}, neither {}",
                paired.both_right, paired.only_model, paired.only_reference, paired.both_wrong
            )?;
            writeln!(f, "  same choice    {}", paired.same_choice)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two choices of 1 and 4 tokens.
    fn result(gold: usize, l: [f64; 2]) -> TaskResult {
        TaskResult::new(gold, l.to_vec(), vec![1, 4], false)
    }

    #[test]
    fn both_ways_of_choosing_are_counted() {
        let r = result(1, [-3.0, -8.0]);
        assert_eq!((r.chosen, r.chosen_norm), (0, 1));
        assert_eq!(
            result(0, [-2.0, -8.0]).chosen_norm,
            0,
            "the first of equals"
        );
        let report = TaskReport::new(vec![r, result(0, [-1.0, -8.0])]);
        assert_eq!((report.acc.count, report.acc_norm.count), (1, 2));
        assert_eq!((report.acc.value, report.chance), (0.5, 0.5));
        let (low, high) = wilson_interval(1, 2);
        assert_eq!((report.acc.low, report.acc.high), (low, high));
    }

    #[test]
    fn comparisons_count_pairs() {
        // The choice is 0 for -1 and 1 for -40 either way.
        let of = |chosen: &[usize]| {
            let golds = [0, 0, 0, 0, 1];
            TaskReport::new(
                golds
                    .iter()
                    .zip(chosen)
                    .map(|(g, c)| {
                        result(
                            *g,
                            if *c == 0 {
                                [-1.0, -40.0]
                            } else {
                                [-40.0, -1.0]
                            },
                        )
                    })
                    .collect(),
            )
        };
        let c = compare(of(&[0, 0, 1, 1, 1]), of(&[0, 1, 0, 1, 0])).unwrap();
        for p in [&c.acc, &c.acc_norm] {
            assert_eq!(
                (p.both_right, p.only_model, p.only_reference, p.both_wrong),
                (1, 2, 1, 1)
            );
            assert!((p.difference - 0.2).abs() < 1e-12);
            assert_eq!(p.same_choice.count, 2);
            assert_eq!(p.p_value, 1.0);
            assert!(p.difference_low < 0.0 && p.difference_high > 0.2);
        }
        let text = c.to_string();
        assert!(text.contains("both 1, only the model 2, only the reference 1, neither 1"));
        assert!(text.contains("+20.00 points"), "{text}");
        let json = serde_json::to_value(&c).unwrap();
        assert_eq!(json["acc"]["only_model"], 2);
        assert!(json["model"].get("results").is_none());
        let other = TaskReport::new(vec![result(1, [-1.0, -2.0])]);
        assert!(compare(of(&[0; 5]), other).is_err());
    }
}
