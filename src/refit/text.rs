//! The text that a plan is fitted on.

use anyhow::Result;

use crate::analysis::Analysis;
use crate::plan::Plan;

/// Chunks of tokens, and how much a token of each counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RefitText<'a> {
    chunks: Vec<(&'a [i32], f64)>,
}

impl<'a> RefitText<'a> {
    /// The analysis's text for what a plan is for.
    ///
    /// # Errors
    /// As [`Plan::shares`].
    pub fn for_plan(analysis: &'a Analysis, plan: &Plan) -> Result<Self> {
        Ok(Self::new(analysis, plan.shares(analysis)?.as_deref()))
    }

    /// The analysis's sample; where domains have `shares`, its chunks of every domain, which count as much as the shares
    /// say whatever their number. Domains without a share are left out.
    fn new(analysis: &'a Analysis, shares: Option<&[f64]>) -> Self {
        let checks = &analysis.checks;
        let Some(shares) =
            shares.filter(|s| !checks.domains.is_empty() && s.iter().any(|w| *w > 0.0))
        else {
            let chunks = analysis.sample.chunks.iter();
            return Self {
                chunks: chunks.map(|c| (c.as_slice(), 1.0)).collect(),
            };
        };
        let mut tokens = vec![0.0; shares.len()];
        for (chunk, d) in checks.chunks.iter().zip(&checks.domains) {
            tokens[*d] += chunk.len() as f64;
        }
        let total: f64 = shares.iter().sum();
        let all: f64 = tokens.iter().sum();
        let each = checks.chunks.iter().zip(&checks.domains);
        let each = each.filter(|(_, d)| shares[**d] > 0.0);
        Self {
            chunks: each
                .map(|(c, d)| (c.as_slice(), shares[*d] / total * all / tokens[*d]))
                .collect(),
        }
    }

    /// Chunks of one length and weight that follow each other, at most `most` at a time.
    pub(super) fn groups(&self, most: usize) -> impl Iterator<Item = (Vec<&'a [i32]>, f64)> {
        let alike = |a: &(&[i32], f64), b: &(&[i32], f64)| a.0.len() == b.0.len() && a.1 == b.1;
        let alike = self.chunks.chunk_by(alike);
        let groups = alike.flat_map(move |alike| alike.chunks(most.max(1)));
        groups.map(|group| (group.iter().map(|c| c.0).collect(), group[0].1))
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
    use crate::analysis::Sample;

    fn analysis() -> Analysis {
        Analysis {
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
        let text = RefitText::new(&a, Some(&[1.0, 3.0, 0.0]));
        let weights: Vec<f64> = text.chunks.iter().map(|c| c.1).collect();
        assert_eq!(weights, [28.0 / 64.0, 28.0 / 64.0, 28.0 * 3.0 / 32.0]);
        let groups: Vec<usize> = text.groups(8).map(|g| g.0.len()).collect();
        assert_eq!(groups, [2, 1]);
    }

    #[test]
    fn without_shares_or_domains_it_is_the_sample() {
        let mut a = analysis();
        let plain = RefitText::new(&a, None);
        assert_eq!((plain.n_chunks(), plain.longest()), (2, Some(8)));
        let sample = a.clone();
        a.checks = Sample::default();
        assert_eq!(
            RefitText::new(&a, Some(&[1.0])),
            RefitText::new(&sample, None)
        );
    }
}
