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
    let drawn = || bars.iter().filter(|b| ratio(b).is_finite());
    let ends = drawn()
        .map(ratio)
        .chain(drawn().flat_map(|b| interval(b).into_iter().flatten()));
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
            row(&mut body, b, ratio(b), &axis);
        }
        ticks(&mut body, &axis);
        body.push_str("</figure>\n");
    }
    body.push_str("</div>\n");
    let mut how_to_read = String::from(
        "The change of the KL divergence when one stage is left out, at the same size: a bar to the right means \
         that the result is worse without the stage. The small figures are the divergence and its standard error.",
    );
    if bars.iter().any(|b| interval(b).is_some()) {
        how_to_read.push_str(
            " Whiskers are 95 % intervals of the change, from resampling the chunks of the text that both were measured on.",
        );
    }
    section("ablation", "What each stage brings", &how_to_read, &body)
}

/// The interval of the change, if it can be drawn.
fn interval(b: &AblationBar) -> Option<[f64; 2]> {
    b.interval
        .filter(|[low, high]| low.is_finite() && high.is_finite() && low <= high)
}

fn row(s: &mut String, b: &AblationBar, ratio: f64, axis: &Axis) {
    let range = interval(b).map_or(String::new(), |[low, high]| {
        format!(", 95 % interval {} to {}", change(low), change(high))
    });
    let _ = write!(
        s,
        "<div class=\"bar-row\"><span>without {}</span><span class=\"value\">{} <small>{}</small></span>\
         <svg class=\"plot\" width=\"100%\" height=\"16\" role=\"img\"><title>{}{range}</title><desc>Bar from no change to the change of the KL divergence</desc>",
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
        if let Some([low, high]) = interval(b) {
            svg::line(s, "whisker", (axis.at(low), 8.0), (axis.at(high), 8.0));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(interval: Option<[f64; 2]>) -> AblationBar {
        AblationBar {
            stage: "mapping".into(),
            budget: "Q3_K_M".into(),
            kld: 0.012,
            kld_error: 0.004,
            full_kld: 0.01,
            interval,
        }
    }

    #[test]
    fn whiskers_are_the_interval_of_the_change() {
        let page = render(&[bar(Some([0.1, 0.3]))]);
        assert!(
            page.contains("+20 %, 95 % interval +10 % to +30 %"),
            "{page}"
        );
        assert!(page.contains("Whiskers are 95 % intervals"));
        let axis = Axis::linear([0.0, 0.1, 0.2, 0.3], 0.03);
        let ends = [0.1, 0.3].map(|v| svg::per_cent(axis.at(v)));
        let line = format!(
            "class=\"whisker\" x1=\"{}\" y1=\"8.0\" x2=\"{}\"",
            ends[0], ends[1]
        );
        assert!(page.contains(&line), "{line} {page}");
    }

    #[test]
    fn without_an_interval_there_is_no_whisker() {
        for interval in [None, Some([f64::NAN, 0.3]), Some([0.3, 0.1])] {
            let page = render(&[bar(interval)]);
            assert!(
                !page.contains("hisker") && !page.contains("interval"),
                "{page}"
            );
        }
    }
}
