//! Texts to calibrate or evaluate on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

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

impl TextPath {
    /// The file, or of a folder and its subfolders the files that are text or source code by their ending, in the order of
    /// their paths. Hidden files and folders are passed over, and links to folders.
    ///
    /// # Errors
    /// The path cannot be read, or is a folder without text.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let shown = self.path.display();
        let meta =
            fs::metadata(&self.path).with_context(|| format!("{shown}: cannot read this text"))?;
        if meta.is_file() {
            return Ok(vec![self.path.clone()]);
        }
        ensure!(meta.is_dir(), "{shown}: neither a file nor a folder");
        let files = texts_in(&self.path)?;
        ensure!(
            !files.is_empty(),
            "{shown}: the folder holds no .txt, .md or other file of text or source code by its ending; name others singly"
        );
        Ok(files)
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

    /// Reads the files of paths ([`TextPath::files`]), one after another.
    ///
    /// # Errors
    /// A path cannot be read, is not UTF-8, or a directory holds no text.
    pub fn read(paths: &[TextPath]) -> Result<Self> {
        let mut corpus = Self::default();
        for path in paths {
            for file in path.files()? {
                corpus.push_file(&file, &path.label)?;
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

/// Endings of files that are read where their folder is named.
const TEXT_ENDINGS: &[&str] = &[
    "txt", "md", "raw", "text", "rst", "tex", "org", "adoc", "c", "h", "cc", "cpp", "cxx", "hh",
    "hpp", "cs", "cu", "go", "hs", "java", "jl", "js", "jsx", "kt", "lua", "m", "ml", "php", "pl",
    "pm", "py", "r", "rb", "rs", "scala", "sh", "sql", "swift", "ts", "tsx", "zig",
];

fn has_text_ending(path: &Path) -> bool {
    let is = |e: &std::ffi::OsStr| TEXT_ENDINGS.iter().any(|t| e.eq_ignore_ascii_case(t));
    path.extension().is_some_and(is)
}

/// The texts of a folder and its subfolders, in the order of their paths.
fn texts_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let describe = || format!("{}: cannot list this folder", folder.display());
        for entry in fs::read_dir(&folder).with_context(describe)? {
            let entry = entry.with_context(describe)?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            if entry.file_type().with_context(describe)?.is_dir() {
                folders.push(path);
            } else if has_text_ending(&path) && path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
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
    begin_chunks(vocab, &mut chunks);
    Ok(chunks)
}

/// Puts the beginning-of-sequence token in the place of each chunk's first token, where the vocabulary asks for it.
pub fn begin_chunks(vocab: Vocab<'_>, chunks: &mut [Vec<i32>]) {
    if vocab.add_bos() {
        for first in chunks.iter_mut().filter_map(|chunk| chunk.first_mut()) {
            *first = vocab.bos();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_for_text() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        let texts = ["a.txt", "src/deep/b.rs", "src/c.py"];
        texts.iter().for_each(|name| write(name));
        for name in [".git/d.txt", ".e.md", "f.bin", "src/g"] {
            write(name);
        }
        let read = |path: &Path| {
            Corpus::read(&[TextPath {
                label: "x".to_owned(),
                path: path.to_owned(),
            }])
        };
        let corpus = read(dir.path()).unwrap();
        assert_eq!(corpus.documents, ["a.txt", "src/c.py", "src/deep/b.rs"]);
        assert!(corpus.labels.iter().all(|l| l == "x"));
        // A file is read whatever its ending.
        assert_eq!(
            read(&dir.path().join("f.bin")).unwrap().documents,
            ["f.bin"]
        );
        let none = read(&dir.path().join(".git/../src/deep/..").join("../.git"));
        assert_eq!(none.unwrap().documents, [".git/d.txt"]);
        fs::remove_file(dir.path().join("src/deep/b.rs")).unwrap();
        let error = read(&dir.path().join("src/deep")).unwrap_err().to_string();
        assert!(error.contains("holds no .txt"), "{error}");
    }
}
