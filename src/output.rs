//! Output files appear under their final name complete or not at all.

mod live;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fs4::fs_std::FileExt;
use tempfile::{Builder, NamedTempFile, TempPath};

pub(crate) use live::remove_all as remove_temporaries;

/// Bytes of the target's name that a temporary name repeats, so that it stays below the 255 of a file system.
const NAME_BYTES: usize = 180;

/// A file being written beside its target, renamed to it by [`AtomicFile::commit`] and removed otherwise.
pub struct AtomicFile {
    file: BufWriter<File>,
    temp: Option<TempPath>,
    /// Dropped after `temp`: an interrupt in between finds nothing to remove.
    entry: Option<live::Entry>,
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
        remove_stale(folder, name);
        let mut entry = None;
        let temp: NamedTempFile = Builder::new()
            .prefix(&format!(
                "{}{}.",
                temporary_prefix(name),
                std::process::id()
            ))
            .suffix(SUFFIX)
            .make_in(folder, |path| {
                // Entered before it exists, so that no interrupt can miss it.
                entry = Some(live::Entry::new(path));
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
            })
            .with_context(|| {
                format!(
                    "{}: cannot write in the folder {}",
                    target.display(),
                    folder.display()
                )
            })?;
        // Held until the process ends: another run sees that the file is in use. Some file systems have no
        // locks; there the process number in the name has to do.
        let _ = FileExt::try_lock_exclusive(temp.as_file());
        let (file, temp) = temp.into_parts();
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            temp: Some(temp),
            entry,
            target: target.to_owned(),
        })
    }

    /// Where it is being written, for a writer that opens it by its name.
    ///
    /// # Errors
    /// It has its final name already.
    pub fn path(&self) -> Result<&Path> {
        self.temp
            .as_deref()
            .with_context(|| format!("{}: written already", self.target.display()))
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
            let renamed = temp.persist(&self.target);
            self.entry = None;
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

/// Ending of temporary names.
const SUFFIX: &str = ".tmp";

/// Temporary files of a target are named `.NAME.PROCESS.RANDOM.tmp`.
fn temporary_prefix(name: &OsStr) -> String {
    let name = name.to_string_lossy();
    let end = (0..=NAME_BYTES.min(name.len()))
        .rev()
        .find(|&i| name.is_char_boundary(i))
        .unwrap_or(0);
    format!(".{}.", &name[..end])
}

/// Removes what killed runs left while they wrote this target: files named as its temporaries whose process
/// is gone and that nobody has locked.
fn remove_stale(folder: &Path, name: &OsStr) {
    let prefix = temporary_prefix(name);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(process) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.strip_prefix(&prefix)?.strip_suffix(SUFFIX))
            .and_then(|rest| rest.split_once('.')?.0.parse::<libc::pid_t>().ok())
        else {
            continue;
        };
        if process <= 0 || process_exists(process) || !entry.file_type().is_ok_and(|t| t.is_file())
        {
            continue;
        }
        // A process of that number may live where we cannot see it (a container, another machine): it holds
        // the lock.
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(entry.path());
        if file.is_ok_and(|f| matches!(FileExt::try_lock_exclusive(&f), Ok(true))) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn process_exists(process: libc::pid_t) -> bool {
    // SAFETY: signal 0 only asks.
    let status = unsafe { libc::kill(process, 0) };
    status == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Checks that a file can be written at `target`; nothing is left there. Worth asking before long work.
///
/// # Errors
/// As [`AtomicFile::create`].
pub fn check_writable(target: &Path) -> Result<()> {
    AtomicFile::create(target).map(drop)
}

/// A file that is removed when this is dropped, or when the program is interrupted.
pub struct Scratch {
    path: PathBuf,
    _entry: live::Entry,
}

impl Scratch {
    /// Names the file, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        let _entry = live::Entry::new(&path);
        Self { path, _entry }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
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
                "{}: is the source itself or another file that is read; choose another name for the output",
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
    fn leftovers_of_dead_processes_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        // Larger than any process number (2^22 on 64-bit Linux).
        let dead = 4_194_999;
        let locked = format!(".a.gguf.{dead}.locked.tmp");
        let others = [
            format!(".a.gguf.{}.mine.tmp", std::process::id()),
            format!(".b.gguf.{dead}.x.tmp"),
            ".a.gguf.notes.tmp".to_owned(),
            ".a.gguf.-1.x.tmp".to_owned(),
            locked.clone(),
        ];
        let stale = format!(".a.gguf.{dead}.x.tmp");
        for name in others.iter().chain([&stale]) {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        let lock = File::open(dir.path().join(&locked)).unwrap();
        assert!(FileExt::try_lock_exclusive(&lock).unwrap());
        check_writable(&target).unwrap();
        let mut expected = others.to_vec();
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        drop(lock);
        check_writable(&target).unwrap();
        assert!(!names(dir.path()).contains(&locked));
    }

    #[test]
    fn long_names_leave_room_for_the_temporary_ones() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("é".repeat(127));
        write_file(&target, b"x").unwrap();
        assert_eq!(fs::read(target).unwrap(), b"x");
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
