//! What the routers did, in figures: how evenly experts are used, how domains differ, which experts go together.

use serde::Serialize;

use super::stats::{Analysis, Coactivation, Domain, RouterStats};

/// Fewer joint tokens than this by chance make a lift unreliable.
const LEAST_EXPECTED: f64 = 5.0;
/// An expert with less than this part of the uniform share is rarely reached.
pub const RARE: f64 = 1.0 / 8.0;

/// How a layer's router spreads tokens over its experts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerLoad {
    /// Layer number.
    pub layer: usize,
    /// Experts.
    pub n_expert: usize,
    /// Experts a token is sent to.
    pub n_used: usize,
    /// Tokens routed.
    pub tokens: f64,
    /// Entropy of the load over its maximum, see [`RouterStats::load_entropy`].
    pub load_entropy: f64,
    /// See [`RouterStats::load_gini`].
    pub load_gini: f64,
    /// Experts that no token reached.
    pub unreached: Vec<usize>,
    /// Experts with more than nothing and less than [`RARE`] of the uniform share.
    pub rare: Vec<usize>,
    /// The largest share of the routed tokens, 0 to 1.
    pub largest_share: f64,
    /// The expert that has it.
    pub busiest: usize,
    /// Tokens of the least-reached expert.
    pub least: f64,
    /// Tokens of the most-reached expert.
    pub most: f64,
    /// Relative standard error of the least-reached expert's load, `1 / sqrt(tokens)` (Poisson); absent when
    /// nothing reached it. Its channel statistics are hardly better known.
    pub least_error: Option<f64>,
    /// Tokens of each expert.
    pub counts: Vec<f64>,
    /// Gate weight of each expert, summed over tokens.
    pub gate_mass: Vec<f64>,
}

impl LayerLoad {
    fn new(layer: usize, r: &RouterStats) -> Self {
        let load = r.load();
        let floor = RARE / load.len().max(1) as f64;
        let (busiest, largest_share) = load
            .iter()
            .copied()
            .enumerate()
            .fold((0, 0.0), |best, e| if e.1 > best.1 { e } else { best });
        let least = r.counts.iter().copied().reduce(f64::min).unwrap_or(0.0);
        Self {
            layer,
            n_expert: r.counts.len(),
            n_used: r.n_used,
            tokens: r.tokens,
            load_entropy: r.load_entropy(),
            load_gini: r.load_gini(),
            unreached: r.unreached(),
            rare: (0..load.len())
                .filter(|&e| load[e] > 0.0 && load[e] < floor)
                .collect(),
            largest_share,
            busiest,
            least,
            most: r.counts.iter().copied().fold(0.0, f64::max),
            least_error: (least > 0.0).then(|| 1.0 / least.sqrt()),
            counts: r.counts.clone(),
            gate_mass: r.gate_mass.clone(),
        }
    }
}

/// The load of every layer with a router.
pub fn layer_loads(analysis: &Analysis) -> Vec<LayerLoad> {
    let layers = analysis.routers.iter();
    layers.map(|(l, r)| LayerLoad::new(*l, r)).collect()
}

/// Divergence of each pair of domains, `[n_domain][n_domain]`: the Jensen-Shannon divergence of their loads in
/// bits (0: experts are used alike, 1: none is shared), mean over the layers that both know.
pub fn domain_divergence(domains: &[Domain]) -> Vec<Vec<f64>> {
    let between = |a: &Domain, b: &Domain| {
        let shared: Vec<f64> = a
            .routers
            .iter()
            .filter_map(|(l, r)| {
                let other = b.routers.get(l)?;
                (r.counts.len() == other.counts.len()).then(|| r.divergence(other))
            })
            .collect();
        shared.iter().sum::<f64>() / shared.len().max(1) as f64 / std::f64::consts::LN_2
    };
    domains
        .iter()
        .map(|a| domains.iter().map(|b| between(a, b)).collect())
        .collect()
}

/// An expert that a domain uses more, or less, than the domains do on average.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mover {
    /// Layer number.
    pub layer: usize,
    /// Expert.
    pub expert: usize,
    /// Its share of the layer's routed tokens in the domain, 0 to 1.
    pub share: f64,
    /// The mean of the domains' shares.
    pub mean: f64,
}

/// For each domain the `n` experts whose share differs most from the mean of the domains, the largest
/// difference first. Nothing with fewer than two domains.
pub fn domain_movers(domains: &[Domain], n: usize) -> Vec<Vec<Mover>> {
    if domains.len() < 2 {
        return vec![Vec::new(); domains.len()];
    }
    let shares = |d: &Domain, layer: &usize| d.routers.get(layer).map(RouterStats::load);
    let mut movers: Vec<Vec<Mover>> = vec![Vec::new(); domains.len()];
    let layers: std::collections::BTreeSet<usize> = domains
        .iter()
        .flat_map(|d| d.routers.keys().copied())
        .collect();
    for layer in layers {
        let of_domains: Vec<Option<Vec<f64>>> = domains.iter().map(|d| shares(d, &layer)).collect();
        let known: Vec<&Vec<f64>> = of_domains.iter().flatten().collect();
        let mean = |e: usize| {
            known.iter().filter_map(|s| s.get(e)).sum::<f64>() / known.len().max(1) as f64
        };
        for (of_domain, found) in of_domains.iter().zip(&mut movers) {
            for (expert, &share) in of_domain.iter().flatten().enumerate() {
                found.push(Mover {
                    layer,
                    expert,
                    share,
                    mean: mean(expert),
                });
            }
        }
    }
    for found in &mut movers {
        let moved = |m: &Mover| (m.share - m.mean).abs();
        found.sort_by(|a, b| {
            moved(b)
                .total_cmp(&moved(a))
                .then((a.layer, a.expert).cmp(&(b.layer, b.expert)))
        });
        found.retain(|m| moved(m) > 0.0);
        found.truncate(n);
    }
    movers
}

/// Two experts that tokens are sent to together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bond {
    /// The experts, the lower number first.
    pub experts: [usize; 2],
    /// Tokens sent to both.
    pub tokens: f64,
    /// That number over what independent choices would give, `n_ab T / (n_a n_b)`.
    pub lift: f64,
}

/// The `n` pairs with the largest lift above 1 among those that chance alone would bring together often enough
/// to be judged; `tokens` are those that the layer routed.
pub fn strongest_bonds(together: &Coactivation, tokens: f64, n: usize) -> Vec<Bond> {
    let k = together.n_expert;
    let at = |a: usize, b: usize| together.counts.get(a * k + b).copied().unwrap_or(0.0);
    let mut bonds = Vec::new();
    for a in 0..k {
        for b in a + 1..k {
            let expected = at(a, a) * at(b, b) / tokens;
            let lift = at(a, b) / expected;
            if expected >= LEAST_EXPECTED && lift > 1.0 {
                bonds.push(Bond {
                    experts: [a, b],
                    tokens: at(a, b),
                    lift,
                });
            }
        }
    }
    bonds.sort_by(|p, q| q.lift.total_cmp(&p.lift).then(p.experts.cmp(&q.experts)));
    bonds.truncate(n);
    bonds
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn router(counts: &[f64]) -> RouterStats {
        let mut r = RouterStats::new(counts.len(), 1);
        r.tokens = counts.iter().sum();
        r.counts = counts.to_vec();
        r
    }

    fn domain(name: &str, layers: &[&[f64]]) -> Domain {
        Domain {
            name: name.into(),
            routers: layers.iter().map(|c| router(c)).enumerate().collect(),
            ..Domain::default()
        }
    }

    #[test]
    fn rare_experts_are_those_far_below_their_share() {
        // The uniform share is 250 of 1000; an eighth of it 31.25.
        let analysis = Analysis {
            routers: BTreeMap::from([(3, router(&[0.0, 31.0, 32.0, 937.0]))]),
            ..Analysis::default()
        };
        let loads = layer_loads(&analysis);
        let l = &loads[0];
        assert_eq!((l.layer, l.n_expert, l.busiest), (3, 4, 3));
        assert_eq!((&l.unreached[..], &l.rare[..]), (&[0][..], &[1][..]));
        assert_eq!((l.least, l.least_error), (0.0, None));
        assert!((l.largest_share - 0.937).abs() < 1e-12);
        let even = LayerLoad::new(0, &router(&[400.0, 400.0]));
        assert!(even.rare.is_empty());
        assert!((even.least_error.unwrap() - 0.05).abs() < 1e-12);
    }

    #[test]
    fn divergence_is_the_mean_over_layers_in_bits() {
        let domains = [
            domain("a", &[&[1.0, 0.0], &[1.0, 1.0]]),
            domain("b", &[&[0.0, 5.0], &[2.0, 2.0]]),
        ];
        let d = domain_divergence(&domains);
        assert!((d[0][1] - 0.5).abs() < 1e-12 && d[0][1] == d[1][0]);
        assert_eq!((d[0][0], d[1][1]), (0.0, 0.0));
    }

    #[test]
    fn movers_are_those_that_differ_from_the_mean() {
        let domains = [
            domain("a", &[&[5.0, 5.0], &[9.0, 1.0]]),
            domain("b", &[&[5.0, 5.0], &[1.0, 9.0]]),
        ];
        let movers = domain_movers(&domains, 1);
        let top = &movers[0][0];
        assert_eq!((top.layer, top.expert), (1, 0));
        assert!((top.share - 0.9).abs() < 1e-12 && (top.mean - 0.5).abs() < 1e-12);
        // The layer in which both are alike gives none.
        assert_eq!(domain_movers(&domains, 9)[0].len(), 2);
        assert!(domain_movers(&domains[..1], 3)[0].is_empty());
    }

    #[test]
    fn bonds_need_enough_tokens() {
        let mut together = Coactivation::new(4);
        for _ in 0..50 {
            together.add(&[0, 1]);
            together.add(&[2, 3]);
        }
        for _ in 0..10 {
            together.add(&[0, 2]);
        }
        let bonds = strongest_bonds(&together, 110.0, 3);
        assert_eq!(bonds[0].experts, [0, 1]);
        assert!((bonds[0].lift - 50.0 * 110.0 / (60.0 * 50.0)).abs() < 1e-12);
        assert_eq!(bonds.len(), 2);
        // The same bonds of a few tokens say nothing.
        let mut few = Coactivation::new(2);
        few.add(&[0, 1]);
        assert!(strongest_bonds(&few, 1.0, 3).is_empty());
        assert!(strongest_bonds(&few, 0.0, 3).is_empty());
    }
}
