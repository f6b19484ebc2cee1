//! The check `container`: the ladder. A first container of the tasks' image is tried with one Apptainer after
//! the other, then with each in a user namespace (`--userns`), then without what the machine refuses (`/proc`,
//! `/cvmfs`). The first rung that holds makes all containers of the pilot.
//!
//! Another rung is tried only where another Apptainer, or other flags, might do better: not if the image is at
//! fault, a disk is full or the container was killed.

use std::collections::VecDeque;

use tracing::info;

use super::apptainer_search::{ApptainerSearch, out_of_time};
use super::container::{Obstacle, attempt};
use super::rung::{FailedRung, Rung, Workaround};
use super::{CheckNote, CheckProblem};
use crate::task::probe_container::ContainerProbeDepth;
use crate::task::{ContainerSpec, TaskContext};

/// Finds the way in which the containers of `plan` can be made here, and sets it for all containers. Begins
/// with the Apptainer of `context`.
///
/// # Errors
/// When tasks could not run in any container.
pub async fn container(
    context: &mut TaskContext,
    plan: &mut ContainerSpec,
    search: &mut ApptainerSearch<'_>,
) -> Result<CheckNote, CheckProblem> {
    let mut ladder = Ladder::of(Rung::plain(context.apptainer.clone()));
    while let Some(rung) = ladder.next(search).await? {
        rung.apply(context, plan);
        let tried = search.spend(attempt(context, plan, ContainerProbeDepth::Hub));
        let obstacle = match tried.await {
            Some(Ok(progress)) => {
                ladder.log(&rung);
                context.task_start = progress.task_start(context.task_start);
                return Ok(progress.seen(&rung.taken));
            }
            Some(Err(obstacle)) => obstacle,
            None => out_of_time(),
        };
        if ladder.is_over(&rung, &obstacle) {
            return Err(CheckProblem::of(obstacle.cause, obstacle.said));
        }
        search.failed(FailedRung {
            rung,
            cause: obstacle.cause,
            said: obstacle.said,
        });
    }
    Err(search.nothing_holds())
}

/// The rungs that are still to be tried, in three lists.
struct Ladder {
    first: Option<Rung>,
    /// Whether further Apptainers may help.
    looks_on: bool,
    with_user_namespace: VecDeque<Rung>,
    /// Tasks miss something there.
    with_less: VecDeque<Rung>,
    failed: usize,
}

impl Ladder {
    fn of(first: Rung) -> Self {
        Self {
            first: Some(first),
            looks_on: true,
            with_user_namespace: VecDeque::new(),
            with_less: VecDeque::new(),
            failed: 0,
        }
    }

    async fn next(
        &mut self,
        search: &mut ApptainerSearch<'_>,
    ) -> Result<Option<Rung>, CheckProblem> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.looks_on
            && let Some(apptainer) = search.next().await?
        {
            return Ok(Some(Rung::plain(apptainer)));
        }
        let next = self.with_user_namespace.pop_front();
        Ok(next.or_else(|| self.with_less.pop_front()))
    }

    /// Whether the failure of `rung` is that of all others too. If it isn't, adds the rung that answers it.
    fn is_over(&mut self, rung: &Rung, obstacle: &Obstacle) -> bool {
        self.failed += 1;
        let answer = rung.answer_to(obstacle.cause, &obstacle.said);
        if !obstacle.depends_on_apptainer {
            self.looks_on = false;
            self.with_user_namespace.clear();
            self.with_less.clear();
            // The image may be to blame for no more than a missing mount point.
            if answer != Some(Workaround::NoCvmfs) {
                return true;
            }
        }
        match answer {
            Some(Workaround::UserNamespace) => self
                .with_user_namespace
                .push_back(rung.and(Workaround::UserNamespace, &obstacle.said)),
            Some(less) => self.with_less.push_back(rung.and(less, &obstacle.said)),
            None => {}
        }
        false
    }

    /// Names the rung that holds, if it isn't the first.
    fn log(&self, holds: &Rung) {
        if self.failed > 0 {
            info!(
                apptainer = %holds.apptainer.program().display(),
                flags = holds.flags(),
                failed_before = self.failed,
                "this Apptainer makes the containers"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Apptainer, ApptainerEnvironment};
    use crate::fault::Cause;

    fn rung(program: &str) -> Rung {
        let environment = ApptainerEnvironment::default();
        Rung::plain(Apptainer::new(program.into(), environment))
    }

    /// The rungs after the first, where each fails with `cause`.
    fn rungs_after(cause: Cause, said: &str) -> Vec<String> {
        let mut ladder = Ladder::of(rung("/a"));
        let mut next = ladder.first.take();
        let mut flags = Vec::new();
        while let Some(rung) = next {
            if ladder.is_over(&rung, &Obstacle::of(cause, said.to_owned())) {
                flags.push("over".to_owned());
                break;
            }
            next = ladder.with_user_namespace.pop_front();
            next = next.or_else(|| ladder.with_less.pop_front());
            flags.extend(next.as_ref().map(Rung::flags));
        }
        flags
    }

    #[test]
    fn each_failure_has_its_answer_and_the_ladder_ends() {
        let (userns, no_proc) = ("with `--userns`", "with `--no-mount proc`");
        for (cause, said, expected) in [
            (Cause::Unknown, "starter-suid is not setuid", &[userns][..]),
            (Cause::Namespaces, "none", &[userns]),
            (Cause::Capabilities, "all", &[userns]),
            (Cause::MaskedProc, "can't mount proc", &[no_proc]),
            (Cause::Hanging, "no answer", &[]),
            (Cause::DiskFull, "full", &["over"]),
            (Cause::ImageRunscript, "no interpreter", &["over"]),
            (
                Cause::ImageIncomplete,
                "destination /cvmfs doesn't exist in container",
                &["without /cvmfs", "without /cvmfs and with `--userns`"],
            ),
            (
                Cause::BindSource,
                "mount source /cvmfs/x doesn't exist",
                &["without /cvmfs", "over"],
            ),
        ] {
            assert_eq!(rungs_after(cause, said), expected, "{cause}");
        }
    }

    #[test]
    fn an_apptainer_of_cvmfs_may_name_its_own_files() {
        let own = rung("/cvmfs/oasis.opensciencegrid.org/mis/apptainer/current/bin/apptainer");
        let said = "can't run /cvmfs/oasis.opensciencegrid.org/mis/apptainer/1.4/libexec/starter";
        let answer = own.answer_to(Cause::Unknown, said);
        assert_eq!(answer, Some(Workaround::UserNamespace));
        let answer = own.answer_to(Cause::Mount, "can't mount /cvmfs");
        assert_eq!(answer, Some(Workaround::NoCvmfs));
    }

    #[test]
    fn a_killed_container_is_no_reason_for_another_apptainer() {
        let mut ladder = Ladder::of(rung("/a"));
        let killed = Obstacle {
            depends_on_apptainer: false,
            ..Obstacle::of(Cause::Unknown, "exit code 137".to_owned())
        };
        assert!(ladder.is_over(&rung("/a"), &killed));
    }
}
