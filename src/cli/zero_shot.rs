//! Zero-shot accuracy of the models of a comparison.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::Global;
use crate::analysis::Corpus;
use crate::report::{AccuracyTest, CurvePoint};
use crate::runtime::Model;
use crate::tasks::{MakeOptions, Task, TaskOptions, TaskReport, compare, make, read, score};

/// Tasks that are cut out of the evaluation text.
const MADE: usize = 200;
/// Tokens of context and choice at most.
const N_CTX: usize = 2048;

/// What the models are asked.
#[derive(Args, Clone)]
pub(super) struct TaskArgs {
    /// Measure accuracy on these tasks, in any form that `tasks run` reads [default: 200 tasks cut out of the
    /// evaluation text]
    #[arg(long, value_name = "FILE", conflicts_with = "no_tasks")]
    tasks: Option<PathBuf>,
    /// Measure no accuracy
    #[arg(long)]
    no_tasks: bool,
}

/// Tasks and where they come from.
pub(super) struct TaskSet {
    tasks: Vec<Task>,
    origin: String,
}

impl TaskArgs {
    /// The file of tasks, if one is named.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        self.tasks.as_ref()
    }

    /// The tasks: those of the file, or some made of the text. None when none are wanted, or when the text
    /// gives none, which is noted.
    pub(super) fn tasks(&self, text: &Corpus, global: &Global) -> Result<Option<TaskSet>> {
        if self.no_tasks {
            return Ok(None);
        }
        if let Some(path) = &self.tasks {
            let tasks = read(path)?;
            let origin = path.file_name().unwrap_or(path.as_os_str());
            let origin = format!("from {}", origin.to_string_lossy());
            return Ok(Some(TaskSet { tasks, origin }));
        }
        let options = MakeOptions {
            count: Some(MADE),
            ..MakeOptions::default()
        };
        match make(&text.documents, &options) {
            Ok(made) => Ok(Some(TaskSet {
                tasks: made.tasks,
                origin: "cut out of the evaluation text".to_owned(),
            })),
            Err(e) => {
                global
                    .progress()
                    .note(format!("note: accuracy is not measured: {e}"));
                Ok(None)
            }
        }
    }
}

impl TaskSet {
    /// How a model does.
    pub(super) fn score(&self, model: &Model, global: &Global) -> Result<TaskReport> {
        let options = TaskOptions {
            n_threads: global.n_threads(),
            n_ctx: match model.n_ctx_train() {
                0 => N_CTX,
                trained => trained.min(N_CTX),
            },
        };
        score(model, &self.tasks, &options, &global.progress())
            .with_context(|| format!("tasks {}", self.origin))
    }

    /// What the accuracies are of, for the reader.
    pub(super) fn describe(&self, report: &TaskReport) -> String {
        format!(
            "accuracy on {} multiple-choice tasks {}, the choice likeliest per token; guessing gets {:.1} %; 95 % \
             intervals (Wilson; differences: Tango), p of McNemar's exact test on the same tasks",
            report.n_tasks,
            self.origin,
            report.chance * 100.0
        )
    }
}

/// Puts a model's accuracy in its point, and how it compares with others' on the same tasks.
///
/// # Errors
/// The reports are of different tasks.
pub(super) fn record(
    point: &mut CurvePoint,
    report: &TaskReport,
    others: &[(String, &TaskReport)],
) -> Result<()> {
    let acc = report.acc_norm;
    point.accuracy = Some(acc.value);
    point.accuracy_interval = Some([acc.low, acc.high]);
    point.tasks = Some(report.n_tasks);
    for (name, other) in others {
        let paired = compare(report.clone(), (*other).clone())?.acc_norm;
        point.accuracy_tests.push(AccuracyTest {
            against: name.clone(),
            difference: paired.difference,
            interval: [paired.difference_low, paired.difference_high],
            p_value: paired.p_value,
            same_choice: paired.same_choice.value,
        });
    }
    Ok(())
}
