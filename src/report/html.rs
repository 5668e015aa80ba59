//! Text in HTML, and the parts that every section shares.

use std::fmt::{self, Display, Write as _};

/// Text for element content and quoted attributes. Names come from model files and are not to be trusted.
pub(super) struct Escaped<'a>(&'a str);

/// Escapes a text.
pub(super) fn escape(text: &str) -> Escaped<'_> {
    Escaped(text)
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars().map(harmless) {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Control characters are not allowed in HTML; the directional ones would reorder what stands beside a name.
fn harmless(c: char) -> char {
    match c {
        '\n' | '\t' => ' ',
        c if c.is_control() || is_directional(c) => '\u{fffd}',
        c => c,
    }
}

fn is_directional(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A string for a JSON island: nothing in it can end the script element.
pub(super) fn json_string(text: &str) -> String {
    let text: String = text.chars().map(harmless).collect();
    serde_json::Value::from(text)
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// A section: heading, and one sentence that says what it shows and how to read it.
pub(super) fn section(id: &str, heading: &str, how_to_read: &str, body: &str) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{heading}</h2>\n\
         <p class=\"lead\">{how_to_read}</p>\n{body}</section>\n"
    )
}

/// One of several panels, of which the reader sees one at a time; works without a script.
pub(super) struct Panel {
    /// On the button, escaped.
    pub(super) label: String,
    /// The content.
    pub(super) html: String,
}

/// Panels behind buttons. A single panel needs none.
pub(super) fn switch(group: &str, legend: &str, panels: &[Panel]) -> String {
    if let [only] = panels {
        return only.html.clone();
    }
    let mut s = format!(
        "<div class=\"switch\" role=\"radiogroup\" aria-label=\"{}\">\n<span class=\"legend\">{}</span>\n",
        escape(legend),
        escape(legend)
    );
    for (i, panel) in panels.iter().enumerate() {
        let checked = if i == 0 { " checked=\"checked\"" } else { "" };
        let _ = writeln!(
            s,
            "<input type=\"radio\" name=\"{group}\" id=\"{group}-{i}\"{checked}/><label for=\"{group}-{i}\">{}</label>\
             <div class=\"panel\">{}</div>",
            panel.label, panel.html
        );
    }
    s.push_str("</div>\n");
    s
}

/// What can be opened by the reader.
pub(super) fn details(summary: &str, body: &str) -> String {
    format!("<details><summary>{summary}</summary>\n{body}</details>\n")
}

/// `1 expert`, `2 experts`.
pub(super) fn counted(n: usize, singular: &str) -> String {
    if n == 1 {
        format!("1 {singular}")
    } else {
        format!("{n} {singular}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_harmless() {
        assert_eq!(
            escape("</script><a b=\"c\" d='e'>&\u{0}\u{202e}x").to_string(),
            "&lt;/script&gt;&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;\u{fffd}\u{fffd}x"
        );
        let json = json_string("</script>&\"\u{2028}");
        assert!(!json.contains('<') && !json.contains('&'));
        assert_eq!(
            serde_json::from_str::<String>(&json).unwrap(),
            "</script>&\"\u{2028}"
        );
    }
}
