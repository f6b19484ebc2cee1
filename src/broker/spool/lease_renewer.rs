//! Renews a pilot's lease and looks for dead holders, on a thread of its own: a pilot that is busy, or whose
//! event loop waits for a slow file system, is not dead.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::claim::ClaimTable;
use super::lease::{LeaseScope, REFRESH_EVERY};
use super::paths::SpoolError;
use crate::blocking;
use crate::broker::BrokerError;

/// How often this machine's holders are checked; a check is one open and one lock for each.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// How often all holders are checked, in units of [`KEEP_EVERY`].
const EVERYONE_EVERY: u32 = 6;

/// The thread. Dropping it ends the thread soon; [`LeaseRenewer::stop`] waits for the end.
pub(super) struct LeaseRenewer {
    alive: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl LeaseRenewer {
    pub(super) fn start(desk: Arc<ClaimTable>) -> Result<Self, BrokerError> {
        let (alive, owner) = mpsc::channel::<()>();
        let at = desk.paths.at.clone();
        let thread = thread::Builder::new()
            .name("spool-lease".into())
            .spawn(move || {
                blocking::take_no_signals();
                let mut round: u32 = 0;
                while owner.recv_timeout(KEEP_EVERY) == Err(RecvTimeoutError::Timeout) {
                    round = round.wrapping_add(1);
                    if let Err(trouble) = keep(&desk, round) {
                        let error = trouble.into_broker(&desk.paths.at);
                        tracing::warn!(%error, "the spool's lease or claims can't be looked after");
                    }
                    if !desk.own_lease.directory.exists() {
                        break;
                    }
                }
            })
            .map_err(|error| BrokerError::Thread {
                at,
                detail: error.to_string(),
            })?;
        Ok(Self { alive, thread })
    }

    pub(super) fn stop(self) {
        drop(self.alive);
        // The panic hook reported a panic, and the thread has nothing left to do.
        let _panicked = self.thread.join();
    }
}

fn keep(desk: &ClaimTable, round: u32) -> Result<(), SpoolError> {
    let refresh_every = u32::try_from(REFRESH_EVERY.as_secs() / KEEP_EVERY.as_secs()).unwrap_or(1);
    if round.is_multiple_of(refresh_every) {
        desk.own_lease.refresh()?;
    }
    let everyone = round.is_multiple_of(EVERYONE_EVERY);
    let whose = if everyone {
        LeaseScope::Everyone
    } else {
        LeaseScope::ThisMachine
    };
    desk.own_lease
        .take_back(&desk.paths, whose)
        .map(|_events| ())
}
