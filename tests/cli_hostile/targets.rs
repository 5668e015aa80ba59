//! Outputs that cannot be written, at once or after a while.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::watch::{TINY, limit, names, program};
use super::{commands, place, refused};

#[test]
fn targets_that_cannot_be_written() {
    let dir = place();
    let path = dir.path();
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    fs::write(path.join("locked"), b"old").unwrap();
    fs::set_permissions(path.join("locked"), fs::Permissions::from_mode(0o444)).unwrap();
    fs::create_dir(path.join("folder")).unwrap();
    std::os::unix::fs::symlink("m.gguf", path.join("link")).unwrap();
    let before = fs::metadata(path.join("m.gguf")).unwrap();
    for target in [
        "locked",
        "folder",
        "no/such/folder",
        "m.gguf",
        "link",
        "./m.gguf",
        "/dev/full",
        "/dev/null",
        "..",
        "",
    ] {
        for (which, option) in [
            (2, "-o"),
            (3, "-o"),
            (4, "-o"),
            (3, "--save-analysis"),
            (3, "--save-plan"),
            (2, "--export-imatrix"),
            (4, "--tensor-type-file"),
            (1, "--save-logits"),
        ] {
            let commands = commands("m.gguf");
            let mut args = commands[which].0.clone();
            if let (Some(at), "-o") = (args.iter().position(|a| *a == "-o"), option) {
                args[at + 1] = target;
            } else {
                args.extend([option, target]);
            }
            let case = format!("{} {option} {target:?}", args[0]);
            refused(&case, path, &args, Some("out"), "");
        }
    }
    assert_eq!(fs::read(path.join("locked")).unwrap(), b"old");
    let after = fs::metadata(path.join("m.gguf")).unwrap();
    assert_eq!(
        (before.ino(), before.mtime_nsec(), before.len()),
        (after.ino(), after.mtime_nsec(), after.len())
    );
}

#[test]
fn a_limit_of_file_sizes() {
    let dir = place();
    fs::copy(TINY, dir.path().join("m.gguf")).unwrap();
    for (which, bytes) in [(2, 4 << 10), (3, 64 << 10), (3, 0)] {
        let (args, _) = &commands("m.gguf")[which];
        let before = names(dir.path());
        let mut command = program();
        command.current_dir(dir.path()).args(args);
        limit(&mut command, libc::RLIMIT_FSIZE as i32, bytes);
        // Under the limit, even the messages go to a pipe.
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{}: {text}", output.status);
        assert!(
            text.contains("out: cannot write") && text.contains("too large"),
            "{text}"
        );
        assert_eq!(names(dir.path()), before);
    }
}

/// A file system of its own, when the test may mount one.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let point = CString::new(at.as_os_str().as_bytes()).unwrap();
        let options = CString::new(options).unwrap();
        #[cfg(target_os = "linux")]
        // SAFETY: every string is NUL-terminated.
        let status = unsafe {
            libc::mount(
                c"tmpfs".as_ptr(),
                point.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        #[cfg(not(target_os = "linux"))]
        let status = -1;
        if status != 0 {
            println!("skipped: mounting is not allowed");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        {
            let point = CString::new(self.0.as_os_str().as_bytes()).unwrap();
            // SAFETY: the string is NUL-terminated.
            unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

#[test]
fn a_full_disk() {
    let dir = place();
    let path = dir.path();
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    let Some(_mount) = Mount::new(&path.join("small"), "size=64k") else {
        return;
    };
    for (which, option) in [(2, "-o"), (3, "-o"), (3, "--save-analysis")] {
        let commands = commands("m.gguf");
        let mut args = commands[which].0.clone();
        if let (Some(at), "-o") = (args.iter().position(|a| *a == "-o"), option) {
            args[at + 1] = "small/out";
        } else {
            args.extend([option, "small/out"]);
        }
        fs::write(path.join("small/filler"), vec![1; 60 << 10]).unwrap();
        refused(
            &format!("{} {option}", args[0]),
            path,
            &args,
            Some("out"),
            "small/out",
        );
        assert_eq!(names(&path.join("small")), ["filler".to_owned()].into());
    }
}

#[test]
fn a_read_only_file_system() {
    let dir = place();
    let path = dir.path();
    fs::copy(TINY, path.join("m.gguf")).unwrap();
    let Some(_mount) = Mount::new(&path.join("fixed"), "size=64k,ro") else {
        return;
    };
    for which in [2, 3, 4] {
        let commands = commands("m.gguf");
        let mut args = commands[which].0.clone();
        let at = args.iter().position(|a| *a == "-o").unwrap();
        args[at + 1] = "fixed/out";
        refused(args[0], path, &args, None, "fixed");
    }
}
