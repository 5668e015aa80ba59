//! A ggml backend that unmodified llama.cpp programs load (`GGML_BACKEND_PATH`) and that computes the experts of
//! Mixture-of-Experts models, ordinary ones and those in mixed containers, and other quantized matrices.
//! `docs/plugin.md` says how to use it.
//!
//! ```text
//! host      the program: its functions, the layout of its ABI, checked; unsafe
//! backend   what the program calls: device, buffers, streams; unsafe
//! compute   products of weights with activations; safe, but for the memory of results (`compute::rows`)
//! memory    memory for weights; unsafe
//! pool      threads; unsafe in one place
//! ```

mod backend;
pub mod compute;
mod host;
mod log;
mod memory;
pub mod pool;

use ggml_backend_sys as sys;

use log::{debug, error, info};

/// Whether `MOQA_PLUGIN` switches the backend off.
fn is_off() -> bool {
    matches!(
        std::env::var("MOQA_PLUGIN").as_deref(),
        Ok("0" | "off" | "no" | "false")
    )
}

/// How well this backend fits the system: zero, upon which hosts go on without it, if it is switched off or does not
/// know the host.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_backend_score() -> i32 {
    let usable = std::panic::catch_unwind(|| {
        if is_off() {
            info!("switched off by MOQA_PLUGIN");
            return false;
        }
        match host::host() {
            Ok(_) => true,
            Err(message) => {
                error!("not used: {message}");
                false
            }
        }
    });
    i32::from(usable.unwrap_or(false))
}

/// The registry entry of this backend, or null if it is switched off or does not know the host.
#[unsafe(no_mangle)]
pub extern "C" fn ggml_backend_init() -> sys::ggml_backend_reg_t {
    if is_off() {
        return std::ptr::null_mut();
    }
    backend::guarded_or(std::ptr::null_mut(), |host| {
        debug!(
            "backend API {} ({:?}), kernels for {}",
            host.abi.api_version(),
            host.abi,
            moqa_kernels::Isa::detect().name()
        );
        backend::reg(host)
    })
}
