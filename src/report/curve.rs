//! Size against divergence.

use std::fmt::Write as _;

use super::data::{AccuracyTest, CurvePoint, PointKind};
use super::format::{self, change, fixed, percent, seconds, tick, with_error};
use super::html::{self, escape, section};
use super::scale::Axis;
use super::svg::{self, Anchor};
use super::table::{Table, number, text};
use crate::units;

const HEIGHT: f64 = 380.0;
/// Plot widths for which labels are placed: the smallest of a wide and of a narrow screen.
const LAYOUTS: [(&str, f64); 2] = [("wide", 620.0), ("narrow", 270.0)];
const KINDS: [PointKind; 3] = [PointKind::Preset, PointKind::Moqa, PointKind::MoqaPerExpert];

/// The section.
pub(super) fn render(points: &[CurvePoint], notes: &[String]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let mut body = headline(points);
    body.push_str(&chart(points));
    let mut figures = table(points);
    for note in notes {
        let _ = writeln!(
            figures,
            "<p class=\"note\">{}.</p>",
            escape(&capitalised(note))
        );
    }
    body.push_str(&html::details("The same in figures", &figures));
    section(
        "curve",
        "Size and quality",
        "Each point is a quantized file: further left is smaller, further down is closer to the original model, \
         and bars are one standard error. Points of a budget stand at the size of the preset named beside them.",
        &body,
    )
}

/// With a capital letter first.
fn capitalised(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// Relative change of the divergence against the preset whose size was the budget.
fn against_preset(p: &CurvePoint, points: &[CurvePoint]) -> Option<f64> {
    let budget = p.budget.as_ref()?;
    let preset = points
        .iter()
        .find(|q| q.kind == PointKind::Preset && q.label == *budget)?;
    (p.kind != PointKind::Preset
        && p.kind != PointKind::Original
        && preset.kld > 0.0
        && p.kld.is_finite())
    .then(|| p.kld / preset.kld - 1.0)
}

/// What the curve says, in words, whichever way it goes.
fn headline(points: &[CurvePoint]) -> String {
    let mut s = String::new();
    for kind in [PointKind::Moqa, PointKind::MoqaPerExpert] {
        let mut changes: Vec<f64> = points
            .iter()
            .filter(|p| p.kind == kind)
            .filter_map(|p| against_preset(p, points))
            .collect();
        changes.sort_by(f64::total_cmp);
        let (Some(best), Some(worst)) = (changes.first(), changes.last()) else {
            continue;
        };
        let n = changes.len();
        let lower = changes.iter().filter(|c| **c < 0.0).count();
        let median = (changes[(n - 1) / 2] + changes[n / 2]) / 2.0;
        let _ = write!(
            s,
            "<p class=\"finding\">At {}, {}’s divergence from the original is lower than the preset’s in {lower} of {n}",
            if n == 1 {
                "the size of one preset".into()
            } else {
                format!("the sizes of {n} presets")
            },
            kind.name()
        );
        if change(*best) == change(*worst) {
            let _ = write!(s, " ({})", change(*best));
        } else {
            let _ = write!(
                s,
                ": {} to {}, median {}",
                change(*best),
                change(*worst),
                change(median)
            );
        }
        s.push_str(".</p>\n");
    }
    s
}

fn chart(points: &[CurvePoint]) -> String {
    let drawn: Vec<&CurvePoint> = points
        .iter()
        .filter(|p| p.kind != PointKind::Original && p.kld.is_finite() && p.kld > 0.0)
        .collect();
    if drawn.is_empty() {
        return String::from(
            "<p class=\"note\">No point has a divergence that can be drawn.</p>\n",
        );
    }
    let (unit, divisor) = unit(drawn.iter().map(|p| p.bytes).max().unwrap_or(0));
    let size = |p: &CurvePoint| p.bytes as f64 / divisor;
    let x = Axis::linear(drawn.iter().map(|p| size(p)), 0.05);
    let y = Axis::log(
        drawn
            .iter()
            .flat_map(|p| [p.kld, p.kld + finite(p.kld_error)]),
    );
    let place = |p: &CurvePoint| (x.at(size(p)), HEIGHT * (1.0 - y.at(p.kld)));

    let mut s = legend(&drawn);
    s.push_str("<div class=\"axis-name\">KL divergence, nats per token; logarithmic, lower is better</div>\n<div class=\"plot-box\">");
    s.push_str(&svg::open(
        "curve-plot",
        "plot",
        HEIGHT,
        "",
        "KL divergence by file size",
        "One point for each quantized file; the table below holds the same figures.",
    ));
    for v in y.ticks(7) {
        let at = HEIGHT * (1.0 - y.at(v));
        svg::line(&mut s, "grid", (0.0, at), (1.0, at));
        svg::text(&mut s, "tick", (0.0, at), (-8.0, 4.0), Anchor::End, tick(v));
    }
    for v in x.ticks(5) {
        svg::line(&mut s, "grid", (x.at(v), 0.0), (x.at(v), HEIGHT));
        svg::text(
            &mut s,
            "tick",
            (x.at(v), HEIGHT),
            (0.0, 18.0),
            Anchor::Middle,
            tick(v),
        );
    }
    svg::text(
        &mut s,
        "name",
        (0.5, HEIGHT),
        (0.0, 38.0),
        Anchor::Middle,
        format!("file size, {unit}"),
    );
    for (i, kind) in KINDS.into_iter().enumerate() {
        let mut line: Vec<(f64, f64)> = drawn
            .iter()
            .filter(|p| p.kind == kind)
            .map(|p| place(p))
            .collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        if line.len() > 1 {
            svg::polyline(&mut s, &format!("line k{i}"), HEIGHT, &line);
        }
    }
    for p in &drawn {
        let (px, py) = place(p);
        let k = p.kind as usize;
        let error = finite(p.kld_error);
        if error > 0.0 {
            let low = HEIGHT * (1.0 - y.at(p.kld - error));
            let high = HEIGHT * (1.0 - y.at(p.kld + error));
            svg::line(&mut s, &format!("whisker k{k}"), (px, low), (px, high));
        }
        let _ = writeln!(
            s,
            "<svg x=\"{}\" y=\"{py:.1}\"><title>{}</title>{}</svg>",
            svg::per_cent(px),
            escape(&tooltip(p, points)),
            marker(p.kind)
        );
    }
    let places: Vec<(f64, f64)> = drawn.iter().map(|p| place(p)).collect();
    for (class, width) in LAYOUTS {
        let _ = writeln!(s, "<g class=\"{class}\">");
        for (p, label) in drawn.iter().zip(place_labels(&drawn, &places, width)) {
            if let Some((shift, anchor)) = label {
                svg::text(
                    &mut s,
                    &format!("label k{}", p.kind as usize),
                    place(p),
                    shift,
                    anchor,
                    &p.label,
                );
            }
        }
        s.push_str("</g>\n");
    }
    s.push_str("</svg></div>\n");
    // The original has no divergence from itself and nobody expects it on the axis.
    let quantized = points.iter().filter(|p| p.kind != PointKind::Original);
    let hidden = quantized.count() - drawn.len();
    if hidden > 0 {
        let _ = writeln!(
            s,
            "<p class=\"note\">{} without a positive divergence: not on the logarithmic axis, but in the table.</p>",
            html::counted(hidden, "point")
        );
    }
    s
}

fn finite(v: f64) -> f64 {
    if v.is_finite() { v.max(0.0) } else { 0.0 }
}

fn unit(largest: u64) -> (&'static str, f64) {
    match largest {
        b if b >= 2 << 30 => ("GiB", f64::from(1 << 30)),
        b if b >= 2 << 20 => ("MiB", f64::from(1 << 20)),
        _ => ("KiB", 1024.0),
    }
}

/// Kinds differ in shape as well as in colour.
fn marker(kind: PointKind) -> String {
    let shape = match kind {
        PointKind::Preset => "M-5-5H5V5H-5Z",
        PointKind::Moqa => "M-6 0A6 6 0 1 0 6 0A6 6 0 1 0-6 0Z",
        PointKind::MoqaPerExpert | PointKind::Original => "M0-7.5L7.5 0L0 7.5L-7.5 0Z",
    };
    format!("<path class=\"marker k{}\" d=\"{shape}\"/>", kind as usize)
}

fn legend(drawn: &[&CurvePoint]) -> String {
    let mut s = String::from("<div class=\"legends\">");
    for kind in KINDS {
        if drawn.iter().any(|p| p.kind == kind) {
            let name = match kind {
                PointKind::Preset => "llama.cpp preset",
                PointKind::Original => "original",
                PointKind::Moqa => "moqa",
                PointKind::MoqaPerExpert => "moqa, a type for each expert",
            };
            let _ = write!(
                s,
                "<span class=\"key\"><svg width=\"18\" height=\"18\" viewBox=\"-9 -9 18 18\" aria-hidden=\"true\">{}</svg> {name}</span>",
                marker(kind)
            );
        }
    }
    s.push_str("</div>\n");
    s
}

fn tooltip(p: &CurvePoint, points: &[CurvePoint]) -> String {
    let mut s = format!(
        "{} ({}): {}, KL divergence {}",
        p.label,
        p.kind.name(),
        units::bytes(p.bytes),
        with_error(p.kld, p.kld_error)
    );
    if let (Some(c), Some(budget)) = (against_preset(p, points), &p.budget) {
        let _ = write!(s, ", {} against {budget}", change(c));
    }
    s
}

/// Whether the preset whose size was the budget is drawn too.
fn beside_preset(p: &CurvePoint, points: &[&CurvePoint]) -> bool {
    p.kind != PointKind::Preset
        && p.budget.as_ref().is_some_and(|b| {
            points
                .iter()
                .any(|q| q.kind == PointKind::Preset && q.label == *b)
        })
}

type Label = Option<((f64, f64), Anchor)>;

/// Places each label beside its marker where nothing else stands; one that fits nowhere is left out.
fn place_labels(points: &[&CurvePoint], places: &[(f64, f64)], width: f64) -> Vec<Label> {
    const MARKER: f64 = 8.0;
    let mut taken: Vec<[f64; 4]> = places
        .iter()
        .map(|(x, y)| {
            [
                x * width - MARKER,
                y - MARKER,
                x * width + MARKER,
                y + MARKER,
            ]
        })
        .collect();
    let lines = along_lines(points, places, width);
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|i| points[*i].kind);
    let mut labels = vec![None; points.len()];
    for i in order {
        let p = points[i];
        let n = p.label.chars().count();
        // A point with a budget stands below or above its preset, which has the name already.
        if n == 0 || n > 40 || p.label == p.kind.name() || beside_preset(p, points) {
            continue;
        }
        // A little more than an average character of 12 pixels.
        let length = n as f64 * 7.0;
        let (x, y) = (places[i].0 * width, places[i].1);
        // Presets lie above moqa's points where moqa does well: labels go to the outer side.
        let side = if p.kind == PointKind::Preset {
            -1.0
        } else {
            1.0
        };
        let diagonal = 4.0 + side * 11.0;
        let candidates = [
            ((9.0, diagonal), Anchor::Start),
            ((0.0, 4.0 + side * 18.0), Anchor::Middle),
            ((-9.0, diagonal), Anchor::End),
            ((12.0, 4.0), Anchor::Start),
            ((-12.0, 4.0), Anchor::End),
            ((0.0, 4.0 - side * 18.0), Anchor::Middle),
            ((-9.0, 4.0 - side * 11.0), Anchor::End),
            ((9.0, 4.0 - side * 11.0), Anchor::Start),
        ];
        // A place off the lines is better, one on a line is good enough.
        let choices = [true, false]
            .into_iter()
            .flat_map(|off| candidates.map(|c| (off, c)));
        for (off_lines, (shift, anchor)) in choices {
            let left = match anchor {
                Anchor::Start => x + shift.0,
                Anchor::Middle => x + shift.0 - length / 2.0,
                Anchor::End => x + shift.0 - length,
            };
            let text = [left, y + shift.1 - 11.0, left + length, y + shift.1 + 3.0];
            let inside =
                text[0] >= 0.0 && text[2] <= width + 12.0 && text[1] >= 0.0 && text[3] <= HEIGHT;
            let free = |(j, t): (usize, &[f64; 4])| {
                j == i || text[2] <= t[0] || text[0] >= t[2] || text[3] <= t[1] || text[1] >= t[3]
            };
            let crossed = off_lines
                && lines.iter().any(|(lx, ly)| {
                    *lx > text[0] && *lx < text[2] && *ly > text[1] && *ly < text[3]
                });
            if inside && !crossed && taken.iter().enumerate().all(free) {
                taken.push(text);
                labels[i] = Some((shift, anchor));
                break;
            }
        }
    }
    labels
}

/// Pixels along the lines that join the points of a kind.
fn along_lines(points: &[&CurvePoint], places: &[(f64, f64)], width: f64) -> Vec<(f64, f64)> {
    let mut pixels = Vec::new();
    for kind in KINDS {
        let mut line: Vec<(f64, f64)> = points
            .iter()
            .zip(places)
            .filter(|(p, _)| p.kind == kind)
            .map(|(_, (x, y))| (x * width, *y))
            .collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        for pair in line.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let steps = ((b.0 - a.0).hypot(b.1 - a.1) / 4.0).ceil() as usize;
            pixels.extend((0..=steps).map(|i| {
                let t = i as f64 / steps.max(1) as f64;
                (a.0 + (b.0 - a.0) * t, a.1 + (b.1 - a.1) * t)
            }));
        }
    }
    pixels
}

/// An accuracy against another's.
fn difference(t: &AccuracyTest) -> String {
    let p = match t.p_value {
        p if p < 0.001 => "p &lt; 0.001".to_owned(),
        p => format!("p = {}", fixed(p, 3)),
    };
    let points = t.difference * 100.0;
    let sign = if points > 0.0 { "+" } else { "" };
    format!(
        "{sign}{} <small>against {}, {p}</small>",
        fixed(points, 1),
        escape(&t.against)
    )
}

fn table(points: &[CurvePoint]) -> String {
    let compared = points.iter().any(|p| against_preset(p, points).is_some());
    let accuracy = points.iter().any(|p| p.accuracy.is_some());
    let tested = points.iter().any(|p| !p.accuracy_tests.is_empty());
    let time = points.iter().any(|p| p.quantize_seconds.is_some());
    let speed = points.iter().any(|p| p.tokens_per_second.is_some());
    let mut head = vec![
        ("File", false),
        ("Types by", false),
        ("Size", true),
        ("Bits per weight", true),
        ("KL divergence, nats", true),
    ];
    if compared {
        head.push(("against the preset", true));
    }
    head.extend([
        ("Perplexity", true),
        ("ratio", true),
        ("Same top token", true),
    ]);
    for (there, name) in [
        (accuracy, "Accuracy"),
        (time, "Quantized in"),
        (speed, "Tokens per second"),
        // Wide, so last: the rest should be seen without scrolling.
        (tested, "Difference of accuracy, points"),
    ] {
        if there {
            head.push((name, true));
        }
    }
    let mut table = Table::new("Quantized files", "sortable", head);
    let mut rows: Vec<&CurvePoint> = points.iter().collect();
    rows.sort_by_key(|p| (p.bytes, p.kind));
    for p in rows {
        let mut cells = vec![
            text(&p.label),
            text(p.kind.name()),
            number(p.bytes as f64, units::bytes(p.bytes)),
            number(p.bpw, fixed(p.bpw, 2)),
            number(p.kld, with_error(p.kld, p.kld_error)),
        ];
        if compared {
            cells.push(match (against_preset(p, points), &p.budget) {
                (Some(c), Some(b)) => {
                    number(c, format!("{}<br/><small>{}</small>", change(c), escape(b)))
                }
                _ => number(f64::NAN, String::new()),
            });
        }
        cells.extend([
            number(p.ppl, format::significant(p.ppl, 5)),
            number(p.ppl_ratio, fixed(p.ppl_ratio, 4)),
            number(p.same_top, percent(p.same_top)),
        ]);
        if accuracy {
            let v = p.accuracy.unwrap_or(f64::NAN);
            let error = p.accuracy_error.filter(|e| e.is_finite() && *e > 0.0);
            let shown = match (p.accuracy_interval, error) {
                (Some([low, high]), _) if v.is_finite() => format!(
                    "{}<br/><small>{} to {}</small>",
                    percent(v),
                    fixed(low * 100.0, 1),
                    fixed(high * 100.0, 1)
                ),
                (None, Some(e)) if v.is_finite() => {
                    format!("{} ± {}", percent(v), fixed(e * 100.0, 1))
                }
                _ => percent(v),
            };
            cells.push(number(v, shown));
        }
        if time {
            let v = p.quantize_seconds.unwrap_or(f64::NAN);
            cells.push(number(v, seconds(v)));
        }
        if speed {
            let v = p.tokens_per_second.unwrap_or(f64::NAN);
            cells.push(number(v, format::significant(v, 3)));
        }
        if tested {
            let shown: Vec<String> = p.accuracy_tests.iter().map(difference).collect();
            let first = p.accuracy_tests.first();
            let key = first.map_or(f64::NAN, |t| t.difference);
            cells.push(number(key, shown.join("<br/>")));
        }
        table.row(cells);
    }
    table.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(
        label: &str,
        kind: PointKind,
        budget: Option<&str>,
        bytes: u64,
        kld: f64,
    ) -> CurvePoint {
        CurvePoint {
            label: label.into(),
            kind,
            budget: budget.map(Into::into),
            bytes,
            kld,
            ..CurvePoint::default()
        }
    }

    #[test]
    fn the_headline_counts_losses_too() {
        let points = [
            point("A", PointKind::Preset, None, 10 << 20, 0.02),
            point("B", PointKind::Preset, None, 20 << 20, 0.01),
            point("a", PointKind::Moqa, Some("A"), 10 << 20, 0.01),
            point("b", PointKind::Moqa, Some("B"), 20 << 20, 0.0125),
        ];
        let text = headline(&points);
        assert!(
            text.contains("lower than the preset’s in 1 of 2: −50 % to +25 %, median −12 %"),
            "{text}"
        );
    }

    #[test]
    fn labels_never_overlap() {
        let points: Vec<CurvePoint> = (0..30)
            .map(|i| point("IQ3_XXS", KINDS[i % 3], None, 1 << 20, 1.0))
            .collect();
        let refs: Vec<&CurvePoint> = points.iter().collect();
        let places: Vec<(f64, f64)> = (0..30)
            .map(|i| (f64::from(i) / 30.0, f64::from(i * 37 % 380)))
            .collect();
        for (_, width) in LAYOUTS {
            let mut boxes: Vec<[f64; 4]> = Vec::new();
            for (label, (x, y)) in place_labels(&refs, &places, width).into_iter().zip(&places) {
                let Some((shift, anchor)) = label else {
                    continue;
                };
                let left = x * width + shift.0
                    - match anchor {
                        Anchor::Start => 0.0,
                        Anchor::Middle => 24.5,
                        Anchor::End => 49.0,
                    };
                let b = [left, y + shift.1 - 11.0, left + 49.0, y + shift.1 + 3.0];
                for o in &boxes {
                    assert!(b[2] <= o[0] || b[0] >= o[2] || b[3] <= o[1] || b[1] >= o[3]);
                }
                boxes.push(b);
            }
            assert!(boxes.len() > 5);
        }
    }
}
