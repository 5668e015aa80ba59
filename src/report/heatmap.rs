//! Heatmaps of many cells in few bytes: one path for each colour level, neighbours of a level in one stroke.

use std::fmt::{Display, Write as _};

use super::svg::{self, Anchor};

/// Levels of a sequential scale; finer ones are not told apart and cost bytes.
pub(super) const LEVELS: usize = 24;

/// What is drawn in a cell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Cell {
    /// A step of the colour scale.
    Level(usize),
    /// Exactly nothing, which is not the same as little.
    Zero,
    /// Not measured.
    Missing,
}

/// How values are spread over the colours.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Spread {
    /// By the square root: small values are told apart, large ones still rule.
    Root,
    /// By the logarithm, at most four decades below the largest.
    Log,
}

/// Maps values to colour levels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    spread: Spread,
}

impl Scale {
    /// A scale for the finite values.
    pub(super) fn of(values: impl Iterator<Item = f64> + Clone, spread: Spread) -> Self {
        let finite = values.filter(|v| v.is_finite());
        let high = finite.clone().fold(0.0, f64::max);
        let low = match spread {
            Spread::Log => finite
                .filter(|v| *v > 0.0)
                .fold(high, f64::min)
                .max(high * 1e-4),
            Spread::Root => 0.0,
        };
        Self { low, high, spread }
    }

    /// The level of a value among [`LEVELS`].
    pub(super) fn cell(&self, value: f64) -> Cell {
        if !value.is_finite() {
            return Cell::Missing;
        }
        if value == 0.0 {
            return Cell::Zero;
        }
        let t = match self.spread {
            Spread::Root => (value / self.high).max(0.0).sqrt(),
            Spread::Log if self.high > self.low => {
                (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
            }
            Spread::Log => 1.0,
        };
        level(t)
    }

    /// The value at `t` of the colour bar.
    fn value(&self, t: f64) -> f64 {
        match self.spread {
            Spread::Root => self.high * t * t,
            Spread::Log => self.low * (self.high / self.low).powf(t),
        }
    }

    /// The colour bar with its values.
    pub(super) fn legend(&self, format: impl Fn(f64) -> String) -> String {
        let mut s = String::from("<div class=\"bar-legend\">");
        s.push_str(
            "<svg class=\"cells\" viewBox=\"0 0 24 1\" preserveAspectRatio=\"none\" width=\"100%\" height=\"12\" aria-hidden=\"true\">",
        );
        s.push_str(&paths(1, LEVELS, "v", |_, c| Cell::Level(c)));
        s.push_str("</svg><svg class=\"plot\" width=\"100%\" height=\"18\">");
        for i in 0..=4 {
            let t = f64::from(i) / 4.0;
            let anchor = match i {
                0 => Anchor::Start,
                4 => Anchor::End,
                _ => Anchor::Middle,
            };
            svg::text(
                &mut s,
                "tick",
                (t, 14.0),
                (0.0, 0.0),
                anchor,
                format(self.value(t)),
            );
        }
        s.push_str("</svg></div>");
        s
    }
}

/// The level at `t` of the scale.
pub(super) fn level(t: f64) -> Cell {
    if t.is_finite() {
        Cell::Level((t.clamp(0.0, 1.0) * (LEVELS - 1) as f64).round() as usize)
    } else {
        Cell::Missing
    }
}

/// The paths of a heatmap in a box of `cols` by `rows` units. Levels have the classes `prefix0`, `prefix1`, …
pub(super) fn paths(
    rows: usize,
    cols: usize,
    prefix: &str,
    cell: impl Fn(usize, usize) -> Cell,
) -> String {
    let mut strokes: std::collections::BTreeMap<Cell, Stroke> = std::collections::BTreeMap::new();
    let mut crosses = String::new();
    for row in 0..rows {
        let mut start = 0;
        while start < cols {
            let kind = cell(row, start);
            let end = (start + 1..cols)
                .find(|c| cell(row, *c) != kind)
                .unwrap_or(cols);
            strokes.entry(kind).or_default().run(row, start, end);
            if kind == Cell::Zero {
                for c in start..end {
                    let _ = write!(crosses, "M{c} {row}l1 1m-1 0l1-1");
                }
            }
            start = end;
        }
    }
    let mut s = String::from("<g transform=\"translate(0 .5)\">");
    for (kind, stroke) in strokes {
        let path = stroke.path;
        let _ = match kind {
            Cell::Level(i) => write!(s, "<path class=\"{prefix}{i}\" d=\"{path}\"/>"),
            Cell::Zero => write!(s, "<path class=\"zero\" d=\"{path}\"/>"),
            Cell::Missing => write!(s, "<path class=\"missing\" d=\"{path}\"/>"),
        };
    }
    s.push_str("</g>");
    if !crosses.is_empty() {
        let _ = write!(s, "<path class=\"cross\" d=\"{crosses}\"/>");
    }
    s
}

#[derive(Default)]
struct Stroke {
    path: String,
    at: Option<(usize, usize)>,
}

impl Stroke {
    fn run(&mut self, row: usize, start: usize, end: usize) {
        let _ = match self.at {
            Some((r, c)) if r == row => write!(self.path, "m{} 0h{}", start - c, end - start),
            _ => write!(self.path, "M{start} {row}h{}", end - start),
        };
        self.at = Some((row, end));
    }
}

/// A heatmap with its axes.
pub(super) struct Frame<'a> {
    /// Unique on the page.
    pub(super) id: &'a str,
    /// Read by screen readers.
    pub(super) title: &'a str,
    /// Read by screen readers.
    pub(super) desc: &'a str,
    /// Label of each row.
    pub(super) rows: &'a [String],
    /// Columns.
    pub(super) cols: usize,
    /// What the columns are.
    pub(super) col_name: &'a str,
    /// What the rows are.
    pub(super) row_name: &'a str,
}

impl Frame<'_> {
    /// The frame around a heatmap's paths.
    pub(super) fn draw(&self, paths: &str) -> String {
        let n = self.rows.len().max(1);
        let cell_height = (560.0 / n as f64).clamp(8.0, 24.0);
        let height = cell_height * n as f64;
        let attributes = format!(
            "viewBox=\"0 0 {} {n}\" preserveAspectRatio=\"none\"",
            self.cols.max(1)
        );
        let mut s = format!(
            "<div class=\"axis-names\"><span>{} ↓</span><span>{} →</span></div>\n<div class=\"heat\">\
             <svg class=\"plot rows\" width=\"30\" height=\"{height}\" aria-hidden=\"true\">\n",
            self.row_name, self.col_name
        );
        // Labels are 12 pixels high.
        let every = (13.0 / cell_height).ceil() as usize;
        for (i, label) in self.rows.iter().enumerate().step_by(every.max(1)) {
            let y = (i as f64 + 0.5) * cell_height;
            svg::text(&mut s, "tick", (1.0, y), (-4.0, 4.0), Anchor::End, label);
        }
        // Three pixels are the least that a cell can be seen at; more cells scroll inside the frame.
        let _ = writeln!(
            s,
            "</svg><div class=\"heat-scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">\
             <div style=\"min-width:{}px\">",
            super::html::escape(self.title),
            self.cols * 3
        );
        s.push_str(&svg::open(
            self.id,
            "cells hot",
            height,
            &attributes,
            self.title,
            self.desc,
        ));
        s.push_str(paths);
        s.push_str("</svg>\n");
        s.push_str(&column_axis(self.cols, |c| c));
        s.push_str("</div></div></div>\n");
        s
    }
}

fn column_axis<D: Display>(cols: usize, label: impl Fn(usize) -> D) -> String {
    let mut s =
        String::from("<svg class=\"plot\" width=\"100%\" height=\"20\" aria-hidden=\"true\">\n");
    // At most eight labels, so that they fit on a phone.
    let mut every = 1;
    while cols.div_ceil(every) > 8 {
        every *= 2;
    }
    for c in (0..cols).step_by(every) {
        let x = (c as f64 + 0.5) / cols as f64;
        // The frame would cut the first label where columns are narrow.
        let anchor = if c == 0 && cols > 32 {
            Anchor::Start
        } else {
            Anchor::Middle
        };
        svg::text(
            &mut s,
            "tick",
            (if anchor == Anchor::Start { 0.0 } else { x }, 15.0),
            (0.0, 0.0),
            anchor,
            label(c),
        );
    }
    s.push_str("</svg>\n");
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_a_level_share_a_stroke() {
        let cells = [[0, 0, 1, 0], [2, 2, 2, 2]];
        let s = paths(2, 4, "v", |r, c| match cells[r][c] {
            2 => Cell::Zero,
            l => Cell::Level(l),
        });
        assert!(s.contains("<path class=\"v0\" d=\"M0 0h2m1 0h1\"/>"), "{s}");
        assert!(s.contains("<path class=\"v1\" d=\"M2 0h1\"/>"), "{s}");
        assert!(s.contains("<path class=\"zero\" d=\"M0 1h4\"/>"), "{s}");
        assert_eq!(s.matches("l1 1m-1 0l1-1").count(), 4);
    }

    #[test]
    fn scales_cover_their_values() {
        let values = [0.0, 1e-9, 1e-3, 0.25, 1.0, f64::NAN];
        for spread in [Spread::Root, Spread::Log] {
            let scale = Scale::of(values.iter().copied(), spread);
            assert_eq!(scale.cell(1.0), Cell::Level(LEVELS - 1));
            assert_eq!(scale.cell(1e-9), Cell::Level(0));
            assert_eq!(scale.cell(0.0), Cell::Zero);
            assert_eq!(scale.cell(f64::NAN), Cell::Missing);
            assert!((scale.value(1.0) - 1.0).abs() < 1e-12);
        }
        let flat = Scale::of([0.0, 0.0].into_iter(), Spread::Log);
        assert_eq!(flat.cell(0.0), Cell::Zero);
    }
}
