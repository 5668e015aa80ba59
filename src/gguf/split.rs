//! Models split into shards: the keys and file names of llama-gguf-split.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::value::Value;

/// The shard's number, from 0 (`u16`).
pub const KEY_SPLIT_NO: &str = "split.no";
/// The number of shards (`u16`).
pub const KEY_SPLIT_COUNT: &str = "split.count";
/// The number of tensors in all shards together (`i32`).
pub const KEY_SPLIT_TENSORS_COUNT: &str = "split.tensors.count";

/// The file name of shard `no` (from 0) of `count`: `PREFIX-00001-of-00003.gguf`.
pub fn shard_path(prefix: &Path, no: usize, count: usize) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix(no, count));
    path.into()
}

/// The prefix of a shard's path; `None` if the name does not end as that of shard `no` of `count`.
pub fn shard_prefix(path: &Path, no: usize, count: usize) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let prefix = name.strip_suffix(&suffix(no, count))?;
    (!prefix.is_empty()).then(|| path.with_file_name(prefix))
}

fn suffix(no: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}

/// What the split keys of one file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SplitKeys {
    pub no: Option<usize>,
    pub count: usize,
    pub tensors: Option<u64>,
}

impl SplitKeys {
    /// Reads the keys; `None` without a count. Types are as strict as in llama.cpp.
    pub fn read(metadata: &Metadata) -> Result<Option<SplitKeys>, String> {
        let u16_of = |key: &str| match metadata.get(key) {
            None => Ok(None),
            Some(&Value::U16(v)) => Ok(Some(usize::from(v))),
            Some(other) => Err(format!(
                "key '{key}' has type {}, not u16",
                other.value_type()
            )),
        };
        let Some(count) = u16_of(KEY_SPLIT_COUNT)? else {
            return Ok(None);
        };
        let tensors = match metadata.get(KEY_SPLIT_TENSORS_COUNT) {
            None => None,
            Some(&Value::I32(v)) => Some(
                u64::try_from(v).map_err(|_| format!("key '{KEY_SPLIT_TENSORS_COUNT}' is {v}"))?,
            ),
            Some(other) => {
                return Err(format!(
                    "key '{KEY_SPLIT_TENSORS_COUNT}' has type {}, not i32",
                    other.value_type()
                ));
            }
        };
        Ok(Some(SplitKeys {
            no: u16_of(KEY_SPLIT_NO)?,
            count,
            tensors,
        }))
    }
}

impl Metadata {
    /// Removes the keys that describe a shard, which must not go into a file of another split.
    pub fn remove_split_keys(&mut self) {
        for key in [KEY_SPLIT_NO, KEY_SPLIT_COUNT, KEY_SPLIT_TENSORS_COUNT] {
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_round_trip() {
        let path = shard_path(Path::new("/m/qwen.v1"), 1, 12);
        assert_eq!(path, Path::new("/m/qwen.v1-00002-of-00012.gguf"));
        assert_eq!(shard_prefix(&path, 1, 12), Some("/m/qwen.v1".into()));
        assert_eq!(shard_prefix(&path, 2, 12), None);
        assert_eq!(shard_prefix(Path::new("-00001-of-00001.gguf"), 0, 1), None);
    }

    #[test]
    fn split_keys_are_typed() {
        let mut m = Metadata::new();
        assert_eq!(SplitKeys::read(&m), Ok(None));
        m.set(KEY_SPLIT_COUNT, 3u32);
        assert!(SplitKeys::read(&m).unwrap_err().contains("u32, not u16"));
        m.set(KEY_SPLIT_COUNT, 3u16);
        m.set(KEY_SPLIT_NO, 1u16);
        m.set(KEY_SPLIT_TENSORS_COUNT, -1i32);
        assert!(SplitKeys::read(&m).is_err());
        m.set(KEY_SPLIT_TENSORS_COUNT, 9i32);
        let keys = SplitKeys::read(&m).unwrap().unwrap();
        assert_eq!((keys.no, keys.count, keys.tensors), (Some(1), 3, Some(9)));
        m.remove_split_keys();
        assert!(m.is_empty());
    }
}
