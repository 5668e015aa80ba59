//! Tables. They scroll inside their own frame, so a wide one does not widen the page.

use std::fmt::Write as _;

use super::html::escape;

/// A cell's HTML and the number by which its column is sorted.
pub(super) struct Cell {
    html: String,
    order: Option<f64>,
    style: String,
}

/// A cell of text, escaped here.
pub(super) fn text(text: &str) -> Cell {
    Cell {
        html: escape(text).to_string(),
        order: None,
        style: String::new(),
    }
}

/// A formatted number.
pub(super) fn number(value: f64, formatted: String) -> Cell {
    Cell {
        html: formatted,
        order: Some(value),
        style: String::new(),
    }
}

impl Cell {
    /// With a background and a text colour.
    pub(super) fn coloured(mut self, background: &str, ink: &str) -> Self {
        self.style = format!(" style=\"background:{background};color:{ink}\"");
        self
    }
}

/// A table under construction.
pub(super) struct Table {
    caption: String,
    class: &'static str,
    head: Vec<(String, bool)>,
    body: String,
}

impl Table {
    /// `head` gives each column's HTML and whether it holds numbers. The first column names the rows.
    pub(super) fn new<S: Into<String>>(
        caption: &str,
        class: &'static str,
        head: Vec<(S, bool)>,
    ) -> Self {
        Self {
            caption: caption.into(),
            class,
            head: head.into_iter().map(|(h, n)| (h.into(), n)).collect(),
            body: String::new(),
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.body.push_str("<tr>");
        for (i, cell) in cells.into_iter().enumerate() {
            let tag = if i == 0 { "th" } else { "td" };
            let scope = if i == 0 { " scope=\"row\"" } else { "" };
            let class = if self.head.get(i).is_some_and(|h| h.1) {
                " class=\"n\""
            } else {
                ""
            };
            let order = match cell.order {
                Some(v) if v.is_finite() => format!(" data-v=\"{}\"", sort_key(v)),
                Some(_) => " data-v=\"\"".into(),
                None => String::new(),
            };
            let _ = write!(
                self.body,
                "<{tag}{scope}{class}{order}{}>{}</{tag}>",
                cell.style, cell.html
            );
        }
        self.body.push_str("</tr>\n");
    }

    /// The table's HTML.
    pub(super) fn finish(self) -> String {
        let mut s = format!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table class=\"{1}\">\
             <caption>{0}</caption>\n<thead><tr>",
            escape(&self.caption),
            self.class
        );
        for (head, numeric) in &self.head {
            let class = if *numeric { " class=\"n\"" } else { "" };
            let _ = write!(s, "<th scope=\"col\"{class}>{head}</th>");
        }
        let _ = write!(
            s,
            "</tr></thead>\n<tbody>\n{}</tbody></table></div>\n",
            self.body
        );
        s
    }
}

/// Enough digits to sort by.
fn sort_key(v: f64) -> String {
    if v.fract() == 0.0 && v.abs() < 1e15 {
        format!("{v}")
    } else {
        format!("{v:.5e}")
    }
}
