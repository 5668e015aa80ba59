//! Output files appear under their final name complete or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use tempfile::{Builder, NamedTempFile, TempPath};

/// Temporary files that exist now, removed when the program is interrupted.
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(|e| e.into_inner())
}

/// On SIGINT, SIGTERM and SIGHUP removes the temporary files and ends the program at once with status 130,
/// whatever llama.cpp is computing.
///
/// # Errors
/// The operating system refuses the handler.
pub fn remove_temporaries_on_interrupt() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .context("cannot catch interrupts")?;
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                for path in live().iter() {
                    let _ = fs::remove_file(path);
                }
                let _ = writeln!(
                    io::stderr(),
                    "\nmoqa: interrupted; no unfinished file is left"
                );
                // SAFETY: ends the process without running destructors of threads that still compute.
                unsafe { libc::_exit(130) };
            }
        })
        .context("cannot start the thread that waits for interrupts")?;
    Ok(())
}

/// A file being written beside its target, renamed to it by [`AtomicFile::commit`] and removed otherwise.
pub struct AtomicFile {
    file: BufWriter<File>,
    temp: Option<TempPath>,
    target: PathBuf,
}

impl AtomicFile {
    /// Starts writing. The target's folder must exist; an existing target stays as it is until the commit.
    ///
    /// # Errors
    /// The target is a folder or another special file, is write-protected, or its folder cannot be written.
    pub fn create(target: &Path) -> Result<Self> {
        if let Ok(meta) = fs::metadata(target) {
            ensure!(
                !meta.is_dir(),
                "{}: is a folder; name a file to write",
                target.display()
            );
            ensure!(
                meta.is_file(),
                "{}: is not a regular file and will not be replaced",
                target.display()
            );
            ensure!(
                !meta.permissions().readonly(),
                "{}: exists and is write-protected; choose another name or allow writing",
                target.display()
            );
        }
        let Some(name) = target.file_name() else {
            bail!("{}: names no file to write", target.display());
        };
        let folder = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let temp: NamedTempFile = Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .suffix(".tmp")
            .tempfile_in(folder)
            .with_context(|| {
                format!(
                    "{}: cannot write in the folder {}",
                    target.display(),
                    folder.display()
                )
            })?;
        live().insert(temp.path().to_owned());
        let (file, temp) = temp.into_parts();
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            temp: Some(temp),
            target: target.to_owned(),
        })
    }

    /// Checks that the file system has room for `bytes` more.
    ///
    /// # Errors
    /// It has not; says how much is missing.
    pub fn require_space(&self, bytes: u64) -> Result<()> {
        let Some(temp) = &self.temp else {
            return Ok(());
        };
        // Where the file system does not say, the write itself will.
        let Ok(free) = fs4::available_space(temp.parent().unwrap_or(Path::new("."))) else {
            return Ok(());
        };
        ensure!(
            free >= bytes,
            "{}: the disk has {} free and the file needs {}; free {} or write elsewhere",
            self.target.display(),
            crate::units::bytes(free),
            crate::units::bytes(bytes),
            crate::units::bytes(bytes - free)
        );
        Ok(())
    }

    /// Flushes, syncs, and gives the file its final name.
    ///
    /// # Errors
    /// The data cannot be written or the file cannot be renamed; nothing is left.
    pub fn commit(mut self) -> Result<()> {
        let describe = |target: &Path| format!("{}: cannot write", target.display());
        self.file.flush().with_context(|| describe(&self.target))?;
        let file = self.file.get_ref();
        file.set_permissions(Permissions::from_mode(0o666 & !umask()))
            .with_context(|| describe(&self.target))?;
        file.sync_all().with_context(|| describe(&self.target))?;
        if let Some(temp) = self.temp.take() {
            let path = temp.to_path_buf();
            let renamed = temp.persist(&self.target);
            live().remove(&path);
            renamed
                .map_err(|e| e.error)
                .with_context(|| describe(&self.target))?;
        }
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take() {
            let path = temp.to_path_buf();
            drop(temp);
            live().remove(&path);
        }
    }
}

/// Writes `bytes` to `target` by way of an [`AtomicFile`].
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_file(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(target)?;
    file.require_space(bytes.len() as u64)?;
    file.write_all(bytes)
        .with_context(|| format!("{}: cannot write", target.display()))?;
    file.commit()
}

/// Fails when `target` is one of the files in `sources`: a source is never written to.
///
/// # Errors
/// Names the file.
pub fn refuse_overwriting<'a>(
    target: &Path,
    sources: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    let Ok(real) = target.canonicalize() else {
        return Ok(());
    };
    for source in sources {
        if source.canonicalize().is_ok_and(|s| s == real) {
            bail!(
                "{}: is the source itself; choose another name for the output",
                target.display()
            );
        }
    }
    Ok(())
}

fn umask() -> u32 {
    // Read once: reading means setting, which other threads would see.
    static UMASK: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *UMASK.get_or_init(|| {
        // SAFETY: both calls always succeed.
        unsafe {
            let mask = libc::umask(0o022);
            libc::umask(mask);
            mask
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut v: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        v.sort();
        v
    }

    #[test]
    fn nothing_appears_before_the_commit() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!target.exists());
        drop(file);
        assert!(names(dir.path()).is_empty());
        write_file(&target, b"whole").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert_eq!(names(dir.path()), ["a.gguf"]);
    }

    #[test]
    fn targets_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(dir.path()).is_err());
        assert!(AtomicFile::create(&dir.path().join("missing/a")).is_err());
        assert!(AtomicFile::create(Path::new("/dev/null")).is_err());
        let target = dir.path().join("locked");
        write_file(&target, b"x").unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o444)).unwrap();
        let e = AtomicFile::create(&target).err().unwrap().to_string();
        assert!(e.contains("write-protected"), "{e}");
        let free = AtomicFile::create(&dir.path().join("big")).unwrap();
        assert!(
            free.require_space(u64::MAX / 2)
                .unwrap_err()
                .to_string()
                .contains("free")
        );
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(refuse_overwriting(&link, [target.as_path()]).is_err());
    }
}
