//! The check `container`: starts one container as tasks get it, tests in it what a task may rely on, and
//! reads back a file that it wrote into the data hub. No program of the image is started.

use std::time::Duration;

use super::{CheckNote, CheckProblem};
use crate::container::{ProcMount, UserNamespace};
use crate::fault::Cause;
use crate::process::ShutdownSender;
use crate::task::cvmfs::CVMFS;
use crate::task::probe_container::{ContainerProbeDepth, ContainerProbeOutcome, probe};
use crate::task::{ContainerSpec, CvmfsBind, TaskContext};

/// Starts a container of the tasks' image. If that fails for a reason with a workaround, tries again with it;
/// the workaround then applies to all containers of the pilot.
///
/// # Errors
/// When tasks could not run in any container.
pub async fn container(
    context: &mut TaskContext,
    plan: &mut ContainerSpec,
) -> Result<CheckNote, CheckProblem> {
    let mut taken: Vec<(Workaround, String)> = Vec::new();
    loop {
        let (cause, said) = match attempt(context, plan, ContainerProbeDepth::Hub).await {
            Ok(progress) => return Ok(progress.seen(&taken)),
            Err(failure) => failure,
        };
        let Some(workaround) = Workaround::find(context, plan, cause, &said) else {
            return Err(CheckProblem::of(cause, said));
        };
        workaround.take(context, plan);
        taken.push((workaround, said));
    }
}

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
    if let Err((_, said)) = &attempted
        && is_about_cvmfs(plan, said)
    {
        taken.push((Workaround::NoCvmfs, said.clone()));
        plan.cvmfs = CvmfsBind::LeftOut;
        attempted = attempt(context, plan, depth).await;
    }
    match attempted {
        Ok(progress) => Ok(progress.seen(&taken)),
        Err((cause, said)) => Err(CheckProblem::of(cause, format!("init container: {said}"))),
    }
}

/// A change that makes containers possible on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Workaround {
    NoProc,
    NoCvmfs,
    UserNamespace,
}

impl Workaround {
    /// A workaround that may help and was not taken yet.
    fn find(context: &TaskContext, plan: &ContainerSpec, cause: Cause, said: &str) -> Option<Self> {
        if cause == Cause::MaskedProc && context.proc == ProcMount::Own {
            Some(Self::NoProc)
        } else if is_about_cvmfs(plan, said) {
            Some(Self::NoCvmfs)
        } else if cause == Cause::Capabilities
            && context.user_namespace == UserNamespace::AsInstalled
        {
            Some(Self::UserNamespace)
        } else {
            None
        }
    }

    fn take(self, context: &mut TaskContext, plan: &mut ContainerSpec) {
        match self {
            Self::NoProc => context.proc = ProcMount::None,
            Self::NoCvmfs => plan.cvmfs = CvmfsBind::LeftOut,
            Self::UserNamespace => context.user_namespace = UserNamespace::Always,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NoProc => "with `--no-mount proc`, so tasks have no /proc",
            Self::NoCvmfs => "without /cvmfs",
            Self::UserNamespace => "with `--userns`",
        }
    }

    /// The advice for getting what tasks miss with the workaround; `None` if they miss nothing.
    fn fix(self) -> Option<&'static str> {
        match self {
            Self::UserNamespace => None,
            Self::NoProc => Some(Cause::MaskedProc.remedy()),
            Self::NoCvmfs => Some(
                "give the image a directory /cvmfs, or ask the site for `enable overlay` or `enable underlay` = yes \
                 in apptainer.conf",
            ),
        }
    }
}

/// Whether `/cvmfs` is what Apptainer could not bind. That is no machine's fault.
fn is_about_cvmfs(plan: &ContainerSpec, said: &str) -> bool {
    plan.cvmfs == CvmfsBind::Wanted && said.contains(CVMFS)
}

struct ProbeProgress {
    took: Duration,
    inside: ProbedInside,
}

enum ProbedInside {
    /// Everything was tried. The strings name what tasks may miss.
    Everything(Vec<String>),
    /// Nothing was tried: the site doesn't allow files to be bound into a container.
    Nothing,
}

impl ProbeProgress {
    fn seen(self, taken: &[(Workaround, String)]) -> CheckNote {
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
