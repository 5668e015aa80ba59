//! The temporary files that exist now, in a form that a signal handler can walk: a list that only grows,
//! whose nodes are used again, without locks.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

struct Node {
    /// A path from `CString::into_raw`, owned by whoever takes it out; null when the node is free.
    path: AtomicPtr<libc::c_char>,
    next: *const Node,
}

static HEAD: AtomicPtr<Node> = AtomicPtr::new(null_mut());

fn nodes() -> impl Iterator<Item = &'static Node> {
    let mut at = HEAD.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: nodes are never freed, and are complete before they are linked.
        let node: &'static Node = unsafe { at.as_ref()? };
        at = node.next;
        Some(node)
    })
}

/// Keeps a path in the list until it is dropped.
pub(super) struct Entry {
    node: &'static Node,
    path: *mut libc::c_char,
}

// SAFETY: the pointer is only compared, and turned back into a CString by the one who took it out.
unsafe impl Send for Entry {}
// SAFETY: as above; nothing is reached through a shared reference.
unsafe impl Sync for Entry {}

impl Entry {
    /// Enters a path. One with a NUL byte names no file and is entered up to that byte's place.
    pub(super) fn new(path: &Path) -> Self {
        let bytes: Vec<u8> = path
            .as_os_str()
            .as_bytes()
            .iter()
            .copied()
            .take_while(|b| *b != 0)
            .collect();
        let path = CString::new(bytes).unwrap_or_default().into_raw();
        for node in nodes() {
            let taken =
                node.path
                    .compare_exchange(null_mut(), path, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() {
                return Self { node, path };
            }
        }
        let node = Box::into_raw(Box::new(Node {
            path: AtomicPtr::new(path),
            next: HEAD.load(Ordering::Acquire),
        }));
        loop {
            // SAFETY: the node is not linked yet, so this thread alone knows it.
            let next = unsafe { (*node).next }.cast_mut();
            match HEAD.compare_exchange(next, node, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                // SAFETY: as above.
                Err(now) => unsafe { (*node).next = now },
            }
        }
        // SAFETY: nodes are never freed.
        let node = unsafe { &*node };
        Self { node, path }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let ours = self.node.path.compare_exchange(
            self.path,
            null_mut(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if ours.is_ok() {
            // SAFETY: it came from into_raw and was taken out by us, not by `remove_all`.
            drop(unsafe { CString::from_raw(self.path) });
        }
    }
}

/// Removes every file in the list. Async-signal-safe: atomics and `unlink`, no lock and no allocation.
pub(crate) fn remove_all() {
    for node in nodes() {
        let path = node.path.swap(null_mut(), Ordering::AcqRel);
        if !path.is_null() {
            // SAFETY: a NUL-terminated string that nobody else owns now. It is not freed: that would not be
            // safe in a signal handler, and the process ends.
            unsafe { libc::unlink(path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_and_go_on_many_threads() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|s| {
            for t in 0..4 {
                let dir = dir.path();
                s.spawn(move || {
                    for i in 0..200 {
                        let path = dir.join(format!("{t}-{i}"));
                        let entry = Entry::new(&path);
                        let other = Entry::new(&path);
                        let wanted = entry.path;
                        assert!(nodes().any(|n| n.path.load(Ordering::Acquire) == wanted));
                        drop(entry);
                        drop(other);
                    }
                });
            }
        });
        // Nodes are used again: far fewer than the 1,600 entries. Other tests of this process add some.
        assert!(nodes().count() < 200, "{}", nodes().count());
    }
}
