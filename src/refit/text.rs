//! The text that a plan is fitted on.

use anyhow::Result;

use crate::analysis::Analysis;
use crate::plan::Plan;

/// Chunks of tokens in parts, and how much a token of each part counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RefitText<'a> {
    /// With the number of the part that each is of; those of a part follow each other.
    chunks: Vec<(&'a [i32], usize)>,
    weights: Vec<f64>,
}

impl<'a> RefitText<'a> {
    /// The analysis's text for what a plan is for.
    ///
    /// # Errors
    /// As [`Plan::shares`].
    pub fn for_plan(analysis: &'a Analysis, plan: &Plan) -> Result<Self> {
        let checks = &analysis.checks;
        let all = checks.chunks.iter().zip(checks.domains.iter().copied());
        let shares = plan.shares(analysis)?;
        Ok(Self::new(analysis, shares.as_deref(), all.collect()))
    }

    /// As [`RefitText::for_plan`], but of a mix only the second half of the text by domain: on the first half the plan can
    /// be measured. A domain's only chunk is in both.
    ///
    /// # Errors
    /// As [`Plan::shares`].
    pub fn to_measure(analysis: &'a Analysis, plan: &Plan) -> Result<Self> {
        let half = analysis.checks.half(true).collect();
        let shares = plan.shares(analysis)?;
        Ok(Self::new(analysis, shares.as_deref(), half))
    }

    /// The analysis's sample; where domains have `shares`, the chunks `by_domain`, which count as much as the shares say
    /// whatever their number. Domains without a share are left out.
    fn new(
        analysis: &'a Analysis,
        shares: Option<&[f64]>,
        by_domain: Vec<(&'a Vec<i32>, usize)>,
    ) -> Self {
        let some = |s: &&[f64]| !by_domain.is_empty() && s.iter().any(|w| *w > 0.0);
        let Some(shares) = shares.filter(some) else {
            let chunks = analysis.sample.chunks.iter();
            return Self {
                chunks: chunks.map(|c| (c.as_slice(), 0)).collect(),
                weights: vec![1.0],
            };
        };
        let mut tokens = vec![0.0; shares.len()];
        for (chunk, d) in &by_domain {
            tokens[*d] += chunk.len() as f64;
        }
        let total: f64 = shares.iter().sum();
        let all: f64 = tokens.iter().sum();
        let each = by_domain.into_iter().filter(|(_, d)| shares[*d] > 0.0);
        let weights = shares.iter().zip(&tokens);
        Self {
            chunks: each.map(|(c, d)| (c.as_slice(), d)).collect(),
            weights: weights.map(|(s, n)| s / total * all / n).collect(),
        }
    }

    /// Chunks of one length and part that follow each other, at most `most` at a time, with their part.
    pub(super) fn groups(&self, most: usize) -> impl Iterator<Item = (Vec<&'a [i32]>, usize)> {
        let alike = |a: &(&[i32], usize), b: &(&[i32], usize)| a.0.len() == b.0.len() && a.1 == b.1;
        let alike = self.chunks.chunk_by(alike);
        let groups = alike.flat_map(move |alike| alike.chunks(most.max(1)));
        groups.map(|group| (group.iter().map(|c| c.0).collect(), group[0].1))
    }

    /// What a token of a part counts.
    pub(super) fn weight(&self, part: usize) -> f64 {
        self.weights[part]
    }

    /// The chunks, with the part of each.
    pub(super) fn to_chunks(&self) -> Vec<(Vec<i32>, usize)> {
        let each = self.chunks.iter();
        each.map(|(c, part)| (c.to_vec(), *part)).collect()
    }

    /// Whether these are its chunks, whatever they count.
    pub(super) fn is_of(&self, chunks: &[(Vec<i32>, usize)]) -> bool {
        let given = chunks.iter().map(|(c, part)| (c.as_slice(), *part));
        self.chunks.iter().copied().eq(given)
    }

    /// Chunks in all.
    pub(super) fn n_chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Tokens of the longest chunk; `None` if there is none.
    pub(super) fn longest(&self) -> Option<usize> {
        self.chunks.iter().map(|c| c.0.len()).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{Domain, Mix, Sample};

    fn plan_for_both() -> Plan {
        Plan {
            mix: Mix::from([("a".to_owned(), 1.0), ("b".to_owned(), 3.0)]),
            ..Plan::default()
        }
    }

    fn analysis() -> Analysis {
        let domain = |name: &str| Domain {
            name: name.into(),
            ..Domain::default()
        };
        Analysis {
            domains: ["a", "b", "c"].map(domain).into(),
            sample: Sample {
                chunks: vec![vec![1; 8]; 2],
                domains: Vec::new(),
            },
            checks: Sample {
                chunks: vec![vec![2; 8], vec![3; 8], vec![4; 8], vec![5; 4]],
                domains: vec![0, 0, 1, 2],
            },
            ..Analysis::default()
        }
    }

    #[test]
    fn domains_count_what_their_shares_say() {
        let a = analysis();
        let text = RefitText::for_plan(&a, &plan_for_both()).unwrap();
        let weights: Vec<f64> = text.chunks.iter().map(|c| text.weight(c.1)).collect();
        assert_eq!(weights, [28.0 / 64.0, 28.0 / 64.0, 28.0 * 3.0 / 32.0]);
        assert!(text.is_of(&text.to_chunks()) && !text.is_of(&text.to_chunks()[1..]));
        let groups: Vec<usize> = text.groups(8).map(|g| g.0.len()).collect();
        assert_eq!(groups, [2, 1]);
    }

    #[test]
    fn what_is_measured_on_is_not_fitted_to() {
        let a = analysis();
        let text = RefitText::to_measure(&a, &plan_for_both()).unwrap();
        let chunks: Vec<&[i32]> = text.chunks.iter().map(|c| c.0).collect();
        // The second of two chunks, and the only one of another domain.
        assert_eq!(chunks, [[3; 8], [4; 8]]);
        let judged: Vec<i32> = a.checks.half(false).map(|(c, _)| c[0]).collect();
        assert_eq!(judged, [2, 4, 5]);
    }

    #[test]
    fn without_shares_or_domains_it_is_the_sample() {
        let mut a = analysis();
        let balanced = Plan::default();
        let plain = a.clone();
        let plain = RefitText::for_plan(&plain, &balanced).unwrap();
        assert_eq!((plain.n_chunks(), plain.longest()), (2, Some(8)));
        a.checks = Sample::default();
        assert_eq!(RefitText::for_plan(&a, &plan_for_both()).unwrap(), plain);
    }
}
