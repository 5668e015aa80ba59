//! Sizes as people write them.

/// `12.3 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

/// Reads `4.2GiB`, `900 MB`, `1.5G` (binary), `123456` (bytes).
///
/// # Errors
/// Says what a size looks like.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => {
            return Err(format!(
                "'{text}' is not a size; write 4.2GiB, 900MB or a number of bytes"
            ));
        }
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * factor >= 1.0 && n * factor < 9e18 => Ok((n * factor) as u64),
        _ => Err(format!(
            "'{text}' is not a size; write 4.2GiB, 900MB or a number of bytes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        assert_eq!(parse_bytes("4.5GiB"), Ok(4_831_838_208));
        assert_eq!(parse_bytes("900 MB"), Ok(900_000_000));
        assert_eq!(parse_bytes("123456"), Ok(123_456));
        assert_eq!(parse_bytes("1k"), Ok(1024));
        for bad in ["", "x", "-1", "1.2.3G", "0", "nan", "5 parsecs"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(12_943_040), "12.34 MiB");
    }
}
