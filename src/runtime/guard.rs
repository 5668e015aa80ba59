//! llama.cpp's C++ exceptions as errors (see `guard.cpp`). Most of its functions catch them themselves; the
//! ones here do not.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;

use llama_cpp_sys_2 as sys;

unsafe extern "C" {
    fn moqa_catch(
        call: unsafe extern "C-unwind" fn(*mut c_void),
        data: *mut c_void,
        message: *mut c_char,
        size: usize,
    ) -> bool;
    pub(super) fn moqa_on_uncaught(report: unsafe extern "C" fn(*const c_char));
}

// Declared anew: the bindings' declarations promise that nothing unwinds.
unsafe extern "C-unwind" {
    pub(super) fn llama_tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        text_len: i32,
        tokens: *mut sys::llama_token,
        n_tokens_max: i32,
        add_special: bool,
        parse_special: bool,
    ) -> i32;
    pub(super) fn llama_decode(ctx: *mut sys::llama_context, batch: sys::llama_batch) -> i32;
}

struct Call<F, T> {
    f: F,
    result: MaybeUninit<T>,
}

/// Runs `f`, which calls one of the functions above. The bounds see to it that an exception unwinds through
/// nothing that needs dropping.
///
/// # Errors
/// What the exception said.
pub(super) fn catch<F: FnOnce() -> T + Copy, T: Copy>(f: F) -> Result<T, String> {
    unsafe extern "C-unwind" fn call<F: FnOnce() -> T + Copy, T: Copy>(data: *mut c_void) {
        // SAFETY: the data is the `Call` below, which lives until moqa_catch returns.
        let call = unsafe { &mut *data.cast::<Call<F, T>>() };
        call.result.write((call.f)());
    }
    let mut data = Call {
        f,
        result: MaybeUninit::uninit(),
    };
    let mut message = [0 as c_char; 512];
    // SAFETY: `call` gets the data of its types, and the message buffer is passed with its size.
    let finished = unsafe {
        moqa_catch(
            call::<F, T>,
            (&raw mut data).cast(),
            message.as_mut_ptr(),
            message.len(),
        )
    };
    if finished {
        // SAFETY: `call` ran to its end and wrote the result.
        Ok(unsafe { data.result.assume_init() })
    } else {
        // SAFETY: snprintf ended the text with a NUL.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) };
        Err(text.to_string_lossy().into_owned())
    }
}
