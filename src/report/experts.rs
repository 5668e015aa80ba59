//! What each expert does and what it gets: layers by experts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::data::{ExpertGrid, ModelInfo};
use super::format::{self, fixed, json_number, percent, significant};
use super::heatmap::{Cell, Frame, LEVELS, Scale, Spread, level, paths};
use super::html::{self, Panel, counted, escape, json_string, section};
use super::table::{Table, number, text};
use super::tensors::nominal_bits;

/// Value of a cell; a row of one value stands for the whole layer.
pub(super) fn at(grid: &[Vec<f64>], row: usize, col: usize) -> f64 {
    match grid.get(row).map(Vec::as_slice) {
        Some([only]) => *only,
        Some(row) => row.get(col).copied().unwrap_or(f64::NAN),
        None => f64::NAN,
    }
}

/// The section.
pub(super) fn render(g: &ExpertGrid, model: &ModelInfo) -> String {
    let cols = columns(g);
    if g.layers.is_empty() || cols == 0 {
        return String::new();
    }
    let labels: Vec<String> = g.layers.iter().map(usize::to_string).collect();
    let draw = |id: &str, title: &str, desc: &str, cells: &str| {
        Frame {
            id,
            title,
            desc,
            rows: &labels,
            cols,
            col_name: "expert",
            row_name: "layer",
        }
        .draw(cells)
    };
    let mut panels = Vec::new();
    let mut measured = |id: &str,
                        label: &str,
                        grid: &[Vec<f64>],
                        spread,
                        what: &str,
                        zero: &str,
                        show: &dyn Fn(f64) -> String| {
        if grid.is_empty() {
            return;
        }
        let scale = Scale::of(grid.iter().flatten().copied(), spread);
        let cells = paths(labels.len(), cols, "v", |r, c| scale.cell(at(grid, r, c)));
        let desc = format!(
            "{what} One row for each layer, one column for each expert, the largest {}.",
            {
                show(
                    grid.iter()
                        .flatten()
                        .copied()
                        .filter(|v| v.is_finite())
                        .fold(0.0, f64::max),
                )
            }
        );
        let html = format!(
            "<p>{}</p>\n{}<div class=\"legends\">{}{}</div>\n",
            escape(what),
            draw(id, &format!("{label} of experts by layer"), &desc, &cells),
            scale.legend(show),
            special(grid, labels.len(), cols, zero)
        );
        panels.push(Panel {
            label: label.into(),
            html,
        });
    };
    measured(
        "heat-activation",
        "Activation",
        &g.activation,
        Spread::Root,
        "Share of the tokens that the router sends to the expert.",
        "zero: no token reached it",
        &percent,
    );
    if let Some(grid) = &g.gate_mass {
        measured(
            "heat-gate",
            "Gate weight",
            grid,
            Spread::Root,
            "Share of the layer's gate weight that the expert gets: how much its output counts.",
            "zero",
            &percent,
        );
    }
    if let Some(grid) = &g.sensitivity {
        measured(
            "heat-sensitivity",
            "Sensitivity",
            grid,
            Spread::Log,
            &format!(
                "How much the model's output suffers when the expert is quantized{}, in nats per token; the colours are logarithmic.",
                reference(g)
            ),
            "zero",
            &|v| significant(v, 2),
        );
    }
    if let Some(panel) = assigned(g, labels.len(), cols, &draw) {
        panels.push(panel);
    }
    let body = format!(
        "{}{}{}{}",
        summary(g, model, cols),
        html::switch("metric", "Show", &panels),
        html::details("The same by layer, in figures", &by_layer(g, cols)),
        island(g, cols)
    );
    section(
        "experts",
        "Experts",
        "Every cell is one expert of one layer: brighter cells are used more, matter more or get more bits. \
         Point at a cell for its figures.",
        &body,
    )
}

/// What [`ExpertGrid::sensitivity`] was measured in, as far as it is known.
fn reference(g: &ExpertGrid) -> String {
    if g.sensitivity_type.is_empty() {
        return String::new();
    }
    let roles = g.sensitivity_roles.join(", ");
    let roles = if roles.is_empty() {
        roles
    } else {
        format!(" ({roles})")
    };
    format!(" to {}{roles}", g.sensitivity_type)
}

/// The longest row that is there: a stated number of experts is not to be trusted with memory.
fn columns(g: &ExpertGrid) -> usize {
    let grids = [
        Some(&g.activation),
        g.gate_mass.as_ref(),
        g.sensitivity.as_ref(),
        g.bits.as_ref(),
    ];
    let longest = grids
        .into_iter()
        .flatten()
        .flatten()
        .map(Vec::len)
        .max()
        .unwrap_or(0);
    let types = g.types.iter().flatten().map(Vec::len).max().unwrap_or(0);
    match longest.max(types) {
        // One value for each layer: as many experts as are said, within reason.
        1 => g.n_expert.clamp(1, 1024),
        n => n,
    }
}

/// Legend of the cells outside the colour scale, where there are any.
fn special(grid: &[Vec<f64>], rows: usize, cols: usize, zero: &str) -> String {
    let mut s = String::new();
    let cells = || (0..rows).flat_map(|r| (0..cols).map(move |c| at(grid, r, c)));
    let mut key = |class: &str, cell: Cell, label: &str| {
        let _ = write!(
            s,
            "<span class=\"key\"><svg class=\"cells swatch {class}\" viewBox=\"0 0 1 1\" width=\"14\" height=\"14\" \
             aria-hidden=\"true\">{}</svg> {label}</span>",
            paths(1, 1, "v", |_, _| cell)
        );
    };
    if cells().any(|v| v == 0.0) {
        key("framed", Cell::Zero, zero);
    }
    if cells().any(|v| !v.is_finite()) {
        key("framed", Cell::Missing, "not measured");
    }
    s
}

/// Distinct types or bits, in order of bits.
fn assigned(
    g: &ExpertGrid,
    rows: usize,
    cols: usize,
    draw: &dyn Fn(&str, &str, &str, &str) -> String,
) -> Option<Panel> {
    if g.bits.is_none() && g.types.is_none() {
        return None;
    }
    // A name and bits in thousandths, so that they can be ordered.
    let key = |r: usize, c: usize| -> Option<(u64, String)> {
        let ty = type_at(g, r, c);
        let bits = match &g.bits {
            Some(b) => at(b, r, c),
            None => nominal_bits(ty?),
        };
        let bits = Some(bits).filter(|b| b.is_finite() && *b >= 0.0)?;
        let name = match ty {
            Some(ty) => ty.to_string(),
            None => format!("{} bits", format::tick(bits)),
        };
        Some(((bits * 1000.0).round() as u64, name))
    };
    let mut counts: BTreeMap<(u64, String), usize> = BTreeMap::new();
    for r in 0..rows {
        for c in 0..cols {
            if let Some(k) = key(r, c) {
                *counts.entry(k).or_default() += 1;
            }
        }
    }
    let total: usize = counts.values().sum();
    let last = counts.len().saturating_sub(1).max(1) as f64;
    let levels: BTreeMap<(u64, String), Cell> = counts
        .keys()
        .enumerate()
        .map(|(i, k)| (k.clone(), level(i as f64 / last)))
        .collect();
    let cells = paths(rows, cols, "v", |r, c| {
        key(r, c)
            .and_then(|k| levels.get(&k).copied())
            .unwrap_or(Cell::Missing)
    });
    let mut legend = String::new();
    for ((bits, name), n) in counts.iter().take(LEVELS) {
        let cell = levels[&(*bits, name.clone())];
        let exact = if g.bits.is_some() && g.types.is_some() {
            format!(", {} bits", format::tick(*bits as f64 / 1000.0))
        } else {
            String::new()
        };
        let _ = write!(
            legend,
            "<span class=\"key\"><svg class=\"cells swatch\" viewBox=\"0 0 1 1\" width=\"14\" height=\"14\" \
             aria-hidden=\"true\">{}</svg> {}{exact}: {}</span>",
            paths(1, 1, "v", |_, _| cell),
            escape(name),
            percent(*n as f64 / total as f64)
        );
    }
    if counts.len() > LEVELS {
        let _ = write!(
            legend,
            "<span class=\"key\">and {} more</span>",
            counts.len() - LEVELS
        );
    }
    let what = "The type that the plan gives the expert's tensors, in bits per weight, and the share of experts with it.";
    Some(Panel {
        label: "Assigned type".into(),
        html: format!(
            "<p>{what}</p>\n{}<div class=\"legends\">{legend}</div>\n",
            draw(
                "heat-types",
                "Assigned types of experts by layer",
                what,
                &cells
            )
        ),
    })
}

fn type_at(g: &ExpertGrid, row: usize, col: usize) -> Option<&str> {
    let row = g.types.as_ref()?.get(row)?;
    match row.as_slice() {
        [only] => Some(only),
        row => row.get(col).map(String::as_str),
    }
}

/// The exceptions that a reader would look for.
fn summary(g: &ExpertGrid, model: &ModelInfo, cols: usize) -> String {
    if g.activation.is_empty() {
        return String::new();
    }
    let mut unreached = 0;
    let mut measured = 0;
    let mut busiest = (0.0, 0, 0);
    for (r, layer) in g.layers.iter().enumerate() {
        for c in 0..cols {
            let v = at(&g.activation, r, c);
            measured += usize::from(v.is_finite());
            unreached += usize::from(v == 0.0);
            if v > busiest.0 {
                busiest = (v, *layer, c);
            }
        }
    }
    let mut s = String::from("<p class=\"finding\">");
    if unreached == 0 {
        let _ = write!(s, "The text reached all {}.", counted(measured, "expert"));
    } else {
        let _ = write!(
            s,
            "The text never reached {unreached} of {}.",
            counted(measured, "expert")
        );
    }
    if busiest.0 > 0.0 {
        let _ = write!(
            s,
            " The busiest, expert {} of layer {}, gets {} of the tokens",
            busiest.2,
            busiest.1,
            percent(busiest.0)
        );
        if model.n_expert_used > 0 && cols > model.n_expert_used {
            let even = model.n_expert_used as f64 / cols as f64;
            let _ = write!(s, "; an even share would be {}", percent(even));
        }
        s.push('.');
    }
    s.push_str("</p>\n");
    s
}

/// The heatmaps' alternative.
fn by_layer(g: &ExpertGrid, cols: usize) -> String {
    let mut head = vec![("Layer", true)];
    if !g.activation.is_empty() {
        head.extend([
            ("Busiest expert", true),
            ("its share", true),
            ("Smallest share", true),
            ("Never reached", true),
            ("Effective experts", true),
        ]);
    }
    if g.sensitivity.is_some() {
        head.push(("Mean sensitivity", true));
    }
    if g.bits.is_some() {
        head.push(("Mean bits", true));
    }
    if g.types.is_some() {
        head.push(("Types", false));
    }
    let mut table = Table::new("Experts by layer", "sortable", head);
    for (r, layer) in g.layers.iter().enumerate() {
        let row = |grid: &[Vec<f64>]| -> Vec<f64> { (0..cols).map(|c| at(grid, r, c)).collect() };
        let mut cells = vec![number(*layer as f64, layer.to_string())];
        if !g.activation.is_empty() {
            let shares = row(&g.activation);
            let finite = || {
                shares
                    .iter()
                    .copied()
                    .enumerate()
                    .filter(|(_, v)| v.is_finite())
            };
            let best = finite().fold((0, f64::NAN), |b, v| if b.1 >= v.1 { b } else { v });
            let least = finite().map(|v| v.1).fold(f64::NAN, f64::min);
            let never = finite().filter(|v| v.1 == 0.0).count();
            let effective = effective_number(&shares);
            cells.extend([
                number(
                    best.0 as f64,
                    if best.1.is_finite() {
                        best.0.to_string()
                    } else {
                        format::MISSING.into()
                    },
                ),
                number(best.1, percent(best.1)),
                number(least, percent(least)),
                number(never as f64, never.to_string()),
                number(effective, fixed(effective, 1)),
            ]);
        }
        if let Some(grid) = &g.sensitivity {
            let m = mean(&row(grid));
            cells.push(number(m, significant(m, 3)));
        }
        if let Some(grid) = &g.bits {
            let m = mean(&row(grid));
            cells.push(number(m, fixed(m, 2)));
        }
        if g.types.is_some() {
            let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
            for c in 0..cols {
                if let Some(ty) = type_at(g, r, c) {
                    *kinds.entry(ty).or_default() += 1;
                }
            }
            let names: Vec<String> = match kinds.len() {
                1 => kinds.keys().map(|k| (*k).to_string()).collect(),
                _ => kinds.iter().map(|(k, n)| format!("{n} × {k}")).collect(),
            };
            cells.push(text(&names.join(", ")));
        }
        table.row(cells);
    }
    let note = if g.activation.is_empty() {
        ""
    } else {
        "<p class=\"note\">Effective experts: as many equally used experts would have the same entropy (exp of the \
         entropy of the shares).</p>\n"
    };
    format!("{}{note}", table.finish())
}

/// `exp` of the entropy of the shares: the number of equally used experts that would have it.
fn effective_number(shares: &[f64]) -> f64 {
    let used = || shares.iter().filter(|v| v.is_finite() && **v > 0.0);
    let sum: f64 = used().sum();
    if sum > 0.0 {
        used()
            .map(|v| v / sum)
            .map(|p| -p * p.ln())
            .sum::<f64>()
            .exp()
    } else {
        f64::NAN
    }
}

fn mean(values: &[f64]) -> f64 {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    if finite.is_empty() {
        f64::NAN
    } else {
        finite.iter().sum::<f64>() / finite.len() as f64
    }
}

/// The figures behind the cells, for the script that shows them. Numbers only, but for the types' names.
fn island(g: &ExpertGrid, cols: usize) -> String {
    let mut s = format!(
        "<script type=\"application/json\" class=\"heat-data\">{{\"cols\":{cols},\"layers\":{:?},\"metrics\":[",
        g.layers
    );
    let grids = [
        ("activation", "%", 100.0, Some(&g.activation)),
        ("gate weight", "%", 100.0, g.gate_mass.as_ref()),
        ("sensitivity", "nats", 1.0, g.sensitivity.as_ref()),
        ("bits per weight", "", 1.0, g.bits.as_ref()),
    ];
    let mut first = true;
    for (name, unit, factor, grid) in grids {
        let Some(grid) = grid.filter(|g| !g.is_empty()) else {
            continue;
        };
        let comma = if first { "" } else { "," };
        first = false;
        let rows = json_rows(grid, |v| json_number(*v * factor));
        let _ = write!(
            s,
            "{comma}{{\"n\":\"{name}\",\"u\":\"{unit}\",\"v\":{rows}}}"
        );
    }
    s.push(']');
    if let Some(types) = &g.types {
        let mut names: Vec<&String> = types.iter().flatten().collect();
        names.sort();
        names.dedup();
        let list: Vec<String> = names.iter().map(|n| json_string(n)).collect();
        let rows = json_rows(types, |t| names.binary_search(&t).unwrap_or(0).to_string());
        let _ = write!(s, ",\"types\":[{}],\"t\":{rows}", list.join(","));
    }
    s.push_str("}</script>\n");
    s
}

fn json_rows<T>(rows: &[Vec<T>], value: impl Fn(&T) -> String) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| format!("[{}]", row.iter().map(&value).collect::<Vec<_>>().join(",")))
        .collect();
    format!("[{}]", rows.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_experts() {
        assert!((effective_number(&[0.5, 0.5, 0.5, 0.5, 0.0]) - 4.0).abs() < 1e-12);
        assert!((effective_number(&[1.0, 0.0]) - 1.0).abs() < 1e-12);
        assert!(effective_number(&[]).is_nan());
    }

    #[test]
    fn a_single_value_stands_for_its_layer() {
        let grid = vec![vec![3.0], vec![1.0, 2.0]];
        assert_eq!(at(&grid, 0, 7), 3.0);
        assert_eq!(at(&grid, 1, 1), 2.0);
        assert!(at(&grid, 1, 2).is_nan() && at(&grid, 2, 0).is_nan());
    }
}
