//! The init container: runs once, before any event is taken, to fill the data hub.

use std::future::ready;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{Instrument, info, info_span};

use super::container_end::{TaskOutcome, staging_error};
use super::container_run::{ContainerOwn, launch};
use super::staging::DirDisposal;
use super::{
    ContainerLoss, ContainerSpec, Leftover, SharedTaskContext, TaskMetrics, TaskStart, file_work,
};
use crate::config::KeepFiles;
use crate::fault::{ContainerRole, TaskError};
use crate::ids::TaskId;
use crate::process::ShutdownPhase;

/// Runs the init container to its end. One that the pilot's shutdown ended has not failed.
///
/// # Errors
/// When it failed, timed out or could not be started. No event may be taken then.
pub async fn run_init(
    context: &SharedTaskContext,
    plan: &Arc<ContainerSpec>,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> Result<(), TaskError> {
    let name = format!("init-{}", TaskId::random());
    async {
        info!("init container started");
        let (dirs, of_stage) = (context.dirs.clone(), name.clone());
        let stage = file_work(move || {
            dirs.stage(&of_stage)
                .map_err(|error| staging_error("directories", &error))
        })
        .await?;
        // It runs alone, and may prepare something for each of the job's GPUs.
        let gpus = context.gpus.all();
        let own = ContainerOwn {
            stage: &stage,
            io: None,
            gpus: gpus.as_ref(),
            start: TaskStart::WithContainer,
        };
        let outcome = launch(
            context,
            plan,
            ContainerRole::Init,
            own,
            ready(Ok(())),
            shutdown,
            &mut TaskMetrics::default(),
        )
        .await;
        let result = match outcome {
            Ok(TaskOutcome::Failed(error))
            | Err(ContainerLoss::Broken(error) | ContainerLoss::Died(error)) => Err(error),
            Ok(_) | Err(ContainerLoss::CalledOff | ContainerLoss::Outdated) => Ok(()),
        };
        let disposal = match (&result, context.keep) {
            (Ok(()), KeepFiles::Failed) => DirDisposal::Remove,
            _ => DirDisposal::Keep,
        };
        let leftover = Leftover::of(stage, Some(disposal), Vec::new(), &context.kept);
        leftover.clear().await;
        info!("init container ended");
        result
    }
    .instrument(info_span!("init"))
    .await
}
