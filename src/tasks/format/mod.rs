//! Files of tasks.

mod binary;
mod hellaswag;
mod jsonl;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::Task;
use crate::output::write_file;

/// Larger files are not read.
const MAX_BYTES: u64 = 1 << 30;

/// The form of a file of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line, as lm-evaluation-harness keeps documents: a context (`query`, `context`, `ctx`
    /// or `question`), continuations (`choices` or `endings`; also `{"text": [...], "label": [...]}`) and the
    /// right one (`gold`, `label`, `answer` or `answerKey`; an index from 0, or a letter).
    Jsonl,
    /// What llama-perplexity reads with `--multiple-choice`.
    LlamaBinary,
    /// What llama-perplexity reads with `--hellaswag`: six lines a task, the context, the index of the right
    /// ending, and four endings.
    HellaSwag,
}

impl Format {
    /// The form of a file's content. A binary file has a zero byte among its first eight (its two first
    /// numbers are small), which text never has.
    fn of(bytes: &[u8]) -> Self {
        if bytes.iter().take(8).any(|b| *b == 0) {
            Self::LlamaBinary
        } else if bytes
            .strip_prefix(jsonl::BOM)
            .unwrap_or(bytes)
            .iter()
            .find(|b| !b.is_ascii_whitespace())
            .is_some_and(|b| *b == b'{')
        {
            Self::Jsonl
        } else {
            Self::HellaSwag
        }
    }
}

/// Reads the tasks of a file; its form is found from its content.
///
/// # Errors
/// The file cannot be read, or is damaged or of no known form; says at which line or byte.
pub fn read(path: &Path) -> Result<Vec<Task>> {
    let describe = || format!("{}: cannot read these tasks", path.display());
    let meta = fs::metadata(path).with_context(describe)?;
    ensure!(meta.is_file(), "{}: not a regular file", path.display());
    ensure!(
        meta.len() <= MAX_BYTES,
        "{}: {} is too large for a file of tasks (at most {})",
        path.display(),
        crate::units::bytes(meta.len()),
        crate::units::bytes(MAX_BYTES)
    );
    let bytes = fs::read(path).with_context(describe)?;
    parse(&bytes).with_context(describe)
}

/// Reads tasks from the content of a file.
fn parse(bytes: &[u8]) -> Result<Vec<Task>> {
    let tasks = match Format::of(bytes) {
        Format::Jsonl => jsonl::parse(bytes),
        Format::LlamaBinary => binary::parse(bytes),
        Format::HellaSwag => hellaswag::parse(bytes),
    }?;
    ensure!(!tasks.is_empty(), "the file holds no task");
    Ok(tasks)
}

/// Writes tasks to `path`.
///
/// # Errors
/// A task cannot be expressed in the form, or the file cannot be written.
pub fn write(path: &Path, tasks: &[Task], format: Format) -> Result<()> {
    let describe = || format!("{}: cannot write these tasks", path.display());
    ensure!(
        !tasks.is_empty(),
        "{}: there is no task to write",
        path.display()
    );
    for (i, task) in tasks.iter().enumerate() {
        if let Some(fault) = task.fault() {
            bail!("{}: task {i} cannot be written: {fault}", path.display());
        }
    }
    let bytes = match format {
        Format::Jsonl => jsonl::serialize(tasks),
        Format::LlamaBinary => binary::serialize(tasks),
        Format::HellaSwag => bail!(
            "{}: HellaSwag's text form is only read; write JSON lines or llama.cpp's binary form",
            path.display()
        ),
    }
    .with_context(describe)?;
    write_file(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn task(context: &str, choices: &[&str], gold: usize) -> Task {
        Task {
            context: context.to_owned(),
            choices: choices.iter().map(|c| (*c).to_owned()).collect(),
            gold,
        }
    }

    fn samples() -> Vec<Task> {
        vec![
            task("Two and two\nmake", &["four", "\"five\"", "no\tsense"], 0),
            task("Ä ö 日本", &["語", "x\u{0}y"], 1),
            task("{", &["a"; MAX_CHOICES], 99),
        ]
    }

    #[test]
    fn both_written_forms_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks");
        for format in [Format::Jsonl, Format::LlamaBinary] {
            write(&path, &samples(), format).unwrap();
            assert_eq!(Format::of(&fs::read(&path).unwrap()), format);
            assert_eq!(read(&path).unwrap(), samples());
        }
        assert!(write(&path, &samples(), Format::HellaSwag).is_err());
        assert!(write(&path, &[], Format::Jsonl).is_err());
        let bad = task("x", &["a", ""], 0);
        let e = write(&path, &[bad], Format::LlamaBinary).unwrap_err();
        assert!(e.to_string().contains("choice 1 is empty"), "{e}");
        assert_eq!(
            read(&path).unwrap(),
            samples(),
            "a failed write leaves the file"
        );
    }

    #[test]
    fn what_is_no_file_of_tasks_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).is_err());
        assert!(read(&dir.path().join("missing")).is_err());
        assert!(read(Path::new("/dev/zero")).is_err());
        let huge = dir.path().join("huge");
        fs::File::create(&huge)
            .unwrap()
            .set_len(MAX_BYTES + 1)
            .unwrap();
        let e = read(&huge).unwrap_err().to_string();
        assert!(e.contains("too large"), "{e}");
        for content in [&b""[..], b"\n", b"\xef\xbb\xbf", b"GGUF\x03\0\0\0", b"[1]"] {
            assert!(parse(content).is_err(), "{content:?}");
        }
    }

    /// Any change of any byte gives tasks that keep the rules, or an error; never a panic.
    #[test]
    fn damage_never_panics() {
        let tasks = vec![
            task("Two and two make", &["four", "five"], 0),
            task("A", &["b", "c", "d"], 2),
        ];
        for bytes in [
            binary::serialize(&tasks).unwrap(),
            jsonl::serialize(&tasks).unwrap(),
            b"ctx\n2\na\nb\nc\nd\nctx\n3\na\nb\nc\nd\n".to_vec(),
        ] {
            assert!(parse(&bytes).is_ok());
            for i in 0..bytes.len() {
                let _ = parse(&bytes[..i]);
                for value in [0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b'9', bytes[i] ^ 1] {
                    let mut changed = bytes.clone();
                    changed[i] = value;
                    if let Ok(tasks) = parse(&changed) {
                        assert!(tasks.iter().all(|t| t.fault().is_none()));
                    }
                }
            }
        }
    }
}
