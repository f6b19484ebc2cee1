//! The hard kill of children without a runtime and from any process: used by the guardian, and by the thread
//! that ends a child whose supervisor was dropped.
//!
//! The order was measured on containers: after the death of a container's first process, the runtime above it
//! unmounts and cleans up. Killing the runtime first leaves the FUSE process of a SIF image behind.

use std::time::{Duration, Instant};

use nix::libc::SIGKILL;
use nix::unistd::Pid;

use super::guardian::protocol::ChildId;
use super::procfs::{ProcessStat, container_init, members};
use super::signal::send;

/// How long the runtime may clean up after the container's first process was killed.
pub(super) const CLEAN_UP: Duration = Duration::from_secs(3);
/// How long a killed process may take to vanish. After that the kernel holds it (dead file server).
pub(super) const VANISH: Duration = Duration::from_secs(10);
/// The polling interval: there is no event for the end of a process that isn't our child.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct KillTarget {
    child_id: ChildId,
    clean_up: CleanUp,
}

#[derive(Debug, PartialEq, Eq)]
enum CleanUp {
    /// The container's first process was killed.
    Awaited,
    /// There is no container, or not yet.
    NotExpected,
}

impl KillTarget {
    pub(super) fn begin(child_id: ChildId) -> Self {
        let init = runs(&child_id)
            .then(|| container_init(child_id.leader))
            .flatten();
        let clean_up = if let Some(init) = init {
            send(init, SIGKILL);
            CleanUp::Awaited
        } else {
            kill_session(child_id);
            CleanUp::NotExpected
        };
        Self { child_id, clean_up }
    }
}

/// Kills all targets at once. Returns when none of their processes runs, or the kernel holds the rest.
/// Zombies may be left for their parents.
pub(super) fn kill_all(mut kill_target: Vec<KillTarget>) {
    let began = Instant::now();
    loop {
        let waited = began.elapsed();
        kill_target.retain(|KillTarget { child_id, clean_up }| {
            let cleans_up = *clean_up == CleanUp::Awaited && waited < CLEAN_UP && runs(child_id);
            cleans_up || kill_session(*child_id) == SessionState::Alive
        });
        if kill_target.is_empty() || waited >= CLEAN_UP + VANISH {
            return;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Whether the leader itself still runs.
fn runs(child_id: &ChildId) -> bool {
    ProcessStat::of(child_id.leader.0)
        .is_some_and(|stat| stat.start == child_id.start && !stat.is_zombie)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionState {
    /// A process still runs and was sent a kill, or the state is unknown.
    Alive,
    Dead,
}

/// Kills the processes left in the session. A pid that belongs to another process proves that the session is
/// empty: the kernel doesn't reuse the number before that.
pub(super) fn kill_session(child_id: ChildId) -> SessionState {
    let leader_runs = match ProcessStat::read(child_id.leader.0) {
        Ok(Some(stat)) if stat.start != child_id.start => return SessionState::Dead,
        Ok(Some(stat)) => !stat.is_zombie,
        Ok(None) => false,
        // The pid may belong to any process: look again.
        Err(_) => return SessionState::Alive,
    };
    if leader_runs {
        // Its own group first, which needs no walk through `/proc`.
        send(Pid::from_raw(-child_id.leader.0.as_raw()), SIGKILL);
        send(child_id.leader.0, SIGKILL);
    }
    let members = members(child_id.leader);
    for member in &members {
        send(member.pid, SIGKILL);
    }
    if leader_runs || !members.is_empty() {
        SessionState::Alive
    } else {
        SessionState::Dead
    }
}
