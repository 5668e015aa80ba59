//! Reading a GGUF file or a set of shards.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::cursor::{Cursor, DAMAGED};
use super::error::{GgufError, quoted};
use super::metadata::Metadata;
use super::rows::TensorRows;
use super::split::{self, SplitKeys};
use super::tensor::{MAX_DIMS, MAX_NAME_BYTES, Shape, TensorInfo};
use super::types::GgmlType;
use super::value::Value;
use super::{DEFAULT_ALIGNMENT, KEY_ALIGNMENT, MAGIC};

/// The most memory the headers of a model may ask for, in bytes. Real ones need a tenth: a
/// vocabulary of 256 thousand tokens with its merges takes about 15 MiB. Without a bound, one
/// damaged length in a large file would have its tensor data read as metadata.
pub const MAX_HEADER_MEMORY: u64 = 128 << 20;

/// The longest key in bytes, by the format's specification.
const MAX_KEY_BYTES: usize = 65_535;
/// What one entry of the key list or tensor table costs in memory at most, growth included.
const ENTRY_MEMORY: u64 = 320;

/// An open model: its metadata, its tensor table and its mapped data.
///
/// The files are mapped, not read: a file must not be changed or cut while it is open.
#[derive(Debug)]
pub struct Gguf {
    /// The key-value pairs in file order. Of a split model, those of the first shard without the
    /// `split.*` keys, so that they describe the model; see [`Gguf::part_metadata`].
    pub metadata: Metadata,
    /// The tensors in file order, shard after shard.
    pub tensors: Vec<TensorInfo>,
    /// The format version of the (first) file: 2 or 3.
    pub version: u32,
    /// The alignment of the (first) file's data section, in bytes: a power of two.
    pub alignment: u64,
    /// The files; one unless the model is split.
    pub parts: Vec<Part>,
    /// Indices into `tensors`, sorted by name.
    pub(super) by_name: Vec<usize>,
    /// What makes the tensors, if they are not in the parts' bytes.
    pub(super) rows: Option<Box<dyn TensorRows>>,
}

/// One file of a model.
#[derive(Debug)]
pub struct Part {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its size in bytes.
    pub file_size: u64,
    /// Where its data section starts, in bytes.
    pub data_offset: u64,
    /// The alignment of its data section, in bytes.
    pub alignment: u64,
    /// Its format version.
    pub version: u32,
    /// Its own metadata, if the model is split.
    metadata: Option<Metadata>,
    bytes: Bytes,
}

/// The bytes of a file.
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Gguf {
    /// Opens a model. Given any shard of a split model, opens all of them; the first is
    /// `paths()[0]`, the one llama.cpp wants to be given.
    ///
    /// # Errors
    /// [`GgufError::Io`] if a file cannot be opened, [`GgufError::Unsupported`] if the path is no
    /// regular file or no GGUF of version 2 or 3 in little-endian order, [`GgufError::Malformed`]
    /// if the file breaks the format, [`GgufError::Split`] if shards are missing or do not fit.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, GgufError> {
        let path = path.as_ref();
        let mut memory = 0;
        let opened = ParsedFile::open(path, &mut memory)?;
        match opened.split_keys()? {
            Some(keys) if keys.count > 1 => Self::join(opened, keys, memory),
            _ => Self::assemble(vec![opened], false),
        }
    }

    /// Parses the bytes of one unsplit file; `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`Gguf::open`]; a shard of a split model is refused.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        let name = name.as_ref();
        let parsed = ParsedFile::parse(name, Bytes::Owned(bytes), &mut 0)?;
        match parsed.split_keys()? {
            Some(keys) if keys.count > 1 => Err(GgufError::Split {
                path: name.to_owned(),
                problem: format!("one of {} shards of a split model", keys.count),
                advice: String::from("open it by its path, so that the others are found beside it"),
            }),
            _ => Self::assemble(vec![parsed], false),
        }
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|i| &self.tensors[i])
    }

    /// The index in `tensors` of the tensor of this name.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        let found = self
            .by_name
            .binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name));
        found.ok().map(|at| self.by_name[at])
    }

    /// The data of one of this model's tensors, as stored: `tensor.n_bytes()` bytes.
    ///
    /// # Panics
    /// If `tensor` comes from another model whose data lie elsewhere, or the model is made on demand
    /// ([`Gguf::rows`] works for both).
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = tensor.file_offset as usize;
        &self.parts[tensor.part].bytes[start..start + tensor.n_bytes as usize]
    }

    /// The key-value pairs of file `part`, `split.*` keys included.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn part_metadata(&self, part: usize) -> &Metadata {
        self.parts[part].metadata.as_ref().unwrap_or(&self.metadata)
    }

    /// The tensors of file `part`, in file order.
    pub fn part_tensors(&self, part: usize) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().filter(move |t| t.part == part)
    }

    /// The model's files, first shard first.
    pub fn paths(&self) -> Vec<&Path> {
        self.parts.iter().map(|p| p.path.as_path()).collect()
    }

    /// The size of all files together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.file_size).sum()
    }

    /// Finds and parses the other shards of the model that `opened` belongs to.
    fn join(opened: ParsedFile, keys: SplitKeys, mut memory: u64) -> Result<Gguf, GgufError> {
        let path = opened.path.clone();
        let fail = |path: &Path, problem: String, advice: &str| GgufError::Split {
            path: path.to_owned(),
            problem,
            advice: advice.to_owned(),
        };
        let count = keys.count;
        let no = keys.no.filter(|&no| no < count).ok_or_else(|| {
            let no = keys.no.map_or("missing".to_owned(), |no| format!("{no}"));
            fail(
                &path,
                format!(
                    "key '{}' is {no} in a model of {count} shards",
                    split::KEY_SPLIT_NO
                ),
                DAMAGED,
            )
        })?;
        let prefix = split::shard_prefix(&path, no, count).ok_or_else(|| GgufError::Split {
            path: path.clone(),
            problem: format!("this is shard {} of {count}, but not named so", no + 1),
            advice: format!(
                "name the shards as they were published, this one {}",
                split::shard_path(Path::new("NAME"), no, count).display()
            ),
        })?;

        let paths: Vec<_> = (0..count)
            .map(|i| split::shard_path(&prefix, i, count))
            .collect();
        let missing: Vec<_> = paths.iter().filter(|p| !p.exists()).collect();
        if let Some(first) = missing.first() {
            return Err(GgufError::Split {
                path: path.clone(),
                problem: format!(
                    "{} of the model's {count} shards are missing, the first of them {}",
                    missing.len(),
                    first.display()
                ),
                advice: String::from("put all shards into one directory"),
            });
        }

        let mut opened = Some(opened);
        let mut files = Vec::new();
        for (i, shard) in paths.iter().enumerate() {
            let file = match opened.take_if(|_| i == no) {
                Some(file) => file,
                None => ParsedFile::open(shard, &mut memory)?,
            };
            let keys = file.split_keys()?;
            let is_its = match keys {
                Some(keys) => keys.no == Some(i) && keys.count == count,
                // Of files after the first, llama.cpp reads the number only.
                None => i > 0 && file.metadata.get(split::KEY_SPLIT_NO) == Some(&(i as u16).into()),
            };
            if !is_its {
                return Err(fail(
                    shard,
                    format!(
                        "its split keys do not say that it is shard {} of {count}",
                        i + 1
                    ),
                    "the shards are of different models or one was renamed, download them again",
                ));
            }
            files.push(file);
        }

        let found: u64 = files.iter().map(|f| f.tensors.len() as u64).sum();
        let first = &files[0];
        let stated = first.split_keys()?.and_then(|k| k.tensors);
        if stated != Some(found) {
            let stated = stated.map_or("missing".to_owned(), |n| n.to_string());
            let key = split::KEY_SPLIT_TENSORS_COUNT;
            return Err(fail(
                &first.path,
                format!("key '{key}' is {stated} but the {count} shards hold {found} tensors"),
                "the shards are of different models or one is damaged, download them again",
            ));
        }
        // The first shard's metadata is kept twice.
        if memory.saturating_add(first.metadata_memory) > MAX_HEADER_MEMORY {
            return Err(fail(
                &first.path,
                format!(
                    "the headers ask for more than {} MiB",
                    MAX_HEADER_MEMORY >> 20
                ),
                DAMAGED,
            ));
        }
        Self::assemble(files, true)
    }

    fn assemble(files: Vec<ParsedFile>, is_split: bool) -> Result<Gguf, GgufError> {
        let mut tensors = Vec::with_capacity(files.iter().map(|f| f.tensors.len()).sum());
        let mut metadata = Metadata::new();
        let mut parts = Vec::with_capacity(files.len());
        for (i, file) in files.into_iter().enumerate() {
            let own = if is_split {
                if i == 0 {
                    metadata = file.metadata.clone();
                    metadata.remove_split_keys();
                }
                Some(file.metadata)
            } else {
                metadata = file.metadata;
                None
            };
            tensors.extend(
                file.tensors
                    .into_iter()
                    .map(|t| TensorInfo { part: i, ..t }),
            );
            parts.push(Part {
                path: file.path,
                file_size: file.bytes.len() as u64,
                data_offset: file.data_offset,
                alignment: file.alignment,
                version: file.version,
                metadata: own,
                bytes: file.bytes,
            });
        }

        let by_name = sorted_by_name(&tensors);
        if let Some(pair) = by_name
            .windows(2)
            .find(|pair| tensors[pair[0]].name == tensors[pair[1]].name)
        {
            let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
            return Err(GgufError::Split {
                path: parts[a.part.max(b.part)].path.clone(),
                problem: format!(
                    "tensor {} is also in {}",
                    quoted(&a.name),
                    parts[a.part.min(b.part)].path.display()
                ),
                advice: String::from("the shards are of different splits, download them again"),
            });
        }
        Ok(Gguf {
            metadata,
            tensors,
            version: parts[0].version,
            alignment: parts[0].alignment,
            parts,
            by_name,
            rows: None,
        })
    }
}

/// Indices of the tensors, sorted by name.
pub(super) fn sorted_by_name(tensors: &[TensorInfo]) -> Vec<usize> {
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_unstable_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
    by_name
}

impl Part {
    /// A file that is no GGUF file and holds what tensors are made from.
    pub(super) fn unparsed(path: PathBuf, file_size: u64, alignment: u64) -> Part {
        Part {
            path,
            file_size,
            data_offset: 0,
            alignment,
            version: super::DEFAULT_VERSION,
            metadata: None,
            bytes: Bytes::Owned(Vec::new()),
        }
    }
}

/// One file, parsed and checked.
struct ParsedFile {
    path: PathBuf,
    bytes: Bytes,
    version: u32,
    alignment: u64,
    data_offset: u64,
    metadata: Metadata,
    metadata_memory: u64,
    tensors: Vec<TensorInfo>,
}

impl ParsedFile {
    fn open(path: &Path, memory: &mut u64) -> Result<Self, GgufError> {
        Self::parse(path, map_file(path)?, memory)
    }

    fn split_keys(&self) -> Result<Option<SplitKeys>, GgufError> {
        SplitKeys::read(&self.metadata).map_err(|problem| GgufError::Split {
            path: self.path.clone(),
            problem,
            advice: DAMAGED.to_owned(),
        })
    }

    fn parse(path: &Path, bytes: Bytes, memory: &mut u64) -> Result<Self, GgufError> {
        let file_size = bytes.len() as u64;
        let mut cur = Cursor::new(path, &bytes, *memory);
        let version = read_version(path, &mut cur)?;

        cur.item = String::from("tensor count");
        let n_tensors = read_count(&mut cur, 24)?;
        cur.item = String::from("key count");
        let n_keys = read_count(&mut cur, 13)?;

        let memory_before = cur.memory;
        let (metadata, alignment) = read_metadata(&mut cur, n_keys)?;
        let metadata_memory = cur.memory - memory_before;

        let mut tensors = read_tensor_table(&mut cur, n_tensors, alignment)?;

        cur.item = String::from("data section");
        let data_offset = match cur.pos().checked_next_multiple_of(alignment) {
            Some(offset) if offset <= file_size => offset,
            _ if n_tensors == 0 => cur.pos(),
            _ => {
                return Err(cur.malformed(
                    cur.pos(),
                    format!("the file ends before the data section, aligned to {alignment} bytes"),
                    "the file was cut off, download or convert it again",
                ));
            }
        };
        for t in &mut tensors {
            // Offsets were summed without overflow, but the header's size was not in that sum.
            t.file_offset = data_offset.saturating_add(t.offset);
            let end = t.file_offset.saturating_add(t.n_bytes);
            if end > file_size {
                cur.item = format!("tensor {}", quoted(&t.name));
                return Err(cur.malformed(
                    t.file_offset,
                    format!("its data end at byte {end} but the file has only {file_size}"),
                    "the file was cut off, download or convert it again",
                ));
            }
        }
        *memory = cur.memory;
        Ok(ParsedFile {
            path: path.to_owned(),
            version,
            alignment,
            data_offset,
            metadata,
            metadata_memory,
            tensors,
            bytes,
        })
    }
}

/// Maps a regular file. Looks before opening, because opening a pipe would wait for its writer.
fn map_file(path: &Path) -> Result<Bytes, GgufError> {
    let io = |doing: &'static str| {
        move |error: std::io::Error| GgufError::Io {
            path: path.to_owned(),
            doing,
            error,
        }
    };
    let refuse_if_special = |meta: &std::fs::Metadata| {
        if meta.is_file() {
            return Ok(());
        }
        Err(GgufError::Unsupported {
            path: path.to_owned(),
            problem: if meta.is_dir() {
                String::from("this is a directory")
            } else {
                String::from("this is a pipe, socket or device, not a regular file")
            },
            advice: "give the path of a .gguf file (of the first shard, if the model is split)",
        })
    };
    refuse_if_special(&std::fs::metadata(path).map_err(io("find the file"))?)?;
    let file = File::open(path).map_err(io("open the file"))?;
    let meta = file.metadata().map_err(io("inspect the file"))?;
    refuse_if_special(&meta)?;
    if meta.len() == 0 {
        return Ok(Bytes::Owned(Vec::new()));
    }
    // SAFETY: the mapping is private and read-only and lives as long as the bytes are borrowed.
    // Another process that shrinks the file meanwhile would make reads fault; no reader of mapped
    // models can exclude that, and `Gguf` documents it.
    let map = unsafe { Mmap::map(&file) }.map_err(io("map the file into memory"))?;
    Ok(Bytes::Mapped(map))
}

/// Magic and version.
fn read_version(path: &Path, cur: &mut Cursor) -> Result<u32, GgufError> {
    let unsupported = |problem: String, advice: &'static str| GgufError::Unsupported {
        path: path.to_owned(),
        problem,
        advice,
    };
    if cur.remaining() == 0 {
        return Err(unsupported(
            String::from("the file is empty"),
            "download or convert it again",
        ));
    }
    let start = cur.take(cur.remaining().min(4))?;
    if start != MAGIC {
        let advice = match start {
            b"FUGG" => "byte-swapped GGUF, convert it on a little-endian machine",
            b"tjgg" | b"fmgg" | b"lmgg" => {
                "this is a ggml file from before GGUF, convert the original model again"
            }
            b"vers" => "this looks like a Git LFS pointer, fetch the file itself with git lfs pull",
            b"PK\x03\x04" => "this looks like a PyTorch file, convert it to GGUF first",
            _ => "give a GGUF model, converted by llama.cpp's convert_hf_to_gguf.py for instance",
        };
        return Err(unsupported(
            format!(
                "not a GGUF file: it starts with \"{}\", not \"GGUF\"",
                start.escape_ascii()
            ),
            advice,
        ));
    }
    cur.item = String::from("version");
    match cur.u32()? {
        version @ (2 | 3) => Ok(version),
        1 => Err(unsupported(
            String::from("GGUF version 1, which llama.cpp no longer reads either"),
            "convert the original model again",
        )),
        // The test of llama.cpp: versions are small numbers.
        version if version & 0xffff == 0 && version != 0 => Err(unsupported(
            format!(
                "big-endian GGUF (version {} byte-swapped)",
                version.swap_bytes()
            ),
            "convert it to little-endian with gguf-py's gguf_convert_endian.py",
        )),
        0 => Err(unsupported(
            String::from("GGUF version 0, which does not exist"),
            DAMAGED,
        )),
        version => Err(unsupported(
            format!("GGUF version {version}, newer than the supported versions 2 and 3"),
            "update moqa, or convert the model to version 3",
        )),
    }
}

/// A count of entries that take at least `entry_bytes` each.
fn read_count(cur: &mut Cursor, entry_bytes: u64) -> Result<u64, GgufError> {
    let start = cur.pos();
    let n = cur.u64()?;
    let left = cur.remaining();
    if n.checked_mul(entry_bytes).is_none_or(|needs| needs > left) {
        return Err(cur.malformed(
            start,
            format!("{n} entries do not fit the {left} bytes left"),
            DAMAGED,
        ));
    }
    Ok(n)
}

/// The key-value pairs and the alignment they ask for.
fn read_metadata(cur: &mut Cursor, n_keys: u64) -> Result<(Metadata, u64), GgufError> {
    let mut metadata = Metadata::new();
    let mut alignment_at = 0;
    for i in 0..n_keys {
        cur.item = format!("key number {i}");
        let start = cur.pos();
        let key = cur.name(MAX_KEY_BYTES)?;
        cur.item = format!("key {}", quoted(key));
        if key.is_empty() {
            return Err(cur.malformed(start, format!("key number {i} is empty"), DAMAGED));
        }
        if metadata.contains(key) {
            return Err(cur.malformed(start, "the key occurs twice", DAMAGED));
        }
        cur.charge(ENTRY_MEMORY + 2 * key.len() as u64)?;
        if key == KEY_ALIGNMENT {
            alignment_at = cur.pos();
        }
        let ty = cur.value_type()?;
        let value = cur.value(ty)?;
        metadata.set(key, value);
    }
    let alignment = alignment_of(&metadata).map_err(|problem| {
        cur.item = format!("key '{KEY_ALIGNMENT}'");
        cur.malformed(alignment_at, problem, DAMAGED)
    })?;
    Ok((metadata, alignment))
}

/// The alignment the metadata asks for: as in llama.cpp a `u32` and a power of two.
pub(super) fn alignment_of(metadata: &Metadata) -> Result<u64, String> {
    match metadata.get(KEY_ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(n)) if n.is_power_of_two() => Ok(n.into()),
        Some(&Value::U32(n)) => Err(format!("the alignment is {n}, not a power of two")),
        Some(other) => Err(format!(
            "the alignment has type {}, not u32",
            other.value_type()
        )),
    }
}

fn read_tensor_table(
    cur: &mut Cursor,
    n_tensors: u64,
    alignment: u64,
) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    let mut expected_offset = 0u64;
    for i in 0..n_tensors {
        cur.item = format!("tensor number {i}");
        let start = cur.pos();
        let name = cur.name(MAX_NAME_BYTES)?;
        cur.item = format!("tensor {}", quoted(name));
        if name.contains('\0') {
            return Err(cur.malformed(start, "the name contains a zero byte", DAMAGED));
        }
        if !seen.insert(name) {
            return Err(cur.malformed(start, "the name occurs twice", DAMAGED));
        }
        cur.charge(ENTRY_MEMORY)?;

        let start = cur.pos();
        let n_dims = cur.u32()?;
        if n_dims as usize > MAX_DIMS {
            return Err(cur.malformed(
                start,
                format!("{n_dims} dimensions, at most {MAX_DIMS} are possible"),
                DAMAGED,
            ));
        }
        let mut ne = [1; MAX_DIMS];
        let stated = &mut ne[..n_dims as usize];
        for d in stated.iter_mut() {
            *d = cur.u64()?;
        }
        let dims = Shape::new(stated).expect("at most MAX_DIMS dimensions");

        let type_start = cur.pos();
        let id = cur.u32()?;
        let ty = GgmlType::from_id(id).ok_or_else(|| {
            cur.malformed(
                type_start,
                format!("ggml type {id} is unknown or was removed from ggml"),
                "the file is damaged, or made for another version of ggml; convert the model again",
            )
        })?;
        let n_bytes = dims
            .n_bytes(ty)
            .map_err(|problem| cur.malformed(start, problem, DAMAGED))?;

        let start = cur.pos();
        let offset = cur.u64()?;
        if offset != expected_offset {
            let relation = if offset < expected_offset {
                "it overlaps the tensors before"
            } else {
                "it leaves a gap"
            };
            return Err(cur.malformed(
                start,
                format!(
                    "the data offset is {offset} but must be {expected_offset}, where the tensors \
                     before end: {relation}"
                ),
                DAMAGED,
            ));
        }
        expected_offset = n_bytes
            .checked_next_multiple_of(alignment)
            .and_then(|padded| offset.checked_add(padded))
            .ok_or_else(|| {
                cur.malformed(start, "the offset of the next tensor overflows", DAMAGED)
            })?;
        tensors.push(TensorInfo {
            name: name.to_owned(),
            dims,
            ty,
            part: 0,
            offset,
            file_offset: 0,
            n_bytes,
        });
    }
    Ok(tensors)
}
