//! What the pilot does for all of its children while it runs: keeps a guardian, lets them stop and go on
//! with the pilot, and as pid 1 of a container waits for orphans. Sleeps until a signal comes.

use std::io;
use std::time::Duration;

use nix::libc;
use nix::unistd::{Pid, getpid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::guard::{GuardianHandle, GuardianHealth, adopts_orphans};
use super::spawn;

/// When to try again to make a guardian.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// `SIGTSTP`: the pilot stops its containers, then itself, and lets them go on when it does. Any other
/// stop comes without a notice; then it is the sender's part to stop the containers too, as HTCondor
/// does, and [`Countdown`](super::Countdown) sees to the time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignals {
    Handled,
    /// The pilot's parent wants it ignored.
    Ignored,
}

impl GuardianHandle {
    /// Looks after the children for as long as the future is polled.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn maintain(
        &self,
        stops: StopSignals,
    ) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let guard = self.clone();
        let mut ends = signal(SignalKind::child())?;
        // The kernel doesn't let pid 1 stop itself: there the signal keeps having no effect at all.
        let mut stops = if stops == StopSignals::Handled && getpid() != Pid::from_raw(1) {
            Some(signal(SignalKind::from_raw(libc::SIGTSTP))?)
        } else {
            None
        };
        let adopts = adopts_orphans();
        Ok(async move {
            loop {
                let present = guard.look_after_guardian();
                if adopts {
                    guard.reap_orphans();
                }
                tokio::select! {
                    biased;
                    () = next(stops.as_mut()) => guard.stop_with_the_pilot(),
                    () = next(Some(&mut ends)) => {}
                    () = tokio::time::sleep(TRY_AGAIN), if !present => {}
                }
            }
        })
    }

    fn look_after_guardian(&self) -> bool {
        match self.check() {
            GuardianHealth::Well => true,
            GuardianHealth::Replaced { pid, child_ids } => {
                let pid = pid.map(Pid::as_raw);
                warn!(
                    pid,
                    child_ids, "the guardian of the containers died and was replaced"
                );
                true
            }
            GuardianHealth::Missing(error) => {
                error!(%error, "the containers have no guardian: they'd outlive a pilot that is killed now");
                false
            }
        }
    }

    fn stop_with_the_pilot(&self) {
        warn!("SIGTSTP received: stopping, containers first");
        self.suspend();
        // Returns when somebody lets us go on.
        spawn::send(getpid(), libc::SIGSTOP);
        self.resume();
        info!("going on, containers too");
    }
}

async fn next(stream: Option<&mut Signal>) {
    if let Some(stream) = stream
        && stream.recv().await.is_some()
    {
        return;
    }
    std::future::pending::<()>().await;
}
