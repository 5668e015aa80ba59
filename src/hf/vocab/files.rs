//! Bounded reading of the tokenizer's files, and JSON access whose errors name the file and the field.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};

/// The largest tokenizer file that is read, in bytes. The largest known `tokenizer.json` has about 35 MB;
/// parsed JSON takes up to ten times its bytes.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// The largest of the small files: configurations and chat templates, in bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The most tokens a vocabulary may have; the largest known ones have about 260,000.
pub(super) const MAX_VOCAB: usize = 1 << 22;

/// The bytes of a file, or `None` if there is no such file.
pub(super) fn read_bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(anyhow!(e).context(format!("{}: cannot open", path.display()))),
    };
    let meta = file
        .metadata()
        .with_context(|| format!("{}: cannot read", path.display()))?;
    if !meta.is_file() {
        bail!("{}: not a regular file", path.display());
    }
    // The file may grow while it is read, so the limit is enforced on what is read.
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    if bytes.len() as u64 > limit {
        bail!(
            "{}: larger than {} MiB, the most that is read of such a file",
            path.display(),
            limit >> 20
        );
    }
    Ok(Some(bytes))
}

/// The text of a UTF-8 file, or `None` if there is no such file.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<Option<String>> {
    let Some(bytes) = read_bytes(path, limit)? else {
        return Ok(None);
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => bail!(
            "{}: not UTF-8 at byte {}",
            path.display(),
            e.utf8_error().valid_up_to()
        ),
    }
}

/// A parsed JSON file.
pub(super) struct JsonFile {
    pub(super) path: PathBuf,
    pub(super) value: Value,
}

impl JsonFile {
    /// Reads `path`, whose root must be an object; `None` if there is no such file.
    pub(super) fn open(path: PathBuf, limit: u64) -> Result<Option<JsonFile>> {
        let Some(bytes) = read_bytes(&path, limit)? else {
            return Ok(None);
        };
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| anyhow!("{}: not valid JSON: {e}", path.display()))?;
        if !value.is_object() {
            bail!("{}: holds {}, not an object", path.display(), kind(&value));
        }
        Ok(Some(JsonFile { path, value }))
    }

    /// The root object.
    pub(super) fn root(&self) -> Field<'_> {
        Field::root(&self.path, &self.value)
    }
}

/// What a JSON value is, with its article.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A place in a JSON file.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) file: &'a Path,
    name: String,
    pub(super) value: &'a Value,
}

impl<'a> Field<'a> {
    /// The root of a file.
    pub(super) fn root(file: &'a Path, value: &'a Value) -> Self {
        Field {
            file,
            name: String::new(),
            value,
        }
    }

    /// An error about this field.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> anyhow::Error {
        if self.name.is_empty() {
            anyhow!("{}: {what}", self.file.display())
        } else {
            anyhow!("{}: field `{}` {what}", self.file.display(), self.name)
        }
    }

    fn wrong(&self, wanted: &str) -> anyhow::Error {
        self.error(format_args!("is {}, not {wanted}", kind(self.value)))
    }

    /// The member `key` of this object; absent and null members are `None`.
    pub(super) fn get(&self, key: &str) -> Result<Option<Field<'a>>> {
        let value = match self.object()?.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let name = if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        };
        Ok(Some(Field {
            file: self.file,
            name,
            value,
        }))
    }

    /// The member `key`, which must be there.
    pub(super) fn require(&self, key: &str) -> Result<Field<'a>> {
        self.get(key)?.ok_or_else(|| {
            if self.name.is_empty() {
                anyhow!("{}: field `{key}` is missing", self.file.display())
            } else {
                anyhow!(
                    "{}: field `{}.{key}` is missing",
                    self.file.display(),
                    self.name
                )
            }
        })
    }

    /// The elements of this array.
    pub(super) fn items(&self) -> Result<impl ExactSizeIterator<Item = Field<'a>> + use<'a>> {
        let file = self.file;
        let name = self.name.clone();
        let items = match self.value {
            Value::Array(items) => items,
            _ => return Err(self.wrong("an array")),
        };
        Ok(items.iter().enumerate().map(move |(i, value)| Field {
            file,
            name: format!("{name}[{i}]"),
            value,
        }))
    }

    pub(super) fn object(&self) -> Result<&'a Map<String, Value>> {
        self.value
            .as_object()
            .ok_or_else(|| self.wrong("an object"))
    }

    pub(super) fn string(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub(super) fn bool(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.wrong("a boolean"))
    }

    /// A token id: below [`MAX_VOCAB`].
    pub(super) fn token_id(&self) -> Result<u32> {
        token_id(self.value).ok_or_else(|| {
            self.error(format_args!(
                "is {}, not a token id (0 to {})",
                self.value,
                MAX_VOCAB - 1
            ))
        })
    }

    /// `self[key]` as a boolean, or `default` if absent.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key)?.map_or(Ok(default), |f| f.bool())
    }

    /// `self["type"]`, which every component of a tokenizer has.
    pub(super) fn kind(&self) -> Result<&'a str> {
        self.require("type")?.string()
    }
}

/// The token id in a JSON value, if it is one.
pub(super) fn token_id(value: &Value) -> Option<u32> {
    let id = value.as_u64()?;
    (id < MAX_VOCAB as u64).then_some(id as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file_and_the_field() {
        let value: Value = serde_json::json!({"model": {"vocab": [1], "merges": null}});
        let root = Field::root(Path::new("tokenizer.json"), &value);
        let model = root.require("model").unwrap();
        let message = |e: anyhow::Error| e.to_string();
        assert_eq!(
            message(model.require("merges").err().unwrap()),
            "tokenizer.json: field `model.merges` is missing"
        );
        assert_eq!(
            message(model.require("vocab").unwrap().object().unwrap_err()),
            "tokenizer.json: field `model.vocab` is an array, not an object"
        );
        let first = model.require("vocab").unwrap().items().unwrap().next();
        assert_eq!(
            message(first.unwrap().string().unwrap_err()),
            "tokenizer.json: field `model.vocab[0]` is a number, not a string"
        );
    }

    #[test]
    fn files_over_the_limit_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_bytes(&path, 5).unwrap().unwrap(), b"12345");
        assert!(read_bytes(&path, 4).is_err());
        assert!(read_bytes(&dir.path().join("y"), 4).unwrap().is_none());
        assert!(read_bytes(dir.path(), 4).is_err());
        std::fs::write(&path, b"ab\xff").unwrap();
        let e = read_text(&path, 4).unwrap_err().to_string();
        assert!(e.contains("not UTF-8 at byte 2"), "{e}");
    }
}
