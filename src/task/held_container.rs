//! A container that waits at its gate until its event has come and its slot is free: watched like any other, but
//! without limits or a grace period, since no task runs in it.

use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::ActiveContainers;
use super::container_end::NotRun;
use super::gate::{Gate, GateFiles};
use crate::fault::{Cause, TaskError};
use crate::process::{ChildExit, ShutdownPhase};

/// A start takes about 0.1 s, and some seconds on an overcommitted machine.
const STARTED_WITHIN: Duration = Duration::from_mins(1);

/// A container on its way to the gate.
pub(super) struct Hold<'a> {
    pub(super) files: oneshot::Receiver<GateFiles>,
    /// The list of those that wait.
    pub(super) list: &'a ActiveContainers,
    pub(super) name: String,
}

pub(super) enum HeldEnd<E> {
    /// Its gate is open. Whether it was waiting when its turn came.
    Opened(Gate, bool),
    /// It ended before.
    Ended(Result<ChildExit, E>),
    /// It must end.
    NotRun(NotRun),
}

/// Watches a container until its task's turn comes. A shutdown ends it at once.
pub(super) async fn held<E>(
    mut run: Pin<&mut impl Future<Output = Result<ChildExit, E>>>,
    hold: Hold<'_>,
    turn_comes: impl Future<Output = Result<(), NotRun>>,
    mut shutdown: watch::Receiver<ShutdownPhase>,
) -> HeldEnd<E> {
    let told_to_end = async {
        if shutdown
            .wait_for(|now| *now != ShutdownPhase::Run)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = told_to_end => HeldEnd::NotRun(NotRun::CalledOff),
        ended = &mut run => HeldEnd::Ended(ended),
        opened = opened(hold, turn_comes) => match opened {
            Ok((gate, waited)) => HeldEnd::Opened(gate, waited),
            Err(reason) => HeldEnd::NotRun(reason),
        },
    }
}

async fn opened(
    Hold { files, list, name }: Hold<'_>,
    turn_comes: impl Future<Output = Result<(), NotRun>>,
) -> Result<(Gate, bool), NotRun> {
    let Ok(files) = files.await else {
        // The start has failed, which its own future reports.
        return std::future::pending().await;
    };
    let broken = |error: std::io::Error| {
        let said = format!("can't watch a container's gate: {error}");
        NotRun::Broken(TaskError::setup(Cause::of_io(&error), &said))
    };
    let mut gate = Gate::watch(files).map_err(broken)?;
    let mut turn_comes = pin!(turn_comes);
    let waited = {
        let mut reached = pin!(timeout(STARTED_WITHIN, gate.reached()));
        tokio::select! {
            biased;
            reached = &mut reached => {
                reached.map_err(|_late| hanging())?.map_err(broken)?;
                let _waits = list.enter(name);
                turn_comes.as_mut().await?;
                true
            }
            turn = &mut turn_comes => {
                turn?;
                reached.await.map_err(|_late| hanging())?.map_err(broken)?;
                false
            }
        }
    };
    gate.open().map_err(broken)?;
    Ok((gate, waited))
}

fn hanging() -> NotRun {
    let said = format!(
        "a container was not made within {} s",
        STARTED_WITHIN.as_secs()
    );
    NotRun::Broken(TaskError::setup(Cause::Hanging, &said))
}
