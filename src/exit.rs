//! How the program ends when it does not end by itself: on an interrupt, or on a crash or abort inside
//! llama.cpp, the temporary files are removed and one line says what happened.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use libc::{c_char, c_int};

use crate::output::remove_temporaries;

/// Signals by which others end the program. Where the parent had one ignored (`nohup`), it stays ignored.
const INTERRUPTS: [c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
/// Signals by which a fault of the program ends it.
const FAULTS: [c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGABRT,
];

/// The thread that ends the process; 0 while none does.
static ENDING: AtomicUsize = AtomicUsize::new(0);
/// The file that llama.cpp was last given, for messages.
static SUBJECT: AtomicPtr<c_char> = AtomicPtr::new(null_mut());

/// Catches the signals that would end the process. An interrupt then ends it at once with status 128 plus
/// the signal's number (130 for Ctrl-C), whatever is being computed; a fault with status 1. Also has a write
/// beyond the limit of file sizes fail instead of ending the process.
///
/// For the program, not for users of the library: signal handlers belong to the whole process.
///
/// # Errors
/// The operating system refuses.
pub(crate) fn install() -> Result<()> {
    for signal in INTERRUPTS {
        if disposition(signal)? != libc::SIG_IGN {
            handle(signal, on_interrupt as *const () as libc::sighandler_t)?;
        }
    }
    for signal in FAULTS {
        handle(signal, on_fault as *const () as libc::sighandler_t)?;
    }
    // Rust ignores it; a reader that closes our output early should end us quietly, as other tools.
    handle(
        libc::SIGPIPE,
        on_broken_pipe as *const () as libc::sighandler_t,
    )?;
    handle(libc::SIGXFSZ, libc::SIG_IGN)
}

/// Undoes what a program started in place of this one would inherit. Handlers it does not.
pub(crate) fn uninstall() {
    // SAFETY: restores the default action.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
}

fn disposition(signal: c_int) -> Result<libc::sighandler_t> {
    // SAFETY: a zeroed sigaction is valid, and a null action only asks.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        let status = libc::sigaction(signal, std::ptr::null(), &mut old);
        (status == 0).then_some(old.sa_sigaction)
    }
    .with_context(|| format!("cannot ask about signal {signal}"))
}

fn handle(signal: c_int, handler: libc::sighandler_t) -> Result<()> {
    // SAFETY: the handlers below call async-signal-safe functions only. SA_ONSTACK, because the stack may be
    // what overflowed.
    let status = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, null_mut())
    };
    (status == 0)
        .then_some(())
        .with_context(|| format!("cannot catch signal {signal}"))
}

/// Names the file that llama.cpp is given next, for the message if that goes wrong.
pub(crate) fn set_subject(path: &Path) {
    if let Ok(path) = CString::new(path.as_os_str().as_bytes()) {
        // The old one is leaked: a handler may be reading it.
        SUBJECT.store(path.into_raw(), Ordering::Release);
    }
}

/// Removes the temporary files, writes the parts of a message to standard error as one line after
/// `moqa: FILE: `, and ends the process. Async-signal-safe. Of several threads the first one does it.
pub(crate) fn end(parts: &[&[u8]], status: c_int) -> ! {
    claim();
    remove_temporaries();
    write_stderr(b"moqa: ");
    let subject = SUBJECT.load(Ordering::Acquire);
    if !subject.is_null() {
        // SAFETY: a C string that is never freed.
        write_stderr(unsafe { std::ffi::CStr::from_ptr(subject) }.to_bytes());
        write_stderr(b": ");
    }
    parts.iter().for_each(|part| write_stderr(part));
    write_stderr(b"\n");
    // SAFETY: ends the process without destructors, as other threads still compute.
    unsafe { libc::_exit(status) }
}

/// Returns to one thread; all others wait here for the end.
fn claim() {
    // SAFETY: always succeeds.
    let me = unsafe { libc::pthread_self() } as usize;
    match ENDING.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        // A fault while ending: no more than this can be done.
        // SAFETY: ends the process.
        Err(owner) if owner == me => unsafe { libc::_exit(1) },
        Err(_) => loop {
            // SAFETY: only waits.
            unsafe { libc::pause() };
        },
    }
}

fn write_stderr(bytes: &[u8]) {
    // SAFETY: the buffer is passed with its length. A message that cannot be written is lost.
    unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

extern "C" fn on_interrupt(signal: c_int) {
    claim();
    remove_temporaries();
    write_stderr(b"\nmoqa: interrupted; no unfinished file is left\n");
    // SAFETY: ends the process without destructors, as other threads still compute.
    unsafe { libc::_exit(128 + signal) }
}

extern "C" fn on_broken_pipe(signal: c_int) {
    remove_temporaries();
    // SAFETY: restores the default action, to end as a process without a handler does: the signal raised
    // here is delivered when this handler returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn on_fault(signal: c_int) {
    let what: &[u8] = match signal {
        libc::SIGBUS => {
            b"the file was cut or changed while it was read, or its disk failed; try again with a complete file"
        }
        libc::SIGABRT => {
            b"processing this was given up (abort); the file is damaged, or memory ran out, or this is an error in moqa or llama.cpp; get the file again, or report this"
        }
        _ => {
            b"processing this crashed (invalid access or instruction); the file is damaged, or this is an error in moqa or llama.cpp; get the file again, or report this"
        }
    };
    end(&[what], 1)
}
