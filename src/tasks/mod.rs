//! Zero-shot tasks: which of several continuations of a context does a model find likeliest?
//!
//! [`read()`] and [`write()`] exchange tasks with llama.cpp and lm-evaluation-harness, [`make`] cuts them out of
//! any text, [`score`] runs them, and [`compare`] says whether two models differ on them.

mod format;
mod make;
mod report;
mod rng;
mod score;
mod stats;

pub use format::{Format, read, write};
pub use make::{Made, MakeOptions, make};
pub use report::{Paired, Proportion, TaskComparison, TaskReport, TaskResult, compare};
pub use score::{TaskOptions, score};
pub use stats::{mcnemar_exact, paired_interval, wilson_interval};

use serde::Serialize;

/// Choices of a task at most; llama-perplexity reads no more.
pub const MAX_CHOICES: usize = 100;

/// A context, and continuations of which one is right. Context and continuation are joined by a space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// What is to be continued.
    #[serde(rename = "query")]
    pub context: String,
    /// The continuations.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

impl Task {
    /// Why the task cannot be scored, if so; the rules are llama-perplexity's.
    fn fault(&self) -> Option<String> {
        let n = self.choices.len();
        if self.context.is_empty() {
            Some("its context is empty".to_owned())
        } else if !(2..=MAX_CHOICES).contains(&n) {
            Some(format!(
                "it has {n} choices; 2 to {MAX_CHOICES} are expected"
            ))
        } else if let Some(i) = self.choices.iter().position(String::is_empty) {
            Some(format!("choice {i} is empty"))
        } else if self.gold >= n {
            Some(format!(
                "its right choice is number {} of {n} (counted from 0)",
                self.gold
            ))
        } else {
            None
        }
    }
}
