//! Distances between next-token distributions.

/// Logarithm of the softmax normaliser of `logits`: `ln(sum(exp(logits)))`, computed stably.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // float32 exponentials summed in double, as llama-perplexity does.
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// Index of the largest logit, the first of equals.
pub fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best
}

/// A reference next-token distribution, its `k` likeliest tokens kept and the rest as one.
#[derive(Clone, Debug)]
pub struct TopK {
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    rest: f64,
}

impl TopK {
    /// From the logits of the reference model.
    pub fn new(logits: &[f32], k: usize) -> Self {
        let norm = log_sum_exp(logits);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let k = k.min(ids.len());
        if k < ids.len() {
            ids.select_nth_unstable_by(k, |a, b| {
                logits[*b as usize].total_cmp(&logits[*a as usize])
            });
            ids.truncate(k);
            ids.sort_unstable();
        }
        let log_probs: Vec<f32> = ids
            .iter()
            .map(|&i| (f64::from(logits[i as usize]) - norm) as f32)
            .collect();
        let rest = if k < logits.len() {
            1.0 - log_probs.iter().map(|l| f64::from(*l).exp()).sum::<f64>()
        } else {
            0.0
        };
        Self {
            ids,
            log_probs,
            rest: rest.max(0.0),
        }
    }

    /// Kullback-Leibler divergence in nats of another model's distribution from this one,
    /// `sum p ln(p / q)`. Tokens that are not kept count as one, so this is a lower bound of the exact
    /// value (by the data-processing inequality), and close to it.
    pub fn divergence(&self, logits: &[f32]) -> f64 {
        let norm = log_sum_exp(logits);
        let mut sum = 0.0;
        let mut q_kept = 0.0;
        for (&id, &lp) in self.ids.iter().zip(&self.log_probs) {
            let (lp, lq) = (f64::from(lp), f64::from(logits[id as usize]) - norm);
            sum += lp.exp() * (lp - lq);
            q_kept += lq.exp();
        }
        if self.rest > 1e-12 {
            sum += self.rest * (self.rest / (1.0 - q_kept).max(1e-12)).ln();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_matches_the_definition() {
        let p = [1.0f32, 2.0, -1.0, 0.5];
        let q = [0.5f32, 2.5, -1.5, 0.9];
        let soft = |l: &[f32]| {
            let n = log_sum_exp(l);
            l.iter()
                .map(|x| (f64::from(*x) - n).exp())
                .collect::<Vec<_>>()
        };
        let exact: f64 = soft(&p)
            .iter()
            .zip(soft(&q))
            .map(|(a, b)| a * (a / b).ln())
            .sum();
        assert!((TopK::new(&p, 4).divergence(&q) - exact).abs() < 1e-5);
        let coarse = TopK::new(&p, 2).divergence(&q);
        assert!(coarse > 0.0 && coarse <= exact + 1e-9, "{coarse} {exact}");
        assert!(TopK::new(&p, 3).divergence(&p).abs() < 1e-7);
    }

    #[test]
    fn the_normaliser_is_stable() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-6);
        assert_eq!(argmax(&[0.0, 3.0, 3.0]), 1);
    }
}
