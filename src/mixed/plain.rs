//! A mixed file as a stock model whose mixed tensors are decoded when they are read.

use anyhow::Result;

use super::{KEY_ARCHITECTURE, KEY_TENSORS, MixedTensor, base_architecture, mixed_tensors};
use crate::ggml;
use crate::gguf::{GgmlType, Gguf, MadeTensor, SourceFile, TensorRows};

/// The stock model that a mixed file stands for: its mixed tensors decoded to `float_type`, everything else as it
/// is, the guard and the list of mixed tensors gone. Nothing is decoded before it is read.
///
/// # Errors
/// As [`mixed_tensors`].
pub fn plain(gguf: Gguf, float_type: GgmlType) -> Result<Gguf> {
    let mut mixed: Vec<Option<MixedTensor>> = vec![None; gguf.tensors.len()];
    for tensor in mixed_tensors(&gguf)? {
        let index = tensor.index;
        mixed[index] = Some(tensor);
    }
    let mut metadata = gguf.metadata.clone();
    metadata.remove_split_keys();
    metadata.remove(KEY_TENSORS);
    if let Some(arch) = gguf.metadata.get_str(KEY_ARCHITECTURE) {
        metadata.set(KEY_ARCHITECTURE, base_architecture(arch));
    }
    let tensors = gguf.tensors.iter().zip(&mixed).map(|(t, m)| {
        let mut spec = t.spec();
        if m.is_some() {
            spec.ty = float_type;
        }
        MadeTensor {
            spec,
            file: t.part,
            file_offset: t.file_offset,
        }
    });
    let files = gguf.parts.iter().map(|p| SourceFile {
        path: p.path.clone(),
        bytes: p.file_size,
    });
    let (tensors, files) = (tensors.collect(), files.collect());
    let rows = Decoded {
        gguf,
        mixed,
        float_type,
    };
    Ok(Gguf::from_rows(metadata, tensors, files, Box::new(rows))?)
}

#[derive(Debug)]
struct Decoded {
    gguf: Gguf,
    mixed: Vec<Option<MixedTensor>>,
    float_type: GgmlType,
}

impl TensorRows for Decoded {
    fn read(&self, tensor: usize, first_row: u64, out: &mut [u8]) -> Result<(), String> {
        let info = &self.gguf.tensors[tensor];
        let data = self.gguf.data(info);
        let Some(mixed) = &self.mixed[tensor] else {
            let start = first_row * info.ty.row_bytes(info.ne(0)).unwrap_or(0);
            out.copy_from_slice(&data[start as usize..start as usize + out.len()]);
            return Ok(());
        };
        let (n_in, n_out) = (info.ne(0), info.ne(1));
        let row_bytes = self.float_type.row_bytes(n_in).unwrap_or(0).max(1);
        let (mut row, mut rest) = (first_row, out);
        let mut values = Vec::new();
        while !rest.is_empty() {
            // Rows of one expert at a time.
            let (number, at) = ((row / n_out) as usize, row % n_out);
            let n = (rest.len() as u64 / row_bytes).min(n_out - at);
            let (expert, ty) = (mixed.layout.experts[number], mixed.types[number]);
            let start = (expert.offset + at * expert.row_bytes) as usize;
            let coded = &data[start..start + (n * expert.row_bytes) as usize];
            let describe = |e: anyhow::Error| format!("expert {number}: {e:#}");
            if !ggml::is_valid(ty, coded) {
                return Err(format!(
                    "expert {number}, rows {at} to {}: values that are not finite or not valid {ty}; the file is damaged, get it again",
                    at + n - 1
                ));
            }
            values.resize((n * n_in) as usize, 0.0);
            ggml::decode(ty, coded, &mut values).map_err(describe)?;
            let (now, later) = rest.split_at_mut((n * row_bytes) as usize);
            ggml::encode(self.float_type, &values, n_in as usize, None, now).map_err(describe)?;
            (row, rest) = (row + n, later);
        }
        Ok(())
    }
}
