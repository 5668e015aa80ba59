//! Memory for weights.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Zeroed memory that begins at a page, in huge pages where the system has them: what is read in one go then waits less
/// for addresses. It is given back when this is dropped.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: plain memory, owned by this.
unsafe impl Send for Memory {}
// SAFETY: as above; it is changed through a mutable reference only.
unsafe impl Sync for Memory {}

impl Memory {
    /// At least one byte; `None` if the system refuses.
    pub fn new(size: usize) -> Option<Self> {
        let size = size.max(1);
        // SAFETY: a new private mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: advice on the mapping just made; where it is not taken nothing changes.
        unsafe { libc::madvise(base, size, libc::MADV_HUGEPAGE) };
        let base = NonNull::new(base.cast())?;
        Some(Self { base, size })
    }

    /// Where it begins.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has this size.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.size) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.size) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it with this size.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_and_can_be_written() {
        let mut memory = Memory::new(3 << 20).unwrap();
        assert!(memory.len() == 3 << 20 && memory.iter().all(|b| *b == 0));
        memory.fill(7);
        assert_eq!(memory[(3 << 20) - 1], 7);
        assert_eq!(Memory::new(0).unwrap().len(), 1);
        assert!(Memory::new(isize::MAX as usize).is_none());
    }
}
