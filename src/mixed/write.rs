//! What a mixed file is to hold.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use moqa_mixed::Layout;

use super::{GUARD, KEY_ARCHITECTURE, KEY_TENSORS, block, can_mix, carrier, is_guarded, shape};
use crate::gguf::{Array, GStringArray, GgmlType, Gguf, KEY_SPLIT_NO, Metadata};

/// The mixed tensors of a file to be written, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mixture {
    tensors: BTreeMap<String, (GgmlType, Layout)>,
}

impl Mixture {
    /// Places the experts of tensors that have types of their own, by tensor name, and chooses their carriers.
    ///
    /// # Errors
    /// The model is mixed already; a tensor is not of the model, does not hold merged experts ([`can_mix`]), or
    /// other ones; a type does not fit its rows; no type has bytes enough.
    pub fn new(source: &Gguf, experts: &BTreeMap<String, Vec<GgmlType>>) -> Result<Self> {
        ensure!(
            experts.is_empty() || !is_guarded(&source.metadata),
            "the model is mixed already"
        );
        let mut tensors = BTreeMap::new();
        for (name, types) in experts {
            let tensor = source
                .tensor(name)
                .with_context(|| format!("tensor {name}: the model has none of that name"))?;
            ensure!(
                can_mix(tensor),
                "tensor {name} of shape {}: only merged experts (blk.N.ffn_*_exps.weight) can have types of their own; \
                 give it one type",
                tensor.dims
            );
            let ids: Vec<u32> = types.iter().map(|ty| ty.id()).collect();
            let layout = Layout::new(shape(&tensor.dims), &ids, block)
                .with_context(|| format!("tensor {name}"))?;
            let ty = carrier::carrier(&tensor.dims, layout.sealed_bytes()).with_context(|| {
                format!(
                    "tensor {name}: no type has room for {} bytes in shape {}",
                    layout.sealed_bytes(),
                    tensor.dims
                )
            })?;
            tensors.insert(name.clone(), (ty, layout));
        }
        Ok(Self { tensors })
    }

    /// Whether no tensor is mixed: a stock file.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The place of a tensor's experts, if it is mixed.
    pub fn layout(&self, name: &str) -> Option<&Layout> {
        self.tensors.get(name).map(|t| &t.1)
    }

    /// The types that the file states: those given, with carriers for mixed tensors.
    pub fn file_types(&self, mut types: BTreeMap<String, GgmlType>) -> BTreeMap<String, GgmlType> {
        let carriers = self.tensors.iter().map(|(name, t)| (name.clone(), t.0));
        types.extend(carriers);
        types
    }
}

/// Gives a file's metadata the guard and the list of mixed tensors; unchanged if none is mixed.
///
/// A file that is not split says that it is the second of a split (`split.no` 1, without a count, which llama.cpp
/// and others ignore): with a first file that has no tensors before it, it is the whole model. That is how
/// `moqa run` replaces the header.
pub fn guard_metadata(metadata: &mut Metadata, mixture: &Mixture) {
    if mixture.is_empty() {
        return;
    }
    let arch = metadata.get_str(KEY_ARCHITECTURE).unwrap_or_default();
    let guarded = format!("{GUARD}{arch}");
    metadata.set(KEY_ARCHITECTURE, guarded);
    let mut names = GStringArray::new();
    for name in mixture.tensors.keys() {
        names.push(name.as_bytes());
    }
    metadata.set(KEY_TENSORS, Array::Str(names));
    metadata.set(KEY_SPLIT_NO, 1u16);
}
