//! Whether experts whose types have tables are unpacked in memory: as `MOQA_REPACK` says, otherwise where there is room.

use std::sync::OnceLock;

use super::buffer;
use super::tensor::Tensor;
use crate::compute::Computer;
use crate::compute::experts::Experts;
use crate::compute::unpacked;
use crate::log::{debug, error};

/// What `MOQA_REPACK` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Never,
    Always,
    /// Where memory for it is free beside all mapped files, which would be read again and again otherwise.
    WhereThereIsRoom,
}

fn wanted() -> Wanted {
    static WANTED: OnceLock<Wanted> = OnceLock::new();
    *WANTED.get_or_init(|| match std::env::var("MOQA_REPACK").as_deref() {
        Ok("0") => Wanted::Never,
        Ok("1") => Wanted::Always,
        Ok("auto") | Err(_) => Wanted::WhereThereIsRoom,
        Ok(other) => {
            error!("MOQA_REPACK is {other}: neither 0, 1 nor auto");
            Wanted::WhereThereIsRoom
        }
    })
}

/// Has the experts in `weights`, a tensor with these bytes, unpacked the first time they are needed, if they are to be.
pub fn unpack(weights: Tensor<'_>, experts: &Experts, bytes: &[u8], computer: &mut Computer) {
    experts.unpack(|| {
        let name = weights.name();
        let needed = unpacked::needed(experts);
        if needed == 0 || wanted() == Wanted::Never {
            return None;
        }
        let mapped = buffer::mapped_bytes() as u64;
        if wanted() == Wanted::WhereThereIsRoom
            && available_memory().is_none_or(|free| free < mapped.saturating_add(needed as u64))
        {
            debug!("{name}: no room for {needed} bytes to unpack it");
            return None;
        }
        match computer.unpack(experts, bytes) {
            Ok(Some(unpacked)) => {
                debug!("{name}: unpacked into {} bytes", unpacked.bytes());
                Some(unpacked)
            }
            Ok(None) => {
                debug!("{name}: no memory for {needed} bytes to unpack it");
                None
            }
            Err(e) => {
                error!("{name}: it stays as it is: {e}");
                None
            }
        }
    });
}

/// Bytes that can be used without swapping, as far as the system says: of the machine and of the group of processes that
/// this one belongs to, whose limit counts files that it has read too.
fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = field(&read("/proc/meminfo")?, "MemAvailable:")? << 10;
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    // In a container its own group is the root.
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let group = |path: &str| {
        let file = |name: &str| read(&format!("/sys/fs/cgroup{path}/{name}"));
        let most = file("memory.max")?.trim().parse::<u64>().ok()?;
        let used = file("memory.current")?.trim().parse::<u64>().ok()?;
        let files = field(&file("memory.stat")?, "file ").unwrap_or(0);
        Some(most.saturating_sub(used.saturating_sub(files)))
    };
    let paths = own.into_iter().flat_map(ancestors);
    Some(paths.filter_map(group).fold(system, u64::min))
}

/// A path of groups and those that it lies in, of which the outermost is empty.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    let ends = path.match_indices('/').map(|(at, _)| at);
    ends.map(|at| &path[..at]).chain([path])
}

/// The number behind a name at a line's beginning.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_name() {
        let text = "MemTotal: 10 kB\nMemAvailable:   7 kB\nfile 5\nfile_mapped 6\n";
        assert_eq!(field(text, "MemAvailable:"), Some(7));
        assert_eq!(field(text, "file "), Some(5));
        assert_eq!(field(text, "Swap:"), None);
        assert_eq!(field("MemAvailable: many", "MemAvailable:"), None);
    }

    #[test]
    fn groups_lie_in_each_other() {
        let of = |path| ancestors(path).collect::<Vec<_>>();
        assert_eq!(of("/a/b"), ["", "/a", "/a/b"]);
        assert_eq!(of("/"), [""]);
        assert_eq!(of("/a/"), ["", "/a"]);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
