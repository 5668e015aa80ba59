//! What a host sees: a registry entry with one device, its buffers and its streams. Every function that a host calls
//! is guarded: a panic becomes an error, with a line in the log.

pub mod buffer;
pub mod device;
mod neighbours;
mod repack;
pub mod stream;
pub mod tensor;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use ggml_backend_sys as sys;

use crate::host::abi::Callbacks;
use crate::host::{Host, host};
use crate::log::error;
use crate::pool::message;

/// Calls `f` with the host; `other` if it panics or there is no host.
pub fn guarded_or<T>(other: T, f: impl FnOnce(&'static Host) -> T) -> T {
    let call = AssertUnwindSafe(|| host().ok().map(f));
    match catch_unwind(call) {
        Ok(Some(value)) => value,
        Ok(None) => other,
        Err(panic) => {
            // The log asks for the host too, which may be what failed.
            let text = message(panic.as_ref());
            _ = catch_unwind(|| error!("internal error: {text}"));
            other
        }
    }
}

/// As [`guarded_or`], for what has nothing to give back.
fn guarded(f: impl FnOnce(&'static Host) -> Option<()>) {
    _ = guarded_or(None, f);
}

/// The functions of buffers and streams.
fn callbacks() -> Callbacks {
    Callbacks {
        buffer_type: buffer::type_interface(),
        buffer: buffer::interface(),
        backend: stream::interface(),
    }
}

/// The context of one of our buffers; null for an empty one.
///
/// # Safety
/// `buffer` is live and of our type.
unsafe fn context_of(
    host: &'static Host,
    buffer: sys::ggml_backend_buffer_t,
) -> Option<*const buffer::Buffer> {
    // SAFETY: the caller's promise.
    let context = unsafe { host.abi.buffer_context(buffer) };
    (!context.is_null()).then_some(context.cast_const().cast())
}

/// What lives as long as the process: hosts never unload a backend.
struct Objects {
    reg: sys::ggml_backend_reg_t,
    device: sys::ggml_backend_dev_t,
    buffer_type: sys::ggml_backend_buffer_type_t,
}

// SAFETY: addresses of objects that are never freed and never written after `objects` made them.
unsafe impl Send for Objects {}
// SAFETY: as above.
unsafe impl Sync for Objects {}

fn objects(host: &'static Host) -> &'static Objects {
    static OBJECTS: OnceLock<Objects> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let reg = Box::into_raw(Box::new(sys::ggml_backend_reg {
            api_version: host.abi.api_version(),
            iface: device::reg_interface(),
            context: std::ptr::null_mut(),
        }));
        let device = Box::into_raw(Box::new(sys::ggml_backend_device {
            iface: device::interface(),
            reg,
            context: std::ptr::null_mut(),
        }));
        Objects {
            reg,
            device,
            buffer_type: host.abi.new_buffer_type(&callbacks(), device),
        }
    })
}

/// The registry entry.
pub fn reg(host: &'static Host) -> sys::ggml_backend_reg_t {
    objects(host).reg
}

fn device(host: &'static Host) -> sys::ggml_backend_dev_t {
    objects(host).device
}

fn buffer_type(host: &'static Host) -> sys::ggml_backend_buffer_type_t {
    objects(host).buffer_type
}
