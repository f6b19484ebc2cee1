//! The processes of a container: their number, their memory and their CPU time. Reads `/proc`; blocks. A
//! process that ends during the look is not counted.

use std::collections::{HashMap, HashSet};
use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use crate::process::procfs::{self, ProcessStat};

/// A process id, as `/proc` names it.
pub type Pid = i32;

/// A container's processes at one moment.
#[derive(Debug, Clone, Default)]
pub struct ProcessTree {
    pids: Vec<Pid>,
    rss_pages: u64,
    /// Clock ticks of CPU time, including those of children that were waited for.
    pub ticks: u64,
}

/// Makes the kernel kill `leader` and its descendants before the pilot when memory runs out. Goes from the
/// top down, because a new process inherits the value from its parent.
pub(super) fn prefer_for_oom_kill(leader: Pid) {
    /// Adds half of the machine's memory to the score: enough to come before the pilot, even with small
    /// tasks, and still after everything that the system rates higher.
    const MORE: i32 = 500;
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    let wanted = (own + MORE).min(1000).to_string();
    let mut left = vec![leader];
    while let Some(pid) = left.pop() {
        // Fails if the process isn't ours any more; then its children aren't either.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), &wanted);
        left.extend(children(pid));
    }
}

/// All processes of the machine at one moment, from which any number of [`ProcessTree`]s are made.
#[derive(Debug)]
pub struct ProcessTable {
    found: HashMap<Pid, ProcessStat>,
    by_parent: HashMap<Pid, Vec<Pid>>,
    by_session: HashMap<Pid, Vec<Pid>>,
}

impl ProcessTable {
    #[must_use]
    pub fn look() -> Self {
        let mut found: HashMap<Pid, ProcessStat> = HashMap::new();
        let mut by_parent: HashMap<Pid, Vec<Pid>> = HashMap::new();
        let mut by_session: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for pid in procfs::pids() {
            let Some(stat) = ProcessStat::of(pid) else {
                continue;
            };
            let pid = pid.as_raw();
            by_parent.entry(stat.parent.as_raw()).or_default().push(pid);
            by_session
                .entry(stat.session.as_raw())
                .or_default()
                .push(pid);
            found.insert(pid, stat);
        }
        Self {
            found,
            by_parent,
            by_session,
        }
    }

    /// `leader`, its descendants and its session.
    #[must_use]
    pub fn below(&self, leader: Pid) -> ProcessTree {
        let Self {
            found,
            by_parent,
            by_session,
        } = self;
        let session = by_session.get(&leader).into_iter().flatten().copied();
        let mut left: Vec<Pid> = session.chain([leader]).collect();
        let mut seen = HashSet::new();
        let mut process_tree = ProcessTree::default();
        while let Some(pid) = left.pop() {
            let Some(stat) = found.get(&pid).filter(|_| seen.insert(pid)) else {
                continue;
            };
            process_tree.pids.push(pid);
            process_tree.rss_pages += stat.rss_pages;
            // The runtime's own first process polls now and then, which is no progress of the task.
            if pid != leader {
                process_tree.ticks += stat.cpu_ticks;
            }
            left.extend(by_parent.get(&pid).into_iter().flatten());
        }
        process_tree
    }
}

impl ProcessTree {
    #[must_use]
    pub fn processes(&self) -> usize {
        self.pids.len()
    }

    /// The resident memory of all processes, in bytes. Shared pages are first counted for every process,
    /// which is cheap. Only if that exceeds `limit`, each process is asked for its proportional share, for
    /// which the kernel walks through its memory.
    #[must_use]
    pub fn memory(&self, limit: u64) -> u64 {
        let rss = self.rss_pages.saturating_mul(page_bytes());
        if rss <= limit {
            return rss;
        }
        self.pids.iter().map(|pid| fair_share(*pid)).sum()
    }
}

/// A process's proportional set size, or its resident set size if we may not read that.
fn fair_share(pid: Pid) -> u64 {
    let proportional = || {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    proportional()
        .or_else(|| {
            Some(
                ProcessStat::of(nix::unistd::Pid::from_raw(pid))?
                    .rss_pages
                    .saturating_mul(page_bytes()),
            )
        })
        .unwrap_or(0)
}

fn children(parent: Pid) -> impl Iterator<Item = Pid> {
    let children = procfs::children(nix::unistd::Pid::from_raw(parent));
    children.into_iter().map(nix::unistd::Pid::as_raw)
}

fn page_bytes() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(4096)
}

/// Clock ticks per second.
#[must_use]
pub fn ticks_per_second() -> u64 {
    sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|ticks| u64::try_from(ticks).ok())
        .unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_census_sees_this_process_its_memory_and_its_children() {
        let me = Pid::try_from(std::process::id()).expect("a pid");
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 100 & wait"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("started");
        let pid = Pid::try_from(child.id()).expect("a pid");
        assert!(children(me).any(|child| child == pid));
        let mut grown = false;
        for _ in 0..1000 {
            grown = ProcessTable::look().below(pid).pids.len() == 2;
            if grown {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(grown, "its own child is counted");
        let process_tree = ProcessTable::look().below(pid);
        assert!(process_tree.memory(u64::MAX) > 100 * 1024);
        let fair = process_tree.memory(0);
        assert!(0 < fair && fair < process_tree.memory(u64::MAX), "{fair}");
        prefer_for_oom_kill(pid);
        for pid in process_tree.pids {
            let adjusted = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
            assert!(adjusted.is_ok_and(|text| text.trim() >= "500"));
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        child.wait().expect("reaped");
    }
}
