//! The report: one HTML file that holds everything and loads nothing.
//!
//! Charts are inline SVG made here. A small script shows the figures of a heatmap's cells and sorts tables; without
//! it everything can still be read. The page's policy forbids every request, whatever a model file calls its
//! tensors.

mod bars;
mod colour;
mod curve;
mod data;
mod domains;
mod experts;
mod format;
mod graph;
mod heatmap;
mod html;
mod scale;
mod svg;
mod table;
mod tensors;

pub use data::{
    AblationBar, AccuracyTest, Coactivation, CurvePoint, DomainShift, ExpertGrid, Grid, ModelInfo,
    PairMeasure, PointKind, ReportData, TensorRow,
};

use std::fmt::Write as _;

use html::escape;

/// Renders the report as an HTML page. The same data give the same bytes. Never fails: values that make no sense
/// are shown as missing.
pub fn render(data: &ReportData) -> String {
    let sections: Vec<(&str, &str, String)> = [
        (
            "curve",
            "Size and quality",
            data.curve
                .as_deref()
                .map(|c| curve::render(c, &data.curve_notes)),
        ),
        (
            "experts",
            "Experts",
            data.experts
                .as_ref()
                .map(|e| experts::render(e, &data.model)),
        ),
        (
            "domains",
            "Domain shift",
            data.domains.as_ref().map(domains::render),
        ),
        (
            "coactivation",
            "Experts chosen together",
            data.coactivation.as_deref().map(graph::render),
        ),
        (
            "ablation",
            "What each stage brings",
            data.ablation.as_deref().map(bars::render),
        ),
        (
            "tensors",
            "Tensors",
            data.tensors.as_deref().map(tensors::render),
        ),
    ]
    .into_iter()
    .filter_map(|(id, name, html)| Some((id, name, html.filter(|h| !h.is_empty())?)))
    .collect();

    let title = if data.title.trim().is_empty() {
        "moqa report"
    } else {
        &data.title
    };
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{0}</title>\n<style>\n{1}{2}</style>\n</head>\n<body>\n\
         <header>\n<h1>{0}</h1>\n{3}</header>\n",
        escape(title),
        include_str!("style.css"),
        scale_style(),
        facts(&data.model)
    );
    if sections.len() > 1 {
        page.push_str("<nav aria-label=\"Sections\">");
        for (id, name, _) in &sections {
            let _ = write!(page, "<a href=\"#{id}\">{name}</a> ");
        }
        page.push_str("</nav>\n");
    }
    page.push_str("<main>\n");
    if sections.is_empty() {
        page.push_str("<p>Nothing has been measured yet, so there is nothing to show.</p>\n");
    }
    for (_, _, html) in &sections {
        page.push_str(html);
    }
    page.push_str("</main>\n<footer>\n");
    if !data.generated_by.is_empty() {
        let _ = writeln!(page, "<p>Made by {}.</p>", escape(&data.generated_by));
    }
    let _ = write!(
        page,
        "</footer>\n<div id=\"tip\" role=\"status\"></div>\n<script>\n{}</script>\n</body>\n</html>\n",
        include_str!("script.js")
    );
    page
}

/// What is known about the model.
fn facts(m: &ModelInfo) -> String {
    let mut facts: Vec<(&str, String)> = Vec::new();
    for (name, value) in [("Model", &m.name), ("Architecture", &m.architecture)] {
        if !value.is_empty() {
            facts.push((name, escape(value).to_string()));
        }
    }
    if m.n_layer > 0 {
        facts.push(("Layers", m.n_layer.to_string()));
    }
    if m.n_expert > 0 {
        let used = match m.n_expert_used {
            0 => String::new(),
            n => format!(", {n} used"),
        };
        facts.push(("Experts in a layer", format!("{}{used}", m.n_expert)));
    }
    if m.parameters > 0 {
        facts.push(("Weights", format::parameters(m.parameters)));
    }
    if m.bytes > 0 {
        facts.push(("Source file", crate::units::bytes(m.bytes)));
    }
    if facts.is_empty() {
        return String::new();
    }
    let mut s = String::from("<dl>");
    for (name, value) in facts {
        let _ = write!(s, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    s.push_str("</dl>\n");
    s
}

/// Classes of the sequential scale: strokes of heatmaps, fills of bars.
fn scale_style() -> String {
    let mut s = String::new();
    for i in 0..heatmap::LEVELS {
        let colour = colour::hex(colour::viridis(i as f64 / (heatmap::LEVELS - 1) as f64));
        let _ = writeln!(
            s,
            ".v{i}{{stroke:{colour}}}.b{i}{{fill:{colour};background:{colour}}}"
        );
    }
    s
}
