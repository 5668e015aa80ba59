//! What plans do in each domain, measured on the model.

use anyhow::{Result, ensure};

use super::measure::{RefitOptions, Refitter};
use super::text::RefitText;
use crate::analysis::{Analysis, Importance, Sensitivity, SensitivityOptions, Unreached};
use crate::gguf::Gguf;
use crate::plan::{Fares, Plan};
use crate::progress::Progress;
use crate::runtime::Model;

/// Text of the analysis by domain, that plans for a mix are not fitted to ([`RefitText`]), and how they are measured on it.
pub struct Judged {
    chunks: Vec<Vec<i32>>,
    options: SensitivityOptions,
}

impl Judged {
    /// Of the first half of the analysis's checks.
    pub fn new(analysis: &Analysis, n_threads: usize) -> Self {
        let half = analysis.checks.half(false);
        let (chunks, domains): (Vec<_>, Vec<_>) = half.map(|(c, d)| (c.clone(), d)).unzip();
        let options = SensitivityOptions::by_domain(&chunks, domains, n_threads);
        Self { chunks, options }
    }
}

/// Puts a plan into a loaded model, refit included, and measures the divergence of each domain's text.
pub struct MeasuredFares<'m, 'a> {
    refitter: Refitter<'m, 'a>,
    analysis: &'a Analysis,
    options: RefitOptions,
    progress: Progress,
    bench: Sensitivity<'m, 'a>,
}

impl<'m, 'a> MeasuredFares<'m, 'a> {
    /// With `model`, which must be without repacking and as it was loaded. Plans are fitted as `options` say on the
    /// analysis's text for them and measured on `judged`.
    ///
    /// # Errors
    /// There is no text, or the model cannot be evaluated.
    pub fn new(
        model: &'m Model,
        source: &'a Gguf,
        importance: &'a Importance,
        analysis: &'a Analysis,
        judged: &'a Judged,
        options: RefitOptions,
        progress: Progress,
    ) -> Result<Self> {
        let bench = Sensitivity::new(model, source, importance, &judged.chunks, &judged.options)?;
        Ok(Self {
            refitter: Refitter::new(model, source, progress),
            analysis,
            options,
            progress,
            bench,
        })
    }
}

impl Fares for MeasuredFares<'_, '_> {
    fn of(&mut self, plan: &Plan) -> Result<Vec<f64>> {
        let _exchanged = self.refitter.fit(
            plan,
            &plan.importance(self.analysis, Unreached::default())?,
            &RefitText::to_measure(self.analysis, plan)?,
            self.options,
        )?;
        let fares = self.bench.by_domain()?;
        ensure!(!fares.is_empty(), "the text has no domains");
        let domains = self.analysis.domains.iter().zip(&fares);
        let each: Vec<String> = domains.map(|(d, f)| format!("{} {f:.5}", d.name)).collect();
        self.progress
            .note(format!("measured, nats a token: {}", each.join(", ")));
        Ok(fares)
    }
}
