//! Writing a GGUF file: first the layout, then the data as a stream.

use std::collections::HashSet;
use std::io::{self, Write};

use byteorder::{LittleEndian, WriteBytesExt};

use super::error::{GgufError, quoted};
use super::metadata::Metadata;
use super::reader::alignment_of;
use super::split::{KEY_SPLIT_COUNT, KEY_SPLIT_NO, KEY_SPLIT_TENSORS_COUNT};
use super::tensor::{MAX_NAME_BYTES, TensorSpec};
use super::value::{Array, MAX_ARRAY_DEPTH, Value};
use super::{KEY_ALIGNMENT, MAGIC};

/// A tensor with its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlacedTensor {
    /// Name, shape and type.
    pub spec: TensorSpec,
    /// Where its data start in the file, in bytes.
    pub file_offset: u64,
    /// Bytes of data, padding not included.
    pub n_bytes: u64,
    /// Zero bytes after the data.
    pub padding: u64,
}

/// Everything about a file but the tensor data: the bytes of its header, the place of every tensor
/// and the exact size.
#[derive(Clone, Debug)]
pub struct GgufLayout {
    /// The header, without the padding up to `data_offset`.
    header: Vec<u8>,
    data_offset: u64,
    tensors: Vec<PlacedTensor>,
    version: u32,
    alignment: u64,
    file_size: u64,
}

impl GgufLayout {
    /// Lays out one file of format `version` 2 or 3 (see [`super::DEFAULT_VERSION`]). The alignment
    /// is that of the metadata's [`KEY_ALIGNMENT`], by default 32. Places tensors in the order
    /// given, each padded to the alignment, as llama.cpp does.
    ///
    /// # Errors
    /// [`GgufError::Layout`] if a name, shape, key or the whole would break the format.
    pub fn new(
        metadata: &Metadata,
        tensors: Vec<TensorSpec>,
        version: u32,
    ) -> Result<GgufLayout, GgufError> {
        let fail = |item: String, problem: &str| GgufError::Layout {
            item,
            problem: problem.to_owned(),
        };
        if !matches!(version, 2 | 3) {
            return Err(fail(
                format!("version {version}"),
                "only versions 2 and 3 can be written",
            ));
        }
        let alignment = alignment_of(metadata)
            .map_err(|problem| fail(format!("key '{KEY_ALIGNMENT}'"), &problem))?;
        for (key, value) in metadata.iter() {
            let item = || format!("key {}", quoted(key));
            if key.is_empty() || key.len() > 65_535 {
                return Err(fail(item(), "a key must have 1 to 65535 bytes"));
            }
            if value
                .as_array()
                .is_some_and(|a| a.depth() > MAX_ARRAY_DEPTH)
            {
                return Err(fail(item(), "its arrays nest too deep"));
            }
        }

        let mut placed = Vec::with_capacity(tensors.len());
        let mut names = HashSet::with_capacity(tensors.len());
        let mut offset = 0u64;
        for spec in &tensors {
            let item = || format!("tensor {}", quoted(&spec.name));
            if spec.name.len() > MAX_NAME_BYTES || spec.name.contains('\0') {
                return Err(fail(
                    item(),
                    "a name must have at most 63 bytes, none of them zero",
                ));
            }
            if !names.insert(spec.name.as_str()) {
                return Err(fail(item(), "the name occurs twice"));
            }
            let n_bytes = spec.dims.n_bytes(spec.ty).map_err(|p| fail(item(), &p))?;
            let padded = n_bytes.checked_next_multiple_of(alignment);
            let (end, padded) = padded
                .and_then(|padded| Some((offset.checked_add(padded)?, padded)))
                .ok_or_else(|| fail(item(), "the file would be larger than 2^64 bytes"))?;
            placed.push(PlacedTensor {
                spec: spec.clone(),
                file_offset: offset,
                n_bytes,
                padding: padded - n_bytes,
            });
            offset = end;
        }

        let header = write_header(metadata, &placed, version).map_err(|error| {
            // A vector takes every write.
            GgufError::Write {
                item: String::from("the header"),
                offset: 0,
                error,
            }
        })?;
        let data_offset = (header.len() as u64).next_multiple_of(alignment);
        let file_size = data_offset
            .checked_add(offset)
            .ok_or_else(|| fail(String::from("file"), "it would be larger than 2^64 bytes"))?;
        for t in &mut placed {
            t.file_offset += data_offset;
        }
        Ok(GgufLayout {
            header,
            data_offset,
            tensors: placed,
            version,
            alignment,
            file_size,
        })
    }

    /// Lays out a model as shards, the way llama-gguf-split does: a shard takes tensors in order
    /// until their padded data would exceed `max_bytes` (headers are not counted; a tensor larger
    /// than the limit gets a shard of its own), all metadata go into the first, every shard gets the
    /// `split.*` keys. An alignment other than the default is repeated in every shard. Name the
    /// files with [`super::shard_path`]. There is at least one shard.
    ///
    /// # Errors
    /// [`GgufError::Layout`] as for [`GgufLayout::new`], or if there would be more than 65535 shards.
    pub fn split(
        metadata: &Metadata,
        tensors: Vec<TensorSpec>,
        version: u32,
        max_bytes: u64,
    ) -> Result<Vec<GgufLayout>, GgufError> {
        Self::shards(metadata, tensors, version, max_bytes, false)
    }

    /// As [`GgufLayout::split`], with a first shard that holds the metadata and no tensors, as
    /// `llama-gguf-split --no-tensor-first-split` makes it.
    ///
    /// # Errors
    /// As [`GgufLayout::split`].
    pub fn split_after_header(
        metadata: &Metadata,
        tensors: Vec<TensorSpec>,
        version: u32,
        max_bytes: u64,
    ) -> Result<Vec<GgufLayout>, GgufError> {
        Self::shards(metadata, tensors, version, max_bytes, true)
    }

    fn shards(
        metadata: &Metadata,
        tensors: Vec<TensorSpec>,
        version: u32,
        max_bytes: u64,
        header_first: bool,
    ) -> Result<Vec<GgufLayout>, GgufError> {
        // One layout of the whole checks everything that concerns more than one shard.
        let whole = GgufLayout::new(metadata, tensors, version)?;
        let n_tensors = whole.tensors.len();

        let mut shards: Vec<Vec<TensorSpec>> = vec![Vec::new(); 1 + usize::from(header_first)];
        let mut shard_bytes = 0u64;
        for t in whole.tensors {
            let bytes = t.n_bytes + t.padding;
            let current = shards.last_mut().expect("there is always a shard");
            if !current.is_empty() && shard_bytes.saturating_add(bytes) > max_bytes {
                shards.push(vec![t.spec]);
                shard_bytes = bytes;
            } else {
                current.push(t.spec);
                shard_bytes += bytes;
            }
        }

        let fail = |problem: String| GgufError::Layout {
            item: String::from("shards"),
            problem,
        };
        let count = u16::try_from(shards.len()).map_err(|_| {
            fail(format!(
                "{} shards of at most {max_bytes} bytes, more than 65535; raise the limit",
                shards.len()
            ))
        })?;
        let total = i32::try_from(n_tensors).map_err(|_| fail(format!("{n_tensors} tensors")))?;
        let mut first = metadata.clone();
        first.remove_split_keys();
        let mut rest = Metadata::new();
        if let Some(alignment) = metadata.get(KEY_ALIGNMENT) {
            rest.set(KEY_ALIGNMENT, alignment.clone());
        }
        let shards = shards.into_iter().zip(0u16..);
        shards
            .map(|(tensors, no)| {
                let mut own = if no == 0 {
                    std::mem::take(&mut first)
                } else {
                    rest.clone()
                };
                // In the order llama-gguf-split leaves them.
                own.set(KEY_SPLIT_NO, no);
                own.set(KEY_SPLIT_TENSORS_COUNT, total);
                own.set(KEY_SPLIT_COUNT, count);
                GgufLayout::new(&own, tensors, version)
            })
            .collect()
    }

    /// The file's size in bytes.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Where the data section starts, in bytes.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Everything before the data section but the zero bytes that pad to it.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> &[PlacedTensor] {
        &self.tensors
    }

    /// The format version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }
}

/// The header without its final padding. Offsets in `tensors` count from the data section here.
fn write_header(
    metadata: &Metadata,
    tensors: &[PlacedTensor],
    version: u32,
) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    out.write_all(&MAGIC)?;
    out.write_u32::<LittleEndian>(version)?;
    out.write_u64::<LittleEndian>(tensors.len() as u64)?;
    out.write_u64::<LittleEndian>(metadata.len() as u64)?;
    for (key, value) in metadata.iter() {
        write_string(&mut out, key.as_bytes())?;
        out.write_u32::<LittleEndian>(value.value_type().id())?;
        write_value(&mut out, value)?;
    }
    for t in tensors {
        write_string(&mut out, t.spec.name.as_bytes())?;
        out.write_u32::<LittleEndian>(t.spec.dims.len() as u32)?;
        for &d in t.spec.dims.iter() {
            out.write_u64::<LittleEndian>(d)?;
        }
        out.write_u32::<LittleEndian>(t.spec.ty.id())?;
        out.write_u64::<LittleEndian>(t.file_offset)?;
    }
    Ok(out)
}

fn write_string(out: &mut Vec<u8>, s: &[u8]) -> io::Result<()> {
    out.write_u64::<LittleEndian>(s.len() as u64)?;
    out.write_all(s)
}

fn write_value(out: &mut Vec<u8>, value: &Value) -> io::Result<()> {
    match *value {
        Value::U8(v) => out.write_u8(v),
        Value::I8(v) => out.write_i8(v),
        Value::U16(v) => out.write_u16::<LittleEndian>(v),
        Value::I16(v) => out.write_i16::<LittleEndian>(v),
        Value::U32(v) => out.write_u32::<LittleEndian>(v),
        Value::I32(v) => out.write_i32::<LittleEndian>(v),
        Value::F32(v) => out.write_u32::<LittleEndian>(v.to_bits()),
        Value::Bool(v) => out.write_u8(v.into()),
        Value::Str(ref s) => write_string(out, s.as_bytes()),
        Value::Array(ref a) => write_array(out, a),
        Value::U64(v) => out.write_u64::<LittleEndian>(v),
        Value::I64(v) => out.write_i64::<LittleEndian>(v),
        Value::F64(v) => out.write_u64::<LittleEndian>(v.to_bits()),
    }
}

fn write_array(out: &mut Vec<u8>, array: &Array) -> io::Result<()> {
    out.write_u32::<LittleEndian>(array.elem_type().id())?;
    out.write_u64::<LittleEndian>(array.len() as u64)?;
    match array {
        Array::U8(v) => out.write_all(v),
        Array::I8(v) => v.iter().try_for_each(|&x| out.write_i8(x)),
        Array::U16(v) => v.iter().try_for_each(|&x| out.write_u16::<LittleEndian>(x)),
        Array::I16(v) => v.iter().try_for_each(|&x| out.write_i16::<LittleEndian>(x)),
        Array::U32(v) => v.iter().try_for_each(|&x| out.write_u32::<LittleEndian>(x)),
        Array::I32(v) => v.iter().try_for_each(|&x| out.write_i32::<LittleEndian>(x)),
        Array::F32(v) => v
            .iter()
            .try_for_each(|x| out.write_u32::<LittleEndian>(x.to_bits())),
        Array::Bool(v) => v.iter().try_for_each(|&x| out.write_u8(x.into())),
        Array::Str(v) => v.iter().try_for_each(|s| write_string(out, s)),
        Array::Array(v) => v.iter().try_for_each(|a| write_array(out, a)),
        Array::U64(v) => v.iter().try_for_each(|&x| out.write_u64::<LittleEndian>(x)),
        Array::I64(v) => v.iter().try_for_each(|&x| out.write_i64::<LittleEndian>(x)),
        Array::F64(v) => v
            .iter()
            .try_for_each(|x| out.write_u64::<LittleEndian>(x.to_bits())),
    }
}

/// Streams a file according to its layout: header at once, then the tensors' data in order and in
/// pieces of any size. Padding is the writer's business. Never seeks; wrap files in a `BufWriter`
/// when the pieces are small.
#[derive(Debug)]
pub struct GgufWriter<'a, W: Write> {
    out: W,
    layout: &'a GgufLayout,
    /// The tensor that the next data belong to.
    index: usize,
    /// How much of it is written.
    filled: u64,
    /// Bytes written in all.
    position: u64,
}

impl<'a, W: Write> GgufWriter<'a, W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`GgufError::Write`] if `out` refuses.
    pub fn new(out: W, layout: &'a GgufLayout) -> Result<Self, GgufError> {
        let mut writer = GgufWriter {
            out,
            layout,
            index: 0,
            filled: 0,
            position: 0,
        };
        writer.put(&layout.header)?;
        writer.pad(layout.data_offset - layout.header.len() as u64)?;
        Ok(writer)
    }

    /// The tensor that the next data belong to; `None` once all are complete.
    pub fn current(&self) -> Option<&'a PlacedTensor> {
        self.layout.tensors[self.index..]
            .iter()
            .find(|t| t.n_bytes > 0)
    }

    /// Asserts that the next data are those of tensor `name`.
    ///
    /// # Errors
    /// [`GgufError::DataOrder`] if the tensor before is incomplete or another one comes next.
    pub fn begin_tensor(&mut self, name: &str) -> Result<(), GgufError> {
        let tensors = &self.layout.tensors;
        if self.filled > 0 {
            let t = &tensors[self.index];
            return Err(order(format!(
                "tensor {} begins but {} has only {} of its {} bytes",
                quoted(name),
                quoted(&t.spec.name),
                self.filled,
                t.n_bytes
            )));
        }
        // Tensors without data need not be begun.
        while tensors
            .get(self.index)
            .is_some_and(|t| t.n_bytes == 0 && t.spec.name != name)
        {
            self.index += 1;
        }
        match tensors.get(self.index) {
            Some(t) if t.spec.name == name => Ok(()),
            Some(t) => Err(order(format!(
                "tensor {} begins but {} comes next in the layout",
                quoted(name),
                quoted(&t.spec.name)
            ))),
            None => Err(order(format!(
                "tensor {} begins but all tensors of the layout are written",
                quoted(name)
            ))),
        }
    }

    /// Writes the next piece of the current tensor's data. A piece must not reach into the next
    /// tensor.
    ///
    /// # Errors
    /// [`GgufError::DataOrder`] if there is more data than the tensor takes, [`GgufError::Write`] if
    /// the output refuses.
    pub fn write_tensor_bytes(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let tensors = &self.layout.tensors;
        while tensors.get(self.index).is_some_and(|t| t.n_bytes == 0) {
            self.index += 1;
        }
        let Some(t) = tensors.get(self.index) else {
            return Err(order(format!(
                "{} bytes more than the layout has",
                bytes.len()
            )));
        };
        let left = t.n_bytes - self.filled;
        if bytes.len() as u64 > left {
            return Err(order(format!(
                "tensor {} takes {} bytes, {} are written and {} more were given",
                quoted(&t.spec.name),
                t.n_bytes,
                self.filled,
                bytes.len()
            )));
        }
        self.put(bytes)?;
        self.filled += bytes.len() as u64;
        if self.filled == t.n_bytes {
            self.pad(t.padding)?;
            self.index += 1;
            self.filled = 0;
        }
        Ok(())
    }

    /// Writes all of tensor `name`, which must come next.
    ///
    /// # Errors
    /// As [`GgufWriter::begin_tensor`] and [`GgufWriter::write_tensor_bytes`]; also if the data are
    /// incomplete.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), GgufError> {
        self.begin_tensor(name)?;
        let n_bytes = self.layout.tensors[self.index].n_bytes;
        if bytes.len() as u64 != n_bytes {
            return Err(order(format!(
                "tensor {} takes {n_bytes} bytes, {} were given",
                quoted(name),
                bytes.len()
            )));
        }
        self.write_tensor_bytes(bytes)
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Checks that every tensor is complete, flushes, and gives the output back.
    ///
    /// # Errors
    /// [`GgufError::DataOrder`] if data are missing, [`GgufError::Write`] if flushing fails.
    pub fn finish(mut self) -> Result<W, GgufError> {
        if let Some(t) = self.current() {
            return Err(order(format!(
                "the file ends but tensor {} has only {} of its {} bytes",
                quoted(&t.spec.name),
                self.filled,
                t.n_bytes
            )));
        }
        self.out.flush().map_err(|error| GgufError::Write {
            item: String::from("the end of the file"),
            offset: self.position,
            error,
        })?;
        Ok(self.out)
    }

    /// Writes `n` zero bytes.
    fn pad(&mut self, mut n: u64) -> Result<(), GgufError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while n > 0 {
            let piece = n.min(ZEROS.len() as u64);
            self.put(&ZEROS[..piece as usize])?;
            n -= piece;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        self.out
            .write_all(bytes)
            .map_err(|error| GgufError::Write {
                item: match self.layout.tensors.get(self.index) {
                    Some(t) if self.position >= self.layout.data_offset() => {
                        format!("tensor {}", quoted(&t.spec.name))
                    }
                    _ => String::from("the header"),
                },
                offset: self.position,
                error,
            })?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

fn order(problem: String) -> GgufError {
    GgufError::DataOrder { problem }
}
