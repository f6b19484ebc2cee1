//! The init container: runs once, before any event is taken, to fill the data hub.

use tokio::sync::watch;
use tracing::{Instrument, info, info_span};

use super::container_run::{ContainerOutcome, launch, staging_error};
use super::staging::Disposal;
use super::{ContainerSpec, Leftover, TaskContext, TaskMetrics};
use crate::config::KeepFiles;
use crate::fault::{ContainerRole, TaskError};
use crate::ids::TaskId;
use crate::process::ShutdownPhase;

/// How the init container ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialized {
    Ready,
    /// The pilot was told to end while it ran.
    Interrupted,
}

/// Runs the init container to its end.
///
/// # Errors
/// When it failed, timed out or could not be started; no event may be taken then.
pub async fn run_init(
    context: &TaskContext,
    plan: &ContainerSpec,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> Result<Initialized, TaskError> {
    let name = format!("init-{}", TaskId::random());
    async {
        info!("init container started");
        let stage = context
            .dirs
            .stage(&name)
            .map_err(|error| staging_error("directories", &error))?;
        let result = match launch(
            context,
            plan,
            ContainerRole::Init,
            &stage,
            None,
            shutdown,
            &mut TaskMetrics::default(),
        )
        .await
        {
            Ok(ContainerOutcome::Succeeded) => Ok(Initialized::Ready),
            Ok(ContainerOutcome::Interrupted) => Ok(Initialized::Interrupted),
            Ok(ContainerOutcome::Failed(error)) | Err(error) => Err(error),
        };
        let disposal = match (&result, context.keep) {
            (Ok(_), KeepFiles::Failed) => Disposal::Remove,
            _ => Disposal::Keep,
        };
        let leftover = Leftover::of(stage, Some(disposal), Vec::new(), &context.kept);
        leftover.clear().await;
        info!("init container ended");
        result
    }
    .instrument(info_span!("init"))
    .await
}
