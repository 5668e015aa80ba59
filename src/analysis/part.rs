//! What part of the calibration text says of its domains.

use anyhow::Result;

use super::collect::{CollectOptions, collect};
use super::stats::Analysis;
use crate::progress::Progress;
use crate::runtime::Model;

impl Analysis {
    /// The same analysis, but with each domain's routing as the second half of its text in [`Analysis::checks`] shows it
    /// ([`super::Sample::half`]): types that are chosen by it know nothing of where the first half goes and can be measured
    /// on it. Evaluates `model`, as it was analysed, on that text. Domains without text there keep what is known of them.
    ///
    /// # Errors
    /// As [`collect`].
    pub fn of_second_half(
        &self,
        model: &Model,
        n_threads: usize,
        progress: &Progress,
    ) -> Result<Analysis> {
        let mut chunks = vec![Vec::new(); self.domains.len()];
        for (chunk, d) in self.checks.half(true) {
            chunks[d].push(chunk.clone());
        }
        let total = chunks.iter().map(|c: &Vec<Vec<i32>>| c.len() as u64).sum();
        let bar = progress.bar("half of the text by domain", total, "chunks");
        let mut part = self.clone();
        for (domain, chunks) in part.domains.iter_mut().zip(&chunks) {
            let Some(n_ctx) = chunks.iter().map(Vec::len).max() else {
                continue;
            };
            let seen = collect(model, chunks, &CollectOptions { n_ctx, n_threads }, &bar)?;
            domain.routers = seen.routers;
        }
        bar.finish();
        Ok(part)
    }
}
