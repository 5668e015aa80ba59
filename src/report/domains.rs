//! Which domains use which experts.

use std::fmt::Write as _;

use super::colour::{hex, ink, viridis};
use super::data::{DomainShift, Grid};
use super::experts::at;
use super::format::fixed;
use super::heatmap::{Cell, paths};
use super::html::{escape, section};
use super::table::{Table, number, text};

/// Steps of the diverging scale, half a doubling each: from a quarter of the mean to four times it.
pub(super) const STEPS: usize = 9;
/// Cells drawn for all domains together; what lies beyond would make the file large.
const CELL_BUDGET: usize = 120_000;

/// The section.
pub(super) fn render(d: &DomainShift) -> String {
    let mut body = String::new();
    if !d.names.is_empty() && !d.divergence.is_empty() {
        body.push_str(&matrix(d));
    }
    body.push_str(&maps(d));
    if body.is_empty() {
        return body;
    }
    section(
        "domains",
        "Domain shift",
        "How differently two kinds of text use the experts, as Jensen-Shannon divergence in bits: 0 is the same \
         use, 1 is no expert in common. Calibration text should cover domains that stand apart.",
        &body,
    )
}

fn matrix(d: &DomainShift) -> String {
    let n = d.names.len();
    let value = |r: usize, c: usize| {
        d.divergence
            .get(r)
            .and_then(|row| row.get(c))
            .copied()
            .unwrap_or(f64::NAN)
    };
    let pairs = || {
        (0..n)
            .flat_map(|r| (0..n).map(move |c| (r, c)))
            .filter(|(r, c)| r != c)
    };
    let max = pairs()
        .map(|(r, c)| value(r, c))
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    let mut s = String::new();
    let extreme = |better: fn(f64, f64) -> bool| {
        pairs()
            .filter(|(r, c)| r < c && value(*r, *c).is_finite())
            .fold(None, |best: Option<(usize, usize)>, p| match best {
                Some(b) if !better(value(p.0, p.1), value(b.0, b.1)) => Some(b),
                _ => Some(p),
            })
    };
    if let (Some(far), Some(near)) = (extreme(|a, b| a > b), extreme(|a, b| a < b)) {
        let _ = write!(
            s,
            "<p class=\"finding\">Furthest apart: {} and {} ({}).",
            escape(&d.names[far.0]),
            escape(&d.names[far.1]),
            fixed(value(far.0, far.1), 3)
        );
        if near != far {
            let _ = write!(
                s,
                " Closest: {} and {} ({}).",
                escape(&d.names[near.0]),
                escape(&d.names[near.1]),
                fixed(value(near.0, near.1), 3)
            );
        }
        s.push_str("</p>\n");
    }
    let mut head = vec![(String::from("Domain"), false)];
    head.extend(
        d.names
            .iter()
            .map(|n| (format!("<span>{}</span>", escape(n)), true)),
    );
    let mut table = Table::new("Divergence of domains, bits", "matrix", head);
    for (r, name) in d.names.iter().enumerate() {
        let mut cells = vec![text(name)];
        for c in 0..n {
            let v = value(r, c);
            cells.push(if r == c || !v.is_finite() {
                number(f64::NAN, "·".into())
            } else {
                let colour = viridis(if max > 0.0 { v / max } else { 0.0 });
                number(v, fixed(v, 2)).coloured(&hex(colour), ink(colour))
            });
        }
        table.row(cells);
    }
    s.push_str(&table.finish());
    s
}

/// A small map for each domain: its use of each expert against the mean of the domains.
fn maps(d: &DomainShift) -> String {
    let rows = d.per_domain.iter().map(|p| p.1.len()).max().unwrap_or(0);
    let cols = d
        .per_domain
        .iter()
        .flat_map(|p| &p.1)
        .map(Vec::len)
        .max()
        .unwrap_or(0);
    if d.per_domain.len() < 2 || rows == 0 || cols == 0 {
        return String::new();
    }
    let mean = mean_grid(&d.per_domain, rows, cols);
    let shown = (CELL_BUDGET / (rows * cols)).max(1).min(d.per_domain.len());
    // The most peculiar domains first: which those are is what the reader wants to know.
    let mut order: Vec<(f64, usize)> = d
        .per_domain
        .iter()
        .enumerate()
        .map(|(i, p)| (distance(&p.1, &mean, rows, cols), i))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut s = String::from(
        "<h3>Experts by domain</h3>\n<p>Use of each expert by a domain, against the mean of the domains; rows are layers, \
         columns experts. The domains that differ most come first.</p>\n<div class=\"legends\">",
    );
    for (i, label) in [
        (0, "a quarter or less"),
        (2, "half"),
        (4, "as the mean"),
        (6, "double"),
        (8, "four times or more"),
    ] {
        let _ = write!(
            s,
            "<span class=\"key\"><svg class=\"cells swatch framed\" viewBox=\"0 0 1 1\" width=\"14\" height=\"14\" aria-hidden=\"true\">{}</svg> {label}</span>",
            paths(1, 1, "d", |_, _| Cell::Level(i))
        );
    }
    s.push_str("</div>\n<div class=\"maps\">\n");
    let height = (rows * 5).clamp(60, 200);
    for (_, i) in order.iter().take(shown) {
        let (name, grid) = &d.per_domain[*i];
        let cells = paths(rows, cols, "d", |r, c| {
            step(at(grid, r, c), at(&mean, r, c))
        });
        let _ = writeln!(
            s,
            "<figure><figcaption>{0}</figcaption><svg class=\"cells framed\" viewBox=\"0 0 {cols} {rows}\" preserveAspectRatio=\"none\" \
             width=\"100%\" height=\"{height}\" role=\"img\" aria-labelledby=\"map-{i}\"><title id=\"map-{i}\">Experts used by {0}</title>\
             <desc>Use of each expert against the mean of the domains</desc>{cells}</svg></figure>",
            escape(name)
        );
    }
    s.push_str("</div>\n");
    if shown < d.per_domain.len() {
        let _ = writeln!(
            s,
            "<p class=\"note\">{shown} of {} domains are drawn, to keep this file small.</p>",
            d.per_domain.len()
        );
    }
    s
}

fn mean_grid(domains: &[(String, Grid)], rows: usize, cols: usize) -> Grid {
    let mean = |r: usize, c: usize| {
        let (mut sum, mut n) = (0.0, 0.0);
        for (_, grid) in domains {
            let v = at(grid, r, c);
            if v.is_finite() {
                sum += v;
                n += 1.0;
            }
        }
        sum / n
    };
    (0..rows)
        .map(|r| (0..cols).map(|c| mean(r, c)).collect())
        .collect()
}

fn distance(grid: &[Vec<f64>], mean: &[Vec<f64>], rows: usize, cols: usize) -> f64 {
    (0..rows)
        .flat_map(|r| (0..cols).map(move |c| (r, c)))
        .map(|(r, c)| (at(grid, r, c) - at(mean, r, c)).abs())
        .filter(|v| v.is_finite())
        .sum()
}

fn step(value: f64, mean: f64) -> Cell {
    if !(value.is_finite() && mean.is_finite()) {
        return Cell::Missing;
    }
    let middle = (STEPS / 2) as f64;
    if mean <= 0.0 {
        return Cell::Level(STEPS / 2);
    }
    // Two steps for each doubling.
    let steps = ((value / mean).max(0.0).log2() * 2.0)
        .round()
        .clamp(-middle, middle);
    Cell::Level((steps + middle) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_half_doublings() {
        assert_eq!(step(0.1, 0.1), Cell::Level(4));
        assert_eq!(step(0.2, 0.1), Cell::Level(6));
        assert_eq!(step(0.05, 0.1), Cell::Level(2));
        assert_eq!(step(0.0, 0.1), Cell::Level(0));
        assert_eq!(step(9.0, 0.1), Cell::Level(8));
        assert_eq!(step(0.0, 0.0), Cell::Level(4));
        assert_eq!(step(f64::NAN, 0.1), Cell::Missing);
    }
}
