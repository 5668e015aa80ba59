//! The plan, tensor by tensor and by role.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::data::TensorRow;
use super::format::{percent, significant};
use super::heatmap::{Cell, level};
use super::html::{counted, details, escape, section};
use super::svg;
use super::table::{Table, number, text};
use crate::units;

/// The bits in a type's name: 4 of `iq4_xs`, 16 of `bf16`. Only for ordering; 0 when the name has none.
pub(super) fn nominal_bits(ty: &str) -> f64 {
    let digits: String = ty
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .take(3)
        .collect();
    digits.parse().unwrap_or(0.0)
}

/// The types of a tensor and their bytes.
fn parts(t: &TensorRow) -> Vec<(&str, u64)> {
    if t.parts.is_empty() {
        return vec![(t.ty.as_str(), t.bytes)];
    }
    t.parts.iter().map(|(ty, n)| (ty.as_str(), *n)).collect()
}

/// The section.
pub(super) fn render(tensors: &[TensorRow]) -> String {
    if tensors.is_empty() {
        return String::new();
    }
    let mut types: Vec<&str> = tensors.iter().flat_map(parts).map(|p| p.0).collect();
    types.sort_by(|a, b| nominal_bits(a).total_cmp(&nominal_bits(b)).then(a.cmp(b)));
    types.dedup();
    let class = |ty: &str| {
        let i = types.iter().position(|t| *t == ty).unwrap_or(0);
        match level(i as f64 / types.len().saturating_sub(1).max(1) as f64) {
            Cell::Level(l) => l,
            Cell::Zero | Cell::Missing => 0,
        }
    };
    let mut roles: BTreeMap<&str, BTreeMap<usize, u64>> = BTreeMap::new();
    for t in tensors {
        for (ty, n) in parts(t) {
            let at = types.iter().position(|t| *t == ty).unwrap_or(0);
            let bytes = roles.entry(&t.role).or_default().entry(at).or_default();
            *bytes = bytes.saturating_add(n);
        }
    }
    let total = sum(tensors.iter().map(|t| t.bytes)).max(1);
    let mut body = String::from("<div class=\"legends\">");
    for ty in &types {
        let _ = write!(
            body,
            "<span class=\"key\"><span class=\"swatch b{}\"></span> {}</span>",
            class(ty),
            escape(ty)
        );
    }
    body.push_str("</div>\n<div class=\"bars\">\n");
    let mut by_size: Vec<_> = roles
        .iter()
        .map(|(r, m)| (sum(m.values().copied()), *r, m))
        .collect();
    by_size.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    for (bytes, role, by_type) in by_size {
        let parts: Vec<String> = by_type
            .iter()
            .map(|(t, n)| format!("{} {}", types[*t], percent(*n as f64 / bytes.max(1) as f64)))
            .collect();
        let _ = write!(
            body,
            "<div class=\"bar-row\"><span>{}</span><span class=\"value\">{} <small>{} of the data</small></span>\
             <svg class=\"plot stack\" width=\"100%\" height=\"16\" role=\"img\"><title>{}</title><desc>Bytes by type</desc>",
            escape(role),
            units::bytes(bytes),
            percent(bytes as f64 / total as f64),
            escape(&parts.join(", "))
        );
        let mut from = 0.0;
        for (t, n) in by_type {
            let share = *n as f64 / bytes.max(1) as f64;
            let _ = write!(
                body,
                "<rect class=\"b{}\" x=\"{}\" y=\"1\" width=\"{}\" height=\"14\"/>",
                class(types[*t]),
                svg::per_cent(from),
                svg::per_cent(share)
            );
            from += share;
        }
        body.push_str("</svg></div>\n");
    }
    body.push_str("</div>\n");
    body.push_str(&details(
        &format!("All {}", counted(tensors.len(), "tensor")),
        &table(tensors),
    ));
    section(
        "tensors",
        "Tensors",
        "The types that the plan gives each kind of tensor, as shares of that kind’s bytes; brighter means more bits.",
        &body,
    )
}

fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

fn table(tensors: &[TensorRow]) -> String {
    let mut table = Table::new(
        "The plan: error is the relative squared error of the tensor’s outputs, cost the expected KL divergence",
        "sortable",
        vec![
            ("Tensor", false),
            ("Role", false),
            ("Type", false),
            ("Size", true),
            ("Error", true),
            ("Cost, nats", true),
        ],
    );
    for t in tensors {
        table.row(vec![
            text(&t.name),
            text(&t.role),
            text(&t.ty),
            number(t.bytes as f64, units::bytes(t.bytes)),
            number(t.error, percent(t.error)),
            number(t.cost, significant(t.cost, 3)),
        ]);
    }
    table.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_names() {
        assert_eq!(nominal_bits("iq4_xs"), 4.0);
        assert_eq!(nominal_bits("bf16"), 16.0);
        assert_eq!(nominal_bits("Q3_K"), 3.0);
        assert_eq!(nominal_bits("mystery"), 0.0);
        assert_eq!(nominal_bits("q99999999999999999999999"), 999.0);
    }
}
