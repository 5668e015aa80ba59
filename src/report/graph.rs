//! Experts of a layer that are chosen together, as a graph on a circle.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use super::data::{Coactivation, PairMeasure};
use super::format::{percent, significant};
use super::html::{self, Panel, section};
use super::svg;
use super::table::{Table, number};

/// Side of the drawing in its own units.
const SIDE: f64 = 1000.0;
const CENTRE: f64 = SIDE / 2.0;
const RADIUS: f64 = 385.0;
/// Edges drawn, and pairs listed.
const EDGES: usize = 140;
const LISTED: usize = 12;
/// Fewer joint tokens than this by chance make a lift unreliable.
const LEAST_EXPECTED: f64 = 5.0;

/// Two experts and the strength of their bond.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Pair {
    a: usize,
    b: usize,
    strength: f64,
}

/// The section.
pub(super) fn render(layers: &[Coactivation]) -> String {
    let panels: Vec<Panel> = layers
        .iter()
        .enumerate()
        .filter(|(_, l)| !l.matrix.is_empty())
        .map(|(i, l)| Panel {
            label: l.layer.to_string(),
            html: layer(i, l),
        })
        .collect();
    if panels.is_empty() {
        return String::new();
    }
    section(
        "coactivation",
        "Experts chosen together",
        "Experts of a layer on a circle; a line joins two that tokens choose together more often than chance, a \
         thicker line means a stronger bond, and a larger dot a busier expert. Neighbours on the circle are those with strong bonds.",
        &html::switch("layer", "Layer", &panels),
    )
}

/// Whether strengths are lifts, and not mere counts.
fn has_lift(l: &Coactivation) -> bool {
    l.measure == PairMeasure::Lift || (l.tokens > 0 && !l.frequency.is_empty())
}

/// The strength of a pair, if it can be told.
fn strength(l: &Coactivation, a: usize, b: usize) -> Option<f64> {
    let value = *l.matrix.get(a)?.get(b)?;
    let share = |i: usize| l.frequency.get(i).copied().unwrap_or(f64::NAN);
    let expected = share(a) * share(b) * l.tokens as f64;
    let known = expected.is_finite() && l.tokens > 0;
    if !value.is_finite() || value <= 0.0 || (known && expected < LEAST_EXPECTED) {
        return None;
    }
    match l.measure {
        PairMeasure::Counts if has_lift(l) => known.then(|| value / expected),
        _ => Some(value),
    }
}

/// Pairs in order of strength; of lifts those above chance.
fn pairs(l: &Coactivation, n: usize) -> Vec<Pair> {
    let least = if has_lift(l) { 1.0 } else { 0.0 };
    let mut pairs: Vec<Pair> = (0..n)
        .flat_map(|a| (a + 1..n).map(move |b| (a, b)))
        .filter_map(|(a, b)| strength(l, a, b).map(|strength| Pair { a, b, strength }))
        .filter(|p| p.strength > least)
        .collect();
    pairs.sort_by(|p, q| {
        q.strength
            .total_cmp(&p.strength)
            .then((p.a, p.b).cmp(&(q.a, q.b)))
    });
    pairs
}

/// Order on the circle: from the strongest pair on, each expert is followed by the free one most bound to it.
fn circle_order(pairs: &[Pair], n: usize) -> Vec<usize> {
    let mut bonds: Vec<Vec<usize>> = vec![Vec::new(); n];
    for p in pairs {
        // In order of strength already.
        bonds[p.a].push(p.b);
        bonds[p.b].push(p.a);
    }
    let mut placed = vec![false; n];
    let mut order = Vec::with_capacity(n);
    for start in pairs.iter().map(|p| p.a).chain(0..n) {
        let mut next = Some(start).filter(|s| !placed[*s]);
        while let Some(i) = next {
            placed[i] = true;
            order.push(i);
            next = bonds[i].iter().copied().find(|j| !placed[*j]);
        }
    }
    order
}

fn layer(index: usize, l: &Coactivation) -> String {
    let n = l.matrix.len();
    let pairs = pairs(l, n);
    let drawn = &pairs[..pairs.len().min(EDGES).min(2 * n)];
    let order = circle_order(&pairs, n);
    let mut at = vec![(0.0, 0.0); n];
    let mut angle = vec![0.0; n];
    for (slot, i) in order.iter().enumerate() {
        angle[*i] = slot as f64 / n as f64 * TAU - TAU / 4.0;
        at[*i] = (
            CENTRE + RADIUS * angle[*i].cos(),
            CENTRE + RADIUS * angle[*i].sin(),
        );
    }
    let unit = if has_lift(l) {
        "times as often as by chance"
    } else {
        "tokens"
    };
    let desc = match drawn.first() {
        Some(p) => format!(
            "{} experts, {} of them bound. The strongest bond is between {} and {}: {} {unit}.",
            n,
            html::counted(drawn.len(), "pair"),
            p.a,
            p.b,
            significant(p.strength, 3)
        ),
        None => format!("{n} experts, none chosen together more often than chance."),
    };
    let mut s = String::from("<div class=\"graph\">\n");
    s.push_str(&svg::open(
        &format!("co-{index}"),
        "circle",
        SIDE,
        &format!("viewBox=\"0 0 {SIDE} {SIDE}\""),
        &format!("Experts of layer {} chosen together", l.layer),
        &desc,
    ));
    edges(&mut s, drawn, &at);
    nodes(&mut s, l, &at);
    labels(&mut s, drawn, &angle, n);
    s.push_str("</svg>\n");
    s.push_str(&listing(l, &pairs));
    s.push_str("</div>\n");
    s
}

/// Four widths by rank: one path each.
fn edges(s: &mut String, drawn: &[Pair], at: &[(f64, f64)]) {
    // The strongest last, on top.
    for class in (0..4).rev() {
        let (from, to) = (drawn.len() * class / 4, drawn.len() * (class + 1) / 4);
        let mut path = String::new();
        for p in &drawn[from..to] {
            let ((ax, ay), (bx, by)) = (at[p.a], at[p.b]);
            // Long lines bend towards the centre, short ones stay outside where they can be told apart.
            let inwards = 1.0 - 0.6 * ((ax - bx).hypot(ay - by) / RADIUS).min(1.0);
            let (qx, qy) = (
                CENTRE + ((ax + bx) / 2.0 - CENTRE) * inwards,
                CENTRE + ((ay + by) / 2.0 - CENTRE) * inwards,
            );
            let _ = write!(path, "M{ax:.0} {ay:.0}Q{qx:.0} {qy:.0} {bx:.0} {by:.0}");
        }
        if !path.is_empty() {
            let _ = writeln!(s, "<path class=\"edge e{class}\" d=\"{path}\"/>");
        }
    }
}

/// Dots by use, in four sizes: round ends of strokes without length.
fn nodes(s: &mut String, l: &Coactivation, at: &[(f64, f64)]) {
    let max = l
        .frequency
        .iter()
        .copied()
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    let mut sizes = [const { String::new() }; 4];
    for (i, (x, y)) in at.iter().enumerate() {
        let share = l.frequency.get(i).copied().unwrap_or(f64::NAN) / max;
        let size = if share.is_finite() {
            ((share.max(0.0).sqrt() * 4.0) as usize).min(3)
        } else {
            1
        };
        let _ = write!(sizes[size], "M{x:.0} {y:.0}h0");
    }
    // Dots of a crowded circle are smaller.
    let crowd = (60.0 / at.len() as f64).clamp(0.3, 1.0);
    for (i, path) in sizes.iter().enumerate().filter(|(_, p)| !p.is_empty()) {
        let width = [14.0, 22.0, 32.0, 44.0][i] * crowd;
        let _ = writeln!(
            s,
            "<path class=\"node\" stroke-width=\"{width:.0}\" d=\"{path}\"/>"
        );
    }
}

/// Numbers of the experts with the strongest bonds, as far as they have room.
fn labels(s: &mut String, drawn: &[Pair], angle: &[f64], n: usize) {
    let mut done = vec![false; n];
    let mut wide: Vec<f64> = Vec::new();
    let mut narrow: Vec<f64> = Vec::new();
    for i in drawn.iter().flat_map(|p| [p.a, p.b]) {
        if std::mem::replace(&mut done[i], true) {
            continue;
        }
        let far = |others: &[f64], room: f64| {
            others.iter().all(|o| {
                let d = (angle[i] - o).abs() % TAU;
                d.min(TAU - d) * RADIUS >= room
            })
        };
        if !far(&wide, 36.0) {
            continue;
        }
        wide.push(angle[i]);
        let class = if far(&narrow, 62.0) {
            narrow.push(angle[i]);
            "id"
        } else {
            "id minor"
        };
        let (x, y) = (
            CENTRE + (RADIUS + 58.0) * angle[i].cos(),
            CENTRE + (RADIUS + 50.0) * angle[i].sin(),
        );
        let _ = writeln!(
            s,
            "<text class=\"{class}\" x=\"{x:.0}\" y=\"{y:.0}\">{i}</text>"
        );
    }
}

fn listing(l: &Coactivation, pairs: &[Pair]) -> String {
    if pairs.is_empty() {
        return String::from(
            "<p class=\"note\">No two experts are chosen together more often than chance.</p>\n",
        );
    }
    let bond = if has_lift(l) {
        "Times chance"
    } else {
        "Tokens"
    };
    let mut head = vec![("Expert", true), ("with", true), (bond, true)];
    let frequent = !l.frequency.is_empty();
    if frequent {
        head.extend([("Share", true), ("and", true)]);
    }
    let mut table = Table::new(&format!("Strongest bonds of layer {}", l.layer), "", head);
    for p in pairs.iter().take(LISTED) {
        let mut cells = vec![
            number(p.a as f64, p.a.to_string()),
            number(p.b as f64, p.b.to_string()),
            number(p.strength, significant(p.strength, 3)),
        ];
        if frequent {
            for i in [p.a, p.b] {
                let v = l.frequency.get(i).copied().unwrap_or(f64::NAN);
                cells.push(number(v, percent(v)));
            }
        }
        table.row(cells);
    }
    table.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> Coactivation {
        Coactivation {
            layer: 3,
            n_expert: 4,
            measure: PairMeasure::Counts,
            matrix: vec![
                vec![0.0, 300.0, 100.0, 1.0],
                vec![300.0, 0.0, 50.0, 1.0],
                vec![100.0, 50.0, 0.0, 1.0],
                vec![1.0, 1.0, 1.0, 0.0],
            ],
            frequency: vec![0.5, 0.3, 0.2, 0.001],
            tokens: 1000,
        }
    }

    #[test]
    fn counts_become_lifts_and_rare_pairs_are_left_out() {
        let l = counts();
        assert_eq!(strength(&l, 0, 1), Some(2.0));
        assert_eq!(strength(&l, 0, 2), Some(1.0));
        // Half a token is expected: its one token says nothing.
        assert_eq!(strength(&l, 0, 3), None);
        let pairs = pairs(&l, 4);
        assert_eq!(pairs.len(), 1);
        assert_eq!((pairs[0].a, pairs[0].b), (0, 1));
    }

    #[test]
    fn every_expert_stands_on_the_circle_once() {
        let l = counts();
        let mut order = circle_order(&pairs(&l, 4), 4);
        assert_eq!(&order[..2], &[0, 1]);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3]);
    }
}
