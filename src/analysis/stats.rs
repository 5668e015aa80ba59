//! The quantities an analysis holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use anyhow::{Result, ensure};

use super::distribution::Distributions;
use super::error::ErrorTable;
use super::novelty::new_share;
use super::sensitivity::{JointProbe, Probe};
use crate::model::Role;

/// Where an analysis comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// `general.architecture` of the model; empty when only an imatrix file was read.
    pub architecture: String,
    /// Digest of the model's tensor table and metadata, see [`crate::model::digest`]; empty when unknown.
    pub model_digest: String,
    /// Names of the texts or imatrix files.
    pub datasets: Vec<String>,
    /// Tokens of a chunk.
    pub n_ctx: usize,
    /// Chunks evaluated.
    pub n_chunks: usize,
}

/// Activation statistics of the input of one weight tensor.
///
/// A tensor holds `n_mat` matrices (experts; 1 for an ordinary weight) of `n_in` input channels.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightStats {
    /// Input channels.
    pub n_in: usize,
    /// Tokens that reached each matrix; a single count stands for all matrices alike.
    pub counts: Vec<f64>,
    /// Sum of squared activations, `n_mat` slices of `n_in` values.
    pub sum_sq: Vec<f32>,
    /// Sum of activations in the same order; empty when unknown (older imatrix files).
    pub sum: Vec<f32>,
}

impl WeightStats {
    /// Number of matrices.
    pub fn n_mat(&self) -> usize {
        self.sum_sq.len() / self.n_in.max(1)
    }

    /// Tokens that reached matrix `mat`.
    pub fn count(&self, mat: usize) -> f64 {
        if self.counts.len() == 1 {
            self.counts[0]
        } else {
            self.counts[mat]
        }
    }

    /// Checks that lengths agree and that values are finite and not negative where they cannot be.
    ///
    /// # Errors
    /// Says what does not agree.
    pub fn check(&self) -> Result<()> {
        ensure!(self.n_in > 0, "no input channels");
        ensure!(
            self.sum_sq.len().is_multiple_of(self.n_in),
            "{} sums do not fill rows of {}",
            self.sum_sq.len(),
            self.n_in
        );
        ensure!(
            self.counts.len() == 1 || self.counts.len() == self.n_mat(),
            "{} counts for {} matrices",
            self.counts.len(),
            self.n_mat()
        );
        ensure!(
            self.sum.is_empty() || self.sum.len() == self.sum_sq.len(),
            "sums and squared sums differ in number"
        );
        ensure!(
            self.counts.iter().all(|c| c.is_finite() && *c >= 0.0)
                && self.sum_sq.iter().all(|v| v.is_finite() && *v >= 0.0)
                && self.sum.iter().all(|v| v.is_finite()),
            "a value is negative or not finite"
        );
        Ok(())
    }

    /// Adds the statistics of other tokens for the same tensor.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        ensure!(
            self.n_in == other.n_in && self.sum_sq.len() == other.sum_sq.len(),
            "shapes differ: {} x {} and {} x {}",
            self.n_in,
            self.n_mat(),
            other.n_in,
            other.n_mat()
        );
        if self.counts.len() != other.counts.len() {
            let n = self.n_mat();
            let spread = |c: &[f64]| {
                if c.len() == 1 {
                    vec![c[0]; n]
                } else {
                    c.to_vec()
                }
            };
            let theirs = spread(&other.counts);
            self.counts = spread(&self.counts);
            add(&mut self.counts, &theirs);
        } else {
            add(&mut self.counts, &other.counts);
        }
        for (a, b) in self.sum_sq.iter_mut().zip(&other.sum_sq) {
            *a += b;
        }
        if self.sum.len() == other.sum.len() {
            for (a, b) in self.sum.iter_mut().zip(&other.sum) {
                *a += b;
            }
        } else {
            // Half a sum would pass for a whole one.
            self.sum.clear();
        }
        Ok(())
    }
}

/// Adds what stands under each key to what stands under it in `ours`, by `merge`; `what` says what a key names.
fn merge_each<K: Ord + Clone + Display, V: Clone>(
    what: &str,
    ours: &mut BTreeMap<K, V>,
    theirs: &BTreeMap<K, V>,
    merge: impl Fn(&mut V, &V) -> Result<()>,
) -> Result<()> {
    for (key, theirs) in theirs {
        match ours.get_mut(key) {
            Some(ours) => merge(ours, theirs).map_err(|e| e.context(format!("{what} {key}")))?,
            None => {
                ours.insert(key.clone(), theirs.clone());
            }
        }
    }
    Ok(())
}

fn merge_weights(
    ours: &mut BTreeMap<String, WeightStats>,
    theirs: &BTreeMap<String, WeightStats>,
) -> Result<()> {
    merge_each("tensor", ours, theirs, WeightStats::merge)
}

fn merge_routers(
    ours: &mut BTreeMap<usize, RouterStats>,
    theirs: &BTreeMap<usize, RouterStats>,
) -> Result<()> {
    merge_each("router of layer", ours, theirs, RouterStats::merge)
}

fn add(a: &mut [f64], b: &[f64]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// What a layer's router did.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterStats {
    /// Experts a token is sent to.
    pub n_used: usize,
    /// Tokens routed.
    pub tokens: f64,
    /// Tokens that each expert got, `n_expert` values.
    pub counts: Vec<f64>,
    /// Sum of the gate weights that each expert got.
    pub gate_mass: Vec<f64>,
    /// Sum of their squares.
    pub gate_mass_sq: Vec<f64>,
}

impl RouterStats {
    /// A router of `n_expert` experts that saw nothing yet.
    pub fn new(n_expert: usize, n_used: usize) -> Self {
        let zero = vec![0.0; n_expert];
        Self {
            n_used,
            tokens: 0.0,
            counts: zero.clone(),
            gate_mass: zero.clone(),
            gate_mass_sq: zero,
        }
    }

    /// Entropy of the experts' load over its maximum, `-sum p ln p / ln n`: 1 when all experts get the same.
    pub fn load_entropy(&self) -> f64 {
        let total: f64 = self.counts.iter().sum();
        if total <= 0.0 || self.counts.len() < 2 {
            return 0.0;
        }
        let h: f64 = self
            .counts
            .iter()
            .map(|c| c / total)
            .filter(|p| *p > 0.0)
            .map(|p| -p * p.ln())
            .sum();
        h / (self.counts.len() as f64).ln()
    }

    /// Experts that no token reached.
    pub fn unreached(&self) -> Vec<usize> {
        (0..self.counts.len())
            .filter(|&e| self.counts[e] == 0.0)
            .collect()
    }

    /// Adds another's quantities times a factor; the numbers of experts must be the same.
    fn add_scaled(&mut self, other: &Self, factor: f64) {
        let scaled = |v: &[f64]| v.iter().map(|x| x * factor).collect::<Vec<f64>>();
        self.tokens += other.tokens * factor;
        add(&mut self.counts, &scaled(&other.counts));
        add(&mut self.gate_mass, &scaled(&other.gate_mass));
        add(&mut self.gate_mass_sq, &scaled(&other.gate_mass_sq));
    }

    /// Share of the routed tokens that each expert got.
    pub fn load(&self) -> Vec<f64> {
        let total: f64 = self.counts.iter().sum();
        self.counts
            .iter()
            .map(|c| if total > 0.0 { c / total } else { 0.0 })
            .collect()
    }

    /// Gini coefficient of the experts' load: 0 when all get the same, towards 1 when one gets everything.
    pub fn load_gini(&self) -> f64 {
        let mut load = self.load();
        load.sort_by(f64::total_cmp);
        let n = load.len() as f64;
        let total: f64 = load.iter().sum();
        if total <= 0.0 {
            return 0.0;
        }
        let weighted: f64 = load
            .iter()
            .enumerate()
            .map(|(i, l)| (i + 1) as f64 * l)
            .sum();
        (2.0 * weighted / (n * total) - (n + 1.0) / n).max(0.0)
    }

    /// Jensen-Shannon divergence in nats between the loads of two routers of the same layer: 0 when they use
    /// the experts alike, `ln 2` when they share none.
    pub fn divergence(&self, other: &Self) -> f64 {
        let (p, q) = (self.load(), other.load());
        let term = |a: f64, m: f64| if a > 0.0 { a * (a / m).ln() } else { 0.0 };
        p.iter()
            .zip(&q)
            .map(|(&p, &q)| {
                let m = (p + q) / 2.0;
                (term(p, m) + term(q, m)) / 2.0
            })
            .sum::<f64>()
            .max(0.0)
    }

    /// Adds what the router did with other tokens.
    ///
    /// # Errors
    /// The numbers of experts differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        ensure!(
            self.counts.len() == other.counts.len(),
            "{} experts and {} experts",
            self.counts.len(),
            other.counts.len()
        );
        self.tokens += other.tokens;
        add(&mut self.counts, &other.counts);
        add(&mut self.gate_mass, &other.gate_mass);
        add(&mut self.gate_mass_sq, &other.gate_mass_sq);
        Ok(())
    }
}

/// What the text of one domain did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Domain {
    /// The domain's label; empty for text without one.
    pub name: String,
    /// By layer.
    pub routers: BTreeMap<usize, RouterStats>,
    /// By tensor name, without plain sums; empty when unknown, as where a text is all of one domain.
    pub weights: Arc<BTreeMap<String, WeightStats>>,
}

/// Which experts of a layer tokens are sent to together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coactivation {
    /// Experts of the layer.
    pub n_expert: usize,
    /// Tokens sent to both experts, `n_expert x n_expert`, symmetric; the diagonal holds those sent to each.
    pub counts: Vec<f64>,
    /// Scalar products of the experts' outputs on the tokens sent to both, each times its gate weight, summed
    /// over tokens, in the same order; the diagonal holds squared norms. Empty when not measured.
    pub outputs: Vec<f64>,
}

impl Coactivation {
    /// Nothing seen yet.
    pub fn new(n_expert: usize) -> Self {
        Self {
            n_expert,
            counts: vec![0.0; n_expert * n_expert],
            outputs: Vec::new(),
        }
    }

    /// How much oftener than by chance two experts fire together, 1 when they are independent; `None` where one
    /// of them was never reached. `tokens` is the number of tokens routed.
    pub fn lift(&self, a: usize, b: usize, tokens: f64) -> Option<f64> {
        let of = |i: usize, j: usize| self.counts[i * self.n_expert + j];
        let expected = of(a, a) * of(b, b) / tokens;
        (expected > 0.0).then(|| of(a, b) / expected)
    }

    /// Cosine of two experts' outputs over the tokens sent to both, against the norms they have over all their
    /// tokens, scaled to the shared ones: 1 where they say the same (they stand in for each other), 0 where they
    /// are independent; `None` where it was not measured.
    pub fn similarity(&self, a: usize, b: usize) -> Option<f64> {
        let n = self.n_expert;
        let of = |i: usize, j: usize| self.outputs.get(i * n + j).copied();
        let mean = |i: usize| Some(of(i, i)? / self.counts[i * n + i]);
        let norm = (mean(a)? * mean(b)?).sqrt() * self.counts[a * n + b];
        (norm > 0.0).then(|| of(a, b).map(|x| x / norm)).flatten()
    }

    /// Adds another's figures.
    fn merge(&mut self, other: &Self) -> Result<()> {
        ensure!(
            self.n_expert == other.n_expert,
            "{} experts and {} experts",
            self.n_expert,
            other.n_expert
        );
        add(&mut self.counts, &other.counts);
        if self.outputs.len() == other.outputs.len() {
            add(&mut self.outputs, &other.outputs);
        } else {
            // Half a sum would pass for a whole one.
            self.outputs.clear();
        }
        Ok(())
    }

    /// Counts a token that was sent to `experts`.
    pub fn add(&mut self, experts: &[usize]) {
        for &a in experts {
            for &b in experts {
                self.counts[a * self.n_expert + b] += 1.0;
            }
        }
    }
}

/// Everything measured about a model on a calibration text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Analysis {
    /// Where it comes from.
    pub origin: Origin,
    /// By tensor name.
    pub weights: BTreeMap<String, WeightStats>,
    /// By layer, all domains together.
    pub routers: BTreeMap<usize, RouterStats>,
    /// Which experts fire together, by layer.
    pub coactivation: BTreeMap<usize, Coactivation>,
    /// What the routers did with each domain's text.
    pub domains: Vec<Domain>,
    /// Relative output errors of tensors in types.
    pub errors: ErrorTable,
    /// How the weights of tensors are distributed.
    pub distributions: Distributions,
    /// Measured effects of quantizing one tensor on the model's output.
    pub probes: Vec<Probe>,
    /// Tokens of each domain on which these were measured; empty when unknown.
    pub probe_tokens: Vec<f64>,
    /// Measured effect of quantizing many experts at once in each domain's text, as multiples of that in the text of the
    /// probes; empty when unknown.
    pub domain_levels: Vec<f64>,
    /// Measured effects of quantizing many experts at once.
    pub joint: Vec<JointProbe>,
    /// Whether effects are to be taken as independent, so that they add up.
    pub independent: bool,
    /// Part of the calibration text, for what can only be measured on a quantized model.
    pub sample: Sample,
    /// Chunks of every domain, about as many of each; empty when the text has no domains. Plans for a mix of domains are
    /// fitted on one half of them and measured on the other.
    pub checks: Sample,
}

/// Chunks of calibration text as tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Token ids, chunk by chunk.
    pub chunks: Vec<Vec<i32>>,
    /// The domain of each chunk, numbered as in [`Analysis::domains`]; empty when nobody asked.
    pub domains: Vec<usize>,
}

impl Sample {
    /// Tokens in all.
    pub fn n_tokens(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    /// Whether it has text of each of `n` domains.
    pub fn covers(&self, n: usize) -> bool {
        (0..n).all(|d| self.domains.contains(&d))
    }

    /// Every other chunk of each domain, with its domain: from the first on, or from the second. A domain's only chunk is
    /// in both halves. (The first and the second half of a domain's text are of different documents, of which one says
    /// less of text at large than some of all do: measured so, the choice for prose was the worse one on held-out text.)
    pub fn half(&self, second: bool) -> impl Iterator<Item = (&Vec<i32>, usize)> {
        let n_domains = self.domains.iter().max().map_or(0, |d| d + 1);
        let mut counts = vec![0usize; n_domains];
        self.domains.iter().for_each(|d| counts[*d] += 1);
        let mut seen = vec![0usize; n_domains];
        let each = self.chunks.iter().zip(self.domains.iter().copied());
        each.filter(move |(_, d)| {
            seen[*d] += 1;
            seen[*d] % 2 == usize::from(!second) || counts[*d] == 1
        })
    }
}

/// Tokens of a text of one kind that say as much of where other text goes as nothing does. Text is routed by its subject,
/// so that the tokens of a short one are far from independent: of the shipped model's domains each sends some experts a
/// tenth, others four times what text at large does.
const ALIKE_TOKENS: f64 = 4096.0;

/// Tokens of a domain, those that are new in its text, that say as much of where its other text goes as the even mix of all
/// domains does. Plans of the shipped model for one domain of 18,000 tokens (weight 0.7, a type per expert), on held-out text: taken at their word 10 to
/// 21 % better on that domain and up to 47 % worse on others; with 16384 5 to 8 % better and up to 19 % worse (before a
/// bound on what others lose); with twice as many no better on one of two.
const DOMAIN_TOKENS: f64 = 16384.0;

/// Tokens that are taken to stand behind a domain's effects where the analysis does not say.
const UNKNOWN_TOKENS: f64 = 1024.0;

impl Analysis {
    /// Experts without a token, `(tensor, expert numbers)`: their statistics are unknown.
    pub fn unreached(&self) -> Vec<(&str, Vec<usize>)> {
        self.weights
            .iter()
            .filter(|(_, w)| w.n_mat() > 1)
            .map(|(name, w)| {
                (
                    name.as_str(),
                    (0..w.n_mat())
                        .filter(|&e| w.count(e) == 0.0)
                        .collect::<Vec<_>>(),
                )
            })
            .filter(|(_, e)| !e.is_empty())
            .collect()
    }

    /// How much passes through each expert of a tensor: the sum of its squared gate weights, since an error of
    /// an expert's output reaches the layer's output times the gate weight. Token counts where the gate
    /// weights are not known; empty where nothing is. Drawn towards the same for every expert the fewer tokens stand
    /// behind it, as if [`ALIKE_TOKENS`] more had reached all alike.
    pub fn traffic(&self, tensor: &str) -> Vec<f64> {
        let Some(stats) = self.weights.get(tensor) else {
            return Vec::new();
        };
        if stats.n_mat() < 2 || stats.counts.len() < 2 {
            return Vec::new();
        }
        // Heads may be as many as experts.
        let layer = crate::model::layer_of(tensor).filter(|_| Role::of_name(tensor).is_expert());
        let router = layer
            .and_then(|l| self.routers.get(&l))
            .filter(|r| r.counts.len() == stats.n_mat());
        // Token counts where nothing is known of gate weights.
        let (own, tokens) = match router {
            Some(r) if r.tokens > 0.0 => (r.gate_mass_sq.clone(), r.tokens),
            _ => {
                let counts: Vec<f64> = (0..stats.n_mat()).map(|e| stats.count(e)).collect();
                // How many experts a token is sent to is not known here; two is the least that is usual.
                let tokens = counts.iter().sum::<f64>() / 2.0;
                (counts, tokens)
            }
        };
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        if mean.is_nan() || mean <= 0.0 {
            return vec![1.0; own.len()];
        }
        let trust = tokens / (tokens + ALIKE_TOKENS);
        own.iter()
            .map(|t| trust * t + (1.0 - trust) * mean)
            .collect()
    }

    /// The same analysis as if its text were a mix of the domains with these weights: routing and effects are
    /// the domains' weighted means per token, drawn towards the even mix by the tokens behind them (those that are new in
    /// their text, see [`Analysis::new_shares`]), because other text of a domain is not routed quite as the text that was seen. Channel statistics (see [`Analysis::channels_of_mix`]) and
    /// errors stay as they are. Domains of which nothing is known keep what was measured together.
    pub fn for_mix(&self, weights: &[f64]) -> Analysis {
        self.mixed(weights, DOMAIN_TOKENS)
    }

    /// As [`Analysis::for_mix`] with one domain alone, its routing as it was seen: to judge a plan, whose losses in the domain
    /// would look small if the routing were drawn towards the even mix.
    pub fn for_domain(&self, domain: usize) -> Analysis {
        let mut weights = vec![0.0; self.domains.len()];
        weights[domain] = 1.0;
        self.mixed(&weights, 0.0)
    }

    /// The share of each domain's text that does not repeat other text of it, in the order of the domains.
    pub fn new_shares(&self) -> Vec<f64> {
        let of = |d: usize| {
            let all = self.checks.chunks.iter().zip(&self.checks.domains);
            new_share(all.filter(|c| *c.1 == d).map(|c| c.0.as_slice()))
        };
        (0..self.domains.len()).map(of).collect()
    }

    fn mixed(&self, weights: &[f64], prior_tokens: f64) -> Analysis {
        let mut mixed = self.clone();
        let total: f64 = weights.iter().sum();
        if self.domains.len() != weights.len() || self.domains.len() < 2 || total <= 0.0 {
            return mixed;
        }
        let new = self.new_shares();
        for (layer, router) in &mut mixed.routers {
            let domains = self.domains.iter().zip(&new);
            let known = domains.zip(weights).filter_map(|((d, new), w)| {
                let r = d.routers.get(layer).filter(|r| r.tokens > 0.0)?;
                Some((r, w / total, r.tokens * new))
            });
            let known: Vec<(&RouterStats, f64, f64)> = known.collect();
            let tokens: f64 = known.iter().map(|(_, w, new)| w * new).sum();
            let trust = tokens / (tokens + prior_tokens);
            let even = (1.0 - trust) / known.len().max(1) as f64;
            let mut sum = RouterStats::new(router.counts.len(), router.n_used);
            for (r, w, _) in known {
                sum.add_scaled(r, (trust * w + even) / r.tokens * router.tokens);
            }
            if sum.tokens > 0.0 {
                *router = sum;
            }
        }
        let levels = self.levels();
        for probe in &mut mixed.probes {
            if probe.by_domain.len() == weights.len() {
                let each = self.settled_effects(probe, &levels);
                probe.kld = each.iter().zip(weights).map(|(k, w)| k * w / total).sum();
            }
        }
        // What they do together grows as what each does, or how far they add up would seem to differ.
        let level: f64 = levels.iter().zip(weights).map(|(l, w)| l * w / total).sum();
        mixed.joint.iter_mut().for_each(|group| group.kld *= level);
        mixed
    }

    /// By how much effects are larger in each domain's text than in all: as many experts together showed on much text,
    /// or else the geometric mean over the probes, which see little text of each domain.
    fn levels(&self) -> Vec<f64> {
        if self.domain_levels.len() == self.domains.len() {
            return self.domain_levels.clone();
        }
        let mut logs = vec![(0.0, 0.0); self.domains.len()];
        for probe in &self.probes {
            for (sum, k) in logs.iter_mut().zip(&probe.by_domain) {
                if *k > 0.0 && probe.kld > 0.0 {
                    *sum = (sum.0 + (k / probe.kld).ln(), sum.1 + 1.0);
                }
            }
        }
        let mean = |(sum, n): &(f64, f64)| if *n > 0.0 { (sum / n).exp() } else { 1.0 };
        logs.iter().map(mean).collect()
    }

    /// An effect in each domain's text. What sets this tensor apart there from the domain's level is drawn towards
    /// nothing (in logarithms) the fewer tokens it was seen on, as by [`ALIKE_TOKENS`] on which it did not differ.
    fn settled_effects(&self, probe: &Probe, levels: &[f64]) -> Vec<f64> {
        let each = probe.by_domain.iter().zip(levels).enumerate();
        each.map(|(d, (k, level))| {
            let usual = probe.kld * level;
            let tokens = self.probe_tokens.get(d).copied().unwrap_or(UNKNOWN_TOKENS);
            if *k > 0.0 && usual > 0.0 {
                usual * (k / usual).powf(tokens / (tokens + ALIKE_TOKENS))
            } else {
                usual
            }
        })
        .collect()
    }

    /// Puts effects by domain that were measured on text of the domains `labels` in the order of the analysis's domains. A
    /// domain of which they saw no text is judged by all; where that is so of every domain, nothing is known by domain.
    pub(crate) fn number_effects(&mut self, labels: &[String]) {
        let place = |d: &Domain| labels.iter().position(|l| *l == d.name);
        let places: Vec<Option<usize>> = self.domains.iter().map(place).collect();
        let known = places.iter().any(Option::is_some);
        let numbered = |values: &[f64], otherwise: f64| -> Vec<f64> {
            if values.is_empty() || !known {
                return Vec::new();
            }
            let of = |at: &Option<usize>| at.and_then(|at| values.get(at).copied());
            places
                .iter()
                .map(|at| of(at).unwrap_or(otherwise))
                .collect()
        };
        for probe in &mut self.probes {
            probe.by_domain = numbered(&probe.by_domain, probe.kld);
        }
        self.probe_tokens = numbered(&self.probe_tokens, 0.0);
        self.domain_levels = numbered(&self.domain_levels, 1.0);
    }

    /// Adds the statistics of another analysis of the same model. Measured effects are kept from `self` when
    /// it has any.
    ///
    /// # Errors
    /// A tensor's shape differs; names it.
    pub fn merge(&mut self, other: &Analysis) -> Result<()> {
        if self.weights.is_empty() {
            self.errors.clone_from(&other.errors);
            self.distributions.clone_from(&other.distributions);
        } else if !other.weights.is_empty() {
            // They were weighted by other statistics.
            self.errors = ErrorTable::default();
            self.distributions.clear();
        }
        merge_weights(&mut self.weights, &other.weights)?;
        merge_routers(&mut self.routers, &other.routers)?;
        merge_each(
            "co-activation of layer",
            &mut self.coactivation,
            &other.coactivation,
            Coactivation::merge,
        )?;
        let names = |domains: &[Domain]| domains.iter().map(|d| d.name.clone()).collect();
        let ours: Vec<String> = names(&self.domains);
        for theirs in &other.domains {
            match self.domains.iter_mut().find(|d| d.name == theirs.name) {
                Some(ours) => {
                    merge_routers(&mut ours.routers, &theirs.routers)?;
                    merge_weights(Arc::make_mut(&mut ours.weights), &theirs.weights)?;
                }
                None => self.domains.push(theirs.clone()),
            }
        }
        if self.probes.is_empty() {
            self.probes.clone_from(&other.probes);
            self.probe_tokens.clone_from(&other.probe_tokens);
            self.domain_levels.clone_from(&other.domain_levels);
            self.joint.clone_from(&other.joint);
            self.number_effects(&names(&other.domains));
        } else {
            self.number_effects(&ours);
        }
        let checked: BTreeSet<usize> = self.checks.domains.iter().copied().collect();
        for (chunk, d) in other.checks.chunks.iter().zip(&other.checks.domains) {
            let name = other.domains.get(*d).map(|d| &d.name);
            let number = self.domains.iter().position(|d| Some(&d.name) == name);
            // A domain that has text keeps it: the numbers of domains' tokens stay alike.
            if let Some(number) = number.filter(|d| !checked.contains(d)) {
                self.checks.chunks.push(chunk.clone());
                self.checks.domains.push(number);
            }
        }
        self.independent |= other.independent;
        self.sample.chunks.extend_from_slice(&other.sample.chunks);
        self.origin
            .datasets
            .extend(other.origin.datasets.iter().cloned());
        self.origin.n_chunks += other.origin.n_chunks;
        if self.origin.n_ctx == 0 {
            self.origin.n_ctx = other.origin.n_ctx;
        }
        if self.origin.architecture.is_empty() {
            self.origin
                .architecture
                .clone_from(&other.origin.architecture);
            self.origin
                .model_digest
                .clone_from(&other.origin.model_digest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(counts: &[f64]) -> RouterStats {
        let mut r = RouterStats::new(counts.len(), 1);
        r.tokens = counts.iter().sum();
        r.counts = counts.to_vec();
        r.gate_mass = counts.to_vec();
        r.gate_mass_sq = counts.to_vec();
        r
    }

    #[test]
    fn load_figures_match_their_definitions() {
        assert!((router(&[5.0, 5.0, 5.0, 5.0]).load_entropy() - 1.0).abs() < 1e-12);
        assert!(router(&[5.0, 5.0]).load_gini().abs() < 1e-12);
        assert!((router(&[0.0, 0.0, 0.0, 8.0]).load_gini() - 0.75).abs() < 1e-12);
        assert_eq!(router(&[1.0, 0.0]).load_entropy(), 0.0);
        let (a, b) = (router(&[1.0, 0.0]), router(&[0.0, 3.0]));
        assert!((a.divergence(&b) - 2f64.ln()).abs() < 1e-12);
        assert!(a.divergence(&router(&[7.0, 0.0])).abs() < 1e-12);
    }

    #[test]
    fn a_mix_weighs_domains_and_not_their_length() {
        let domain = |name: &str, counts: &[f64]| Domain {
            name: name.into(),
            routers: BTreeMap::from([(0, router(counts))]),
            ..Domain::default()
        };
        let mut a = Analysis {
            routers: BTreeMap::from([(0, router(&[100.0, 10.0]))]),
            domains: vec![domain("long", &[100.0, 0.0]), domain("short", &[0.0, 10.0])],
            ..Analysis::default()
        };
        a.probes.push(Probe {
            tensor: "w".into(),
            ty: crate::gguf::GgmlType::Q4_K,
            kld: 0.9,
            by_domain: vec![1.2, 0.6],
        });
        // A second one that is the same everywhere sets the domains' levels.
        a.probes.push(Probe {
            tensor: "v".into(),
            ty: crate::gguf::GgmlType::Q4_K,
            kld: 0.1,
            by_domain: vec![0.1, 0.1],
        });
        a.probe_tokens = vec![ALIKE_TOKENS, 1e12];
        let even = a.for_mix(&[1.0, 1.0]);
        let load = even.routers[&0].load();
        assert!(load.iter().all(|l| (l - 0.5).abs() < 1e-12), "{load:?}");
        // Levels are the roots of 4/3 and 2/3; of the first domain half of the rest counts (in logarithms), of the second all.
        let level = (1.2f64 / 0.9).sqrt();
        let first = 0.9 * level * (1.2 / (0.9 * level)).sqrt();
        assert!((even.probes[0].kld - (first + 0.6) / 2.0).abs() < 1e-9);
        // Ten tokens of a domain say little, many all but everything.
        let load = a.for_mix(&[0.0, 2.0]).routers[&0].load();
        assert!(
            (load[1] - 0.5 - 5.0 / (10.0 + DOMAIN_TOKENS)).abs() < 1e-12,
            "{load:?}"
        );
        // What repeats counts less: here one passage of four tokens in ten is new, and ten tokens are as one.
        a.checks = Sample {
            chunks: vec![vec![7; 13]],
            domains: vec![1],
        };
        assert_eq!(a.new_shares(), [1.0, 0.1]);
        let load = a.for_mix(&[0.0, 2.0]).routers[&0].load();
        assert!((load[1] - 0.5 - 0.5 / (1.0 + DOMAIN_TOKENS)).abs() < 1e-12);
        for r in a.domains[1].routers.values_mut() {
            r.add_scaled(&r.clone(), 1e9);
        }
        assert!(a.for_mix(&[0.0, 2.0]).routers[&0].load()[1] > 0.999);
        assert_eq!(a.for_mix(&[1.0]), a);
    }
}
