//! The check `container`: makes one container as tasks get it, tries in it what a task may rely on, and reads
//! back what it wrote into the data hub. Nothing of the image is started.

use std::time::Duration;

use super::{CheckNote, CheckProblem};
use crate::container::ProcMount;
use crate::fault::Cause;
use crate::process::ShutdownSender;
use crate::task::probe_container::{ContainerProbeDepth, ContainerProbeOutcome, probe};
use crate::task::{ContainerSpec, TaskContext};

/// Makes a container of the tasks' image and, if that fails because `/proc` is masked, one without `/proc`.
///
/// # Errors
/// When tasks could not run in either.
pub async fn container(
    context: &mut TaskContext,
    plan: &ContainerSpec,
) -> Result<CheckNote, CheckProblem> {
    let masked = match attempt(context, plan, ContainerProbeDepth::Hub).await {
        Ok(tried) => return Ok(tried.seen()),
        Err((Cause::MaskedProc, said)) if context.proc == ProcMount::Own => said,
        Err((cause, said)) => return Err(CheckProblem::of(cause, said)),
    };
    context.proc = ProcMount::None;
    match attempt(context, plan, ContainerProbeDepth::Hub).await {
        Ok(tried) => Ok(CheckNote::WorkedAround(
            format!(
                "{}, but only with `--no-mount proc`, so tasks have no /proc: {masked}",
                tried.said()
            ),
            Cause::MaskedProc.remedy().to_owned(),
        )),
        Err((cause, said)) => Err(CheckProblem::of(cause, said)),
    }
}

/// Makes a container of the init container's image, on a machine that is known to run containers.
///
/// # Errors
/// When its image is unfit.
pub async fn init_container(
    context: &TaskContext,
    plan: &ContainerSpec,
) -> Result<CheckNote, CheckProblem> {
    match attempt(context, plan, ContainerProbeDepth::Start).await {
        Ok(tried) => Ok(tried.seen()),
        Err((cause, said)) => Err(CheckProblem::of(cause, format!("init container: {said}"))),
    }
}

struct ProbeProgress {
    took: Duration,
    inside: ProbedInside,
}

enum ProbedInside {
    /// Everything was tried; these are things that tasks may miss.
    Everything(Vec<String>),
    /// Nothing was tried: the site lets no file be bound into a container.
    Nothing,
}

impl ProbeProgress {
    fn seen(self) -> CheckNote {
        let said = self.said();
        match self.inside {
            ProbedInside::Everything(notes) if !notes.is_empty() => CheckNote::WorkedAround(
                format!("{said}, but {}", notes.join(", ")),
                "mend the image if tasks need that".to_owned(),
            ),
            ProbedInside::Everything(_) | ProbedInside::Nothing => CheckNote::Fine(said),
        }
    }

    fn said(&self) -> String {
        let secs = self.took.as_secs_f64();
        match self.inside {
            ProbedInside::Everything(_) => {
                format!("one was started and wrote a file in {secs:.2} s")
            }
            ProbedInside::Nothing => format!(
                "one was started in {secs:.2} s; whether it can write was not tried, as no script can be shown in it"
            ),
        }
    }
}

async fn attempt(
    context: &TaskContext,
    plan: &ContainerSpec,
    depth: ContainerProbeDepth,
) -> Result<ProbeProgress, (Cause, String)> {
    let shutdown = ShutdownSender::new();
    let (took, inside) = match probe(context, plan, depth, &shutdown.subscribe()).await {
        Some(ContainerProbeOutcome::Well { took, notes }) => {
            (took, ProbedInside::Everything(notes))
        }
        Some(ContainerProbeOutcome::Made(took)) => (took, ProbedInside::Nothing),
        Some(ContainerProbeOutcome::Broken { cause, said }) => return Err((cause, said)),
        None => return Err((Cause::Unknown, "the pilot was told to end".to_owned())),
    };
    Ok(ProbeProgress { took, inside })
}
