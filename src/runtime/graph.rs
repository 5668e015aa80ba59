//! Observing a running graph: which nodes are computed, and the data of those that are asked for.

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llama_cpp_sys_2 as sys;

/// A node of the graph being computed, or one of its sources. Lives only during the callback.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    tensor: &'a sys::ggml_tensor,
}

// SAFETY: a node is only read, and nothing writes it or its data during the callback it lives in.
unsafe impl Sync for Node<'_> {}
// SAFETY: as above; the lifetime keeps it inside the callback.
unsafe impl Send for Node<'_> {}

impl<'a> Node<'a> {
    /// The name llama.cpp gave the node, `ffn_moe_topk-3` say; for a weight its name in the file.
    pub fn name(&self) -> &'a str {
        let bytes = &self.tensor.name;
        // SAFETY: c_char and u8 have the same layout, and the array is 64 bytes long.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), bytes.len()) };
        CStr::from_bytes_until_nul(bytes)
            .ok()
            .and_then(|c| c.to_str().ok())
            .unwrap_or("")
    }

    /// Dimensions, the contiguous one first; 1 beyond the last.
    pub fn ne(&self) -> [usize; 4] {
        self.tensor.ne.map(|n| n.max(0) as usize)
    }

    /// Whether the operation is `MUL_MAT_ID`, a multiplication by the experts that the ids in source 2 name.
    pub fn is_mul_mat_id(&self) -> bool {
        self.tensor.op == sys::GGML_OP_MUL_MAT_ID
    }

    /// Whether the operation is `MUL_MAT`.
    pub fn is_mul_mat(&self) -> bool {
        self.tensor.op == sys::GGML_OP_MUL_MAT
    }

    /// Whether the operation is `GET_ROWS`, a look-up of rows such as token embeddings.
    pub fn is_get_rows(&self) -> bool {
        self.tensor.op == sys::GGML_OP_GET_ROWS
    }

    /// Whether the node's values are float32.
    pub fn is_f32(&self) -> bool {
        self.tensor.type_ == sys::GGML_TYPE_F32
    }

    /// Source `i` of the operation, if it has one.
    pub fn src(&self, i: usize) -> Option<Node<'a>> {
        let p = *self.tensor.src.get(i)?;
        // SAFETY: sources of a live node are live tensors of the same graph or model.
        unsafe { p.as_ref() }.map(|tensor| Node { tensor })
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_tensor {
        std::ptr::from_ref(self.tensor).cast_mut()
    }

    /// Row `(i1, i2, i3)` as `ne[0]` float32 values; `None` when the node is not float32, the row is
    /// outside, its values are not contiguous, or the data is not in host memory.
    pub fn row_f32(&self, i1: usize, i2: usize, i3: usize) -> Option<&'a [f32]> {
        self.row::<f32>(sys::GGML_TYPE_F32, i1, i2, i3)
    }

    /// Row `(i1, i2, i3)` as `ne[0]` int32 values, under the conditions of [`Node::row_f32`].
    pub fn row_i32(&self, i1: usize, i2: usize, i3: usize) -> Option<&'a [i32]> {
        self.row::<i32>(sys::GGML_TYPE_I32, i1, i2, i3)
    }

    fn row<T>(&self, ty: sys::ggml_type, i1: usize, i2: usize, i3: usize) -> Option<&'a [T]> {
        let t = self.tensor;
        let ne = self.ne();
        let inside = i1 < ne[1] && i2 < ne[2] && i3 < ne[3];
        if t.type_ != ty || !inside || t.nb[0] != size_of::<T>() || t.data.is_null() {
            return None;
        }
        if !t.buffer.is_null() {
            // SAFETY: the buffer belongs to the live node.
            if !unsafe { sys::ggml_backend_buffer_is_host(t.buffer) } {
                return None;
            }
        }
        let offset = i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
        // SAFETY: the row lies inside the tensor's allocation (indices are below ne, strides are ggml's),
        // values are contiguous and aligned to their size, and nothing writes during the callback.
        Some(unsafe {
            std::slice::from_raw_parts(t.data.cast::<u8>().add(offset).cast::<T>(), ne[0])
        })
    }
}

/// Receives nodes while a graph is computed.
pub trait Observer {
    /// Called before `node` is computed: whether its data is wanted. Must be cheap.
    fn wants(&mut self, node: Node<'_>) -> bool;
    /// Called after `node` was computed, when it was wanted. Its data and that of its sources can be read.
    fn observe(&mut self, node: Node<'_>);
}

/// What the C callback gets as user data: at a fixed address for as long as the context lives.
pub(super) struct Hook {
    observer: *mut dyn Observer,
    panic: Option<Box<dyn Any + Send>>,
}

impl Hook {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            observer: std::ptr::null_mut::<Nothing>() as *mut dyn Observer,
            panic: None,
        })
    }

    /// Sets the observer until the guard is dropped.
    pub(super) fn attach<'a>(
        hook: *mut Hook,
        observer: &'a mut (dyn Observer + 'a),
    ) -> Attached<'a> {
        // SAFETY: `hook` is the context's own box; the transmuted lifetime is kept by the guard.
        unsafe {
            (*hook).observer = std::mem::transmute::<
                *mut (dyn Observer + 'a),
                *mut (dyn Observer + 'static),
            >(observer);
        }
        Attached {
            hook,
            life: PhantomData,
        }
    }

    pub(super) fn take_panic(&mut self) -> Option<Box<dyn Any + Send>> {
        self.panic.take()
    }
}

struct Nothing;

impl Observer for Nothing {
    fn wants(&mut self, _: Node<'_>) -> bool {
        false
    }
    fn observe(&mut self, _: Node<'_>) {}
}

pub(super) struct Attached<'a> {
    hook: *mut Hook,
    life: PhantomData<&'a mut ()>,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        // SAFETY: the hook outlives every guard (it is owned by the context that is borrowed meanwhile).
        unsafe { (*self.hook).observer = std::ptr::null_mut::<Nothing>() as *mut dyn Observer };
    }
}

/// The `cb_eval` callback. `ask` true: is this node wanted; false: here it is, go on?
pub(super) unsafe extern "C" fn callback(
    t: *mut sys::ggml_tensor,
    ask: bool,
    data: *mut c_void,
) -> bool {
    // SAFETY: `data` is the context's hook, and `t` a live node.
    let (hook, tensor) = unsafe { (&mut *data.cast::<Hook>(), t.as_ref()) };
    let Some(tensor) = tensor else { return !ask };
    if hook.observer.is_null() || hook.panic.is_some() {
        return !ask;
    }
    let node = Node { tensor };
    // A panic must not cross into C: keep it, stop the evaluation, and raise it again outside.
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the observer is attached, so it is alive and not borrowed elsewhere.
        let observer = unsafe { &mut *hook.observer };
        if ask {
            observer.wants(node)
        } else {
            observer.observe(node);
            true
        }
    }));
    match result {
        Ok(answer) => answer,
        Err(panic) => {
            hook.panic = Some(panic);
            false
        }
    }
}
