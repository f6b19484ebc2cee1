//! The maintenance of all children while the pilot runs: replaces a dead guardian, stops and resumes the
//! containers together with the pilot, and reaps orphans. Sleeps until a signal comes.

use std::io;
use std::time::Duration;

use nix::libc;
use nix::unistd::{Pid, getpid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::guardian::client::{GuardianHandle, GuardianHealth, START_WITHIN};
use super::signal::send;
use crate::blocking;

/// The interval between attempts to replace a guardian.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// `SIGTSTP`: the pilot stops its containers, then itself, and resumes them when it is resumed. Any other
/// stop comes without notice. The sender must then stop the containers too, as HTCondor does, and
/// [`SuspendAwareTimer`](super::SuspendAwareTimer) corrects the time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignals {
    Handled,
    /// The pilot's parent set it to be ignored.
    Ignored,
}

impl GuardianHandle {
    /// Maintains the children as long as the future is polled.
    ///
    /// # Errors
    /// When a signal handler can't be installed.
    pub fn maintain(
        &self,
        stops: StopSignals,
    ) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let guard = self.clone();
        let mut ends = signal(SignalKind::child())?;
        // The kernel doesn't let pid 1 stop itself; there the signal keeps having no effect.
        let mut stops = if stops == StopSignals::Handled && getpid() != Pid::from_raw(1) {
            Some(signal(SignalKind::from_raw(libc::SIGTSTP))?)
        } else {
            None
        };
        Ok(async move {
            loop {
                let present = guard.look_after_guardian().await;
                guard.reap_orphans();
                tokio::select! {
                    biased;
                    () = next(stops.as_mut()) => guard.stop_with_the_pilot(),
                    () = next(Some(&mut ends)) => {}
                    () = tokio::time::sleep(TRY_AGAIN), if !present => {}
                }
            }
        })
    }

    async fn look_after_guardian(&self) -> bool {
        if self.guardian_lives() {
            return true;
        }
        let handle = self.clone();
        let checking = blocking::start(move || handle.check());
        let health = match timeout(START_WITHIN, checking).await {
            Ok(checked) => {
                checked.unwrap_or_else(|panicked| GuardianHealth::Missing(panicked.into()))
            }
            Err(_) => GuardianHealth::Missing(io::ErrorKind::TimedOut.into()),
        };
        match health {
            GuardianHealth::Well => true,
            GuardianHealth::Replaced { pid, children } => {
                let pid = pid.map(Pid::as_raw);
                warn!(
                    pid,
                    children, "the guardian of the containers died and was replaced"
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
        // Returns at SIGCONT.
        send(getpid(), libc::SIGSTOP);
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
