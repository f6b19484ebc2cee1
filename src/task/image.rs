//! Makes an image usable: ties the container module's plan to the process module's supervision.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tracing::info;

use super::TaskContext;
use crate::config::ImagePolicy;
use crate::container::{ImageError, Invocation, LockOutcome, Resolution};
use crate::fault::{Diagnosis, FaultClass};
use crate::process::{CaptureError, Captured, ChildLimits, Query, ShutdownPhase, capture};

/// How long a conversion may take, our own or that of another pilot on this EP that we wait for. Large
/// images of registries take minutes.
const PATIENCE: Duration = Duration::from_hours(1);

/// Why an image can't be used.
#[derive(Debug, Error)]
pub enum PrepareError {
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The converter could not be run.
    #[error(transparent)]
    Run(#[from] CaptureError),
}

impl PrepareError {
    /// What Apptainer said when it converted is not advice, whatever is in it.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        match self {
            Self::Image(ImageError::Build { .. }) => Diagnosis::without_fix(self.to_string()),
            Self::Image(_) | Self::Run(_) => Diagnosis::of_text(&self.to_string()),
        }
    }

    #[must_use]
    pub fn class(&self) -> FaultClass {
        match self {
            Self::Image(error) => error.class(),
            Self::Run(_) => FaultClass::Ep,
        }
    }
}

/// The sandbox directory of `image`, converted first if the policy wants that.
///
/// # Errors
/// When there is none and none can be made.
pub async fn prepare(
    context: &TaskContext,
    image: &str,
    cwd: &Path,
    policy: &ImagePolicy,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> Result<PathBuf, PrepareError> {
    let conversion = match Resolution::of(image, cwd, policy)? {
        Resolution::Ready(directory) => return Ok(directory),
        Resolution::Convert(conversion) => conversion,
    };
    let locked = match conversion.turn(PATIENCE).await? {
        LockOutcome::Done(directory) => {
            info!(image, directory = %directory.display(), "image is converted already");
            return Ok(directory);
        }
        LockOutcome::Ours(locked) => locked,
    };
    info!(image, "converting the image to a sandbox directory");
    let invocation = locked.build(&context.apptainer, context.verbosity)?;
    let built = run(context, invocation, shutdown.clone()).await?;
    if !built.succeeded() {
        return Err(locked.failed(&built.stderr).into());
    }
    if let Some(invocation) = locked.reread(&context.apptainer)? {
        info!(
            image,
            "the converted image has a runscript that runs nothing: looking for its own"
        );
        let read = run(context, invocation, shutdown).await?;
        locked.restore(&read.stdout)?;
    }
    let directory = locked.commit()?;
    info!(image, directory = %directory.display(), "image converted");
    Ok(directory)
}

async fn run(
    context: &TaskContext,
    invocation: Invocation,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> Result<Captured, CaptureError> {
    let query = Query {
        program: invocation.program,
        args: invocation.args,
        env: invocation.env,
        cwd: None,
        scratch: context.dirs.apptainer(),
    };
    let limits = ChildLimits {
        timeout: Some(PATIENCE),
        grace: context.grace,
    };
    capture(&context.guard, query, limits, shutdown).await
}
