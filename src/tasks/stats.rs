//! Statistics of right and wrong answers.

/// Standard normal quantile of 97.5 %.
const Z: f64 = 1.959_963_984_540_054;

/// 95 % confidence interval of a proportion `successes / n` (Wilson 1927, without continuity correction).
/// `(0, 1)` when `n` is 0.
pub fn wilson_interval(successes: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (s, n) = (successes.min(n) as f64, n as f64);
    let p = s / n;
    let z2 = Z * Z;
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // At 0 and n the bound is the proportion itself; rounding must not move it.
    let low = if s == 0.0 { 0.0 } else { middle - half };
    let high = if s == n { 1.0 } else { middle + half };
    (low.max(0.0), high.min(1.0))
}

/// Two-sided p-value of McNemar's exact test: of `only_a + only_b` tasks that one model alone got right,
/// are more one model's than a fair coin would give? 1 when there are none.
pub fn mcnemar_exact(only_a: u64, only_b: u64) -> f64 {
    let n = only_a + only_b;
    let fewer = only_a.min(only_b);
    // Binomial probabilities from k = 0 on: the logarithm of the latest, the largest so far, and the sum in
    // units of it.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 1.0;
    for k in 0..fewer {
        let ratio = (n - k) as f64 / (k + 1) as f64;
        log_term += ratio.ln();
        tail = tail / ratio + 1.0;
    }
    (2.0 * tail * log_term.exp()).min(1.0)
}

/// 95 % confidence interval of the difference of two proportions measured on the same `n` tasks,
/// `(only_a - only_b) / n`: Tango's score interval (Statistics in Medicine 17, 1998), the differences that
/// the score test, which McNemar's is a case of, does not reject. `(-1, 1)` when `n` is 0.
pub fn paired_interval(only_a: u64, only_b: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (-1.0, 1.0);
    }
    let (a, b, n) = (only_a as f64, only_b as f64, n as f64);
    let estimate = (a - b) / n;
    // The statistic falls as the supposed difference grows, so both bounds are found by halving.
    let bound = |mut low: f64, mut high: f64, level: f64| {
        for _ in 0..200 {
            let middle = f64::midpoint(low, high);
            if score_statistic(a, b, n, middle) > level {
                low = middle;
            } else {
                high = middle;
            }
        }
        f64::midpoint(low, high)
    };
    (bound(-1.0, estimate, Z), bound(estimate, 1.0, -Z))
}

/// Tango's statistic of the hypothesis that the difference is `delta`, asymptotically standard normal.
fn score_statistic(a: f64, b: f64, n: f64, delta: f64) -> f64 {
    let numerator = a - b - n * delta;
    // Maximum-likelihood estimate of the probability that only the second is right, under the hypothesis.
    let q = {
        let linear = -a - b + (2.0 * n - a + b) * delta;
        let constant = -b * delta * (1.0 - delta);
        let root = (linear * linear - 8.0 * n * constant).max(0.0).sqrt();
        (root - linear) / (4.0 * n)
    };
    let variance = n * (2.0 * q + delta * (1.0 - delta));
    if variance > 0.0 {
        numerator / variance.sqrt()
    } else if numerator == 0.0 {
        0.0
    } else {
        f64::INFINITY.copysign(numerator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: (f64, f64), expected: (f64, f64), within: f64) {
        assert!(
            (got.0 - expected.0).abs() <= within && (got.1 - expected.1).abs() <= within,
            "{got:?}, expected {expected:?}"
        );
    }

    /// Examples of Newcombe, Statistics in Medicine 17 (1998) 857-872, table I.
    #[test]
    fn wilson_intervals_are_the_published_ones() {
        close(wilson_interval(81, 263), (0.2553, 0.3662), 5e-5);
        close(wilson_interval(15, 148), (0.0624, 0.1605), 5e-5);
        close(wilson_interval(0, 20), (0.0, 0.1611), 5e-5);
        close(wilson_interval(1, 29), (0.0061, 0.1718), 5e-5);
        assert_eq!(wilson_interval(0, 20).0, 0.0);
        assert_eq!(wilson_interval(20, 20).1, 1.0);
        assert_eq!(wilson_interval(0, 0), (0.0, 1.0));
    }

    #[test]
    fn mcnemar_is_the_binomial_test() {
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        assert_eq!(mcnemar_exact(7, 7), 1.0);
        assert_eq!(mcnemar_exact(1, 0), 1.0);
        // 2 (1 + 6) / 2^6 and 2 (1 + 10 + 45) / 2^10.
        assert!((mcnemar_exact(1, 5) - 0.21875).abs() < 1e-14);
        assert!((mcnemar_exact(8, 2) - 0.109375).abs() < 1e-14);
        assert_eq!(mcnemar_exact(3, 11), mcnemar_exact(11, 3));
        // The sum of binomial coefficients in whole numbers gives 4.434449263755176e-06.
        assert!((mcnemar_exact(121, 59) / 4.434_449_263_755_176e-6 - 1.0).abs() < 1e-10);
        // Large numbers neither vanish nor overflow, and agree with the corrected normal
        // approximation.
        let large = mcnemar_exact(500_000, 501_000);
        assert!((large - 0.318_04).abs() < 1e-4, "{large}");
    }

    #[test]
    fn paired_intervals_are_score_intervals() {
        // Without disagreement the bounds are +-z^2 / (n + z^2).
        let bound = Z * Z / (54.0 + Z * Z);
        close(paired_interval(0, 0, 54), (-bound, bound), 1e-12);
        // Published for 36/14/0/0: Newcombe, Statistics in Medicine 17 (1998) 2635-2650, table III, method 8.
        close(paired_interval(14, 0, 50), (0.1747, 0.4167), 1e-4);
        for (a, b, n) in [(12, 2, 50), (1, 0, 44), (9, 3, 1000), (30, 44, 200)] {
            let (low, high) = paired_interval(a, b, n);
            let at = |d| score_statistic(a as f64, b as f64, n as f64, d);
            assert!((at(low) - Z).abs() < 1e-6, "{a} {b} {n}");
            assert!((at(high) + Z).abs() < 1e-6, "{a} {b} {n}");
            let mirrored = paired_interval(b, a, n);
            close(mirrored, (-high, -low), 1e-9);
            // At no difference the statistic is McNemar's.
            let mcnemar = (a as f64 - b as f64) / ((a + b) as f64).sqrt();
            assert!((at(0.0) - mcnemar).abs() < 1e-12);
        }
        close(paired_interval(54, 0, 54), (0.867_172_8, 1.0), 1e-6);
        assert_eq!(paired_interval(0, 0, 0), (-1.0, 1.0));
    }
}
