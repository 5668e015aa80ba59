//! The GGUF container: a lossless typed reader over memory-mapped files and a streaming writer.
//!
//! The format is specified in ggml's `docs/gguf.md`; where llama.cpp's reader is stricter than the
//! document, this one follows llama.cpp, because a file is only useful if llama.cpp loads it.
//!
//! * [`Gguf`] reads a file or a set of shards. Nothing is allocated by a length the file claims
//!   before that length is checked against the bytes that are there.
//! * [`Gguf::from_rows`] makes a model of the same kind whose tensors are made on demand, from another
//!   format.
//! * [`GgufLayout`] computes the header, every tensor's place and the exact file size before any
//!   tensor data exists; [`GgufWriter`] then streams the data in order, without seeking.
//!
//! The module depends on `std`, `memmap2`, `byteorder` and `thiserror` alone, so that the fuzz
//! target can include it without building llama.cpp.

mod cursor;
mod error;
mod metadata;
mod reader;
mod rows;
mod split;
mod tensor;
mod types;
mod value;
mod writer;

pub use self::error::GgufError;
pub use self::metadata::Metadata;
pub use self::reader::{Gguf, MAX_HEADER_MEMORY, Part};
pub use self::rows::{MadeTensor, SourceFile, TensorRows};
pub use self::split::{
    KEY_SPLIT_COUNT, KEY_SPLIT_NO, KEY_SPLIT_TENSORS_COUNT, shard_path, shard_prefix,
};
pub use self::tensor::{MAX_DIMS, MAX_NAME_BYTES, Shape, TensorInfo, TensorSpec};
pub use self::types::{GgmlType, UnknownGgmlType};
pub use self::value::{Array, GString, GStringArray, MAX_ARRAY_DEPTH, Value, ValueType};
pub use self::writer::{GgufLayout, GgufWriter, PlacedTensor};

/// The key that sets the alignment of the data section and of every tensor in it.
pub const KEY_ALIGNMENT: &str = "general.alignment";
/// The alignment of a file without [`KEY_ALIGNMENT`], in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The version that new files get.
pub const DEFAULT_VERSION: u32 = 3;
/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
