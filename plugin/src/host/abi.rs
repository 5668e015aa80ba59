//! The layouts of the backend ABI that this library knows. The bindings are of API version 3; what differs before:
//!
//! | | buffer type | buffer | stream |
//! |---|---|---|---|
//! | 2, from September 2025 | no `alloc_buffer_n`, no `get_alloc_size_n` | no `*_tensor_2d` | no `*_tensor_2d_async` |
//! | 2, from April 2026 (ggml 0.10) | as above | as in 3 | as in 3 |
//! | 3, from autumn 2026 | two functions more | | `graph_optimize` has a parameter more |
//!
//! Devices, registries and device properties are the same in all three: `mmap_support`, which came in August 2026,
//! lies in what was padding. `graph_optimize` is not provided here.

use std::ffi::c_void;
use std::mem::offset_of;

use ggml_backend_sys as sys;

/// A layout of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// API version 2 before tensors were copied in two dimensions.
    V2,
    /// API version 2 with the functions that copy in two dimensions.
    V2With2d,
    /// API version 3.
    V3,
}

/// `ggml_backend_buffer_type` of API version 2.
#[repr(C)]
struct BufferTypeV2 {
    get_name: *const c_void,
    alloc_buffer: *const c_void,
    get_alignment: *const c_void,
    get_max_size: *const c_void,
    get_alloc_size: *const c_void,
    is_host: *const c_void,
    device: sys::ggml_backend_dev_t,
    context: *mut c_void,
}

/// `ggml_backend_buffer_i` of API version 2 before two dimensions.
#[repr(C)]
#[derive(Clone, Copy)]
struct BufferInterfaceV2 {
    free_buffer: *const c_void,
    get_base: *const c_void,
    init_tensor: *const c_void,
    memset_tensor: *const c_void,
    set_tensor: *const c_void,
    get_tensor: *const c_void,
    cpy_tensor: *const c_void,
    clear: *const c_void,
    reset: *const c_void,
}

/// `ggml_backend_buffer` of API version 2 before two dimensions.
#[repr(C)]
struct BufferV2 {
    iface: BufferInterfaceV2,
    buft: sys::ggml_backend_buffer_type_t,
    context: *mut c_void,
    size: usize,
    usage: sys::ggml_backend_buffer_usage,
}

/// `ggml_backend` of API version 2 before two dimensions.
#[repr(C)]
struct BackendV2 {
    guid: sys::ggml_guid_t,
    get_name: *const c_void,
    free: *const c_void,
    set_tensor_async: *const c_void,
    get_tensor_async: *const c_void,
    cpy_tensor_async: *const c_void,
    synchronize: *const c_void,
    graph_plan_create: *const c_void,
    graph_plan_free: *const c_void,
    graph_plan_update: *const c_void,
    graph_plan_compute: *const c_void,
    graph_compute: *const c_void,
    event_record: *const c_void,
    event_wait: *const c_void,
    graph_optimize: *const c_void,
    device: sys::ggml_backend_dev_t,
    context: *mut c_void,
}

/// The functions that this library gives a host. A struct of C function pointers, of the types in the bindings.
#[derive(Clone, Copy)]
pub struct Callbacks {
    pub buffer_type: sys::ggml_backend_buffer_type_i,
    pub buffer: sys::ggml_backend_buffer_i,
    pub backend: sys::ggml_backend_i,
}

/// Positions, in pointers, of what a host was seen to use: see `probe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// `get_alignment`, `get_max_size`, `is_host` and the device of a buffer type.
    pub buffer_type: [usize; 4],
    /// `free_buffer`, `get_base`, `init_tensor`, `clear`, `reset` of a buffer.
    pub buffer: [usize; 5],
    /// The context of a buffer.
    pub buffer_context: usize,
    /// `get_name`, `free`, `synchronize`, `graph_compute` and the device of a stream, counted behind its guid.
    pub backend: [usize; 5],
}

const WORD: usize = size_of::<usize>();

macro_rules! positions {
    ($type:ty, $from:expr, [$($($field:ident).+),*]) => {
        [$((offset_of!($type, $($field).+) - $from) / WORD),*]
    };
}

impl Abi {
    /// The number a host compares.
    pub fn api_version(self) -> i32 {
        match self {
            Self::V2 | Self::V2With2d => 2,
            Self::V3 => 3,
        }
    }

    /// Where things lie in this layout.
    pub fn positions(self) -> Positions {
        let guid = size_of::<sys::ggml_guid_t>();
        let new_buffer = positions!(
            sys::ggml_backend_buffer,
            0,
            [
                iface.free_buffer,
                iface.get_base,
                iface.init_tensor,
                iface.clear,
                iface.reset
            ]
        );
        let new_backend = positions!(
            sys::ggml_backend,
            guid,
            [
                iface.get_name,
                iface.free,
                iface.synchronize,
                iface.graph_compute,
                device
            ]
        );
        let new_context = offset_of!(sys::ggml_backend_buffer, context) / WORD;
        let old_type = positions!(
            BufferTypeV2,
            0,
            [get_alignment, get_max_size, is_host, device]
        );
        match self {
            Self::V2 => Positions {
                buffer_type: old_type,
                buffer: positions!(
                    BufferV2,
                    0,
                    [
                        iface.free_buffer,
                        iface.get_base,
                        iface.init_tensor,
                        iface.clear,
                        iface.reset
                    ]
                ),
                buffer_context: offset_of!(BufferV2, context) / WORD,
                backend: positions!(
                    BackendV2,
                    guid,
                    [get_name, free, synchronize, graph_compute, device]
                ),
            },
            Self::V2With2d => Positions {
                buffer_type: old_type,
                buffer: new_buffer,
                buffer_context: new_context,
                backend: new_backend,
            },
            Self::V3 => Positions {
                buffer_type: positions!(
                    sys::ggml_backend_buffer_type,
                    0,
                    [
                        iface.get_alignment,
                        iface.get_max_size,
                        iface.is_host,
                        device
                    ]
                ),
                buffer: new_buffer,
                buffer_context: new_context,
                backend: new_backend,
            },
        }
    }

    /// A buffer type of this layout, for as long as the process lives.
    pub fn new_buffer_type(
        self,
        callbacks: &Callbacks,
        device: sys::ggml_backend_dev_t,
    ) -> sys::ggml_backend_buffer_type_t {
        let i = callbacks.buffer_type;
        if self == Self::V3 {
            return Box::into_raw(Box::new(sys::ggml_backend_buffer_type {
                iface: i,
                device,
                context: std::ptr::null_mut(),
            }));
        }
        Box::into_raw(Box::new(BufferTypeV2 {
            get_name: address(i.get_name),
            alloc_buffer: address(i.alloc_buffer),
            get_alignment: address(i.get_alignment),
            get_max_size: address(i.get_max_size),
            get_alloc_size: address(i.get_alloc_size),
            is_host: address(i.is_host),
            device,
            context: std::ptr::null_mut(),
        }))
        .cast()
    }

    /// The functions of a buffer, in the places where a host of this layout looks; what is behind them is not used.
    pub fn buffer_interface(self, callbacks: &Callbacks) -> sys::ggml_backend_buffer_i {
        let i = callbacks.buffer;
        if self != Self::V2 {
            return i;
        }
        let old = BufferInterfaceV2 {
            free_buffer: address(i.free_buffer),
            get_base: address(i.get_base),
            init_tensor: address(i.init_tensor),
            memset_tensor: address(i.memset_tensor),
            set_tensor: address(i.set_tensor),
            get_tensor: address(i.get_tensor),
            cpy_tensor: address(i.cpy_tensor),
            clear: address(i.clear),
            reset: address(i.reset),
        };
        let mut out = sys::ggml_backend_buffer_i::default();
        const { assert!(size_of::<BufferInterfaceV2>() <= size_of::<sys::ggml_backend_buffer_i>()) };
        // SAFETY: both are plain structs of nullable function pointers, and the old one is not the larger.
        unsafe { (&raw mut out).cast::<BufferInterfaceV2>().write(old) };
        out
    }

    /// The context of a buffer that the host made for us.
    ///
    /// # Safety
    /// `buffer` is a live buffer of a host of this layout.
    pub unsafe fn buffer_context(self, buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
        let at = self.positions().buffer_context;
        // SAFETY: the caller's promise; `probe` saw the context at this place.
        unsafe { *buffer.cast::<*mut c_void>().add(at) }
    }

    /// A stream of this layout; [`Abi::free_backend`] frees it.
    pub fn new_backend(
        self,
        guid: sys::ggml_guid_t,
        callbacks: &Callbacks,
        device: sys::ggml_backend_dev_t,
        context: *mut c_void,
    ) -> sys::ggml_backend_t {
        let i = callbacks.backend;
        if self != Self::V2 {
            return Box::into_raw(Box::new(sys::ggml_backend {
                guid,
                iface: i,
                device,
                context,
            }));
        }
        Box::into_raw(Box::new(BackendV2 {
            guid,
            get_name: address(i.get_name),
            free: address(i.free),
            set_tensor_async: address(i.set_tensor_async),
            get_tensor_async: address(i.get_tensor_async),
            cpy_tensor_async: address(i.cpy_tensor_async),
            synchronize: address(i.synchronize),
            graph_plan_create: address(i.graph_plan_create),
            graph_plan_free: address(i.graph_plan_free),
            graph_plan_update: address(i.graph_plan_update),
            graph_plan_compute: address(i.graph_plan_compute),
            graph_compute: address(i.graph_compute),
            event_record: address(i.event_record),
            event_wait: address(i.event_wait),
            graph_optimize: std::ptr::null(),
            device,
            context,
        }))
        .cast()
    }

    /// The context of one of our streams.
    ///
    /// # Safety
    /// `backend` came from [`Abi::new_backend`] and was not freed.
    pub unsafe fn backend_context(self, backend: sys::ggml_backend_t) -> *mut c_void {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::V2 => (*backend.cast::<BackendV2>()).context,
                Self::V2With2d | Self::V3 => (*backend).context,
            }
        }
    }

    /// Frees a stream; its context is the caller's.
    ///
    /// # Safety
    /// `backend` came from [`Abi::new_backend`] and is not used again.
    pub unsafe fn free_backend(self, backend: sys::ggml_backend_t) {
        // SAFETY: the caller's promise: it is the box that `new_backend` gave away.
        unsafe {
            match self {
                Self::V2 => drop(Box::from_raw(backend.cast::<BackendV2>())),
                Self::V2With2d | Self::V3 => drop(Box::from_raw(backend)),
            }
        }
    }
}

/// An optional C function's address, null for none.
fn address<F: Copy>(function: Option<F>) -> *const c_void {
    const { assert!(size_of::<Option<F>>() == WORD) };
    // SAFETY: an optional function pointer is one word, and null for `None`.
    unsafe { std::mem::transmute_copy::<Option<F>, *const c_void>(&function) }
}
