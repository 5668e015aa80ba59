//! Making the rows of converted tensors.

use anyhow::Result;

use super::tensor::Lazy;
use crate::ggml;
use crate::gguf::{GgmlType, TensorRows};

/// Elements of an MXFP4 block, and the bytes of their codes.
const MXFP4_BLOCK: u64 = 32;
const MXFP4_CODES: usize = 16;

/// How a tensor is made.
#[derive(Clone, Debug)]
pub(super) enum Recipe {
    /// Values, encoded in the tensor's type.
    Values(Lazy),
    /// MXFP4 as gpt-oss stores it: codes `[.., blocks, 16]` and a scale for each block.
    Mxfp4 { codes: Lazy, scales: Lazy },
}

/// A tensor's recipe with the length and type of its rows.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub ty: GgmlType,
    pub n_per_row: u64,
    pub recipe: Recipe,
}

/// The tensors of a folder.
#[derive(Debug)]
pub(super) struct MadeRows(pub Vec<Made>);

impl TensorRows for MadeRows {
    fn read(&self, tensor: usize, first_row: u64, out: &mut [u8]) -> Result<(), String> {
        self.0[tensor]
            .read(first_row, out)
            .map_err(|e| format!("{e:#}"))
    }
}

impl Made {
    fn read(&self, first_row: u64, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.ty.row_bytes(self.n_per_row).unwrap_or(0).max(1);
        let n_rows = out.len() as u64 / row_bytes;
        match &self.recipe {
            Recipe::Values(lazy) => {
                let n = (n_rows * self.n_per_row) as usize;
                let mut values = vec![0f32; n];
                lazy.read(first_row * self.n_per_row, &mut values)?;
                ggml::encode(self.ty, &values, self.n_per_row as usize, None, out)
            }
            Recipe::Mxfp4 { codes, scales } => {
                let per_row = self.n_per_row / MXFP4_BLOCK;
                let (start, n) = (first_row * per_row, (n_rows * per_row) as usize);
                let mut packed = vec![0u8; n * MXFP4_CODES];
                let mut exponents = vec![0u8; n];
                codes.read(start * MXFP4_CODES as u64, &mut packed)?;
                scales.read(start, &mut exponents)?;
                let blocks = out.chunks_exact_mut(MXFP4_CODES + 1);
                for ((block, codes), scale) in blocks
                    .zip(packed.as_chunks::<MXFP4_CODES>().0)
                    .zip(&exponents)
                {
                    block[0] = *scale;
                    block[1..].copy_from_slice(&mxfp4_codes(codes));
                }
                Ok(())
            }
        }
    }
}

/// The checkpoint keeps neighbours in one byte, the first in the low half; ggml keeps element i with element
/// i + 16. Codes and scales mean the same in both.
fn mxfp4_codes(neighbours: &[u8; MXFP4_CODES]) -> [u8; MXFP4_CODES] {
    let code = |i: usize| (neighbours[i / 2] >> (4 * (i % 2))) & 15;
    std::array::from_fn(|i| code(i) | (code(i + 16) << 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mxfp4_blocks_decode_to_the_values_they_state() {
        // FP4 E2M1, Open Compute Project Microscaling Formats 1.0, table 1.
        const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let codes: Vec<u8> = (0..32).map(|i| (i * 7 + 3) % 16).collect();
        let packed: [u8; 16] = std::array::from_fn(|i| codes[2 * i] | (codes[2 * i + 1] << 4));
        let mut block = vec![129u8];
        block.extend(mxfp4_codes(&packed));
        let mut out = [0f32; 32];
        ggml::decode(GgmlType::MXFP4, &block, &mut out).unwrap();
        for (value, code) in out.iter().zip(codes) {
            let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
            // A scale of 129 is 2^(129 - 127).
            assert_eq!(*value, sign * VALUES[usize::from(code & 7)] * 4.0);
        }
    }
}
