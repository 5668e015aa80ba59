//! Stand-ins: how a program is given a mixed file without its guard (see `moqa_mixed::stand_in`).
//!
//! A stand-in is the first file of a split: a header without tensors, in memory. The mixed file follows it as the
//! second (or, if it is split itself, its other files do), by symbolic links in a folder whose names are those of a
//! split. The first link leads to `/proc/self/fd/N`, which only the started program and its children have: nothing
//! that could be loaded without the plugin is ever on disk, or is left there.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{KEY_ARCHITECTURE, base_architecture, is_guarded};
use crate::gguf::{
    DEFAULT_VERSION, Gguf, GgufLayout, KEY_SPLIT_COUNT, KEY_SPLIT_NO, KEY_SPLIT_TENSORS_COUNT,
    shard_path, shard_prefix,
};

/// Descriptors from here on hold stand-ins, so that they, and the links to them, are the same in every run.
const FIRST_DESCRIPTOR: i32 = 200;

/// A file in memory that stands in for a mixed file's header. It has to live until the program is started.
#[derive(Debug)]
pub struct StandIn {
    /// What the program has to be given as the model.
    pub model: PathBuf,
    /// What the plugin has to open.
    pub header: PathBuf,
    _file: File,
}

/// The architecture to be stated for a mixed file; `None` for a stock model.
pub fn open_architecture(gguf: &Gguf) -> Option<&str> {
    is_guarded(&gguf.metadata)
        .then(|| gguf.metadata.get_str(KEY_ARCHITECTURE))
        .flatten()
        .map(base_architecture)
}

impl StandIn {
    /// Makes the stand-in of a mixed file, closed, and the links, in a folder below `links`.
    ///
    /// # Errors
    /// The file is no mixed file as moqa writes it, the links cannot be made, or the system has no files in memory.
    pub fn new(gguf: &Gguf, links: &Path) -> Result<Self> {
        let path = fs::canonicalize(gguf.paths()[0])?;
        let arch = open_architecture(gguf).context("not a mixed file")?;
        let n_files = gguf.parts.len();
        let (prefix, count) = if n_files > 1 {
            ensure!(
                gguf.part_tensors(0).next().is_none(),
                "{}: the first file of this split holds tensors, so its header cannot be replaced; split it with moqa quantize, or join its files",
                path.display()
            );
            let prefix = shard_prefix(&path, 0, n_files);
            (
                prefix.context("the files are not named as a split")?,
                n_files,
            )
        } else {
            ensure!(
                gguf.metadata.get_u64(KEY_SPLIT_NO) == Some(1),
                "{}: key {KEY_SPLIT_NO} is missing, so its header cannot be replaced; write it again with moqa quantize",
                path.display()
            );
            (path.with_extension(""), 2)
        };
        let mut metadata = gguf.metadata.clone();
        metadata.set(KEY_ARCHITECTURE, arch);
        metadata.set(KEY_SPLIT_NO, 0u16);
        metadata.set(KEY_SPLIT_TENSORS_COUNT, i32::try_from(gguf.tensors.len())?);
        metadata.set(KEY_SPLIT_COUNT, u16::try_from(count)?);
        let layout = GgufLayout::new(&metadata, Vec::new(), DEFAULT_VERSION)?;
        let (file, header) = memory_file(&layout)?;

        let folder = links.join(format!(
            "{}-{}",
            &blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex()[..16],
            file.as_raw_fd()
        ));
        fs::create_dir_all(&folder).with_context(|| {
            format!(
                "{}: cannot make this folder of links; name a place for it with XDG_CACHE_HOME",
                folder.display()
            )
        })?;
        let name = prefix.file_name().context("the file has no name")?;
        let link = |no: usize| shard_path(&folder.join(name), no, count);
        make_link(&header, &link(0))?;
        if n_files > 1 {
            for no in 1..count {
                make_link(&fs::canonicalize(gguf.paths()[no])?, &link(no))?;
            }
        } else {
            make_link(&path, &link(1))?;
        }
        Ok(Self {
            model: link(0),
            header,
            _file: file,
        })
    }
}

#[cfg(target_os = "linux")]
fn memory_file(layout: &GgufLayout) -> Result<(File, PathBuf)> {
    // SAFETY: the name is NUL-terminated. Without MFD_CLOEXEC, because the program inherits the descriptor.
    let made = unsafe { libc::memfd_create(c"moqa-header".as_ptr(), 0) };
    if made < 0 {
        bail!(
            "cannot make a file in memory: {}",
            std::io::Error::last_os_error()
        );
    }
    // SAFETY: the descriptor was just made and belongs to no one else.
    let made = unsafe { File::from_raw_fd(made) };
    // SAFETY: duplicates a descriptor that is open.
    let fd = unsafe { libc::fcntl(made.as_raw_fd(), libc::F_DUPFD, FIRST_DESCRIPTOR) };
    if fd < 0 {
        bail!(
            "cannot keep a file in memory: {}",
            std::io::Error::last_os_error()
        );
    }
    // SAFETY: as above.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let closed = moqa_mixed::stand_in::CLOSED;
    file.write_all(&closed)?;
    file.write_all(&layout.header()[closed.len()..])?;
    file.set_len(layout.file_size())?;
    let path = format!("/proc/self/fd/{fd}").into();
    Ok((file, path))
}

#[cfg(not(target_os = "linux"))]
fn memory_file(_: &GgufLayout) -> Result<(File, PathBuf)> {
    bail!("this system has no files in memory; use moqa run --override")
}

/// A link, also where another one is; two runs may make it at the same time.
fn make_link(to: &Path, at: &Path) -> Result<()> {
    if fs::read_link(at).is_ok_and(|old| old == to) {
        return Ok(());
    }
    let mut name = at.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    std::os::unix::fs::symlink(to, &temporary)
        .and_then(|()| fs::rename(&temporary, at))
        .with_context(|| format!("{}: cannot make this link", at.display()))
}
