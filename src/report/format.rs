//! Numbers as people read them.

/// What stands for a value that was not measured.
pub(super) const MISSING: &str = "–";

/// `digits` significant digits; scientific only where fixed point would be long.
pub(super) fn significant(x: f64, digits: usize) -> String {
    if !x.is_finite() {
        return MISSING.into();
    }
    if x == 0.0 {
        return "0".into();
    }
    let magnitude = x.abs().log10().floor() as i32;
    if (-4..7).contains(&magnitude) {
        let decimals = (digits as i32 - 1 - magnitude).max(0) as usize;
        minus(format!("{x:.decimals$}"))
    } else {
        minus(format!("{x:.*e}", digits.saturating_sub(1)))
    }
}

/// Fixed decimals.
pub(super) fn fixed(x: f64, decimals: usize) -> String {
    if x.is_finite() {
        minus(format!("{x:.decimals$}"))
    } else {
        MISSING.into()
    }
}

/// A tick of an axis: no trailing zeros.
pub(super) fn tick(x: f64) -> String {
    let text = significant(x, 3);
    if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        text
    }
}

/// `0.00810 ± 0.00012`: as many decimals as the error justifies.
pub(super) fn with_error(value: f64, error: f64) -> String {
    if !value.is_finite() {
        return MISSING.into();
    }
    if !(error.is_finite() && error > 0.0) {
        return significant(value, 3);
    }
    let decimals = (1 - error.log10().floor() as i32).clamp(0, 9) as usize;
    format!("{} ± {error:.decimals$}", fixed(value, decimals))
}

/// A share as per cent.
pub(super) fn percent(share: f64) -> String {
    let p = share * 100.0;
    if !p.is_finite() {
        MISSING.into()
    } else if p == 100.0 {
        "100 %".into()
    } else if p.abs() >= 10.0 {
        format!("{} %", fixed(p, 1))
    } else {
        format!("{} %", tick(significant_value(p, 3)))
    }
}

/// A change as per cent with its sign.
pub(super) fn change(ratio_minus_one: f64) -> String {
    let p = ratio_minus_one * 100.0;
    if !p.is_finite() {
        return MISSING.into();
    }
    let text = fixed(p.abs(), if p.abs() < 9.95 { 1 } else { 0 });
    match text.as_str() {
        "0.0" => "±0 %".into(),
        _ if p < 0.0 => format!("−{text} %"),
        _ => format!("+{text} %"),
    }
}

/// `21.1 million`, `30.5 billion`.
pub(super) fn parameters(n: u64) -> String {
    let x = n as f64;
    if x >= 1e12 {
        format!("{} trillion", significant(x / 1e12, 3))
    } else if x >= 1e9 {
        format!("{} billion", significant(x / 1e9, 3))
    } else if x >= 1e6 {
        format!("{} million", significant(x / 1e6, 3))
    } else {
        n.to_string()
    }
}

/// `8.4 s`, `3 min 20 s`, `2 h 5 min`.
pub(super) fn seconds(s: f64) -> String {
    if !(s.is_finite() && s >= 0.0) {
        MISSING.into()
    } else if s < 59.95 {
        format!("{s:.1} s")
    } else if s < 3599.5 {
        let whole = s.round() as u64;
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        let minutes = (s / 60.0).round() as u64;
        format!("{} h {} min", minutes / 60, minutes % 60)
    }
}

/// A number for JSON in few bytes: three digits and an exponent; `null` when not finite.
pub(super) fn json_number(x: f64) -> String {
    if !x.is_finite() {
        return "null".into();
    }
    if x == 0.0 {
        return "0".into();
    }
    let exponent = x.abs().log10().floor() as i32 - 2;
    let mantissa = significant_mantissa(x, exponent);
    let short = format!("{mantissa}e{exponent}");
    let plain = format!("{}", mantissa as f64 * 10f64.powi(exponent));
    if (-9..9).contains(&exponent) && plain.len() <= short.len() {
        plain
    } else {
        short
    }
}

fn significant_mantissa(x: f64, exponent: i32) -> i64 {
    // In two steps: a single power of ten overflows for the smallest doubles.
    let half = exponent / 2;
    (x / 10f64.powi(half) / 10f64.powi(exponent - half)).round() as i64
}

fn significant_value(x: f64, digits: i32) -> f64 {
    format!("{x:.*e}", (digits - 1) as usize)
        .parse()
        .unwrap_or(x)
}

fn minus(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(significant(0.008_104, 3), "0.00810");
        assert_eq!(significant(1234.5, 3), "1234");
        assert_eq!(significant(1.5e-9, 2), "1.5e-9");
        assert_eq!(significant(f64::NAN, 3), MISSING);
        assert_eq!(with_error(0.008_104, 0.000_123), "0.00810 ± 0.00012");
        assert_eq!(with_error(0.25, 0.0), "0.250");
        assert_eq!(percent(0.943_21), "94.3 %");
        assert_eq!(percent(0.0625), "6.25 %");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(change(-0.183), "−18 %");
        assert_eq!(change(0.021), "+2.1 %");
        assert_eq!(parameters(21_100_000), "21.1 million");
        assert_eq!(seconds(200.0), "3 min 20 s");
        assert_eq!(seconds(59.97), "1 min 0 s");
        assert_eq!(tick(0.0500), "0.05");
        assert_eq!(tick(200.0), "200");
    }

    #[test]
    fn json_numbers_keep_three_digits() {
        for x in [
            1.0,
            0.0625,
            3.4375,
            1.234e-7,
            -9.999e5,
            5e-324,
            f64::MAX / 2.0,
        ] {
            let back: f64 = json_number(x).parse().unwrap();
            assert!((back - x).abs() <= 0.006 * x.abs(), "{x} became {back}");
        }
        assert_eq!(json_number(f64::NAN), "null");
    }
}
