//! The memory counters of the pilot's own control group, which its containers share: how often the kernel
//! killed a process in it, and its memory limit. On a machine that mounts no control groups neither is known.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::container::{MountPoint, MountTable};

/// Above this number of bytes, version 1 has no limit.
const UNLIMITED: u64 = 1 << 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CgroupVersion {
    One,
    Two,
}

impl CgroupVersion {
    fn file_system(self) -> &'static str {
        match self {
            Self::One => "cgroup",
            Self::Two => "cgroup2",
        }
    }

    /// Version 1 has a hierarchy for each controller, or for several together.
    fn holds_memory(self, mount: MountPoint<'_>) -> bool {
        match self {
            Self::One => mount.options.split(',').any(|option| option == "memory"),
            Self::Two => true,
        }
    }

    /// The file with the count of killed processes.
    fn counters(self) -> &'static str {
        match self {
            Self::One => "memory.oom_control",
            Self::Two => "memory.events",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryCgroup {
    directory: PathBuf,
    /// The hierarchy's mount point: limits above it are out of sight.
    top: PathBuf,
    version: CgroupVersion,
}

impl MemoryCgroup {
    pub(super) fn own() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = MountTable::read().ok()?;
        Self::candidates(&groups, &mounts)
            .into_iter()
            .find(|group| group.kills().is_some())
    }

    /// The possible directories, likeliest first. See cgroups(7).
    fn candidates(groups: &str, mounts: &MountTable) -> Vec<Self> {
        let member_of = |version| {
            groups.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                let is_wanted = match version {
                    CgroupVersion::One => controllers.split(',').any(|name| name == "memory"),
                    CgroupVersion::Two => controllers.is_empty(),
                };
                is_wanted.then(|| Path::new(path))
            })
        };
        let mut found = Vec::new();
        for version in [CgroupVersion::One, CgroupVersion::Two] {
            let Some(path) = member_of(version) else {
                continue;
            };
            for mount in mounts.of_type(version.file_system()) {
                if !version.holds_memory(mount) {
                    continue;
                }
                // A container may see only its own part of the hierarchy, as its root.
                let below = path.strip_prefix(mount.root).unwrap_or(Path::new(""));
                let plain = path.strip_prefix("/").unwrap_or(path);
                for below in [below, plain, Path::new("")] {
                    found.push(Self {
                        directory: mount.point.join(below),
                        top: mount.point.to_owned(),
                        version,
                    });
                }
            }
        }
        found
    }

    /// How many processes the kernel has killed in the group for lack of memory.
    fn kills(&self) -> Option<u64> {
        let counters = fs::read_to_string(self.directory.join(self.version.counters())).ok()?;
        field(&counters, "oom_kill")
    }

    /// Bytes that all processes in the group may have together.
    pub(super) fn limit(&self) -> Option<u64> {
        match self.version {
            CgroupVersion::One => {
                let statistics = fs::read_to_string(self.directory.join("memory.stat")).ok()?;
                field(&statistics, "hierarchical_memory_limit").filter(|limit| *limit < UNLIMITED)
            }
            CgroupVersion::Two => self
                .directory
                .ancestors()
                .take_while(|directory| directory.starts_with(&self.top))
                .filter_map(|directory| {
                    let limit = fs::read_to_string(directory.join("memory.max")).ok()?;
                    limit.trim().parse().ok()
                })
                .min(),
        }
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let mut fields = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = fields.find(|(found, _)| *found == name)?;
    value.trim().parse().ok()
}

/// The kernel's kills in the pilot's control group, and how many of them a container's end explained.
#[derive(Debug, Clone)]
pub struct MemoryKills {
    group: Option<MemoryCgroup>,
    claimed: Arc<AtomicU64>,
}

/// The end of a container that the kernel may have killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryKillSign {
    Killed,
    /// It failed otherwise, and no other container ran: a process in it may have been killed.
    FailedAlone,
}

impl MemoryKills {
    #[must_use]
    pub fn watch() -> Self {
        let group = MemoryCgroup::own();
        let so_far = group.as_ref().and_then(MemoryCgroup::kills).unwrap_or(0);
        Self {
            group,
            claimed: Arc::new(AtomicU64::new(so_far)),
        }
    }

    /// The number of kills so far.
    pub(super) fn count(&self) -> u64 {
        self.group
            .as_ref()
            .and_then(MemoryCgroup::kills)
            .unwrap_or(0)
    }

    /// Whether a kill explains the end of a container that was started after `before` kills. One that failed
    /// otherwise is explained only by a kill that explains no other.
    pub(super) fn explain(&self, before: u64, sign: MemoryKillSign) -> bool {
        let now = self.count();
        let claimed = self.claimed.load(Ordering::Relaxed);
        let is_its = match sign {
            MemoryKillSign::Killed => now > before,
            MemoryKillSign::FailedAlone => now > before.max(claimed),
        };
        if is_its {
            self.claimed.fetch_max(now, Ordering::Relaxed);
        }
        is_its
    }

    /// Bytes that the pilot and all its containers may have together.
    pub(super) fn limit(&self) -> Option<u64> {
        self.group.as_ref().and_then(MemoryCgroup::limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(groups: &str, mounts: &str) -> Vec<(String, CgroupVersion)> {
        MemoryCgroup::candidates(groups, &MountTable::parse(mounts.as_bytes()))
            .into_iter()
            .map(|group| (group.directory.display().to_string(), group.version))
            .collect()
    }

    #[test]
    fn the_pilots_group_is_found_in_both_kinds_nested_and_seen_from_a_container() {
        const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                          36 31 0:9 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        for (groups, mounts, directory, version) in [
            (
                "9:name=systemd:/\n4:cpu,memory:/htcondor/slot1/job\n0::/",
                V1,
                "/sys/fs/cgroup/memory/htcondor/slot1/job",
                CgroupVersion::One,
            ),
            (
                "0::/system.slice/condor.service/slot1\n",
                V2,
                "/sys/fs/cgroup/system.slice/condor.service/slot1",
                CgroupVersion::Two,
            ),
            (
                "0::/machine/job/inner",
                "30 24 0:26 /machine/job /mnt/with\\040space rw - cgroup2 cgroup2 rw",
                "/mnt/with space/inner",
                CgroupVersion::Two,
            ),
            // The pilot's group is outside of the hierarchy that its container sees.
            (
                "0::/../../elsewhere",
                "30 24 0:26 /machine /sys/fs/cgroup ro - cgroup2 cgroup2 rw",
                "/sys/fs/cgroup/",
                CgroupVersion::Two,
            ),
        ] {
            let found = first(groups, mounts);
            assert_eq!(
                found.first(),
                Some(&(directory.to_owned(), version)),
                "{found:?}"
            );
        }
        assert_eq!(first("0::/job", "21 1 8:1 / / rw - ext4 /dev/sda1 rw"), []);
        assert_eq!(first("", V2), []);
    }

    /// A group in a temporary directory, with these files.
    fn group(version: CgroupVersion, files: &[(&str, &str)]) -> (tempfile::TempDir, MemoryCgroup) {
        let top = tempfile::tempdir().expect("a directory");
        let directory = top.path().join("job/inner");
        fs::create_dir_all(&directory).expect("made");
        for (name, text) in files {
            fs::write(top.path().join("job").join(name), text).expect("written");
        }
        let group = MemoryCgroup {
            directory,
            top: top.path().to_owned(),
            version,
        };
        (top, group)
    }

    #[test]
    fn the_limit_is_the_least_of_those_above_and_may_be_none() {
        let stat = [(
            "inner/memory.stat",
            "cache 7\nhierarchical_memory_limit 314572800\n",
        )];
        assert_eq!(group(CgroupVersion::One, &stat).1.limit(), Some(300 << 20));
        let none = [(
            "inner/memory.stat",
            "hierarchical_memory_limit 9223372036854771712\n",
        )];
        assert_eq!(group(CgroupVersion::One, &none).1.limit(), None);
        let above = [("memory.max", "314572800\n"), ("inner/memory.max", "max\n")];
        assert_eq!(group(CgroupVersion::Two, &above).1.limit(), Some(300 << 20));
        assert_eq!(group(CgroupVersion::Two, &[]).1.limit(), None);
    }

    #[test]
    fn a_kill_explains_the_container_that_was_killed_and_no_other() {
        for (version, name) in [
            (CgroupVersion::One, "inner/memory.oom_control"),
            (CgroupVersion::Two, "inner/memory.events"),
        ] {
            let text = |kills: u64| {
                format!("oom 9\noom_kill_disable 0\noom_kill {kills}\noom_group_kill 5\n")
            };
            let (_top, group) = group(version, &[(name, &text(3))]);
            let file = group.directory.join(version.counters());
            let kills = MemoryKills {
                group: Some(group),
                claimed: Arc::new(AtomicU64::new(3)),
            };
            let before = kills.count();
            assert_eq!(before, 3);
            assert!(!kills.explain(before, MemoryKillSign::Killed));
            fs::write(&file, text(4)).expect("written");
            assert!(kills.explain(before, MemoryKillSign::Killed));
            assert!(
                !kills.explain(before, MemoryKillSign::FailedAlone),
                "it is accounted for"
            );
            fs::write(&file, text(5)).expect("written");
            assert!(kills.explain(4, MemoryKillSign::FailedAlone));
            fs::remove_file(&file).expect("removed");
            assert!(
                !kills.explain(5, MemoryKillSign::Killed),
                "nothing is known"
            );
        }
    }
}
