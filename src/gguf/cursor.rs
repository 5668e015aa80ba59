//! A bounds-checked read position in the bytes of one file.

use std::path::Path;

use byteorder::{ByteOrder, LittleEndian};

use super::error::{GgufError, quoted};
use super::reader::MAX_HEADER_MEMORY;
use super::value::{Array, GString, GStringArray, MAX_ARRAY_DEPTH, Value, ValueType};

/// The advice for files that end too early.
const CUT_OFF: &str = "the file is damaged or was cut off, download or convert it again";
/// The advice for files that break the format otherwise.
pub(super) const DAMAGED: &str =
    "the file is damaged or its writer is faulty, download or convert it again";

/// Reads a header front to back. Every length is checked against the bytes left, and the memory it
/// asks for against [`MAX_HEADER_MEMORY`], before anything is allocated.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pos: usize,
    /// What is being read, for messages.
    pub item: String,
    /// Memory spent so far on what the header describes, shared by the shards of a model.
    pub memory: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8], memory: u64) -> Self {
        Cursor {
            path,
            bytes,
            pos: 0,
            item: String::from("header"),
            memory,
        }
    }

    pub fn pos(&self) -> u64 {
        self.pos as u64
    }

    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.pos) as u64
    }

    /// An error about the field that starts at `offset`.
    pub fn malformed(
        &self,
        offset: u64,
        problem: impl Into<String>,
        advice: &'static str,
    ) -> GgufError {
        GgufError::Malformed {
            path: self.path.to_owned(),
            offset,
            item: self.item.clone(),
            problem: problem.into(),
            advice,
        }
    }

    /// Counts `n` bytes of memory that are about to be allocated.
    pub fn charge(&mut self, n: u64) -> Result<(), GgufError> {
        self.memory = self.memory.saturating_add(n);
        if self.memory > MAX_HEADER_MEMORY {
            return Err(self.malformed(
                self.pos(),
                format!(
                    "the header asks for more than {} MiB of memory",
                    MAX_HEADER_MEMORY >> 20
                ),
                DAMAGED,
            ));
        }
        Ok(())
    }

    pub fn take(&mut self, n: u64) -> Result<&'a [u8], GgufError> {
        if n > self.remaining() {
            return Err(self.malformed(
                self.pos(),
                format!("needs {n} bytes but the file has {} left", self.remaining()),
                CUT_OFF,
            ));
        }
        // `n` is at most the length of a slice, so it fits.
        let taken = &self.bytes[self.pos..self.pos + n as usize];
        self.pos += n as usize;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, GgufError> {
        self.take(4).map(LittleEndian::read_u32)
    }

    pub fn u64(&mut self) -> Result<u64, GgufError> {
        self.take(8).map(LittleEndian::read_u64)
    }

    /// The bytes of a length-prefixed string.
    pub fn string_bytes(&mut self) -> Result<&'a [u8], GgufError> {
        let start = self.pos;
        let n = self.u64()?;
        if n > self.remaining() {
            let left = self.remaining();
            return Err(self.malformed(
                start as u64,
                format!("string length is {n} bytes but the file has {left} left"),
                CUT_OFF,
            ));
        }
        self.take(n)
    }

    /// A length-prefixed name of at most `longest` bytes of UTF-8.
    pub fn name(&mut self, longest: usize) -> Result<&'a str, GgufError> {
        let start = self.pos();
        let bytes = self.string_bytes()?;
        if bytes.len() > longest {
            return Err(self.malformed(
                start,
                format!(
                    "the name has {} bytes, at most {longest} are allowed",
                    bytes.len()
                ),
                DAMAGED,
            ));
        }
        std::str::from_utf8(bytes).map_err(|_| {
            let shown = quoted(&String::from_utf8_lossy(bytes));
            self.malformed(
                start,
                format!("the name {shown} is not valid UTF-8"),
                DAMAGED,
            )
        })
    }

    pub fn value_type(&mut self) -> Result<ValueType, GgufError> {
        let start = self.pos();
        let id = self.u32()?;
        ValueType::from_id(id).ok_or_else(|| {
            self.malformed(
                start,
                format!("value type {id} does not exist (0 to 12 do)"),
                DAMAGED,
            )
        })
    }

    pub fn value(&mut self, ty: ValueType) -> Result<Value, GgufError> {
        Ok(match ty {
            ValueType::U8 => Value::U8(self.take(1)?[0]),
            ValueType::I8 => Value::I8(self.take(1)?[0] as i8),
            ValueType::U16 => Value::U16(LittleEndian::read_u16(self.take(2)?)),
            ValueType::I16 => Value::I16(LittleEndian::read_i16(self.take(2)?)),
            ValueType::U32 => Value::U32(self.u32()?),
            ValueType::I32 => Value::I32(self.u32()? as i32),
            ValueType::F32 => Value::F32(f32::from_bits(self.u32()?)),
            ValueType::Bool => {
                let start = self.pos();
                let raw = self.take(1)?;
                Value::Bool(self.bools(start, raw)?[0])
            }
            ValueType::Str => {
                let bytes = self.string_bytes()?;
                self.charge(bytes.len() as u64)?;
                Value::Str(GString(bytes.to_vec()))
            }
            ValueType::Array => Value::Array(self.array(1)?),
            ValueType::U64 => Value::U64(self.u64()?),
            ValueType::I64 => Value::I64(self.u64()? as i64),
            ValueType::F64 => Value::F64(f64::from_bits(self.u64()?)),
        })
    }

    /// An array: element type, count, elements. `depth` counts the arrays around the elements.
    fn array(&mut self, depth: usize) -> Result<Array, GgufError> {
        let start = self.pos();
        if depth > MAX_ARRAY_DEPTH {
            return Err(self.malformed(
                start,
                format!("arrays nest deeper than {MAX_ARRAY_DEPTH} levels"),
                DAMAGED,
            ));
        }
        let ty = self.value_type()?;
        let count = self.u64()?;
        let left = self.remaining();
        let needs = count
            .checked_mul(ty.min_bytes())
            .filter(|&needs| needs <= left)
            .ok_or_else(|| {
                self.malformed(
                    start,
                    format!(
                        "an array of {count} elements of type {ty} does not fit the {left} bytes left"
                    ),
                    CUT_OFF,
                )
            })?;
        // At least one byte per element is there, so the count fits too.
        let n = count as usize;

        match ty {
            ValueType::Str => return self.strings(n).map(Array::Str),
            ValueType::Array => {
                self.charge(count.saturating_mul(size_of::<Array>() as u64))?;
                let mut arrays = Vec::with_capacity(n);
                for _ in 0..n {
                    arrays.push(self.array(depth + 1)?);
                }
                return Ok(Array::Array(arrays));
            }
            _ => {}
        }

        self.charge(needs)?;
        let data_start = self.pos();
        let raw = self.take(needs)?;
        macro_rules! numbers {
            ($variant:ident, $zero:expr, $read_into:ident) => {{
                let mut v = vec![$zero; n];
                LittleEndian::$read_into(raw, &mut v);
                Array::$variant(v)
            }};
        }
        Ok(match ty {
            ValueType::U8 => Array::U8(raw.to_vec()),
            ValueType::I8 => Array::I8(raw.iter().map(|&b| b as i8).collect()),
            ValueType::U16 => numbers!(U16, 0, read_u16_into),
            ValueType::I16 => numbers!(I16, 0, read_i16_into),
            ValueType::U32 => numbers!(U32, 0, read_u32_into),
            ValueType::I32 => numbers!(I32, 0, read_i32_into),
            ValueType::F32 => numbers!(F32, 0.0, read_f32_into),
            ValueType::Bool => Array::Bool(self.bools(data_start, raw)?),
            ValueType::U64 => numbers!(U64, 0, read_u64_into),
            ValueType::I64 => numbers!(I64, 0, read_i64_into),
            ValueType::F64 => numbers!(F64, 0.0, read_f64_into),
            ValueType::Str | ValueType::Array => unreachable!("returned above"),
        })
    }

    /// `n` strings. Measured in a first pass, so that they are allocated exactly once.
    fn strings(&mut self, n: usize) -> Result<GStringArray, GgufError> {
        self.charge(8 * n as u64)?;
        let start = self.pos;
        let mut total = 0u64;
        for _ in 0..n {
            total += self.string_bytes()?.len() as u64;
        }
        self.charge(total)?;
        self.pos = start;
        let mut strings = GStringArray::with_capacity(n, total as usize);
        for _ in 0..n {
            strings.push(self.string_bytes()?);
        }
        Ok(strings)
    }

    /// Booleans from the bytes at `start`. The format calls any byte but 0 and 1 invalid.
    fn bools(&self, start: u64, raw: &[u8]) -> Result<Vec<bool>, GgufError> {
        if let Some(i) = raw.iter().position(|&b| b > 1) {
            let (at, b) = (start + i as u64, raw[i]);
            return Err(self.malformed(at, format!("a boolean is {b}, not 0 or 1"), DAMAGED));
        }
        Ok(raw.iter().map(|&b| b == 1).collect())
    }
}
