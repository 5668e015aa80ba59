//! Messages: to the host's log, which programs redirect and filter; details (`MOQA_LOG=debug`) to the standard
//! error stream.

use std::ffi::{CString, c_char};
use std::fmt::Arguments;
use std::sync::OnceLock;

use ggml_backend_sys as sys;

use crate::host;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// The most that is said: `MOQA_LOG` (error, warn, info, debug), otherwise info.
fn threshold() -> Level {
    static THRESHOLD: OnceLock<Level> = OnceLock::new();
    *THRESHOLD.get_or_init(|| match std::env::var("MOQA_LOG").as_deref() {
        Ok("error") => Level::Error,
        Ok("warn") => Level::Warn,
        Ok("debug") => Level::Debug,
        _ => Level::Info,
    })
}

/// Whether details are asked for.
pub fn debugging() -> bool {
    threshold() == Level::Debug
}

/// Writes a line.
pub fn log(level: Level, message: Arguments<'_>) {
    if level > threshold() {
        return;
    }
    // Programs drop what is not a warning or an error; who asks for details gets it all.
    let for_host = level <= Level::Warn || level == Level::Info && !debugging();
    if for_host && host_log(level, message) {
        return;
    }
    to_stderr(message);
}

/// Writes an error that stops the program, to both: llama.cpp's programs write their log from a thread and lose its
/// last lines when they end early.
pub fn fatal(message: Arguments<'_>) {
    host_log(Level::Error, message);
    to_stderr(message);
}

fn to_stderr(message: Arguments<'_>) {
    // Not `eprintln!`, which panics when the stream is closed.
    use std::io::Write;
    // In one piece: the host writes from a thread of its own.
    _ = std::io::stderr().write_all(format!("moqa: {message}\n").as_bytes());
}

fn host_log(level: Level, message: Arguments<'_>) -> bool {
    let Some(log) = host::host().ok().and_then(|h| h.symbols.ggml_log_internal) else {
        return false;
    };
    let level = match level {
        Level::Error => sys::GGML_LOG_LEVEL_ERROR,
        Level::Warn => sys::GGML_LOG_LEVEL_WARN,
        Level::Info => sys::GGML_LOG_LEVEL_INFO,
        Level::Debug => sys::GGML_LOG_LEVEL_DEBUG,
    };
    let Ok(text) = CString::new(format!("moqa: {message}\n").replace('\0', "?")) else {
        return false;
    };
    // SAFETY: the format takes one string.
    unsafe { log(level, c"%s".as_ptr().cast::<c_char>(), text.as_ptr()) };
    true
}

macro_rules! error { ($($arg:tt)*) => { $crate::log::log($crate::log::Level::Error, format_args!($($arg)*)) }; }
macro_rules! info { ($($arg:tt)*) => { $crate::log::log($crate::log::Level::Info, format_args!($($arg)*)) }; }
macro_rules! debug {
    ($($arg:tt)*) => {
        if $crate::log::debugging() {
            $crate::log::log($crate::log::Level::Debug, format_args!($($arg)*));
        }
    };
}
pub(crate) use {debug, error, info};
