//! Finding and understanding the mixed tensors of a file.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use moqa_mixed::Layout;

use super::{KEY_TENSORS, block, is_guarded, shape};
use crate::gguf::{GgmlType, Gguf, TensorInfo};

const ADVICE: &str = "the file is damaged, get it again or write it again with moqa quantize";

/// A mixed tensor of an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MixedTensor {
    /// Its place in [`Gguf::tensors`].
    pub index: usize,
    /// The type of each expert.
    pub types: Vec<GgmlType>,
    /// Where each expert lies.
    pub layout: Layout,
}

impl MixedTensor {
    /// Bytes of the experts' blocks, without header, padding and what the carrier leaves empty.
    pub fn expert_bytes(&self) -> u64 {
        let rows = self.layout.shape.n_out;
        self.layout.experts.iter().map(|e| e.row_bytes * rows).sum()
    }

    /// How many experts are of each type, the commonest first: `q3_K x12, iq2_xs x4`.
    pub fn summary(&self) -> String {
        let mut counts: Vec<(GgmlType, usize)> = Vec::new();
        for ty in &self.types {
            match counts.iter_mut().find(|c| c.0 == *ty) {
                Some(c) => c.1 += 1,
                None => counts.push((*ty, 1)),
            }
        }
        counts.sort_by_key(|c| std::cmp::Reverse(c.1));
        let each = counts.iter().map(|(ty, n)| format!("{ty} x{n}"));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// The mixed tensors of a file, in its order; none of a stock model.
///
/// # Errors
/// The file's list of mixed tensors is missing or names tensors that are none, a tensor that it does not name is
/// one, or a container is damaged; names file, tensor and offset.
pub fn mixed_tensors(gguf: &Gguf) -> Result<Vec<MixedTensor>> {
    if !is_guarded(&gguf.metadata) || !gguf.is_file() {
        return Ok(Vec::new());
    }
    let path = gguf.paths()[0].display();
    let Some(names) = gguf
        .metadata
        .get_array(KEY_TENSORS)
        .and_then(|a| a.as_strings())
    else {
        bail!(
            "{path}: key {KEY_TENSORS}, the list of mixed tensors, is missing or no list of names; {ADVICE}"
        );
    };
    let mut listed: BTreeSet<&[u8]> = names.iter().collect();
    ensure!(
        listed.len() == names.len(),
        "{path}: key {KEY_TENSORS} names a tensor twice; {ADVICE}"
    );
    let mut found = Vec::new();
    for (index, tensor) in gguf.tensors.iter().enumerate() {
        if listed.remove(tensor.name.as_bytes()) {
            found.push(read(gguf, index, tensor)?);
        } else if !matches!(
            moqa_mixed::find(gguf.data(tensor), shape(&tensor.dims), block),
            Ok(None)
        ) {
            bail!(
                "{}: it is mixed and key {KEY_TENSORS} does not name it; {ADVICE}",
                place(gguf, tensor)
            );
        }
    }
    if let Some(name) = listed.first() {
        bail!(
            "{path}: key {KEY_TENSORS} names {}, which the file does not have; {ADVICE}",
            name.escape_ascii()
        );
    }
    Ok(found)
}

fn place(gguf: &Gguf, tensor: &TensorInfo) -> String {
    format!(
        "{}: tensor {} (offset {})",
        gguf.paths()[tensor.part].display(),
        tensor.name,
        tensor.file_offset
    )
}

fn read(gguf: &Gguf, index: usize, tensor: &TensorInfo) -> Result<MixedTensor> {
    let place = || place(gguf, tensor);
    ensure!(
        tensor.ne(3) == 1,
        "{}: shape {} has more than three dimensions; {ADVICE}",
        place(),
        tensor.dims
    );
    let found = moqa_mixed::find(gguf.data(tensor), shape(&tensor.dims), block);
    let layout = found
        .and_then(|layout| layout.ok_or(moqa_mixed::Error::Magic))
        .with_context(|| format!("{}; {ADVICE}", place()))?;
    let types: Option<Vec<GgmlType>> = (layout.experts.iter())
        .map(|e| GgmlType::from_id(e.type_id))
        .collect();
    Ok(MixedTensor {
        index,
        types: types.with_context(|| format!("{}: unknown type; {ADVICE}", place()))?,
        layout,
    })
}
