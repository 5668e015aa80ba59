//! Axes: from values to places between 0 and 1, and the ticks between them.

/// A linear or logarithmic axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// Covers the finite values with a margin of `pad` of their span on both sides.
    pub(super) fn linear(values: impl IntoIterator<Item = f64>, pad: f64) -> Self {
        let (low, high) = span(values.into_iter().filter(|v| v.is_finite())).unwrap_or((0.0, 1.0));
        let width = if high > low {
            high - low
        } else {
            low.abs().max(1e-300) * 0.2
        };
        Self {
            low: low - width * pad,
            high: high + width * pad,
            log: false,
        }
    }

    /// Covers the positive finite values with a margin, logarithmically.
    pub(super) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|v| v.is_finite() && *v > 0.0);
        let (low, high) = span(positive).unwrap_or((0.1, 1.0));
        // A narrow range still gets a tick or two.
        let pad = (high / low).powf(0.06).max(1.15);
        Self {
            low: (low / pad).max(f64::MIN_POSITIVE),
            high: (high * pad).min(f64::MAX / 10.0),
            log: true,
        }
    }

    /// Place of a value, 0 at the low end and 1 at the high one, clamped to them.
    pub(super) fn at(&self, value: f64) -> f64 {
        let t = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if t.is_finite() {
            t.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// Round values on the axis, about `count` of them.
    pub(super) fn ticks(&self, count: usize) -> Vec<f64> {
        if self.log {
            self.log_ticks(count)
        } else {
            linear_ticks(self.low, self.high, count)
        }
    }

    fn log_ticks(&self, count: usize) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let with = |steps: &[f64]| -> Vec<f64> {
            decades
                .clone()
                .flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)))
                .filter(|v| *v >= self.low && *v <= self.high)
                .collect()
        };
        for steps in [
            &[1.0, 2.0, 3.0, 5.0, 7.0][..],
            &[1.0, 2.0, 5.0],
            &[1.0, 3.0],
        ] {
            let ticks = with(steps);
            if ticks.len() <= count + 2 && ticks.len() >= 2 {
                return ticks;
            }
        }
        let ticks = with(&[1.0]);
        if ticks.len() >= 2 {
            let every = ticks.len().div_ceil(count.max(1));
            return ticks.into_iter().step_by(every).collect();
        }
        linear_ticks(self.low, self.high, count)
    }
}

fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count.max(1) as f64;
    if !(raw.is_finite() && raw > 0.0) {
        return Vec::new();
    }
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|s| s * power)
        .find(|s| *s >= raw * 0.999)
        .unwrap_or(raw);
    let first = (low / step).ceil();
    (0..=2 * count)
        .map(|i| (first + i as f64) * step)
        .take_while(|v| *v <= high + step * 1e-9)
        .map(|v| if v.abs() < step * 1e-9 { 0.0 } else { v })
        .collect()
}

fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |s, v| match s {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_on_the_axis() {
        let axis = Axis::linear([5.9, 17.6], 0.0);
        assert_eq!(axis.ticks(5), [7.5, 10.0, 12.5, 15.0, 17.5]);
    }

    #[test]
    fn log_axis_spaces_factors_evenly() {
        let axis = Axis::log([0.001, 0.1]);
        let step = axis.at(0.01) - axis.at(0.001);
        assert!((axis.at(0.1) - axis.at(0.01) - step).abs() < 1e-12);
        let ticks = axis.ticks(6);
        assert!(
            ticks.contains(&0.01) && ticks.len() >= 3 && ticks.len() <= 8,
            "{ticks:?}"
        );
    }

    #[test]
    fn degenerate_ranges_stay_finite() {
        for axis in [
            Axis::linear([], 0.1),
            Axis::linear([0.0], 0.1),
            Axis::linear([7.0, f64::NAN], 0.1),
            Axis::log([]),
            Axis::log([-1.0, 0.0, f64::INFINITY]),
            Axis::log([1e-300, 1e300]),
            Axis::log([0.5]),
        ] {
            assert!(axis.at(0.5).is_finite());
            assert!(axis.ticks(6).len() < 30, "{axis:?}");
            assert!(axis.ticks(6).iter().all(|t| t.is_finite()));
        }
    }
}
