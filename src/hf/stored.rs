//! Tensors as safetensors files store them.

use std::sync::Arc;

use anyhow::{Result, ensure};
use memmap2::Mmap;
use safetensors::Dtype;

use crate::ggml;
use crate::gguf::GgmlType;

/// A mapped file of the folder.
#[derive(Debug)]
pub struct Shard {
    /// Its number among the folder's files.
    pub index: usize,
    /// Its name in the folder, for messages.
    pub name: String,
    pub(super) bytes: Mmap,
}

/// Scales that multiply the blocks of an FP8 tensor.
#[derive(Clone, Debug)]
pub struct BlockScales {
    /// One value a block; shape as [`Self::blocks`] follow from the weight's.
    pub values: Arc<Vec<f32>>,
    /// Rows and columns of a block.
    pub block: [u64; 2],
    /// Blocks down and across one matrix.
    pub blocks: [u64; 2],
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// The file.
    pub shard: Arc<Shard>,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first.
    pub shape: Vec<u64>,
    /// Where its data start in the file, in bytes.
    pub offset: u64,
    /// The scales of an FP8 tensor.
    pub scales: Option<BlockScales>,
}

impl Stored {
    /// Elements.
    pub fn n_elems(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The file and the tensor, for messages.
    pub fn describe(&self) -> String {
        format!("{}: tensor {}", self.shard.name, self.name)
    }

    /// Whether values of this kind can be read as float32.
    pub fn is_float(&self) -> bool {
        matches!(
            self.dtype,
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3
        )
    }

    /// The bytes of elements `start..start + n`.
    fn raw(&self, start: u64, n: usize) -> &[u8] {
        let size = self.dtype.bitsize() / 8;
        let at = self.offset as usize + start as usize * size;
        &self.shard.bytes[at..at + n * size]
    }
}

/// A value that tensors are read as.
pub trait Element: Copy + Default + Send + Sync {
    /// Reads elements from `start` on.
    ///
    /// # Errors
    /// The tensor is of another kind.
    fn decode(stored: &Stored, start: u64, out: &mut [Self]) -> Result<()>;
}

impl Element for f32 {
    fn decode(stored: &Stored, start: u64, out: &mut [f32]) -> Result<()> {
        let raw = stored.raw(start, out.len());
        match stored.dtype {
            Dtype::F32 => ggml::decode(GgmlType::F32, raw, out),
            Dtype::F16 => ggml::decode(GgmlType::F16, raw, out),
            Dtype::BF16 => ggml::decode(GgmlType::BF16, raw, out),
            Dtype::F8_E4M3 => {
                decode_fp8(stored, start, raw, out);
                Ok(())
            }
            other => anyhow::bail!(
                "{}: data of type {other} cannot be converted; use a checkpoint in BF16, F16, F32, FP8 (E4M3) or MXFP4",
                stored.describe()
            ),
        }
    }
}

impl Element for u8 {
    fn decode(stored: &Stored, start: u64, out: &mut [u8]) -> Result<()> {
        ensure!(
            matches!(stored.dtype, Dtype::U8 | Dtype::F8_E8M0 | Dtype::I8),
            "{}: data of type {} where packed bytes (U8) are expected",
            stored.describe(),
            stored.dtype
        );
        out.copy_from_slice(stored.raw(start, out.len()));
        Ok(())
    }
}

/// Multiplies each value with its block's scale, or with 1.
fn decode_fp8(stored: &Stored, start: u64, raw: &[u8], out: &mut [f32]) {
    let table = fp8_table();
    let Some(scales) = &stored.scales else {
        for (o, b) in out.iter_mut().zip(raw) {
            *o = table[usize::from(*b)];
        }
        return;
    };
    let cols = stored.shape.last().copied().unwrap_or(1).max(1);
    let rows = stored
        .shape
        .iter()
        .rev()
        .nth(1)
        .copied()
        .unwrap_or(1)
        .max(1);
    let mut done = 0;
    while done < out.len() {
        let at = start + done as u64;
        let (row, col) = (at / cols, at % cols);
        let (matrix, row) = (row / rows, row % rows);
        let block = (matrix * scales.blocks[0] + row / scales.block[0]) * scales.blocks[1]
            + col / scales.block[1];
        let scale = scales.values[block as usize];
        let in_block = (scales.block[1] - col % scales.block[1]).min(cols - col) as usize;
        let n = in_block.min(out.len() - done);
        for (o, b) in out[done..done + n].iter_mut().zip(&raw[done..done + n]) {
            *o = table[usize::from(*b)] * scale;
        }
        done += n;
    }
}

/// Values of the 256 codes of FP8 E4M3 (OCP 8-bit floating point, "fn": no infinities, NaN is 0x7f and 0xff).
fn fp8_table() -> &'static [f32; 256] {
    static TABLE: std::sync::OnceLock<[f32; 256]> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| {
        std::array::from_fn(|code| {
            let (exponent, mantissa) = ((code >> 3) & 15, (code & 7) as f32);
            let magnitude = match (exponent, code & 7) {
                (15, 7) => f32::NAN,
                (0, _) => mantissa * (-9f32).exp2(),
                _ => (1.0 + mantissa / 8.0) * (exponent as f32 - 7.0).exp2(),
            };
            if code & 128 == 0 {
                magnitude
            } else {
                -magnitude
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_codes_have_the_published_values() {
        let t = fp8_table();
        // OCP 8-bit Floating Point Specification 1.0, table 2: the corners of E4M3.
        assert_eq!(t[0x00], 0.0);
        assert_eq!(t[0x01], 2f32.powi(-9));
        assert_eq!(t[0x07], 0.875 * 2f32.powi(-6));
        assert_eq!(t[0x08], 2f32.powi(-6));
        assert_eq!(t[0x38], 1.0);
        assert_eq!(t[0x7e], 448.0);
        assert_eq!(t[0xfe], -448.0);
        assert!(t[0x7f].is_nan() && t[0xff].is_nan());
        assert_eq!(t[0xb8], -1.0);
    }
}
