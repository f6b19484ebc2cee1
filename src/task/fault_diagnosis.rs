//! Finds out whose fault a container's failure is: by the rules of [`crate::fault`], and by asking the
//! machine where exit code and stderr can't tell.
//!
//! | evidence | question | fault |
//! | --- | --- | --- |
//! | stderr points at Apptainer, or at nothing | can a container be made of this image, with room left for other threads? | if not, as Apptainer's answer says |
//! | a page or file can't be read | can the image and the external directories be read through? | if not, the image or this EP |
//! | any failure | can a file be written beside the task's, after the task's own files are removed? | if not, this EP |
//! | all is well | | the task |

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use tokio::sync::watch;
use tracing::{info, warn};

use super::path_probe::{PathHealth, ProbeDepth, look, may_pass};
use super::probe_container::{ContainerProbeDepth, ContainerProbeOutcome, probe, shells_code};
use super::staging::TaskDirs;
use super::{ContainerSpec, TaskContext, file_work};
use crate::container::{remove_tree, tree_bytes};
use crate::fault::{self, Attribution, Cause, FaultClass, NextStep};
use crate::process::{ExitStatus, ShutdownPhase, output};

/// How much of stderr's beginning is evidence, in bytes. Apptainer's warnings stand there; the task's output
/// follows.
const HEAD: u64 = 16 * 1024;
/// A disk that can't take another file of this size, in bytes, is full.
const NEEDED: usize = 1 << 20;

/// The parts of a container's stderr that are evidence.
#[derive(Debug, Default)]
pub(super) struct Stderr {
    pub(super) tail: Vec<u8>,
    evidence: Vec<u8>,
}

impl Stderr {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let tail = output::tail(path, fault::READ)?;
        let mut evidence = Vec::new();
        File::open(path)?.take(HEAD).read_to_end(&mut evidence)?;
        evidence.push(b'\n');
        evidence.extend_from_slice(&tail);
        Ok(Self { tail, evidence })
    }
}

/// Attributes the failure of a container that ended by itself.
pub(super) async fn blame(
    context: &TaskContext,
    plan: &ContainerSpec,
    stage: &TaskDirs,
    exit: ExitStatus,
    stderr: &Stderr,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Attribution {
    let code = shells_code(exit);
    // Checked first: on a full disk neither the task nor Apptainer can write what is wrong.
    if code != 0
        && let Some(full) = full_disk(context, stage).await
    {
        return full;
    }
    let next_step = fault::suspect(code, &stderr.evidence);
    let asked = match next_step {
        NextStep::Task => Attribution::Task,
        NextStep::Probe | NextStep::ProbeAndRead => ask(context, plan, next_step, shutdown).await,
    };
    if next_step != NextStep::Task {
        info!(code, ?next_step, ?asked, "diagnosed a container's failure");
    }
    asked
}

async fn ask(
    context: &TaskContext,
    plan: &ContainerSpec,
    next_step: NextStep,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Attribution {
    let room = match SpareThreads::take() {
        Ok(room) => room,
        Err(error) => {
            let said = format!("no {THREADS} further threads could be started: {error}");
            return Attribution::Cause(Cause::Limits, said);
        }
    };
    let probed = probe(context, plan, ContainerProbeDepth::Start, shutdown).await;
    drop(room);
    let read = |extent| unreadable(context, &plan.image, extent, shutdown);
    match (probed, next_step) {
        (None, _) => Attribution::Unknown,
        (
            Some(ContainerProbeOutcome::Well { .. } | ContainerProbeOutcome::Made(_)),
            NextStep::ProbeAndRead,
        ) => read(ProbeDepth::Through).await.unwrap_or(Attribution::Task),
        (Some(ContainerProbeOutcome::Well { .. } | ContainerProbeOutcome::Made(_)), _) => {
            Attribution::Task
        }
        // After the death of a file system Apptainer may report that it contains no image.
        (Some(ContainerProbeOutcome::Broken { cause, said }), _)
            if cause.class() == FaultClass::Image =>
        {
            read(ProbeDepth::Glance)
                .await
                .unwrap_or(Attribution::Cause(cause, said))
        }
        (Some(ContainerProbeOutcome::Broken { cause, said }), _) => Attribution::Cause(cause, said),
        (Some(ContainerProbeOutcome::Killed(said)), _) => Attribution::Cause(Cause::Unknown, said),
    }
}

/// Idle threads, as many as a container's start needs on a machine with many cores. A probe that works while
/// they exist proves that threads were not the problem; without them it may have been lucky.
struct SpareThreads(Vec<mpsc::Sender<()>>);

const THREADS: usize = 32;

impl SpareThreads {
    fn take() -> io::Result<Self> {
        let mut room = Self(Vec::new());
        for _ in 0..THREADS {
            let (sender, until_dropped) = mpsc::channel::<()>();
            thread::Builder::new()
                .name("room".into())
                .stack_size(16 * 1024)
                .spawn(move || until_dropped.recv())?;
            room.0.push(sender);
        }
        Ok(room)
    }
}

/// Reads the image and the external directories. Returns the first failure.
async fn unreadable(
    context: &TaskContext,
    image: &Path,
    extent: ProbeDepth,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Option<Attribution> {
    let mut paths = vec![image.to_path_buf()];
    paths.extend(context.external.paths());
    // External directories may hold terabytes.
    for (index, path) in paths.into_iter().enumerate() {
        let is_image = index == 0;
        let extent = if is_image { extent } else { ProbeDepth::Glance };
        match look(
            &context.guard,
            std::slice::from_ref(&path),
            extent,
            &context.dirs.apptainer(),
            shutdown,
        )
        .await
        {
            Ok(PathHealth::Failing { path: at, error }) if may_pass(&error) => {
                let said = format!("`{}` can't be read: {error}", at.display());
                // A file within a readable image directory fails: the image is broken. All of it fails: the
                // EP is.
                let cause = if is_image && at != path {
                    Cause::ImageDamaged
                } else {
                    Cause::Storage
                };
                return Some(Attribution::Cause(cause, said));
            }
            // A large image may take longer than the deadline, which proves nothing.
            Ok(PathHealth::Hanging(after)) if extent == ProbeDepth::Glance => {
                let said = format!(
                    "`{}` gave no answer within {} s",
                    path.display(),
                    after.as_secs()
                );
                return Some(Attribution::Cause(Cause::Hanging, said));
            }
            Ok(_) | Err(_) => {}
        }
    }
    None
}

/// Whether the disk is full. The task's own files may have filled it: they are removed, and if there is space
/// then, the failure is the task's own.
async fn full_disk(context: &TaskContext, stage: &TaskDirs) -> Option<Attribution> {
    let directory = context.dirs.apptainer();
    let own = stage.own();
    let tried = file_work(move || {
        let mut freed = 0;
        let mut written = write_something(&directory);
        for path in own {
            if written.is_err() {
                freed += tree_bytes(&path);
                written = remove_tree(&path).and_then(|()| write_something(&directory));
            }
        }
        Ok((written, freed))
    });
    let (written, freed) = tried.await.ok()?;
    if freed > 0 {
        warn!(
            freed,
            "the disk is full: what this task wrote there is removed"
        );
        stage.freed(freed);
    }
    let error = written.err()?;
    let said = format!("no file can be written here: {error}");
    Some(Attribution::Cause(Cause::of_io(&error), said))
}

/// Writes a file of 1 MiB without a name and reads it back.
///
/// # Errors
/// Returns the kernel's error if that fails.
pub fn write_something(directory: &Path) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut file = tempfile::tempfile_in(directory)?;
    let written = vec![0x5a; NEEDED];
    file.write_all(&written)?;
    // Some file systems, above all remote ones, allocate the space only now.
    file.sync_data()?;
    file.seek(SeekFrom::Start(0))?;
    let mut read = Vec::new();
    file.read_to_end(&mut read)?;
    if read == written {
        Ok(())
    } else {
        Err(io::Error::other(
            "what was read back is not what was written",
        ))
    }
}
