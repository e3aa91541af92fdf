//! Limits of control groups on memory and tasks, read from this process's group and from all of its
//! ancestors, in cgroup versions 1 and 2.

use std::fs;
use std::path::{Path, PathBuf};

use crate::units::ByteCount;

/// Values from here on mean "no limit": version 1 reports an unlimited value as a number near 2^63.
const NO_LIMIT: u64 = 1 << 60;

/// A cgroup controller, and the names of the files that hold its limits in version 1 and version 2.
#[derive(Clone, Copy)]
struct Controller {
    name: &'static str,
    v1_files: &'static [&'static str],
    v2_files: &'static [&'static str],
}

const MEMORY: Controller = Controller {
    name: "memory",
    v1_files: &["memory.limit_in_bytes"],
    v2_files: &["memory.max", "memory.high"],
};
const PIDS: Controller = Controller { name: "pids", v1_files: &["pids.max"], v2_files: &["pids.max"] };

/// Returns the lowest of the limits on this process's memory, or `None` if there is none.
pub(super) fn memory_of_process() -> Option<ByteCount> {
    of_process(MEMORY).map(ByteCount)
}

/// Returns the lowest of the limits on the tasks (processes and threads) of this process's groups, or `None`
/// if there is none.
#[must_use]
pub fn tasks_of_process() -> Option<u64> {
    of_process(PIDS)
}

fn of_process(controller: Controller) -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    lowest_limit(
        controller,
        &read(Path::new("/proc/self/cgroup"))?,
        &read(Path::new("/proc/self/mountinfo"))?,
        &read,
    )
}

/// Returns the lowest limit, given the contents of `/proc/self/cgroup` and `/proc/self/mountinfo`. `read`
/// returns the content of a file, or `None` if the file can't be read.
fn lowest_limit(
    controller: Controller,
    groups: &str,
    mounts: &str,
    read: &dyn Fn(&Path) -> Option<String>,
) -> Option<u64> {
    let mounts = mounts.lines().filter_map(|line| Mount::parse(controller, line));
    let limits = mounts.flat_map(|mount| {
        let folders = mount.folders(groups);
        folders.into_iter().flat_map(move |folder| {
            mount.files().iter().filter_map(move |file| limit(&read(&folder.join(file))?))
        })
    });
    limits.min()
}

fn limit(text: &str) -> Option<u64> {
    // Version 2 writes "max" for no limit; that doesn't parse as a number.
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// Each controller has a hierarchy of its own.
    V1,
    V2,
}

/// A mounted hierarchy of control groups. The mount may show only a part of it.
struct Mount<'a> {
    controller: Controller,
    version: Version,
    /// Group at the top of the mount, as a path in the hierarchy.
    root: &'a Path,
    mount_point: PathBuf,
}

impl<'a> Mount<'a> {
    /// Parses a line of mountinfo (proc(5)): `36 35 98:0 ROOT AT options ... - TYPE source super-options`.
    /// Returns `None` if the mount doesn't belong to the controller.
    fn parse(controller: Controller, line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount_point) = (mount.next()?, mount.next()?);
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        let version = match kind {
            "cgroup2" => Version::V2,
            "cgroup" if options.split(',').any(|option| option == controller.name) => Version::V1,
            _ => return None,
        };
        Some(Self { controller, version, root: Path::new(root), mount_point: unescaped(mount_point) })
    }

    /// Returns the folders of this process's group and of its ancestors, the group's own first.
    fn folders(&self, groups: &str) -> Vec<PathBuf> {
        let group = groups.lines().find_map(|line| {
            // A line is `4:memory:/path` in version 1, and `0::/path` in version 2.
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let is_group_line = match self.version {
                Version::V1 => controllers.split(',').any(|controller| controller == self.controller.name),
                Version::V2 => controllers.is_empty(),
            };
            is_group_line.then_some(Path::new(path))
        });
        // In a container, the group's path may be the host's, while the mount shows the group at its top.
        let below = group.and_then(|group| group.strip_prefix(self.root).ok()).unwrap_or(Path::new(""));
        below.ancestors().map(|folder| self.mount_point.join(folder)).collect()
    }

    fn files(&self) -> &'static [&'static str] {
        match self.version {
            Version::V1 => self.controller.v1_files,
            Version::V2 => self.controller.v2_files,
        }
    }
}

/// Undoes mountinfo's escapes: a space, a tab, a newline and a backslash are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    PathBuf::from(
        text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn found(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        found_of(MEMORY, groups, mounts, files)
    }

    fn found_of(controller: Controller, groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<&Path, &str> =
            files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        lowest_limit(controller, groups, mounts, &|path| files.get(path).map(|text| (*text).to_owned()))
    }

    const V2_MOUNTS: &str = "24 1 0:22 / / rw - ext4 /dev/vda1 rw\n30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_least_limit_of_a_group_and_those_around_it_counts() {
        let groups = "0::/system.slice/job.service\n";
        let own = ("/sys/fs/cgroup/system.slice/job.service/memory.max", "max\n");
        let around = ("/sys/fs/cgroup/system.slice/memory.max", "536870912\n");
        let high = ("/sys/fs/cgroup/system.slice/job.service/memory.high", "268435456\n");
        assert_eq!(found(groups, V2_MOUNTS, &[own]), None);
        assert_eq!(found(groups, V2_MOUNTS, &[own, around]), Some(536_870_912));
        assert_eq!(found(groups, V2_MOUNTS, &[own, around, high]), Some(268_435_456));
        // A container with a cgroup namespace of its own.
        assert_eq!(
            found("0::/\n", V2_MOUNTS, &[("/sys/fs/cgroup/memory.max", "1000000\n")]),
            Some(1_000_000)
        );
    }

    #[test]
    fn version_1_has_a_tree_of_its_own_which_a_container_sees_from_its_group_on() {
        let mounts = "33 32 0:29 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n34 32 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let groups = "5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n";
        let limit = |text| [("/sys/fs/cgroup/memory/memory.limit_in_bytes", text)];
        assert_eq!(found(groups, mounts, &limit("134217728\n")), Some(134_217_728));
        assert_eq!(found(groups, mounts, &limit("9223372036854771712\n")), None);
        assert_eq!(found("", "", &[]), None);
    }

    #[test]
    fn tasks_are_looked_up_where_the_controller_of_tasks_is() {
        let mounts = "33 32 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n34 32 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let groups = "5:pids:/job\n4:memory:/other\n0::/\n";
        let files = [("/sys/fs/cgroup/pids/job/pids.max", "64\n"), ("/sys/fs/cgroup/pids/pids.max", "max\n")];
        assert_eq!(found_of(PIDS, groups, mounts, &files), Some(64));
        assert_eq!(
            found_of(PIDS, "0::/job\n", V2_MOUNTS, &[("/sys/fs/cgroup/job/pids.max", "99\n")]),
            Some(99)
        );
        assert_eq!(found_of(PIDS, "nonsense\n", mounts, &files[1..]), None);
    }
}
