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
    fn a_census_sees_a_process_its_memory_and_its_children() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 100 & wait"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("started");
        let pid = Pid::try_from(child.id()).expect("a pid");
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
        for pid in process_tree.pids {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        child.wait().expect("reaped");
    }
}
