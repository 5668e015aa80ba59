//! The figures of an evaluation.

use std::fmt;

use serde::Serialize;

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error over tokens.
    pub error: f64,
}

impl Estimate {
    /// From values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        if values.is_empty() {
            return Self::default();
        }
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        Self {
            value: mean,
            error: if n > 1.0 {
                (variance / (n - 1.0)).sqrt()
            } else {
                0.0
            },
        }
    }
}

/// What an evaluation found. The definitions are those of llama-perplexity.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EvalReport {
    /// Tokens scored: the second half of each chunk.
    pub tokens: usize,
    /// Tokens of a chunk.
    pub n_ctx: usize,
    /// Chunks.
    pub n_chunks: usize,
    /// Perplexity, `exp` of the mean negative log-likelihood.
    pub perplexity: Estimate,
    /// Distance from the reference, when there is one.
    pub divergence: Option<Divergence>,
}

/// Distance of the model's next-token distributions from the reference's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Divergence {
    /// Perplexity of the reference.
    pub reference_perplexity: Estimate,
    /// Ratio of the perplexities.
    pub perplexity_ratio: Estimate,
    /// Mean KL divergence, nats per token.
    pub mean_kld: Estimate,
    /// Median.
    pub median_kld: f64,
    /// 99th percentile.
    pub kld_99: f64,
    /// Largest.
    pub max_kld: f64,
    /// Share of tokens whose likeliest next token is the reference's.
    pub same_top: Estimate,
    /// Root of the mean squared difference of the right token's probability.
    pub rms_delta_p: f64,
    /// Mean KL divergence of each chunk, for comparisons that pair them.
    #[serde(skip)]
    pub kld_by_chunk: Vec<f64>,
}

/// Value at `fraction` of the sorted values, linear between neighbours.
pub(super) fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let (low, t) = (at.floor() as usize, at.fract());
    sorted[low] + t * (sorted[(low + 1).min(last)] - sorted[low])
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &self.perplexity;
        writeln!(
            f,
            "{} tokens scored in {} chunks of {}",
            self.tokens, self.n_chunks, self.n_ctx
        )?;
        writeln!(f, "perplexity       {:.4} ± {:.4}", p.value, p.error)?;
        if let Some(d) = &self.divergence {
            let r = &d.perplexity_ratio;
            writeln!(
                f,
                "reference        {:.4}, ratio {:.4} ± {:.4}",
                d.reference_perplexity.value, r.value, r.error
            )?;
            writeln!(
                f,
                "KL divergence    mean {:.6} ± {:.6} nats a token",
                d.mean_kld.value, d.mean_kld.error
            )?;
            writeln!(
                f,
                "                 median {:.6}, 99 % {:.6}, largest {:.4}",
                d.median_kld, d.kld_99, d.max_kld
            )?;
            let t = &d.same_top;
            writeln!(
                f,
                "same top token   {:.2} % ± {:.2}",
                t.value * 100.0,
                t.error * 100.0
            )?;
            writeln!(f, "RMS Δp           {:.3} %", d.rms_delta_p * 100.0)?;
        }
        Ok(())
    }
}
