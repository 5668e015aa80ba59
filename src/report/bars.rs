//! What leaving out a stage costs.

use std::fmt::Write as _;

use super::data::AblationBar;
use super::format::{change, significant, tick, with_error};
use super::html::{escape, section};
use super::scale::Axis;
use super::svg::{self, Anchor};

/// The section.
pub(super) fn render(bars: &[AblationBar]) -> String {
    if bars.is_empty() {
        return String::new();
    }
    let ratio = |b: &AblationBar| b.kld / b.full_kld - 1.0;
    let error = |b: &AblationBar| {
        let e = b.kld_error / b.full_kld;
        if e.is_finite() && e > 0.0 { e } else { 0.0 }
    };
    let ends = bars
        .iter()
        .filter(|b| ratio(b).is_finite())
        .flat_map(|b| [ratio(b) - error(b), ratio(b) + error(b)]);
    let axis = Axis::linear(ends.chain([0.0]), 0.03);
    let mut budgets: Vec<&str> = Vec::new();
    for b in bars {
        if !budgets.contains(&b.budget.as_str()) {
            budgets.push(&b.budget);
        }
    }
    let mut body = String::from("<div class=\"groups\">\n");
    for budget in budgets {
        body.push_str("<figure class=\"bars\">");
        let group = || bars.iter().filter(|b| b.budget == *budget);
        let full = group()
            .map(|b| b.full_kld)
            .find(|v| v.is_finite())
            .unwrap_or(f64::NAN);
        let _ = writeln!(
            body,
            "<figcaption>Size of {}: {} nats with every stage</figcaption>",
            escape(budget),
            significant(full, 3)
        );
        for b in group() {
            row(&mut body, b, ratio(b), error(b), &axis);
        }
        ticks(&mut body, &axis);
        body.push_str("</figure>\n");
    }
    body.push_str("</div>\n");
    section(
        "ablation",
        "What each stage brings",
        "The change of the KL divergence when one stage is left out, at the same size: a bar to the right means \
         that the result is worse without the stage. Whiskers are one standard error.",
        &body,
    )
}

fn row(s: &mut String, b: &AblationBar, ratio: f64, error: f64, axis: &Axis) {
    let _ = write!(
        s,
        "<div class=\"bar-row\"><span>without {}</span><span class=\"value\">{} <small>{}</small></span>\
         <svg class=\"plot\" width=\"100%\" height=\"16\" role=\"img\"><title>{}</title><desc>Bar from no change to the change of the KL divergence</desc>",
        escape(&b.stage),
        change(ratio),
        with_error(b.kld, b.kld_error),
        change(ratio)
    );
    if ratio.is_finite() {
        let (zero, end) = (axis.at(0.0), axis.at(ratio));
        let _ = write!(
            s,
            "<rect class=\"{}\" x=\"{}\" y=\"2\" width=\"{}\" height=\"12\"/>",
            if ratio >= 0.0 { "worse" } else { "better" },
            svg::per_cent(zero.min(end)),
            svg::per_cent((end - zero).abs())
        );
        if error > 0.0 {
            svg::line(
                s,
                "whisker",
                (axis.at(ratio - error), 8.0),
                (axis.at(ratio + error), 8.0),
            );
        }
        svg::line(s, "zero-line", (zero, 0.0), (zero, 16.0));
    }
    s.push_str("</svg></div>\n");
}

fn ticks(s: &mut String, axis: &Axis) {
    s.push_str("<svg class=\"plot\" width=\"100%\" height=\"18\" aria-hidden=\"true\">");
    for v in axis.ticks(4) {
        let at = axis.at(v);
        let anchor = if at < 0.06 {
            Anchor::Start
        } else if at > 0.94 {
            Anchor::End
        } else {
            Anchor::Middle
        };
        svg::text(
            s,
            "tick",
            (at, 13.0),
            (0.0, 0.0),
            anchor,
            format!("{} %", tick(v * 100.0)),
        );
    }
    s.push_str("</svg>");
}
