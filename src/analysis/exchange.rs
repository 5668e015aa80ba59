//! A whole tensor quantized in memory, to be exchanged for the original in a loaded model.

use anyhow::{Context as _, Result};
use rayon::prelude::*;

use super::importance::Importance;
use crate::ggml;
use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::runtime::AlignedBytes;

/// What is done to the bytes of rows once they are quantized: their type, their matrix, the bytes.
type Finish<'a> = dyn Fn(GgmlType, usize, &mut [u8]) -> Result<()> + Sync + 'a;

/// How a tensor is quantized.
pub(crate) struct Exchange<'a> {
    /// The type of each matrix (expert). One that has the tensor's own is left as it is.
    pub type_of: &'a (dyn Fn(usize) -> GgmlType + Sync),
    /// Called on the quantized rows.
    pub finish: &'a Finish<'a>,
    /// The type of the result: that of all matrices, or a float type that takes what they are.
    pub out_type: GgmlType,
}

impl Exchange<'_> {
    /// The whole tensor in `out_type`.
    ///
    /// # Errors
    /// A value cannot be quantized.
    pub(crate) fn quantize(
        &self,
        source: &Gguf,
        tensor: &TensorInfo,
        importance: &Importance,
        n_threads: usize,
    ) -> Result<AlignedBytes> {
        let n_in = tensor.ne(0) as usize;
        let per_matrix = tensor.ne(1) as usize;
        let row_bytes = row_bytes(self.out_type, n_in)?;
        let mut out = AlignedBytes::zeroed(row_bytes * tensor.n_rows() as usize);
        // Blocks of rows within one matrix.
        let per_block = per_matrix.div_ceil((4 * n_threads).max(1)).max(1);
        let mut blocks: Vec<(usize, &mut [u8])> = Vec::new();
        for (matrix, bytes) in out.chunks_mut(row_bytes * per_matrix).enumerate() {
            for (i, part) in bytes.chunks_mut(row_bytes * per_block).enumerate() {
                blocks.push((matrix * per_matrix + i * per_block, part));
            }
        }
        blocks.into_par_iter().try_for_each(|(first, dst)| {
            self.rows(
                source,
                tensor,
                importance,
                first,
                dst.len() / row_bytes,
                dst,
            )
            .with_context(|| format!("from row {first}"))
        })?;
        Ok(out)
    }

    fn rows(
        &self,
        source: &Gguf,
        tensor: &TensorInfo,
        importance: &Importance,
        first: usize,
        n_rows: usize,
        dst: &mut [u8],
    ) -> Result<()> {
        let n_in = tensor.ne(0) as usize;
        let matrix = first / tensor.ne(1) as usize;
        let ty = (self.type_of)(matrix);
        let src = source.rows(tensor, first as u64..(first + n_rows) as u64)?;
        if ty == tensor.ty && ty == self.out_type {
            dst.copy_from_slice(&src);
            return Ok(());
        }
        let mut values = vec![0f32; n_rows * n_in];
        ggml::decode(tensor.ty, &src, &mut values)?;
        if ty != tensor.ty {
            let imp = importance.of(&tensor.name, matrix, n_in);
            let encode = |dst: &mut [u8]| {
                ggml::encode(ty, &values, n_in, imp, dst)?;
                (self.finish)(ty, matrix, dst)
            };
            if ty == self.out_type {
                return encode(dst);
            }
            let mut coded = vec![0u8; row_bytes(ty, n_in)? * n_rows];
            encode(&mut coded)?;
            ggml::decode(ty, &coded, &mut values)?;
        }
        ggml::encode(self.out_type, &values, n_in, None, dst)
    }
}

fn row_bytes(ty: GgmlType, n_in: usize) -> Result<usize> {
    ty.row_bytes(n_in as u64)
        .map(|n| n as usize)
        .with_context(|| format!("rows of {n_in} values do not fill blocks of {ty}"))
}
