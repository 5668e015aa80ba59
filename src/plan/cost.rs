//! From a tensor's relative output error to the damage it does to the model's output.

use std::collections::BTreeMap;

use crate::analysis::Analysis;
use crate::model::{ModelView, TensorView};

/// Expected KL divergence of the model's output per unit of relative error, where nothing was measured on
/// the model: the order of magnitude seen on trained models. Only ratios between tensors matter.
const DEFAULT_SENSITIVITY: f64 = 0.1;

/// Predicts the mean KL divergence (nats per token) that a type costs for a tensor.
///
/// For small perturbations the divergence is quadratic in them (its Hessian is the Fisher information), so it
/// is proportional to the squared output error; independent errors of different tensors add up. The factor is
/// measured: a probe gives the divergence of one tensor in one type. Between the probes of a tensor the
/// divergence is interpolated against the error, both logarithmic; outside them the proportion of the nearest
/// probe holds. A tensor without a probe takes the proportion of tensors of its class in the nearest layers.
pub struct CostModel {
    /// By tensor: (relative error, divergence) of its probes, by error.
    curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// By tensor: divergence per relative error, for those without a probe of their own.
    slopes: BTreeMap<String, f64>,
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
        let slopes = view
            .tensors
            .iter()
            .filter(|t| !curves.contains_key(&t.name))
            .map(|t| (t.name.clone(), borrowed_slope(view, t, &curves)))
            .collect();
        Self { curves, slopes }
    }

    /// Expected divergence of `tensor` at relative error `error`.
    pub fn cost(&self, tensor: &str, error: f64) -> f64 {
        if error <= 0.0 {
            return 0.0;
        }
        match self.curves.get(tensor) {
            Some(curve) => interpolate(curve, error),
            None => {
                error
                    * self
                        .slopes
                        .get(tensor)
                        .copied()
                        .unwrap_or(DEFAULT_SENSITIVITY)
            }
        }
    }

    /// Whether the tensor's effect was measured.
    pub fn is_measured(&self, tensor: &str) -> bool {
        self.curves.contains_key(tensor)
    }
}

fn interpolate(curve: &[(f64, f64)], error: f64) -> f64 {
    let (first, last) = (curve[0], curve[curve.len() - 1]);
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

/// Divergence per error of a tensor that was not measured: between the nearest measured layers of its class,
/// by distance, in logarithms; the geometric mean of all measured tensors where its class has none.
fn borrowed_slope(
    view: &ModelView,
    tensor: &TensorView,
    curves: &BTreeMap<String, Vec<(f64, f64)>>,
) -> f64 {
    let slope = |curve: &[(f64, f64)]| {
        let (e, k) = curve[curve.len() / 2];
        k / e
    };
    let mut peers: Vec<(usize, f64)> = view
        .tensors
        .iter()
        .filter(|t| t.class == tensor.class)
        .filter_map(|t| Some((t.layer?, slope(curves.get(&t.name)?))))
        .collect();
    peers.sort_by_key(|p| p.0);
    if let (Some(layer), false) = (tensor.layer, peers.is_empty()) {
        let right = peers.partition_point(|p| p.0 < layer);
        if right == 0 {
            return peers[0].1;
        }
        if right == peers.len() {
            return peers[right - 1].1;
        }
        let (a, b) = (peers[right - 1], peers[right]);
        let t = (layer - a.0) as f64 / (b.0 - a.0).max(1) as f64;
        return (a.1.ln() * (1.0 - t) + b.1.ln() * t).exp();
    }
    if curves.is_empty() {
        return DEFAULT_SENSITIVITY;
    }
    (curves.values().map(|c| slope(c).ln()).sum::<f64>() / curves.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_proportional_outside_and_logarithmic_between() {
        let curve = [(0.01, 0.001), (0.1, 0.02)];
        assert!((interpolate(&curve, 0.001) - 0.0001).abs() < 1e-12);
        assert!((interpolate(&curve, 0.2) - 0.04).abs() < 1e-12);
        let mid = interpolate(&curve, 0.1f64.sqrt() * 0.1);
        assert!((mid - (0.001f64 * 0.02).sqrt()).abs() < 1e-9, "{mid}");
        let mut last = 0.0;
        for i in 1..200 {
            let c = interpolate(&curve, f64::from(i) * 0.001);
            assert!(c > last);
            last = c;
        }
    }
}
