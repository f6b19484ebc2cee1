//! The binds of a container: its own directories, the job's input files, the external directories, `/cvmfs`.

use std::path::Path;

use tokio::sync::watch;

use super::staging::{HUB_IN_CONTAINER, IO_IN_CONTAINER};
use super::{ContainerSpec, CvmfsBind, ExternalError, TaskContext};
use crate::blocking;
use crate::container::{Access, Bind, BindError};
use crate::process::ShutdownPhase;

/// The binds of one container. The pilot's own directories have fixed names in it.
///
/// # Errors
/// When a file system below an external directory can't be protected from writes, or the directory no longer
/// exists.
pub(super) async fn binds(
    context: &TaskContext,
    plan: &ContainerSpec,
    io: Option<&Path>,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Result<Vec<Bind>, ExternalError> {
    let shared = shared_binds(context, plan, shutdown).await?;
    let resolving = blocking::start(own_binds(context, io));
    let mut binds = resolving
        .await
        .map_err(|panicked| ExternalError::Table(panicked.into()))??;
    binds.extend(shared);
    Ok(binds)
}

/// The binds among [`binds`] that all containers share.
///
/// # Errors
/// Returns the errors of [`binds`].
pub(super) async fn shared_binds(
    context: &TaskContext,
    plan: &ContainerSpec,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Result<Vec<Bind>, ExternalError> {
    let scratch = context.dirs.apptainer();
    let external = context
        .external
        .binds(&context.guard, &scratch, shutdown)
        .await?;
    let cvmfs = match plan.cvmfs {
        CvmfsBind::Wanted => {
            let cvmfs = &context.cvmfs;
            cvmfs.binds(&context.guard, &scratch, shutdown).await
        }
        CvmfsBind::LeftOut => Vec::new(),
    };
    let mut binds = Vec::from_iter(context.inputs.clone());
    binds.extend(in_order(external, cvmfs));
    binds.extend(plan.repair.clone());
    Ok(binds)
}

/// The binds of the pilot's own directories, the first of [`binds`]. The returned closure blocks.
pub(super) fn own_binds(
    context: &TaskContext,
    io: Option<&Path>,
) -> impl FnOnce() -> Result<Vec<Bind>, BindError> + Send + use<> {
    let mut own = vec![(context.dirs.hub(), HUB_IN_CONTAINER)];
    own.extend(io.map(|io| (io.to_owned(), IO_IN_CONTAINER)));
    move || {
        let own = own.into_iter();
        own.map(|(source, target)| Bind::new(source, Path::new(target), Access::ReadWrite))
            .collect()
    }
}

/// Orders the external directories and `/cvmfs`, which may contain some of them: parents first, because a
/// parent bound later would cover its children.
fn in_order(external: Vec<Bind>, cvmfs: Vec<Bind>) -> Vec<Bind> {
    let mut binds = external;
    for bind in cvmfs {
        if binds.iter().all(|other| other.target() != bind.target()) {
            binds.push(bind);
        }
    }
    binds.sort_by_key(|bind| bind.target().components().count());
    binds
}
