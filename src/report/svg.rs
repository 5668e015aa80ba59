//! Pieces of inline SVG.
//!
//! Charts are fluid: horizontal places are per cent of the plot's width and vertical ones pixels, so text keeps
//! its size on every screen. Axis labels stand outside the box, in margins that the style sheet leaves.

use std::fmt::{Display, Write as _};

use super::html::escape;

/// Opens a chart of full width and `height` pixels, with the text that screen readers read.
pub(super) fn open(
    id: &str,
    class: &str,
    height: f64,
    attributes: &str,
    title: &str,
    desc: &str,
) -> String {
    format!(
        "<svg class=\"{class}\" width=\"100%\" height=\"{height}\" {attributes} role=\"img\" \
         aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>\n",
        escape(title),
        escape(desc)
    )
}

/// A place in per cent with two decimals.
pub(super) fn per_cent(t: f64) -> String {
    let text = format!("{:.2}", t * 100.0);
    let short = text.trim_end_matches('0').trim_end_matches('.');
    format!("{}%", if short.is_empty() { "0" } else { short })
}

/// A straight line.
pub(super) fn line(s: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        s,
        "<line class=\"{class}\" x1=\"{}\" y1=\"{:.1}\" x2=\"{}\" y2=\"{:.1}\"/>",
        per_cent(from.0),
        from.1,
        per_cent(to.0),
        to.1
    );
}

/// Where a text's place is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A text at a place, moved by pixels.
pub(super) fn text(
    s: &mut String,
    class: &str,
    at: (f64, f64),
    shift: (f64, f64),
    anchor: Anchor,
    content: impl Display,
) {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let _ = writeln!(
        s,
        "<text class=\"{class}\" x=\"{}\" y=\"{:.1}\" dx=\"{}\" text-anchor=\"{anchor}\">{}</text>",
        per_cent(at.0),
        at.1 + shift.1,
        shift.0,
        escape(&content.to_string())
    );
}

/// A line through places, stretched with the plot while its stroke is not.
pub(super) fn polyline(s: &mut String, class: &str, height: f64, points: &[(f64, f64)]) {
    let mut path = String::new();
    for (x, y) in points {
        let _ = write!(path, "{:.1},{y:.1} ", x * 1000.0);
    }
    let _ = writeln!(
        s,
        "<svg viewBox=\"0 0 1000 {height}\" preserveAspectRatio=\"none\" width=\"100%\" height=\"{height}\">\
         <polyline class=\"{class}\" points=\"{}\"/></svg>",
        path.trim_end()
    );
}
