//! Models that exist in no file, for libllama, which only loads files: a file in memory (Linux's memfd) under
//! a path of this process.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memmap2::MmapMut;
use rayon::prelude::*;

use crate::gguf::{DEFAULT_VERSION, Gguf, GgufLayout};
use crate::units;

/// Bytes of a tensor that one worker makes at a time.
const BLOCK_BYTES: u64 = 8 << 20;

/// A GGUF file in memory.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
    /// Keeps the path valid.
    _file: File,
}

impl MemoryFile {
    /// Where libllama finds it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file with the model's header and no data: reading its tensors gives zeros, and takes no memory until
    /// it is done. For what only looks at names, shapes and types.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn header_only(gguf: &Gguf) -> Result<MemoryFile> {
        Self::create(gguf, &layout(gguf)?)
    }

    /// The whole model. It takes as much memory as a file of it would have bytes.
    ///
    /// # Errors
    /// Memory does not suffice, or a tensor cannot be made.
    pub fn whole(gguf: &Gguf) -> Result<MemoryFile> {
        let layout = layout(gguf)?;
        let needed = layout.file_size();
        if let Some(free) = available_memory() {
            ensure!(
                needed <= free,
                "{}: running the model takes {} of memory, and {} are available; convert it to a file first (moqa convert), which can be larger than the memory, or give statistics with --imatrix and --sensitivity 0, for which the model is not run",
                gguf.paths()[0].display(),
                units::bytes(needed),
                units::bytes(free)
            );
        }
        let memory = Self::create(gguf, &layout)?;
        if needed == layout.header().len() as u64 {
            return Ok(memory);
        }
        // SAFETY: the file is ours alone, and nothing resizes it.
        let mut map =
            unsafe { MmapMut::map_mut(&memory._file) }.context("cannot map the file in memory")?;
        let mut rest = &mut map[layout.data_offset() as usize..];
        let mut blocks = Vec::new();
        for (placed, tensor) in layout.tensors().iter().zip(&gguf.tensors) {
            let (data, tail) = rest.split_at_mut(placed.n_bytes as usize);
            rest = &mut tail[placed.padding as usize..];
            let row = tensor.ty.row_bytes(tensor.ne(0)).unwrap_or(0).max(1);
            let per_block = (BLOCK_BYTES / row).max(1);
            let parts = data.chunks_mut((per_block * row) as usize).enumerate();
            blocks.extend(parts.map(|(i, part)| (tensor, i as u64 * per_block, row, part)));
        }
        blocks
            .into_par_iter()
            .try_for_each(|(tensor, first, row, part)| -> Result<()> {
                let n = part.len() as u64 / row;
                part.copy_from_slice(&gguf.rows(tensor, first..first + n)?);
                Ok(())
            })?;
        Ok(memory)
    }

    #[cfg(target_os = "linux")]
    fn create(gguf: &Gguf, layout: &GgufLayout) -> Result<MemoryFile> {
        use std::os::fd::{AsRawFd, FromRawFd};

        // SAFETY: the name is NUL-terminated.
        let fd = unsafe { libc::memfd_create(c"moqa-model".as_ptr(), libc::MFD_CLOEXEC) };
        let describe = || {
            format!(
                "{}: cannot make a file in memory",
                gguf.paths()[0].display()
            )
        };
        ensure!(
            fd >= 0,
            "{}: {}",
            describe(),
            std::io::Error::last_os_error()
        );
        // SAFETY: the descriptor was just made and belongs to no one else.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(layout.header()).with_context(describe)?;
        file.set_len(layout.file_size()).with_context(describe)?;
        Ok(MemoryFile {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            _file: file,
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn create(gguf: &Gguf, _: &GgufLayout) -> Result<MemoryFile> {
        anyhow::bail!(
            "{}: on this system the model must be converted to a file first (moqa convert)",
            gguf.paths()[0].display()
        )
    }
}

fn layout(gguf: &Gguf) -> Result<GgufLayout> {
    let specs = gguf.tensors.iter().map(|t| t.spec()).collect();
    Ok(GgufLayout::new(&gguf.metadata, specs, DEFAULT_VERSION)?)
}

/// Bytes that can be used without swapping, as far as the system says.
fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let info = read("/proc/meminfo")?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let system = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10;
    // The limit of a container, if there is one.
    let group = |name: &str| -> Option<u64> {
        read(&format!("/sys/fs/cgroup/{name}"))?.trim().parse().ok()
    };
    let group =
        group("memory.max").map(|max| max.saturating_sub(group("memory.current").unwrap_or(0)));
    Some(group.map_or(system, |g| g.min(system)))
}
