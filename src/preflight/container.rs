//! One container as tasks get it, or as the init container is: started, tested for what a task may rely on, and
//! asked to write a file into the data hub, which is read back. No program of the image is started.

use std::time::Duration;

use super::rung::{Workaround, is_about_cvmfs};
use super::{CheckNote, CheckProblem};
use crate::fault::Cause;
use crate::process::ShutdownSender;
use crate::task::probe_container::{ContainerProbeDepth, ContainerProbeOutcome, GateTrial, probe};
use crate::task::{ContainerSpec, CvmfsBind, TaskContext, TaskStart};

/// Starts a container of the init container's image, on a machine that is known to run containers.
///
/// # Errors
/// When the image is unfit.
pub async fn init_container(
    context: &TaskContext,
    plan: &mut ContainerSpec,
) -> Result<CheckNote, CheckProblem> {
    let depth = ContainerProbeDepth::Start;
    let mut taken = Vec::new();
    let mut attempted = attempt(context, plan, depth).await;
    if let Err(Obstacle { said, .. }) = &attempted
        && plan.cvmfs == CvmfsBind::Wanted
        && is_about_cvmfs(&context.apptainer, said)
    {
        taken.push((Workaround::NoCvmfs, said.clone()));
        plan.cvmfs = CvmfsBind::LeftOut;
        attempted = attempt(context, plan, depth).await;
    }
    match attempted {
        Ok(progress) => Ok(progress.seen(&taken)),
        Err(Obstacle { cause, said, .. }) => {
            Err(CheckProblem::of(cause, format!("init container: {said}")))
        }
    }
}

pub(super) struct ProbeProgress {
    took: Duration,
    inside: ProbedInside,
    gate: GateTrial,
}

enum ProbedInside {
    /// Everything was tried. The strings name what tasks may miss.
    Everything(Vec<String>),
    /// Nothing was tried: the site doesn't allow files to be bound into a container.
    Nothing,
}

impl ProbeProgress {
    /// How tasks start in their containers, if `wanted` says that they should wait for their event.
    pub(super) fn task_start(&self, wanted: TaskStart) -> TaskStart {
        match self.gate {
            GateTrial::Passed => wanted,
            GateTrial::NotTried | GateTrial::Useless(_) => TaskStart::WithContainer,
        }
    }

    pub(super) fn seen(self, taken: &[(Workaround, String)]) -> CheckNote {
        let said = self.said();
        let (mut buts, mut fixes) = (Vec::new(), Vec::new());
        for (workaround, why) in taken {
            buts.push(format!("only {}: {why}", workaround.words()));
            fixes.extend(workaround.fix());
        }
        if let ProbedInside::Everything(notes) = self.inside
            && !notes.is_empty()
        {
            buts.push(notes.join(", "));
            fixes.push("mend the image if tasks need that");
        }
        if let GateTrial::Useless(why) = self.gate {
            buts.push(format!("no container can wait for its event: {why}"));
        }
        let said = if buts.is_empty() {
            said
        } else {
            format!("{said}, but {}", buts.join("; "))
        };
        if fixes.is_empty() {
            CheckNote::Fine(said)
        } else {
            CheckNote::WorkedAround(said, fixes.join("; "))
        }
    }

    fn said(&self) -> String {
        let secs = self.took.as_secs_f64();
        match &self.inside {
            ProbedInside::Everything(_) => {
                format!("one was started and wrote a file in {secs:.2} s")
            }
            ProbedInside::Nothing => format!(
                "one was started in {secs:.2} s; whether it can write was not tried, as no script can be shown in it"
            ),
        }
    }
}

/// The reason why no such container can run.
#[derive(Debug, Clone)]
pub(super) struct Obstacle {
    pub(super) cause: Cause,
    pub(super) said: String,
    /// Whether another Apptainer, or the same with other flags, might do better.
    pub(super) depends_on_apptainer: bool,
}

impl Obstacle {
    pub(super) fn of(cause: Cause, said: String) -> Self {
        Self {
            cause,
            said,
            depends_on_apptainer: cause.depends_on_apptainer(),
        }
    }

    /// One that would be met with any Apptainer.
    fn everywhere(said: String) -> Self {
        Self {
            cause: Cause::Unknown,
            said,
            depends_on_apptainer: false,
        }
    }
}

pub(super) async fn attempt(
    context: &TaskContext,
    plan: &ContainerSpec,
    depth: ContainerProbeDepth,
) -> Result<ProbeProgress, Obstacle> {
    let shutdown = ShutdownSender::new();
    let (took, inside, gate) = match probe(context, plan, depth, &shutdown.subscribe()).await {
        Some(ContainerProbeOutcome::Well { took, notes, gate }) => {
            (took, ProbedInside::Everything(notes), gate)
        }
        Some(ContainerProbeOutcome::Made(took)) => {
            let why = "no script can be shown in them".to_owned();
            (took, ProbedInside::Nothing, GateTrial::Useless(why))
        }
        Some(ContainerProbeOutcome::Broken { cause, said }) => {
            return Err(Obstacle::of(cause, said));
        }
        Some(ContainerProbeOutcome::Killed(said)) => return Err(Obstacle::everywhere(said)),
        None => {
            return Err(Obstacle::everywhere("the pilot was told to end".to_owned()));
        }
    };
    Ok(ProbeProgress { took, inside, gate })
}
