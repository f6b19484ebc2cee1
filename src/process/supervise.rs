//! One child from its start until none of its processes is left: started, signalled, killed, swept, reaped.
//!
//! Signals are repeated, because a signal in the first 100 ms of a container's start may be lost. The hard
//! kill has the order of `hard_kill`.

use std::time::Duration;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::child::{
    ChildExit, ChildLimits, ChildPreparation, ChildSpec, HardKill, Leftovers, SpawnError,
    StartFailure, StopCause,
};
use super::guardian::client::{GuardianHandle, OwnedChild};
use super::guardian::protocol::ChildId;
use super::hard_kill::{self, CLEAN_UP, VANISH};
use super::procfs::{SessionMember, container_init, members};
use super::shutdown::ShutdownPhase;
use super::signal::{ExitStatus, SignalDelivery, Usage, send};
use super::suspend_aware_timer::SuspendAwareTimer;

/// The interval at which a signal is repeated during the grace period.
const REPEAT: Duration = Duration::from_secs(1);
/// The sweep's polling interval: there is no event for the end of a process that isn't our child.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Runs `spec` to its end and leaves no process behind, however it ends. Dropping the future kills the child
/// in the same order, on its own thread; if the pilot dies, the guardian kills it.
///
/// If `shutdown` leaves [`ShutdownPhase::Run`] before the child runs, the start is called off and reported as
/// a child that the shutdown ended. If the sender of `shutdown` is dropped, the child runs on. `started`
/// receives the child's pid.
///
/// # Errors
/// When the child can't be started or watched.
pub async fn supervise(
    guard: &GuardianHandle,
    spec: ChildSpec,
    limits: ChildLimits,
    shutdown: watch::Receiver<ShutdownPhase>,
    started: oneshot::Sender<i32>,
) -> Result<ChildExit, SpawnError> {
    let at_once = std::future::ready(());
    Ok(prepare_and_supervise(guard, spec.ready(), limits, shutdown, (started, at_once)).await?)
}

/// As [`supervise`], with a `spec` that is made on the thread that starts the child, and a time limit that
/// counts from the end of the future beside `started`.
///
/// # Errors
/// Also when it can't be made.
pub async fn prepare_and_supervise<E: Send + 'static>(
    guard: &GuardianHandle,
    child: ChildPreparation<impl FnOnce() -> Result<ChildSpec, E> + Send + 'static>,
    limits: ChildLimits,
    mut shutdown: watch::Receiver<ShutdownPhase>,
    (started, work_begins): (oneshot::Sender<i32>, impl Future<Output = ()>),
) -> Result<ChildExit, StartFailure<E>> {
    let program = child.program.clone();
    // Registered before the start, so that the end of a very short child isn't missed.
    let ends = signal(SignalKind::child()).map_err(SpawnError::Watch)?;
    let began = Instant::now();
    let owned = tokio::select! {
        biased;
        phase = past_run(&mut shutdown) => return Ok(never_started(phase)),
        owned = guard.start_child(child) => owned?,
    };
    let mut child = Child { owned, ends };
    // Not every caller keeps the receiver.
    let _unheard = started.send(child.id().leader.0.as_raw());

    let lost = |source| SpawnError::Lost {
        program: program.clone(),
        source,
    };
    let (ended_by, hard_kill) = child
        .until_end(limits, work_begins, &mut shutdown)
        .await
        .map_err(lost)?;
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

/// Waits for a phase beyond [`ShutdownPhase::Run`].
async fn past_run(shutdown: &mut watch::Receiver<ShutdownPhase>) -> ShutdownPhase {
    match shutdown.wait_for(|now| *now != ShutdownPhase::Run).await {
        Ok(phase) => *phase,
        Err(_gone) => std::future::pending().await,
    }
}

fn never_started(shutdown: ShutdownPhase) -> ChildExit {
    let number = if let ShutdownPhase::Terminate(number) = shutdown {
        number
    } else {
        libc::SIGKILL
    };
    ChildExit {
        exit: ExitStatus::Signal(number),
        ended_by: StopCause::Shutdown,
        usage: Usage::default(),
        wall: Duration::ZERO,
        hard_kill: HardKill::NotNeeded,
        leftovers: Leftovers::None,
    }
}

struct Child {
    owned: OwnedChild,
    ends: Signal,
}

enum ChildEvent {
    Ended,
    Due,
    Shutdown,
}

impl Child {
    fn id(&self) -> ChildId {
        self.owned.id()
    }

    /// Supervises the child until its leader has ended or can't be killed.
    async fn until_end(
        &mut self,
        limits: ChildLimits,
        work_begins: impl Future<Output = ()>,
        shutdown: &mut watch::Receiver<ShutdownPhase>,
    ) -> nix::Result<(StopCause, HardKill)> {
        let timeout = async {
            match limits.timeout {
                Some(limit) => {
                    work_begins.await;
                    SuspendAwareTimer::new(limit).over().await;
                }
                None => std::future::pending().await,
            }
        };
        let (ended_by, number) = match self
            .wait(timeout, shutdown, ShutdownPhase::Terminate(0))
            .await?
        {
            ChildEvent::Ended => return Ok((StopCause::Itself, HardKill::NotNeeded)),
            ChildEvent::Due => (StopCause::Timeout, libc::SIGTERM),
            ChildEvent::Shutdown => match *shutdown.borrow() {
                ShutdownPhase::Terminate(number) => (StopCause::Shutdown, number),
                ShutdownPhase::Run | ShutdownPhase::Kill => (StopCause::Shutdown, libc::SIGKILL),
            },
        };
        if number != libc::SIGKILL && self.tell(number, limits.grace, shutdown).await? {
            return Ok((ended_by, HardKill::NotNeeded));
        }
        Ok((ended_by, self.hard_kill().await?))
    }

    /// Sends a signal every second. `true` if the child ended within the grace period.
    async fn tell(
        &mut self,
        number: i32,
        grace: Duration,
        shutdown: &mut watch::Receiver<ShutdownPhase>,
    ) -> nix::Result<bool> {
        let mut grace = SuspendAwareTimer::new(grace);
        loop {
            if let SignalDelivery::Refused = send(self.id().leader.0, number) {
                let pid = self.id().leader;
                tracing::warn!(%pid, number, "the kernel refused us to signal a child");
            }
            let due = async {
                // Look in either case.
                let _ = timeout(REPEAT, grace.over()).await;
            };
            match self.wait(due, shutdown, ShutdownPhase::Kill).await? {
                ChildEvent::Ended => return Ok(true),
                ChildEvent::Shutdown => return Ok(false),
                ChildEvent::Due if grace.is_over() => return Ok(false),
                ChildEvent::Due => {}
            }
        }
    }

    /// The next event: the child's end, `due`, or a shutdown phase at least as far as `wanted`.
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
        // If the end coincides with a deadline, it counts as the end.
        tokio::select! {
            biased;
            ended = self.ended() => ended.map(|()| ChildEvent::Ended),
            () = shutdown_advanced => Ok(ChildEvent::Shutdown),
            () = due => Ok(ChildEvent::Due),
        }
    }

    /// Returns when the leader has ended. Cancel-safe: it looks before it waits.
    async fn ended(&mut self) -> nix::Result<()> {
        while !self.owned.has_ended()? {
            if self.ends.recv().await.is_none() {
                // Only a shutdown of the runtime closes the stream; don't spin until then.
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    async fn hard_kill(&mut self) -> nix::Result<HardKill> {
        if let Some(init) = container_init(self.id().leader) {
            send(init, libc::SIGKILL);
            if let Ok(ended) = timeout(CLEAN_UP, self.ended()).await {
                return ended.map(|()| HardKill::Container);
            }
        }
        // The leader is our own child, whatever `/proc` says.
        send(self.id().leader.0, libc::SIGKILL);
        hard_kill::kill_session(self.id());
        // If it still hasn't ended, the sweep reports it.
        if let Ok(ended) = timeout(VANISH, self.ended()).await {
            ended?;
        }
        Ok(HardKill::Session)
    }

    /// The processes left in the session. Looks at all processes of the machine only if needed: processes
    /// that an ended leader leaves behind are orphans, now or later, and are reparented to the pilot.
    fn members(&mut self) -> Vec<SessionMember> {
        if self.owned.has_ended() == Ok(true) && !self.owned.guardian().may_have_orphans() {
            return Vec::new();
        }
        members(self.id().leader)
    }

    /// Kills the processes that still have the session's id. The leader stays unreaped until then, so that
    /// the id can't be reused.
    async fn sweep(&mut self) -> Leftovers {
        let deadline = Instant::now() + VANISH;
        let mut outcome = Leftovers::None;
        loop {
            let members = self.members();
            if members.is_empty() {
                break;
            }
            let mut survivors = Vec::new();
            for member in members {
                if send(member.pid, libc::SIGKILL) != SignalDelivery::Gone {
                    survivors.push(member.pid);
                }
            }
            if Instant::now() >= deadline {
                outcome = Leftovers::Survive(survivors);
                break;
            }
            outcome = Leftovers::Swept;
            // A process that we wait for may be our child by now, but most are not.
            let _ = timeout_at(deadline.min(Instant::now() + LOOK_AGAIN), self.ends.recv()).await;
        }
        if let Ok(false) = self.owned.has_ended() {
            match &mut outcome {
                Leftovers::Survive(survivors) => survivors.push(self.id().leader.0),
                Leftovers::None | Leftovers::Swept => {
                    outcome = Leftovers::Survive(vec![self.id().leader.0]);
                }
            }
        }
        outcome
    }

    fn reap(mut self) -> nix::Result<(ExitStatus, Usage)> {
        if !self.owned.has_ended()? {
            // Killed but held by the kernel: `drop` starts a thread that reaps it.
            return Ok((ExitStatus::Signal(libc::SIGKILL), Usage::default()));
        }
        self.owned.reap()
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
