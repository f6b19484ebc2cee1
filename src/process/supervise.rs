//! One child from its start until nothing of it is left: spawn → told → killed → swept → reaped.
//! Talks to the kernel through `group` alone. Apart from it, because this file decides and that one
//! only does.
//!
//! Signals are repeated, because one sent in the first 100 ms of a container's start may be lost.
//! The order of the hard kill is that of `kill`.

use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::child::{
    ChildExit, ChildLimits, ChildSpec, ExitStatus, HardKill, Leftovers, SpawnError, StopCause,
};
use super::guard::{GuardianHandle, StartError};
use super::guardian_message::ChildId;
use super::hard_kill::{self, CLEAN_UP, KillTarget, VANISH};
use super::procfs::{container_init, members};
use super::shutdown::ShutdownPhase;
use super::spawn::{self, SignalDelivery, Usage};
use super::suspend_aware_timer::SuspendAwareTimer;

/// How often a signal is repeated during the grace period.
const REPEAT: Duration = Duration::from_secs(1);
/// How often the sweep looks again; there is no event for the end of another's child.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Runs `job` to its end and leaves nothing of it behind, however it ends. Dropping the future kills
/// the child in the same order, on a thread of its own; if the pilot dies, `guard`'s guardian does.
///
/// When `will` says to stop before the start, nothing is started, and that is reported as a child
/// that the will ended. When the sender of `will` is gone, the child runs on. `started` is told the
/// child's pid.
///
/// # Errors
/// When the child can't be started or watched.
pub async fn supervise(
    guard: &GuardianHandle,
    job: ChildSpec,
    limits: ChildLimits,
    mut shutdown: watch::Receiver<ShutdownPhase>,
    started: oneshot::Sender<i32>,
) -> Result<ChildExit, SpawnError> {
    let initial = *shutdown.borrow();
    if initial != ShutdownPhase::Run {
        return Ok(never_started(initial));
    }
    let program = job.program.clone();
    // Before the start: a child that ends at once is not missed.
    let ends = signal(SignalKind::child()).map_err(SpawnError::Watch)?;
    let began = Instant::now();
    let child_id = spawn(guard, job)?;
    // Not everybody wants to know.
    let _unheard = started.send(child_id.leader.0.as_raw());
    let mut child = Child {
        id: child_id,
        guard: guard.clone(),
        ends,
        state: ChildState::Unreaped,
    };

    let lost = |source| SpawnError::Lost {
        program: program.clone(),
        source,
    };
    let (ended_by, hard_kill) = child.until_end(limits, &mut shutdown).await.map_err(lost)?;
    let leftovers = child.sweep().await;
    let (exit, usage) = child.reap().map_err(lost)?;
    Ok(ChildExit {
        exit,
        ended_by,
        usage,
        wall: began.elapsed(),
        hard_kill,
        leftovers,
    })
}

fn never_started(shutdown: ShutdownPhase) -> ChildExit {
    let number = if let ShutdownPhase::Terminate(number) = shutdown {
        number
    } else {
        libc::SIGKILL
    };
    ChildExit {
        exit: ExitStatus::Signal(number),
        ended_by: StopCause::Will,
        usage: Usage::default(),
        wall: Duration::ZERO,
        hard_kill: HardKill::NotNeeded,
        leftovers: Leftovers::None,
    }
}

fn spawn(guard: &GuardianHandle, job: ChildSpec) -> Result<ChildId, SpawnError> {
    let source = match guard.spawn(&job) {
        Ok(child_id) => return Ok(child_id),
        Err(StartError::Unguarded(source)) => return Err(SpawnError::Unguarded(source)),
        Err(StartError::Child(source)) => source,
    };
    let strings = job
        .args
        .iter()
        .chain(job.env.iter().flat_map(|(name, value)| [name, value]));
    let bytes = strings.map(|string| string.len() + 1).sum();
    let ChildSpec { program, cwd, .. } = job;
    Err(match (source.raw_os_error().map(Errno::from_raw), cwd) {
        (Some(Errno::E2BIG), _) => SpawnError::TooLong { program, bytes },
        (Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE), _) => {
            SpawnError::Exhausted { program, source }
        }
        // The kernel says ENOENT for either; the program is reported when the directory is there.
        (_, Some(cwd)) if !cwd.is_dir() => SpawnError::Directory { cwd, source },
        _ => SpawnError::Program { program, source },
    })
}

/// A started child. Dropping it before [`Child::reap`] kills it.
struct Child {
    id: ChildId,
    guard: GuardianHandle,
    ends: Signal,
    state: ChildState,
}

#[derive(PartialEq, Eq)]
enum ChildState {
    Unreaped,
    Reaped,
}

enum ChildEvent {
    Ended,
    Due,
    Willed,
}

impl Child {
    /// The child's life until its leader has ended, or can't be killed.
    async fn until_end(
        &mut self,
        limits: ChildLimits,
        shutdown: &mut watch::Receiver<ShutdownPhase>,
    ) -> nix::Result<(StopCause, HardKill)> {
        let timeout = async {
            match limits.timeout {
                Some(limit) => SuspendAwareTimer::new(limit).over().await,
                None => std::future::pending().await,
            }
        };
        let (ended_by, number) = match self
            .wait(timeout, shutdown, ShutdownPhase::Terminate(0))
            .await?
        {
            ChildEvent::Ended => return Ok((StopCause::Itself, HardKill::NotNeeded)),
            ChildEvent::Due => (StopCause::Timeout, libc::SIGTERM),
            ChildEvent::Willed => match *shutdown.borrow() {
                ShutdownPhase::Terminate(number) => (StopCause::Will, number),
                ShutdownPhase::Run | ShutdownPhase::Kill => (StopCause::Will, libc::SIGKILL),
            },
        };
        if number != libc::SIGKILL && self.tell(number, limits.grace, shutdown).await? {
            return Ok((ended_by, HardKill::NotNeeded));
        }
        Ok((ended_by, self.hard_kill().await?))
    }

    /// Sends a signal each second; whether the child ended before the grace period did.
    async fn tell(
        &mut self,
        number: i32,
        grace: Duration,
        shutdown: &mut watch::Receiver<ShutdownPhase>,
    ) -> nix::Result<bool> {
        let mut grace = SuspendAwareTimer::new(grace);
        loop {
            if let SignalDelivery::Refused = spawn::send(self.id.leader.0, number) {
                let pid = self.id.leader;
                tracing::warn!(%pid, number, "the kernel refused us to signal a child");
            }
            let due = async {
                // Either way it is time to look.
                let _ = timeout(REPEAT, grace.over()).await;
            };
            match self.wait(due, shutdown, ShutdownPhase::Kill).await? {
                ChildEvent::Ended => return Ok(true),
                ChildEvent::Willed => return Ok(false),
                ChildEvent::Due if grace.is_over() => return Ok(false),
                ChildEvent::Due => {}
            }
        }
    }

    /// The next event: the end, what is `due`, or a will at least as far as `wanted`.
    async fn wait(
        &mut self,
        due: impl Future<Output = ()>,
        shutdown: &mut watch::Receiver<ShutdownPhase>,
        wanted: ShutdownPhase,
    ) -> nix::Result<ChildEvent> {
        let shutdown_advanced = async {
            if shutdown
                .wait_for(|now| now.stage() >= wanted.stage())
                .await
                .is_err()
            {
                std::future::pending::<()>().await;
            }
        };
        // An end that came together with a deadline is an end.
        tokio::select! {
            biased;
            ended = self.ended() => ended.map(|()| ChildEvent::Ended),
            () = shutdown_advanced => Ok(ChildEvent::Willed),
            () = due => Ok(ChildEvent::Due),
        }
    }

    /// Returns when the leader has ended. Cancel-safe: it looks before it waits.
    async fn ended(&mut self) -> nix::Result<()> {
        while !self.has_ended()? {
            if self.ends.recv().await.is_none() {
                // Only a runtime that shuts down closes the stream; don't spin until it is gone.
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    /// An error means that its pid may be another's by now: nothing may be sent to it any more.
    fn has_ended(&mut self) -> nix::Result<bool> {
        spawn::has_ended(self.id.leader.0).inspect_err(|_| self.state = ChildState::Reaped)
    }

    async fn hard_kill(&mut self) -> nix::Result<HardKill> {
        if let Some(init) = container_init(self.id.leader) {
            spawn::send(init, libc::SIGKILL);
            if let Ok(ended) = timeout(CLEAN_UP, self.ended()).await {
                return ended.map(|()| HardKill::Container);
            }
        }
        // It is our own child, whatever can be told of it.
        spawn::send(self.id.leader.0, libc::SIGKILL);
        hard_kill::kill_session(self.id);
        // Not ended even so: the sweep reports it.
        if let Ok(ended) = timeout(VANISH, self.ended()).await {
            ended?;
        }
        Ok(HardKill::Session)
    }

    /// Kills what still has the session's id. The leader is unreaped until then, so that the id
    /// can't come to mean another session.
    async fn sweep(&mut self) -> Leftovers {
        let deadline = Instant::now() + VANISH;
        let mut outcome = Leftovers::None;
        loop {
            let members = members(self.id.leader);
            if members.is_empty() {
                break;
            }
            let mut survivors = Vec::new();
            for member in members {
                if spawn::send(member.pid, libc::SIGKILL) != SignalDelivery::Gone {
                    survivors.push(member.pid);
                }
            }
            if Instant::now() >= deadline {
                outcome = Leftovers::Survive(survivors);
                break;
            }
            outcome = Leftovers::Swept;
            // A sibling's end may be the one we wait for, but most are not our children.
            let _ = timeout_at(deadline.min(Instant::now() + LOOK_AGAIN), self.ends.recv()).await;
        }
        if let Ok(false) = self.has_ended() {
            match &mut outcome {
                Leftovers::Survive(survivors) => survivors.push(self.id.leader.0),
                Leftovers::None | Leftovers::Swept => {
                    outcome = Leftovers::Survive(vec![self.id.leader.0]);
                }
            }
        }
        outcome
    }

    fn reap(mut self) -> nix::Result<(ExitStatus, Usage)> {
        if !self.has_ended()? {
            // Killed but held by the kernel: `drop` leaves a thread behind that reaps it.
            return Ok((ExitStatus::Signal(libc::SIGKILL), Usage::default()));
        }
        self.state = ChildState::Reaped;
        self.guard.reap(self.id)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.state == ChildState::Reaped {
            return;
        }
        // At once: the pilot itself may be on its way out. With the container's first process dead,
        // the rest follows without us.
        let (child_id, guard) = (self.id, self.guard.clone());
        let kill_target = KillTarget::begin(child_id);
        // A thread, because the runtime may be gone; if there can't be one, no time for clean-up.
        let spawned = std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || {
                hard_kill::kill_all(vec![kill_target]);
                // However long the kernel holds it. An error: it is no child of ours any more.
                if spawn::await_end(child_id.leader.0).is_ok() {
                    let _ = guard.reap(child_id);
                }
            });
        if spawned.is_err() {
            spawn::send(child_id.leader.0, libc::SIGKILL);
            hard_kill::kill_session(child_id);
        }
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
