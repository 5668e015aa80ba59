//! Exchanging a loaded model's weights for other encodings of them.
//!
//! The graph that llama.cpp builds refers to the model's own weight tensors. Their type, strides and data
//! pointer are read when an operation is computed, so a weight can be replaced between two evaluations by
//! the same matrix in another ggml type: the result is exactly that of a file that holds it. This is how
//! the effect of a type on the output is measured without writing and loading a file.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use anyhow::{Result, ensure};
use llama_cpp_sys_2 as sys;

use super::graph::{Node, Observer};
use super::{Context, ContextOptions, Model};
use crate::gguf::GgmlType;

/// Bytes on a 64-byte boundary, as ggml's kernels like them.
pub struct AlignedBytes {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: owned memory without interior mutability.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is not zero-sized.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else {
            handle_alloc_error(layout)
        };
        Self { ptr, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(1), 64).expect("a length that a tensor has")
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.len)) };
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: len bytes are allocated and initialised.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and uniquely borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

struct Original {
    tensor: *mut sys::ggml_tensor,
    type_: sys::ggml_type,
    nb: [usize; 4],
    data: *mut std::ffi::c_void,
}

/// The weights of a loaded model that its graph uses, by name, and what they are exchanged for.
/// Dropping it puts the originals back.
pub struct WeightHandles<'m> {
    originals: BTreeMap<String, Original>,
    replaced: BTreeMap<String, AlignedBytes>,
    model: PhantomData<&'m Model>,
}

struct Finder(BTreeMap<String, *mut sys::ggml_tensor>);

impl Observer for Finder {
    fn wants(&mut self, node: Node<'_>) -> bool {
        if (node.is_mul_mat() || node.is_mul_mat_id() || node.is_get_rows())
            && let Some(weight) = node.src(0)
            && weight.name().ends_with(".weight")
        {
            self.0.insert(weight.name().to_owned(), weight.raw());
        }
        false
    }
    fn observe(&mut self, _: Node<'_>) {}
}

impl<'m> WeightHandles<'m> {
    /// Finds the weights by evaluating one token. The model must have been loaded without repacking.
    ///
    /// # Errors
    /// The evaluation fails.
    pub fn find(model: &'m Model) -> Result<Self> {
        let mut finder = Finder(BTreeMap::new());
        let options = ContextOptions {
            n_ctx: 32,
            n_seq: 1,
            n_threads: 1,
            observable: true,
        };
        Context::new(model, options)?.evaluate(&[&[0]], 0, Some(&mut finder))?;
        let originals = finder
            .0
            .into_iter()
            .map(|(name, tensor)| {
                // SAFETY: weights live as long as the model ('m), whose context was just evaluated.
                let t = unsafe { &*tensor };
                (
                    name,
                    Original {
                        tensor,
                        type_: t.type_,
                        nb: t.nb,
                        data: t.data,
                    },
                )
            })
            .collect();
        Ok(Self {
            originals,
            replaced: BTreeMap::new(),
            model: PhantomData,
        })
    }

    /// Whether the graph uses a weight of this name in a way that allows an exchange.
    pub fn contains(&self, name: &str) -> bool {
        self.originals.contains_key(name)
    }

    /// Replaces a weight by `bytes` in type `ty`; shape unchanged. Returns what stood in its place before,
    /// if that was a replacement too. Must not be called while a context evaluates.
    ///
    /// # Errors
    /// The weight is unknown, or the bytes are not as many as its shape needs.
    pub fn replace(
        &mut self,
        name: &str,
        ty: GgmlType,
        bytes: AlignedBytes,
    ) -> Result<Option<AlignedBytes>> {
        let Some(original) = self.originals.get(name) else {
            anyhow::bail!("tensor {name}: the model's graph does not multiply by it");
        };
        // SAFETY: the weight is alive ('m), and no evaluation runs: evaluating needs the context, whose
        // caller calls this between evaluations.
        let t = unsafe { &mut *original.tensor };
        let row = ty.row_bytes(t.ne[0] as u64).unwrap_or(0) as usize;
        let rows = (t.ne[1] * t.ne[2] * t.ne[3]) as usize;
        ensure!(
            row > 0 && row * rows == bytes.len(),
            "tensor {name}: {} bytes do not fill {rows} rows of {} values in {ty}",
            bytes.len(),
            t.ne[0]
        );
        t.type_ = ty.id();
        t.nb = [
            ty.block_bytes() as usize,
            row,
            row * t.ne[1] as usize,
            row * (t.ne[1] * t.ne[2]) as usize,
        ];
        t.data = bytes.ptr.as_ptr().cast();
        Ok(self.replaced.insert(name.to_owned(), bytes))
    }

    /// Puts the original of a weight back. Returns the replacement.
    pub fn restore(&mut self, name: &str) -> Option<AlignedBytes> {
        let bytes = self.replaced.remove(name)?;
        if let Some(original) = self.originals.get(name) {
            // SAFETY: as in `replace`.
            let t = unsafe { &mut *original.tensor };
            t.type_ = original.type_;
            t.nb = original.nb;
            t.data = original.data;
        }
        Some(bytes)
    }
}

impl Drop for WeightHandles<'_> {
    fn drop(&mut self) {
        let names: Vec<String> = self.replaced.keys().cloned().collect();
        for name in names {
            self.restore(&name);
        }
    }
}
