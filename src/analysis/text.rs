//! Texts to calibrate or evaluate on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::calibration;
use crate::runtime::Vocab;

/// The longest text: llama.cpp counts its bytes and tokens in 31 bits.
const MAX_BYTES: u64 = i32::MAX as u64;

/// A text made of documents, in a fixed order.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// Names of the documents: paths, or domains of the built-in text.
    pub names: Vec<String>,
    /// The documents' texts.
    pub documents: Vec<String>,
    /// The domain of each document; empty where none was named.
    pub labels: Vec<String>,
}

/// A path of texts, with the domain they belong to: `PATH` or `LABEL=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPath {
    /// Domain; empty when none was named.
    pub label: String,
    /// File or folder.
    pub path: PathBuf,
}

impl std::str::FromStr for TextPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unlabelled = TextPath {
            label: String::new(),
            path: text.into(),
        };
        match text.split_once('=') {
            // A file whose name holds the sign is a file.
            Some((label, path)) if !unlabelled.path.exists() => {
                let plain = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
                if label.is_empty()
                    || label.len() > 40
                    || !label.chars().all(plain)
                    || path.is_empty()
                {
                    return Err(format!("'{text}' is neither PATH nor LABEL=PATH"));
                }
                Ok(TextPath {
                    label: label.to_owned(),
                    path: path.into(),
                })
            }
            _ => Ok(unlabelled),
        }
    }
}

impl Corpus {
    /// The calibration text built into the program.
    pub fn built_in() -> Self {
        Self {
            names: calibration::DOCUMENTS
                .iter()
                .map(|d| format!("built-in:{}", d.domain))
                .collect(),
            documents: calibration::DOCUMENTS
                .iter()
                .map(|d| d.text.to_owned())
                .collect(),
            labels: calibration::DOCUMENTS
                .iter()
                .map(|d| d.domain.to_owned())
                .collect(),
        }
    }

    /// Reads files, and the files of directories (`*.txt`, `*.md`, `*.raw`, `*.text`, not recursive) in the
    /// order of their names.
    ///
    /// # Errors
    /// A path cannot be read, is not UTF-8, or a directory holds no text.
    pub fn read(paths: &[TextPath]) -> Result<Self> {
        let mut corpus = Self::default();
        for TextPath { label, path } in paths {
            let meta = fs::metadata(path)
                .with_context(|| format!("{}: cannot read this text", path.display()))?;
            if meta.is_dir() {
                let mut files: Vec<PathBuf> = fs::read_dir(path)
                    .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
                    .with_context(|| format!("{}: cannot list this folder", path.display()))?;
                files.retain(|f| f.is_file() && has_text_ending(f));
                files.sort();
                ensure!(
                    !files.is_empty(),
                    "{}: the folder holds no .txt, .md, .raw or .text file",
                    path.display()
                );
                for file in &files {
                    corpus.push_file(file, label)?;
                }
            } else if meta.is_file() {
                corpus.push_file(path, label)?;
            } else {
                bail!("{}: neither a file nor a folder", path.display());
            }
        }
        Ok(corpus)
    }

    fn push_file(&mut self, path: &Path, label: &str) -> Result<()> {
        let n = fs::metadata(path).map_or(0, |m| m.len());
        ensure!(
            n <= MAX_BYTES,
            "{}: a text of {}; give at most {}",
            path.display(),
            crate::units::bytes(n),
            crate::units::bytes(MAX_BYTES)
        );
        let bytes =
            fs::read(path).with_context(|| format!("{}: cannot read this text", path.display()))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            anyhow::anyhow!(
                "{}: not UTF-8 at byte {}; convert the text first",
                path.display(),
                e.utf8_error().valid_up_to()
            )
        })?;
        self.names.push(path.display().to_string());
        self.labels.push(label.to_owned());
        self.documents.push(text);
        Ok(())
    }

    /// The texts of the domains, `(label, text)`, in order of appearance, each document after the other.
    pub fn domains(&self) -> Vec<(String, String)> {
        let mut domains: Vec<(String, String)> = Vec::new();
        for (label, text) in self.labels.iter().zip(&self.documents) {
            match domains.iter_mut().find(|d| d.0 == *label) {
                Some(d) => d.1.push_str(text),
                None => domains.push((label.clone(), text.clone())),
            }
        }
        domains
    }

    /// All documents as one text, one after another without a separator, as llama.cpp's tools read
    /// concatenated files.
    pub fn concatenated(&self) -> String {
        self.documents.concat()
    }
}

fn has_text_ending(path: &Path) -> bool {
    path.extension().is_some_and(|e| {
        ["txt", "md", "raw", "text"]
            .iter()
            .any(|t| e.eq_ignore_ascii_case(t))
    })
}

/// Tokens of `text` cut into chunks of `n_ctx`, the way llama-perplexity and llama-imatrix cut them: the
/// remainder is dropped, and where the vocabulary asks for it the first token of each chunk is replaced by
/// the beginning-of-sequence token. A text shorter than one chunk gives one chunk of its own length.
///
/// # Errors
/// The text has no tokens.
pub fn chunk_tokens(vocab: Vocab<'_>, text: &str, n_ctx: usize) -> Result<Vec<Vec<i32>>> {
    let tokens = vocab.tokenize(text, true, false)?;
    ensure!(
        tokens.len() >= 2,
        "the text has only {} tokens; give more text",
        tokens.len()
    );
    let n_ctx = n_ctx.clamp(2, tokens.len());
    let mut chunks: Vec<Vec<i32>> = tokens.chunks_exact(n_ctx).map(<[i32]>::to_vec).collect();
    if vocab.add_bos() {
        for chunk in &mut chunks {
            chunk[0] = vocab.bos();
        }
    }
    Ok(chunks)
}
