//! The last line of defence against a model that llama.cpp cannot process: where it would abort the process
//! (a failed assertion, an uncaught exception), the process ends with one clear line and exit status 1.

use std::ffi::{CStr, c_char};

use llama_cpp_sys_2 as sys;

use super::guard::moqa_on_uncaught;
use crate::exit;

/// Installs it. For the program, not for users of the library: it ends the process.
pub(crate) fn end_on_abort() {
    // SAFETY: both callbacks match their types, live for the whole program and neither return nor unwind.
    unsafe {
        sys::ggml_set_abort_callback(Some(on_abort));
        moqa_on_uncaught(on_uncaught);
    }
}

unsafe extern "C" fn on_abort(message: *const c_char) {
    give_up(text(message));
}

unsafe extern "C" fn on_uncaught(message: *const c_char) {
    give_up(text(message));
}

fn text<'a>(message: *const c_char) -> &'a [u8] {
    if message.is_null() {
        return b"no reason given";
    }
    // SAFETY: llama.cpp and guard.cpp pass NUL-terminated strings that live during the call.
    unsafe { CStr::from_ptr(message) }.to_bytes()
}

fn give_up(message: &[u8]) -> ! {
    exit::end(
        &[
            b"llama.cpp cannot process this model: ",
            without_folders(message).trim_ascii(),
            b"; it is damaged, or of a kind that this build does not know: get it again, or a newer moqa",
        ],
        1,
    )
}

/// ggml's messages begin with the path of a source file on the machine that built it: `/a/b.cpp:12: text`.
fn without_folders(message: &[u8]) -> &[u8] {
    let path = message.iter().position(|b| *b == b':').unwrap_or(0);
    let folders = message[..path]
        .iter()
        .rposition(|b| *b == b'/' || *b == b'\\');
    &message[folders.map_or(0, |i| i + 1)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_left_out() {
        let short = |s: &'static str| std::str::from_utf8(without_folders(s.as_bytes())).unwrap();
        assert_eq!(
            short("/x/y/llama-model.cpp:13: a/b"),
            "llama-model.cpp:13: a/b"
        );
        assert_eq!(short("ops.cpp:4: fatal"), "ops.cpp:4: fatal");
        assert_eq!(short("map::at"), "map::at");
        assert_eq!(short(""), "");
    }
}
