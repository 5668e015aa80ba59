//! What can go wrong with a GGUF file, said so that a user can act on it.

use std::io;
use std::path::PathBuf;

/// An error of the reader or the writer. Every message names the file and, where there is one, the
/// byte offset and the key or tensor, and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system refused to open, map or inspect a file.
    #[error("{}: cannot {doing}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// The path is not a file this reader takes: a directory, a pipe, another format, another
    /// version or byte order.
    #[error("{}: {problem}; {advice}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The file breaks a rule of the format.
    #[error("{}: at byte {offset}, {item}: {problem}; {advice}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where the offending field starts.
        offset: u64,
        /// The key, tensor or header field.
        item: String,
        /// The rule it breaks.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The shards of a split model do not make a whole.
    #[error("{}: {problem}; {advice}", path.display())]
    Split {
        /// The shard at fault, or the one that was opened.
        path: PathBuf,
        /// What does not fit.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// A tensor that is made from another file cannot be made.
    #[error("{}: {item}: {problem}", path.display())]
    Source {
        /// The file it is made from.
        path: PathBuf,
        /// The tensor.
        item: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file to be written would break a rule of the format.
    #[error("cannot lay out the GGUF file: {item}: {problem}")]
    Layout {
        /// The key or tensor.
        item: String,
        /// The rule it breaks.
        problem: String,
    },
    /// Tensor data was given out of order, or too much or too little of it.
    #[error("cannot write tensor data: {problem}")]
    DataOrder {
        /// What was given and what the layout wants.
        problem: String,
    },
    /// Writing failed.
    #[error("writing {item} at byte {offset} failed: {error}")]
    Write {
        /// The header or the tensor being written.
        item: String,
        /// The position in the file.
        offset: u64,
        /// The system's answer.
        error: io::Error,
    },
}

/// A name from a file, quoted for a message: control characters escaped, long ones cut.
pub(super) fn quoted(name: &str) -> String {
    const LONGEST: usize = 96;
    let mut text: String = name
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push('…');
    }
    format!("'{text}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_escapes_and_cuts() {
        assert_eq!(quoted("a\u{1b}[31m"), "'a\\u{1b}[31m'");
        let long = quoted(&"x".repeat(100_000));
        assert!(long.len() < 120 && long.ends_with("…'"));
    }
}
