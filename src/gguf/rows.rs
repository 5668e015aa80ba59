//! Models whose tensors are made on demand instead of read from a GGUF file.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::error::{GgufError, quoted};
use super::metadata::Metadata;
use super::reader::{Gguf, Part};
use super::tensor::{TensorInfo, TensorSpec};
use super::writer::GgufLayout;
use super::{DEFAULT_VERSION, reader};

/// Makes the data of tensors, in any order and from several threads at a time.
pub trait TensorRows: fmt::Debug + Send + Sync {
    /// Fills `out`, whole rows in the tensor's type, with the rows of tensor number `tensor` from
    /// `first_row` on.
    ///
    /// # Errors
    /// Says what is wrong with the source; the file and the tensor are named by the caller.
    fn read(&self, tensor: usize, first_row: u64, out: &mut [u8]) -> Result<(), String>;
}

/// A file from which tensors are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A tensor that is made on demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeTensor {
    /// Name, shape and type.
    pub spec: TensorSpec,
    /// The source file that holds (the first of) its data, for messages.
    pub file: usize,
    /// Where in that file, in bytes, for messages.
    pub file_offset: u64,
}

impl Gguf {
    /// A model whose tensors `rows` makes from `files`. Everything but [`Gguf::data`] works as for a
    /// model read from a file; `paths()` are the source files.
    ///
    /// # Errors
    /// [`GgufError::Layout`] if it could not be written as a GGUF file: the format's rules are
    /// checked here.
    pub fn from_rows(
        metadata: Metadata,
        tensors: Vec<MadeTensor>,
        files: Vec<SourceFile>,
        rows: Box<dyn TensorRows>,
    ) -> Result<Gguf, GgufError> {
        let specs = tensors.iter().map(|t| t.spec.clone()).collect();
        let layout = GgufLayout::new(&metadata, specs, DEFAULT_VERSION)?;
        let alignment = layout.alignment();
        let infos: Vec<TensorInfo> = (layout.tensors().iter().zip(tensors))
            .map(|(placed, made)| TensorInfo {
                name: made.spec.name,
                dims: made.spec.dims,
                ty: made.spec.ty,
                part: made.file.min(files.len().saturating_sub(1)),
                offset: made.file_offset,
                file_offset: made.file_offset,
                n_bytes: placed.n_bytes,
            })
            .collect();
        let parts = files
            .into_iter()
            .map(|f| Part::unparsed(f.path, f.bytes, alignment))
            .collect();
        Ok(Gguf {
            by_name: reader::sorted_by_name(&infos),
            metadata,
            tensors: infos,
            version: DEFAULT_VERSION,
            alignment,
            parts,
            rows: Some(rows),
        })
    }

    /// Whether the model is a GGUF file (or several), not made on demand.
    pub fn is_file(&self) -> bool {
        self.rows.is_none()
    }

    /// Rows of a tensor of this model, as stored: borrowed from the mapped file, or made.
    ///
    /// # Errors
    /// [`GgufError::Source`] if the rows cannot be made.
    ///
    /// # Panics
    /// If the tensor is not of this model or does not have these rows.
    pub fn rows(&self, tensor: &TensorInfo, rows: Range<u64>) -> Result<Cow<'_, [u8]>, GgufError> {
        let row_bytes = tensor.ty.row_bytes(tensor.ne(0)).unwrap_or(0);
        assert!(rows.start <= rows.end && rows.end <= tensor.n_rows());
        let bytes = (rows.start * row_bytes) as usize..(rows.end * row_bytes) as usize;
        let Some(maker) = &self.rows else {
            return Ok(Cow::Borrowed(&self.data(tensor)[bytes]));
        };
        let mut out = vec![0u8; bytes.len()];
        if !out.is_empty() {
            self.position(&tensor.name)
                .ok_or_else(|| String::from("not a tensor of this model"))
                .and_then(|index| maker.read(index, rows.start, &mut out))
                .map_err(|problem| GgufError::Source {
                    path: self.parts[tensor.part].path.clone(),
                    item: format!("tensor {}", quoted(&tensor.name)),
                    problem,
                })?;
        }
        Ok(Cow::Owned(out))
    }

    /// Bytes of a tensor of this model, as stored; of a made tensor only the rows around them are made.
    ///
    /// # Errors
    /// As [`Gguf::rows`].
    ///
    /// # Panics
    /// If the tensor is not of this model or does not have these bytes.
    pub fn bytes(
        &self,
        tensor: &TensorInfo,
        bytes: Range<u64>,
    ) -> Result<Cow<'_, [u8]>, GgufError> {
        if self.is_file() {
            let range = bytes.start as usize..bytes.end as usize;
            return Ok(Cow::Borrowed(&self.data(tensor)[range]));
        }
        let row_bytes = tensor.ty.row_bytes(tensor.ne(0)).unwrap_or(0).max(1);
        let first = bytes.start / row_bytes;
        let rows = self.rows(tensor, first..bytes.end.div_ceil(row_bytes))?;
        let start = (bytes.start - first * row_bytes) as usize;
        Ok(Cow::Owned(
            rows[start..start + (bytes.end - bytes.start) as usize].to_vec(),
        ))
    }
}
