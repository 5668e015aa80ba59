//! The built-in calibration text.
//!
//! Which experts a router picks, and how large the activations of each are, depends on the text
//! that runs through the model. On one kind of text a large part of the experts is never reached, and
//! nothing can be said about what their weights are worth. This text is therefore broad rather than
//! long: prose, mathematics, code, data formats, dialogues with chat markup and tool calls, and
//! fifteen languages in eight scripts.
//!
//! It is part of the executable so that a run without `--text` needs no download, and so that the
//! same version of the program measures the same model on the same bytes everywhere. All of it was
//! written for this project; the names, places and figures in its stories, news and records are
//! invented. A change to any of the files changes every statistic measured without `--text`.

/// One domain of the built-in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// Short name of the domain, unique in [`DOCUMENTS`]; used as a label in reports.
    pub domain: &'static str,
    /// The text itself: UTF-8 with `\n` line ends, about 10 kB.
    pub text: &'static str,
}

/// The built-in calibration text, one document per domain, in the order it is meant to be read.
///
/// The kinds alternate, so that a prefix (a run with few chunks) already meets several of them.
pub const DOCUMENTS: &[Document] = &[
    Document {
        domain: "encyclopedia",
        text: include_str!("encyclopedia.txt"),
    },
    Document {
        domain: "code-systems",
        text: include_str!("code_systems.txt"),
    },
    Document {
        domain: "dialogue",
        text: include_str!("dialogue.txt"),
    },
    Document {
        domain: "science",
        text: include_str!("science.txt"),
    },
    Document {
        domain: "european",
        text: include_str!("european.txt"),
    },
    Document {
        domain: "fiction",
        text: include_str!("fiction.txt"),
    },
    Document {
        domain: "structured",
        text: include_str!("structured.txt"),
    },
    Document {
        domain: "east-asian",
        text: include_str!("east_asian.txt"),
    },
    Document {
        domain: "news",
        text: include_str!("news.txt"),
    },
    Document {
        domain: "code-scripting",
        text: include_str!("code_scripting.txt"),
    },
    Document {
        domain: "world-languages",
        text: include_str!("world_languages.txt"),
    },
    Document {
        domain: "professional",
        text: include_str!("professional.txt"),
    },
    Document {
        domain: "miscellany",
        text: include_str!("miscellany.txt"),
    },
];

#[cfg(test)]
mod tests {
    use super::DOCUMENTS;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn domains_are_unique_labels() {
        let mut seen = HashSet::new();
        for document in DOCUMENTS {
            assert!(
                !document.domain.is_empty()
                    && document
                        .domain
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{:?} is not a plain label",
                document.domain
            );
            assert!(
                seen.insert(document.domain),
                "domain {:?} occurs twice",
                document.domain
            );
        }
    }

    #[test]
    fn texts_are_long_enough_and_clean() {
        for document in DOCUMENTS {
            let domain = document.domain;
            assert!(
                document.text.len() >= 6 * 1024,
                "{domain}: only {} bytes",
                document.text.len()
            );
            assert!(document.text.ends_with('\n'), "{domain}: no final newline");
            // A carriage return means that a checkout converted the line ends, and the statistics
            // would differ between machines; U+FFFD means that a file was once decoded wrongly.
            if let Some((at, c)) = document.text.char_indices().find(|&(_, c)| {
                c == '\u{FFFD}' || c == '\u{FEFF}' || (c.is_control() && c != '\n' && c != '\t')
            }) {
                panic!("{domain}: unexpected character {c:?} at byte {at}");
            }
        }
    }

    #[test]
    fn no_long_passage_repeats() {
        const WINDOW: usize = 200;
        let mut first: HashMap<&[u8], (&str, usize)> = HashMap::new();
        for document in DOCUMENTS {
            for (at, window) in document.text.as_bytes().windows(WINDOW).enumerate() {
                if let Some((domain, earlier)) = first.insert(window, (document.domain, at)) {
                    panic!(
                        "byte {at} of {} repeats byte {earlier} of {domain}",
                        document.domain
                    );
                }
            }
        }
    }
}
