//! Prepares an image: converts it to a sandbox directory if the policy wants that. Blocking threads handle
//! the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tracing::info;

use super::TaskContext;
use crate::blocking::{self, Panicked};
use crate::config::ImagePolicy;
use crate::container::{ConversionLock, ImageError, Invocation, LockOutcome, Resolution};
use crate::fault::{Diagnosis, FaultClass};
use crate::process::{CaptureError, CaptureQuery, Captured, ChildLimits, ShutdownPhase, capture};

/// How long a conversion may take, our own or one by another pilot on this EP that we wait for. Large images
/// from registries take minutes.
const PATIENCE: Duration = Duration::from_hours(1);

/// The reason why an image can't be used.
#[derive(Debug, Error)]
pub enum PrepareError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Run(#[from] CaptureError),
    #[error(transparent)]
    Files(#[from] Panicked),
}

impl PrepareError {
    /// Apptainer's output of a failed conversion is never taken for advice.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        match self {
            Self::Image(ImageError::Build { .. }) => Diagnosis::without_fix(self.to_string()),
            Self::Image(_) | Self::Run(_) | Self::Files(_) => Diagnosis::of_text(&self.to_string()),
        }
    }

    /// Whether another Apptainer on this machine might convert the image.
    #[must_use]
    pub fn depends_on_apptainer(&self) -> bool {
        match self {
            Self::Image(error) => error.depends_on_apptainer(),
            Self::Run(_) | Self::Files(_) => false,
        }
    }

    #[must_use]
    pub fn class(&self) -> FaultClass {
        match self {
            Self::Image(error) => error.class(),
            Self::Run(_) | Self::Files(_) => FaultClass::Ep,
        }
    }
}

/// The sandbox directory of `image`, converted first if the policy wants that.
///
/// # Errors
/// When the image can't be used and can't be converted.
pub async fn prepare(
    context: &TaskContext,
    image: &str,
    cwd: &Path,
    policy: &ImagePolicy,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> Result<PathBuf, PrepareError> {
    let (of, cwd, policy) = (image.to_owned(), cwd.to_owned(), policy.clone());
    let resolving = blocking::start(move || Resolution::of(&of, &cwd, &policy));
    let conversion = match resolving.await?? {
        Resolution::Ready(directory) => return Ok(directory),
        Resolution::Convert(conversion) => conversion,
    };
    let locked = match conversion.turn(PATIENCE).await? {
        LockOutcome::Done(directory) => {
            info!(image, directory = %directory.display(), "image is converted already");
            return Ok(directory);
        }
        LockOutcome::Ours(lock) => OwnedLock(Some(Arc::new(lock))),
    };
    info!(image, "converting the image to a sandbox directory");
    let (apptainer, verbosity) = (context.apptainer.clone(), context.verbosity);
    let user_namespace = context.user_namespace;
    let invocation = locked
        .with(move |lock| lock.build(&apptainer, verbosity, user_namespace))
        .await?;
    let built = run(context, invocation, shutdown.clone()).await?;
    if !built.succeeded() {
        let failed = move |lock: &ConversionLock| Err(lock.failed(&built.stderr));
        return locked.with(failed).await;
    }
    let apptainer = context.apptainer.clone();
    let reread = locked
        .with(move |lock| lock.reread(&apptainer, user_namespace))
        .await?;
    if let Some(invocation) = reread {
        info!(
            image,
            "the converted image has a runscript that runs nothing: looking for its own"
        );
        let read = run(context, invocation, shutdown).await?;
        locked.with(move |lock| lock.restore(&read.stdout)).await?;
    }
    let directory = locked.commit().await?;
    info!(image, directory = %directory.display(), "image converted");
    Ok(directory)
}

/// The right to convert an image. Blocking threads use and drop it, because dropping it removes the
/// unfinished sandbox, perhaps gigabytes.
struct OwnedLock(Option<Arc<ConversionLock>>);

impl OwnedLock {
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ConversionLock) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, PrepareError> {
        let Some(lock) = self.0.clone() else {
            return Err(Panicked.into());
        };
        Ok(blocking::start(move || work(&lock)).await??)
    }

    async fn commit(mut self) -> Result<PathBuf, PrepareError> {
        // No other thread holds the lock any more.
        let Some(lock) = self.0.take().and_then(Arc::into_inner) else {
            return Err(Panicked.into());
        };
        Ok(blocking::start(move || lock.commit()).await??)
    }
}

impl Drop for OwnedLock {
    fn drop(&mut self) {
        let lock = self.0.take();
        drop(blocking::start(move || drop(lock)));
    }
}

async fn run(
    context: &TaskContext,
    invocation: Invocation,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> Result<Captured, CaptureError> {
    let query = CaptureQuery {
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
