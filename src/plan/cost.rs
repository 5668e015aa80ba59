//! From a tensor's relative output error to the damage it does to the model's output.

use std::collections::BTreeMap;

use crate::analysis::{Analysis, JointProbe};
use crate::model::{ModelView, Role, TensorView};

/// A relative error such as types of three to four bits have: where [`prior`] was read off.
const PRIOR_ERROR: f64 = 0.03;
/// How the divergence grows with the error where it was measured at one error or not at all. Small errors do
/// more than in proportion, because they already send some tokens to other experts: between Q5_K and IQ2_XS
/// the shipped model's tensors show exponents of 0.5 to 0.8.
const EXPONENT: f64 = 0.7;

/// Expected divergence, in nats a token, of a tensor of this role at [`PRIOR_ERROR`], where nothing was measured
/// on the model. Read off the shipped model (geometric means over its layers) for the roles that it has, and
/// set to those of the nearest role for the others; the first layers' are larger, as there.
fn prior(tensor: &TensorView, tied: bool) -> f64 {
    use Role::*;
    let slope = match tensor.role {
        // Its error is the logits' own.
        Output => 1.3,
        TokenEmbedding if tied => 1.3,
        TokenEmbedding => 0.1,
        ExpertDown | SharedExpertDown | DenseDown => 0.043,
        ExpertGate | ExpertGateUp | SharedExpertGate | DenseGate => 0.027,
        ExpertUp | SharedExpertUp | DenseUp => 0.016,
        AttentionK => 0.026,
        AttentionQ => 0.023,
        AttentionV | AttentionQkv => 0.04,
        _ => 0.04,
    };
    let early = if tensor.layer == Some(0) { 3.0 } else { 1.0 };
    slope * early * PRIOR_ERROR
}

/// [`CostModel::joint`]'s exponent where it was not measured: what the shipped model shows.
const JOINT: f64 = 0.75;
/// Exponents outside are taken as noise of the measurement.
const JOINT_RANGE: (f64, f64) = (0.5, 1.0);

/// Predicts the mean KL divergence (nats per token) that a type costs for a tensor.
///
/// What a tensor's error costs is measured: a probe gives the divergence of one tensor in one type. Between the probes of a tensor the
/// divergence is interpolated against the error, both logarithmic; outside them the proportion of the nearest
/// probe holds, or, where there is only one, a power of the error. A tensor without a probe costs what tensors of
/// its class in the nearest measured layers would; where no layer of its class was measured, a prior by role,
/// scaled to the tensors that were.
pub struct CostModel {
    /// By tensor: (relative error, divergence) of its probes, by error.
    curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// Tensors without a probe of their own.
    borrowed: BTreeMap<String, Borrowed>,
    /// How far effects add up, see [`CostModel::joint`].
    exponent: f64,
}

/// How a tensor without a probe is judged.
enum Borrowed {
    /// By measured tensors and their weights, which add up to 1.
    Peers(Vec<(String, f64)>),
    /// By its divergence at [`PRIOR_ERROR`].
    Prior(f64),
}

impl CostModel {
    /// From measured effects and errors.
    pub fn new(view: &ModelView, analysis: &Analysis) -> Self {
        let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for p in &analysis.probes {
            if let Some(e) = analysis
                .errors
                .relative(&p.tensor, p.ty, &analysis.traffic(&p.tensor))
                && e > 0.0
                && p.kld > 0.0
            {
                curves.entry(p.tensor.clone()).or_default().push((e, p.kld));
            }
        }
        for curve in curves.values_mut() {
            curve.sort_by(|a, b| a.0.total_cmp(&b.0));
            // More error never costs less: what contradicts it is noise of the measurement.
            let mut floor = 0.0f64;
            for point in curve.iter_mut() {
                floor = floor.max(point.1);
                point.1 = floor;
            }
        }
        let tied = view.tensors.iter().all(|t| t.role != Role::Output);
        // How the model's measured tensors compare with the prior.
        let ratios: Vec<f64> = view
            .tensors
            .iter()
            .filter_map(|t| {
                let measured = interpolate(curves.get(&t.name)?, PRIOR_ERROR);
                Some((measured / prior(t, tied)).ln())
            })
            .collect();
        let scale = (ratios.iter().sum::<f64>() / ratios.len().max(1) as f64).exp();
        let borrowed = view
            .tensors
            .iter()
            .filter(|t| !curves.contains_key(&t.name))
            .map(|t| {
                let peers = peers(view, t, &curves);
                let judged = if peers.is_empty() {
                    Borrowed::Prior(prior(t, tied) * scale)
                } else {
                    Borrowed::Peers(peers)
                };
                (t.name.clone(), judged)
            })
            .collect();
        let mut model = Self {
            curves,
            borrowed,
            exponent: 1.0,
        };
        if !analysis.independent {
            model.exponent = model.measured_exponent(analysis).unwrap_or(JOINT);
        }
        model
    }

    /// The exponent that makes of the single effects of each group that was measured what the group did, the mean over
    /// the groups.
    fn measured_exponent(&self, analysis: &Analysis) -> Option<f64> {
        let of = |group: &JointProbe| -> Option<f64> {
            let single = |name: &String| {
                let traffic = analysis.traffic(name);
                let error = analysis.errors.relative(name, group.ty, &traffic)?;
                Some(self.cost(name, error))
            };
            let singles: Vec<f64> = group.tensors.iter().map(single).collect::<Option<_>>()?;
            exponent(&singles, group.kld)
        };
        let found: Vec<f64> = analysis.joint.iter().filter_map(of).collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
    }

    /// What an effect adds to the sum in [`CostModel::joint`]: the burden of a divergence.
    pub fn burden(&self, divergence: f64) -> f64 {
        divergence.max(0.0).powf(1.0 / self.exponent)
    }

    /// The divergence that burdens have together. Effects measured one tensor at a time add up to one and a half to two
    /// times what they do together, because the errors of the experts that a token meets on its way through the layers
    /// mostly send it to other experts once. Together they behave as `D = (sum of D_i^(1/p))^p`, with the `p` that
    /// quantizing all experts at once shows.
    pub fn joint(&self, burden: f64) -> f64 {
        burden.max(0.0).powf(self.exponent)
    }

    /// Expected divergence of `tensor` at relative error `error`.
    pub fn cost(&self, tensor: &str, error: f64) -> f64 {
        if error <= 0.0 {
            return 0.0;
        }
        if let Some(curve) = self.curves.get(tensor) {
            return interpolate(curve, error);
        }
        match self.borrowed.get(tensor) {
            Some(Borrowed::Peers(peers)) => peers
                .iter()
                .filter_map(|(name, w)| Some(interpolate(self.curves.get(name)?, error).ln() * w))
                .sum::<f64>()
                .exp(),
            Some(Borrowed::Prior(at)) => power(PRIOR_ERROR, *at, error),
            None => power(PRIOR_ERROR, PRIOR_ERROR * 0.04, error),
        }
    }
}

/// The `p` for which `(sum of d^(1/p))^p` is `together`, by bisection (the sum grows with `p`); `None` where that cannot
/// be said.
fn exponent(singles: &[f64], together: f64) -> Option<f64> {
    let positive: Vec<f64> = singles.iter().copied().filter(|d| *d > 0.0).collect();
    if positive.len() < 2 || !(together.is_finite() && together > 0.0) {
        return None;
    }
    let sum = |p: f64| {
        positive
            .iter()
            .map(|d| d.powf(1.0 / p))
            .sum::<f64>()
            .powf(p)
    };
    let (mut low, mut high) = JOINT_RANGE;
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if sum(middle) < together {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(low)
}

/// Divergence at `error` when it is `divergence` at error `at`.
fn power(at: f64, divergence: f64, error: f64) -> f64 {
    divergence * (error / at).powf(EXPONENT)
}

fn interpolate(curve: &[(f64, f64)], error: f64) -> f64 {
    let (first, last) = (curve[0], curve[curve.len() - 1]);
    if curve.len() == 1 {
        return power(first.0, first.1, error);
    }
    if error <= first.0 {
        return first.1 * error / first.0;
    }
    if error >= last.0 {
        return last.1 * error / last.0;
    }
    let right = curve.partition_point(|p| p.0 < error);
    let (a, b) = (curve[right - 1], curve[right]);
    if b.0 <= a.0 {
        return b.1;
    }
    let t = (error.ln() - a.0.ln()) / (b.0.ln() - a.0.ln());
    (a.1.ln() + t * (b.1.ln() - a.1.ln())).exp()
}

/// The nearest measured layers of a tensor's class, below and above, weighted by their nearness; empty where
/// there is none.
fn peers(
    view: &ModelView,
    tensor: &TensorView,
    curves: &BTreeMap<String, Vec<(f64, f64)>>,
) -> Vec<(String, f64)> {
    let Some(layer) = tensor.layer else {
        return Vec::new();
    };
    let mut measured: Vec<(usize, &str)> = view
        .tensors
        .iter()
        .filter(|t| t.class == tensor.class && curves.contains_key(&t.name))
        .filter_map(|t| Some((t.layer?, t.name.as_str())))
        .collect();
    measured.sort();
    let right = measured.partition_point(|p| p.0 < layer);
    match (
        right.checked_sub(1).map(|i| measured[i]),
        measured.get(right),
    ) {
        (Some(a), Some(b)) => {
            let t = (layer - a.0) as f64 / (b.0 - a.0).max(1) as f64;
            vec![(a.1.to_owned(), 1.0 - t), (b.1.to_owned(), t)]
        }
        (Some(a), None) => vec![(a.1.to_owned(), 1.0)],
        (None, Some(b)) => vec![(b.1.to_owned(), 1.0)],
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_explains_what_effects_do_together() {
        let singles = [0.004, 0.002, 0.001, 0.003, 0.0005];
        for p in [0.55f64, 0.75, 0.9] {
            let together = singles
                .iter()
                .map(|d: &f64| d.powf(1.0 / p))
                .sum::<f64>()
                .powf(p);
            assert!((exponent(&singles, together).unwrap() - p).abs() < 1e-6);
        }
        // More than the sum, less than any exponent says, and nothing to say.
        assert!(exponent(&singles, 1.0).unwrap() > 0.999_999);
        assert!(exponent(&singles, 1e-9).unwrap() < 0.500_001);
        assert_eq!(exponent(&[0.1], 0.1), None);
        assert_eq!(exponent(&singles, f64::NAN), None);
    }

    #[test]
    fn divergence_is_proportional_outside_and_logarithmic_between() {
        let curve = [(0.01, 0.001), (0.1, 0.02)];
        assert!((interpolate(&curve, 0.001) - 0.0001).abs() < 1e-12);
        assert!((interpolate(&curve, 0.2) - 0.04).abs() < 1e-12);
        let mid = interpolate(&curve, 0.1f64.sqrt() * 0.1);
        assert!((mid - (0.001f64 * 0.02).sqrt()).abs() < 1e-9, "{mid}");
        let one = [(0.01, 0.001)];
        assert!((interpolate(&one, 0.1) / 0.001 - 10f64.powf(EXPONENT)).abs() < 1e-9);
        let mut last = 0.0;
        for i in 1..200 {
            let c = interpolate(&curve, f64::from(i) * 0.001);
            assert!(c > last);
            last = c;
        }
    }
}
