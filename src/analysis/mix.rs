//! The channels that matter where text is a mix of domains.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::stats::{Analysis, Domain, WeightStats};

/// Shares of domains by label.
pub type Mix = BTreeMap<String, f64>;

/// Tokens that all text together counts as beside a mix, for each expert: experts that the mix hardly reaches go by it.
const SHARED_TOKENS: f64 = 64.0;
/// Longer names have no room for what a file puts around them.
const LONGEST_NAME: usize = 40;

/// The tensor with the same input, of which the statistics are kept once.
fn twin(tensor: &str) -> Option<String> {
    let pairs = [
        ("ffn_up", "ffn_gate"),
        ("attn_k.", "attn_q."),
        ("attn_v.", "attn_q."),
    ];
    let (own, other) = pairs.iter().find(|(own, _)| tensor.contains(own))?;
    Some(tensor.replacen(own, other, 1))
}

impl Domain {
    /// Keeps the statistics of its text, those of equal inputs once.
    pub fn keep_channels(&mut self, all: &BTreeMap<String, WeightStats>) {
        let is_kept = |(name, stats): &(&String, &WeightStats)| {
            let other = twin(name).and_then(|t| all.get(&t));
            name.len() <= LONGEST_NAME
                && other.is_none_or(|o| o.sum_sq != stats.sum_sq || o.counts != stats.counts)
        };
        let without_sums = |(name, stats): (&String, &WeightStats)| {
            let stats = WeightStats {
                sum: Vec::new(),
                ..stats.clone()
            };
            (name.clone(), stats)
        };
        self.weights = Arc::new(all.iter().filter(is_kept).map(without_sums).collect());
    }

    /// What its text does to the input of a tensor.
    fn channels(&self, tensor: &str) -> Option<&WeightStats> {
        let own = self.weights.get(tensor);
        own.or_else(|| self.weights.get(&twin(tensor)?))
    }
}

impl Analysis {
    /// The shares of a mix in the order of the domains, which have none where the mix does not name them.
    ///
    /// # Errors
    /// The mix names a domain that the analysis does not have, or a share is no number.
    pub fn shares(&self, mix: &Mix) -> Result<Vec<f64>> {
        let mut shares = vec![0.0; self.domains.len()];
        for (name, share) in mix {
            ensure!(
                share.is_finite() && *share >= 0.0,
                "domain {name}: a share of {share}"
            );
            let at = self.domains.iter().position(|d| d.name == *name);
            let at = at.with_context(|| {
                format!("the analysis has no domain '{name}', for which the plan was made; use the analysis that it was made with")
            })?;
            shares[at] = *share;
        }
        Ok(shares)
    }

    /// Activation statistics as if the text were a mix of the domains with these weights, by tensor. Counts are those of as
    /// many tokens as say as much of the mix as the domains' do (Kish's effective sample size). Each expert's are drawn
    /// towards what all text says, which also stands for domains of which nothing is known.
    pub fn channels_of_mix(&self, weights: &[f64]) -> BTreeMap<String, WeightStats> {
        let of_tensor = |(name, all): (&String, &WeightStats)| {
            let stats = mixed(self, weights, name, all).unwrap_or_else(|| all.clone());
            (name.clone(), stats)
        };
        self.weights.iter().map(of_tensor).collect()
    }
}

/// As [`Analysis::channels_of_mix`], of one tensor; `None` where a domain's statistics are missing.
fn mixed(
    analysis: &Analysis,
    weights: &[f64],
    name: &str,
    all: &WeightStats,
) -> Option<WeightStats> {
    let total: f64 = weights.iter().sum();
    let named = analysis.domains.iter().zip(weights);
    let named = named.filter(|(_, w)| **w > 0.0);
    let known: Vec<(&WeightStats, f64)> = named
        .map(|(d, w)| {
            let stats = d.channels(name)?;
            let alike =
                stats.sum_sq.len() == all.sum_sq.len() && stats.counts.len() == all.counts.len();
            let tokens: f64 = stats.counts.iter().sum();
            (alike && tokens > 0.0).then_some((stats, w / total / tokens))
        })
        .collect::<Option<_>>()?;
    if known.is_empty() {
        return None;
    }
    let effective = 1.0
        / known
            .iter()
            .map(|(stats, f)| f * f * stats.counts.iter().sum::<f64>())
            .sum::<f64>();
    // What a token of each matrix counts beside: of all text, then of the domains.
    let beside = |count: f64| count.min(SHARED_TOKENS) / count.max(1.0);
    let counts = |of: &dyn Fn(&WeightStats) -> f64, of_all: f64| {
        let own: f64 = known.iter().map(|(s, f)| f * effective * of(s)).sum();
        own + of_all
    };
    let each_count = all
        .counts
        .iter()
        .enumerate()
        .map(|(m, c)| counts(&|s| s.counts[m], c * beside(*c)));
    let each_square = all.sum_sq.iter().enumerate().map(|(i, x)| {
        let count = all.count(i / all.n_in);
        counts(&|s| f64::from(s.sum_sq[i]), f64::from(*x) * beside(count)) as f32
    });
    Some(WeightStats {
        n_in: all.n_in,
        counts: each_count.collect(),
        sum_sq: each_square.collect(),
        sum: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(counts: &[f64], means: &[f32]) -> WeightStats {
        let sum_sq = counts.iter().zip(means);
        WeightStats {
            n_in: 1,
            counts: counts.to_vec(),
            sum_sq: sum_sq.map(|(c, m)| *c as f32 * m).collect(),
            sum: Vec::new(),
        }
    }

    /// Two domains of one tensor with two experts, of which the second domain reaches one.
    fn analysis() -> Analysis {
        let names = ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"];
        let both = |s: &WeightStats| -> BTreeMap<String, WeightStats> {
            names.iter().map(|n| ((*n).to_owned(), s.clone())).collect()
        };
        let domain = |name: &str, own: &WeightStats| {
            let mut domain = Domain {
                name: name.into(),
                ..Domain::default()
            };
            domain.keep_channels(&both(own));
            domain
        };
        let (a, b) = (
            stats(&[4000.0, 1000.0], &[1.0, 2.0]),
            stats(&[0.0, 1000.0], &[1.0, 6.0]),
        );
        let mut all = a.clone();
        all.merge(&b).unwrap();
        Analysis {
            domains: vec![domain("a", &a), domain("b", &b)],
            weights: both(&all),
            ..Analysis::default()
        }
    }

    #[test]
    fn equal_inputs_are_kept_once() {
        let a = analysis();
        assert_eq!(a.domains[0].weights.len(), 1);
        let of = |name: &str| a.domains[1].channels(name).unwrap().clone();
        assert_eq!(
            of("blk.0.ffn_up_exps.weight"),
            of("blk.0.ffn_gate_exps.weight")
        );
        assert_eq!(a.domains[1].channels("blk.0.ffn_down_exps.weight"), None);
    }

    #[test]
    fn a_mix_weighs_domains_and_not_their_lengths() {
        let a = analysis();
        let up = |weights: &[f64]| a.channels_of_mix(weights)["blk.0.ffn_up_exps.weight"].clone();
        let mean = |s: &WeightStats, e: usize| f64::from(s.sum_sq[e]) / s.counts[e];
        // Of the second domain alone, its expert goes by it and the other one by all text.
        let second = up(&[0.0, 1.0]);
        assert!((mean(&second, 1) - 6.0).abs() < 0.2, "{second:?}");
        assert!((mean(&second, 0) - 1.0).abs() < 1e-6);
        assert_eq!(second.counts[0], SHARED_TOKENS);
        // A fifth of the first domain's tokens reach the expert, all of the second's.
        let even = up(&[0.5, 0.5]);
        let expected = (2.0 * 0.2 + 6.0) / 1.2;
        assert!((mean(&even, 1) - expected).abs() < 0.1, "{even:?}");
        // 5000 and 1000 tokens at equal weights are as good as 3333.
        let tokens: f64 = even.counts.iter().sum();
        assert!((tokens - 3333.0 - 2.0 * SHARED_TOKENS).abs() < 1.0);
    }

    #[test]
    fn what_is_not_known_goes_by_all_text() {
        let mut a = analysis();
        a.domains[1].weights = Arc::default();
        assert_eq!(a.channels_of_mix(&[0.5, 0.5]), a.weights);
        assert_ne!(a.channels_of_mix(&[1.0, 0.0]), a.weights);
    }

    #[test]
    fn a_mix_must_name_domains_of_the_analysis() {
        let a = analysis();
        let mix = |name: &str, share| Mix::from([(name.to_owned(), share)]);
        assert_eq!(a.shares(&mix("b", 2.0)).unwrap(), [0.0, 2.0]);
        let missing = a.shares(&mix("c", 1.0)).unwrap_err().to_string();
        assert!(missing.contains("'c'"), "{missing}");
        assert!(a.shares(&mix("b", f64::NAN)).is_err());
    }
}
