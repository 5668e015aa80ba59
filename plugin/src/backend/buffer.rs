//! Buffers: memory of our own, or a file that the host has mapped, and the expert tensors in it.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, Weak};

use ggml_backend_sys as sys;
use moqa_kernels::Type;
use moqa_mixed::Shape;

use super::tensor::Tensor;
use super::{context_of, guarded, guarded_or};
use crate::compute::experts::Experts;
use crate::host::Host;
use crate::log::{debug, error};
use crate::memory::Memory;
use crate::pool::lock;

/// The name of buffers and of the device.
pub const NAME: &std::ffi::CStr = c"MOQA";
/// Tensors begin at multiples of this, as experts in mixed containers do.
const ALIGNMENT: usize = 64;
/// Bytes at a tensor's ends that are compared before its table of experts is used again.
const ENDS: usize = 64;

/// A buffer's memory and what is known of the expert tensors in it.
pub struct Buffer {
    base: *mut u8,
    size: usize,
    /// Our own memory, where it is not the host's.
    owned: Option<Memory>,
    tensors: Mutex<Tensors>,
}

// SAFETY: the address is only used inside the memory, which lives as long as the buffer; the host orders its accesses
// to tensors as it does for its own buffers.
unsafe impl Send for Buffer {}
// SAFETY: as above; the table is behind a lock.
unsafe impl Sync for Buffer {}

#[derive(Default)]
struct Tensors {
    /// By address.
    table: BTreeMap<usize, Entry>,
    /// One of them is a mixed container.
    any_mixed: bool,
    /// The host has freed the buffer: its memory may be gone.
    closed: bool,
}

impl Tensors {
    /// What the tensor that is noted at an address is.
    ///
    /// # Safety
    /// Its bytes are readable.
    unsafe fn find(&mut self, data: *const u8) -> Result<Arc<Experts>, String> {
        let entry = self.table.get_mut(&(data as usize));
        let entry = entry.ok_or_else(|| "a tensor that is not known".to_owned())?;
        // SAFETY: the caller's promise.
        let result = unsafe { entry.find(data) };
        self.any_mixed |= result.as_ref().is_ok_and(|experts| experts.is_mixed());
        result
    }
}

/// An expert tensor, or a dense matrix.
struct Entry {
    name: String,
    /// Only experts' tensors can be mixed containers.
    is_of_experts: bool,
    ty: Type,
    shape: Shape,
    bytes: usize,
    found: Option<Found>,
}

/// What a tensor's bytes were.
struct Found {
    ends: [[u8; ENDS]; 2],
    result: Result<Arc<Experts>, String>,
}

/// The buffers that hold expert tensors.
static LIVE: Mutex<Vec<Weak<Buffer>>> = Mutex::new(Vec::new());

impl Buffer {
    fn new(base: *mut u8, size: usize, owned: Option<Memory>) -> Arc<Self> {
        Arc::new(Self {
            base,
            size,
            owned,
            tensors: Mutex::default(),
        })
    }

    /// Whether so many bytes at an address are inside.
    fn contains(&self, data: *const u8, bytes: usize) -> bool {
        (data as usize)
            .checked_sub(self.base as usize)
            .and_then(|at| at.checked_add(bytes))
            .is_some_and(|end| end <= self.size)
    }

    /// Notes a tensor that gets its place here. In memory that the host has mapped the bytes are there already: a
    /// damaged container is an error at once.
    fn place(self: &Arc<Self>, tensor: Tensor<'_>) -> Result<(), ()> {
        let (data, bytes) = (tensor.data(), tensor.bytes());
        if tensor.is_view() || data.is_null() || !self.contains(data, bytes) {
            return Ok(());
        }
        let mut tensors = lock(&self.tensors);
        remove(&mut tensors.table, data as usize, bytes);
        let (true, Some(ty), Some(shape)) =
            (is_expert_weight(&tensor), tensor.ty(), tensor.shape())
        else {
            return Ok(());
        };
        if tensors.table.is_empty() {
            let mut live = lock(&LIVE);
            live.retain(|b| b.strong_count() > 0);
            if !live
                .iter()
                .any(|b| std::ptr::eq(b.as_ptr(), Arc::as_ptr(self)))
            {
                live.push(Arc::downgrade(self));
            }
        }
        let entry = Entry {
            name: tensor.name().into_owned(),
            is_of_experts: true,
            ty,
            shape,
            bytes,
            found: None,
        };
        tensors.table.insert(data as usize, entry);
        let name = tensor.name();
        if self.owned.is_some() {
            debug!("{name}: {bytes} bytes to be read");
            return Ok(());
        }
        // SAFETY: inside the buffer, whose memory the host has mapped.
        let result = unsafe { tensors.find(data) };
        match &result {
            Ok(experts) => debug!("{name}: {} in the mapped file", experts.describe()),
            Err(message) => error!("{message}"),
        }
        result.map(drop).map_err(drop)
    }

    /// What is in an expert tensor, by its root. Tensors that got no place, and dense ones, which have none, are looked
    /// at here.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn experts(&self, tensor: Tensor<'_>) -> Result<Arc<Experts>, String> {
        let (data, bytes) = (tensor.data(), tensor.bytes());
        if data.is_null() || !self.contains(data, bytes) {
            return Err(format!("{}: it lies outside its buffer", tensor.name()));
        }
        let (Some(ty), Some(shape)) = (tensor.ty(), tensor.shape()) else {
            return Err(format!(
                "{}: its type or shape is not one of weights",
                tensor.name()
            ));
        };
        let mut tensors = lock(&self.tensors);
        if tensors.closed {
            return Err(format!("{}: its buffer is gone", tensor.name()));
        }
        let is_of_experts = is_expert_weight(&tensor);
        let entry = tensors.table.entry(data as usize).or_insert_with(|| Entry {
            name: tensor.name().into_owned(),
            is_of_experts,
            ty,
            shape,
            bytes,
            found: None,
        });
        if (entry.is_of_experts, entry.ty, entry.shape, entry.bytes)
            != (is_of_experts, ty, shape, bytes)
        {
            (entry.is_of_experts, entry.ty, entry.shape, entry.bytes) =
                (is_of_experts, ty, shape, bytes);
            entry.found = None;
        }
        // SAFETY: inside the buffer, which is not closed.
        unsafe { tensors.find(data) }
    }

    /// Whether a mixed container was found here: then its tensors are a mixed model's.
    pub fn is_mixed(&self) -> bool {
        lock(&self.tensors).any_mixed
    }

    /// Errors of the expert tensors, as far as their bytes are there.
    fn damage(&self, messages: &mut Vec<String>) {
        let mut tensors = lock(&self.tensors);
        if tensors.closed {
            return;
        }
        let places: Vec<usize> = tensors.table.keys().copied().collect();
        for data in places {
            // SAFETY: inside the buffer, which is not closed: `free_buffer` takes the same lock.
            if let Err(message) = unsafe { tensors.find(data as *const u8) } {
                messages.push(message);
                // Read again next time: the host may still be reading the file.
                if let Some(entry) = tensors.table.get_mut(&data) {
                    entry.found = None;
                }
            }
        }
    }

    /// Bytes of a tensor were written.
    fn written(&self, tensor: Tensor<'_>, end: usize) {
        let mut tensors = lock(&self.tensors);
        if tensors.table.is_empty() {
            return;
        }
        let root = tensor.root();
        if let Some(entry) = tensors.table.get_mut(&(root.data() as usize)) {
            entry.found = None;
            if end == entry.bytes && !tensor.is_view() {
                // SAFETY: entries lie inside the buffer.
                match unsafe { tensors.find(root.data()) } {
                    Ok(experts) => debug!("{}: {}", root.name(), experts.describe()),
                    Err(message) => error!("{message}"),
                }
            }
        }
    }
}

impl Entry {
    /// What the tensor's bytes are, looked at again if its ends have changed.
    ///
    /// # Safety
    /// `data` is this entry's address, and its bytes are readable.
    unsafe fn find(&mut self, data: *const u8) -> Result<Arc<Experts>, String> {
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(data, self.bytes) };
        // What an ordinary tensor is does not depend on its bytes.
        let ends = match self.is_of_experts {
            true => [
                ends(bytes),
                ends(&bytes[bytes.len().saturating_sub(ENDS)..]),
            ],
            false => [[0; ENDS]; 2],
        };
        if let Some(found) = &self.found
            && found.ends == ends
        {
            return found.result.clone();
        }
        let result = match self.is_of_experts {
            true => Experts::find(self.ty, self.shape, bytes),
            false => Experts::uniform(self.ty, self.shape, bytes.len()),
        };
        let result = result
            .map(Arc::new)
            .map_err(|e| format!("{}: {e}", self.name));
        self.found = Some(Found {
            ends,
            result: result.clone(),
        });
        result
    }
}

fn ends(bytes: &[u8]) -> [u8; ENDS] {
    let mut out = [0; ENDS];
    let n = bytes.len().min(ENDS);
    out[..n].copy_from_slice(&bytes[..n]);
    out
}

/// Forgets tensors that lie where another is placed.
fn remove(table: &mut BTreeMap<usize, Entry>, data: usize, bytes: usize) {
    let below = table.range(..data.saturating_add(bytes)).rev();
    let gone: Vec<usize> = below
        .take_while(|(at, entry)| *at + entry.bytes > data)
        .map(|(at, _)| *at)
        .collect();
    for at in gone {
        table.remove(&at);
    }
}

/// Whether a tensor is named as experts' weights are: `blk.N.ffn_{gate,up,down,gate_up}_exps.weight`.
pub fn is_expert_weight(tensor: &Tensor<'_>) -> bool {
    let name = tensor.name();
    name.ends_with("exps.weight")
}

/// Whether a tensor is named as a weight matrix of a model's file, and not as what a program adds (adapters).
pub fn is_weight(tensor: &Tensor<'_>) -> bool {
    tensor.name().ends_with(".weight")
}

/// Bytes of the mapped files that hold weights.
pub fn mapped_bytes() -> usize {
    let live = lock(&LIVE);
    let buffers = live.iter().filter_map(Weak::upgrade);
    buffers.filter(|b| b.owned.is_none()).map(|b| b.size).sum()
}

/// What is wrong with the expert tensors that are loaded now.
pub fn damage() -> Vec<String> {
    let buffers: Vec<_> = lock(&LIVE).iter().filter_map(Weak::upgrade).collect();
    let mut messages = Vec::new();
    for buffer in buffers {
        buffer.damage(&mut messages);
    }
    messages
}

/// The functions of the buffer type.
pub fn type_interface() -> sys::ggml_backend_buffer_type_i {
    sys::ggml_backend_buffer_type_i {
        get_name: Some(type_name),
        alloc_buffer: Some(alloc_buffer),
        get_alignment: Some(alignment),
        is_host: Some(is_host),
        ..Default::default()
    }
}

/// The functions of buffers.
pub fn interface() -> sys::ggml_backend_buffer_i {
    sys::ggml_backend_buffer_i {
        free_buffer: Some(free_buffer),
        get_base: Some(get_base),
        init_tensor: Some(init_tensor),
        memset_tensor: Some(memset_tensor),
        set_tensor: Some(set_tensor),
        get_tensor: Some(get_tensor),
        clear: Some(clear),
        ..Default::default()
    }
}

unsafe extern "C" fn type_name(_: sys::ggml_backend_buffer_type_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn alignment(_: sys::ggml_backend_buffer_type_t) -> usize {
    ALIGNMENT
}

/// The CPU reads and writes activations in these buffers without copies.
unsafe extern "C" fn is_host(_: sys::ggml_backend_buffer_type_t) -> bool {
    true
}

unsafe extern "C" fn alloc_buffer(
    _: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    guarded_or(std::ptr::null_mut(), |host| {
        let Some(memory) = Memory::new(size) else {
            error!("no memory for a buffer of {size} bytes");
            return std::ptr::null_mut();
        };
        let buffer = Buffer::new(memory.base(), memory.len(), Some(memory));
        hand_over(host, buffer, size)
    })
}

/// A buffer over a file that the host has mapped: weights are used where they are.
pub fn from_host_memory(
    host: &'static Host,
    base: *mut c_void,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    debug!("{size} bytes of a mapped file");
    hand_over(host, Buffer::new(base.cast(), size, None), size)
}

fn hand_over(host: &'static Host, buffer: Arc<Buffer>, size: usize) -> sys::ggml_backend_buffer_t {
    let context = Arc::into_raw(buffer).cast_mut().cast();
    // SAFETY: the host's constructor with tables of its layout; it keeps the context until `free_buffer`.
    unsafe {
        (host.symbols.ggml_backend_buffer_init)(
            super::buffer_type(host),
            host.abi.buffer_interface(&super::callbacks()),
            context,
            size,
        )
    }
}

/// Our buffer behind a host's; `None` for another's and for the empty ones with which a host asks.
///
/// # Safety
/// A non-null `buffer` is live.
pub unsafe fn of_host(
    host: &'static Host,
    buffer: sys::ggml_backend_buffer_t,
) -> Option<Arc<Buffer>> {
    // SAFETY: the caller's promise: contexts of buffers of our type are ours or null.
    unsafe {
        if buffer.is_null()
            || (host.symbols.ggml_backend_buffer_get_type)(buffer) != super::buffer_type(host)
        {
            return None;
        }
        let context = context_of(host, buffer)?;
        Arc::increment_strong_count(context);
        Some(Arc::from_raw(context))
    }
}

unsafe extern "C" fn free_buffer(buffer: sys::ggml_backend_buffer_t) {
    guarded_or((), |host| {
        // SAFETY: the host frees a buffer once; its context is what `hand_over` gave.
        if let Some(context) = unsafe { context_of(host, buffer) } {
            // SAFETY: as above.
            let buffer = unsafe { Arc::from_raw(context) };
            let mut tensors = lock(&buffer.tensors);
            tensors.closed = true;
            tensors.table.clear();
            drop(tensors);
            lock(&LIVE).retain(|b| !std::ptr::eq(b.as_ptr(), Arc::as_ptr(&buffer)));
        }
    });
}

unsafe extern "C" fn get_base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    guarded_or(std::ptr::null_mut(), |host| {
        // SAFETY: a live buffer of ours.
        unsafe { of_host(host, buffer) }.map_or(std::ptr::null_mut(), |b| b.base.cast())
    })
}

unsafe extern "C" fn init_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
) -> sys::ggml_status {
    guarded_or(sys::GGML_STATUS_FAILED, |host| {
        // SAFETY: a live buffer of ours, and a tensor that the host places in it.
        let (buffer, tensor) = unsafe { (of_host(host, buffer), Tensor::new(host, tensor)) };
        match (buffer, tensor) {
            (Some(buffer), Some(tensor)) if buffer.place(tensor).is_err() => {
                sys::GGML_STATUS_FAILED
            }
            _ => sys::GGML_STATUS_SUCCESS,
        }
    })
}

/// The address of a tensor's bytes, if they lie in the buffer.
fn range(buffer: &Buffer, tensor: Tensor<'_>, offset: usize, size: usize) -> Option<*mut u8> {
    let inside = offset
        .checked_add(size)
        .is_some_and(|end| end <= tensor.bytes());
    let data = tensor.data();
    if data.is_null() || !inside || !buffer.contains(data, offset + size) {
        error!(
            "{}: {size} bytes at {offset} lie outside the tensor",
            tensor.name()
        );
        return None;
    }
    // SAFETY: inside the buffer's memory.
    Some(unsafe { data.add(offset) })
}

unsafe extern "C" fn set_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    guarded(|host| {
        // SAFETY: a live buffer and tensor, `size` readable bytes, and a place inside the buffer.
        unsafe {
            let (buffer, tensor) = (of_host(host, buffer)?, Tensor::new(host, tensor)?);
            let to = range(&buffer, tensor, offset, size)?;
            std::ptr::copy(data.cast::<u8>(), to, size);
            buffer.written(tensor, offset + size);
        }
        Some(())
    });
}

unsafe extern "C" fn memset_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut sys::ggml_tensor,
    value: u8,
    offset: usize,
    size: usize,
) {
    guarded(|host| {
        // SAFETY: as in `set_tensor`.
        unsafe {
            let (buffer, tensor) = (of_host(host, buffer)?, Tensor::new(host, tensor)?);
            let to = range(&buffer, tensor, offset, size)?;
            std::ptr::write_bytes(to, value, size);
            buffer.written(tensor, offset + size);
        }
        Some(())
    });
}

unsafe extern "C" fn get_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *const sys::ggml_tensor,
    data: *mut c_void,
    offset: usize,
    size: usize,
) {
    guarded(|host| {
        // SAFETY: a live buffer and tensor, `size` writable bytes, and a place inside the buffer.
        unsafe {
            let (buffer, tensor) = (of_host(host, buffer)?, Tensor::new(host, tensor)?);
            let from = range(&buffer, tensor, offset, size)?;
            std::ptr::copy(from, data.cast::<u8>(), size);
        }
        Some(())
    });
}

unsafe extern "C" fn clear(buffer: sys::ggml_backend_buffer_t, value: u8) {
    guarded(|host| {
        // SAFETY: a live buffer, whose memory has this size.
        unsafe {
            let buffer = of_host(host, buffer)?;
            std::ptr::write_bytes(buffer.base, value, buffer.size);
            lock(&buffer.tensors)
                .table
                .values_mut()
                .for_each(|e| e.found = None);
        }
        Some(())
    });
}
