//! How `moqa run` lets a program that cannot override metadata load a mixed file, and only with the plugin.
//!
//! The program is given, in place of the file that carries the guard, a file in memory with the same header
//! without the guard. It begins with [`CLOSED`] instead of the magic of GGUF, so every program refuses it. The
//! plugin, which llama.cpp loads before any model, calls [`open_stand_ins`] when the host first asks it for its
//! device: by then the host has accepted the plugin and the version of its interface. A program that did not take
//! the plugin therefore never sees the model.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Environment variable with the stand-ins of a process: paths, separated by colons.
pub const ENVIRONMENT: &str = "MOQA_STAND_IN";
/// The first bytes of a stand-in that no program opens.
pub const CLOSED: [u8; 4] = *b"MOQA";
/// The first bytes of one that is open: those of a GGUF file.
pub const OPEN: [u8; 4] = *b"GGUF";

/// Opens the stand-ins that the environment names, for the plugin to call when it is loaded. Returns how many
/// there are; none if the process was not started by `moqa run`.
///
/// # Errors
/// One of them cannot be written or is no stand-in; it stays closed.
pub fn open_stand_ins() -> io::Result<usize> {
    let Some(list) = std::env::var_os(ENVIRONMENT) else {
        return Ok(0);
    };
    let mut n = 0;
    for path in std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()) {
        open(&path)?;
        n += 1;
    }
    Ok(n)
}

/// Opens one stand-in; nothing is done if it is open.
///
/// # Errors
/// As [`open_stand_ins`].
pub fn open(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    if magic == OPEN {
        return Ok(());
    }
    if magic != CLOSED {
        let problem = "neither MOQA nor GGUF at its start";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&OPEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stand_in_is_opened() {
        let path = std::env::temp_dir().join(format!("moqa-stand-in-{}", std::process::id()));
        std::fs::write(&path, b"MOQArest").unwrap();
        open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"GGUFrest");
        open(&path).unwrap();
        std::fs::write(&path, b"ELF rest").unwrap();
        assert!(open(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"ELF rest");
        std::fs::remove_file(&path).unwrap();
        assert!(open(&path).is_err());
    }
}
