//! llama.cpp's messages: silent by default, printed to standard error with `MOQA_LOG=debug`, and kept
//! so that a failed call can say what llama.cpp said.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::panic::catch_unwind;
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

const KEPT: usize = 64;

struct Sink {
    partial: String,
    warnings: VecDeque<String>,
    /// Every line since [`capture`] began, when someone captures.
    captured: Option<Vec<String>>,
    level: u32,
    echo: bool,
}

static SINK: Mutex<Sink> = Mutex::new(Sink {
    partial: String::new(),
    warnings: VecDeque::new(),
    captured: None,
    level: 0,
    echo: false,
});

pub(super) fn install() {
    let echo = std::env::var("MOQA_LOG").is_ok_and(|v| v.eq_ignore_ascii_case("debug"));
    lock().echo = echo;
    // SAFETY: `receive` matches the callback type, lives for the whole program and never unwinds.
    unsafe {
        sys::llama_log_set(Some(receive), std::ptr::null_mut());
        sys::ggml_log_set(Some(receive), std::ptr::null_mut());
    }
}

fn lock() -> std::sync::MutexGuard<'static, Sink> {
    SINK.lock().unwrap_or_else(|e| e.into_inner())
}

/// llama.cpp's latest warnings and errors, oldest first, at most 64 lines; the list is emptied.
pub fn recent_messages() -> Vec<String> {
    lock().warnings.drain(..).collect()
}

/// llama.cpp's latest warnings and errors as one line for an error message; empty when there are none.
pub(super) fn explain() -> String {
    let lines = recent_messages();
    if lines.is_empty() {
        String::new()
    } else {
        format!("; llama.cpp says: {}", lines.join(" | "))
    }
}

/// Runs `f` and returns what llama.cpp printed meanwhile, a line an entry.
pub(super) fn capture<T>(f: impl FnOnce() -> T) -> (T, Vec<String>) {
    lock().captured = Some(Vec::new());
    let value = f();
    let mut sink = lock();
    let rest = std::mem::take(&mut sink.partial);
    let mut lines = sink.captured.take().unwrap_or_default();
    if !rest.is_empty() {
        lines.push(rest);
    }
    (value, lines)
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A panic must not cross into C.
    let _ = catch_unwind(|| lock().push(level, &text));
}

impl Sink {
    fn push(&mut self, level: u32, text: &str) {
        if level != sys::GGML_LOG_LEVEL_CONT {
            self.level = level;
        }
        if self.echo {
            eprint!("{text}");
        }
        self.partial.push_str(text);
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            let line = line.trim_end();
            if let Some(captured) = &mut self.captured {
                captured.push(line.to_owned());
            }
            let important =
                self.level == sys::GGML_LOG_LEVEL_WARN || self.level == sys::GGML_LOG_LEVEL_ERROR;
            if important && !line.is_empty() {
                if self.warnings.len() == KEPT {
                    self.warnings.pop_front();
                }
                self.warnings.push_back(line.to_owned());
            }
        }
    }
}
