//! The check `apptainer`: looks for Apptainers in the order of their places, one after the other and only while
//! one is needed, so that a place that hangs costs nothing where an earlier one is fit. A child does what may
//! hang: it is the program itself, asked for its version.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::warn;

use super::container::Obstacle;
use super::ladder_reasons::{LadderReason, joined, problem_of, remedies};
use super::rung::{FailedRung, Rung};
use super::version::{UnfitProgram, is_comparable, version};
use super::{CheckNote, CheckProblem};
use crate::blocking;
use crate::container::{
    Apptainer, ApptainerCandidate, ApptainerEnvironment, ApptainerPlace, ApptainerPlaces,
};
use crate::fault::{Cause, Diagnosis, FaultClass};
use crate::process::GuardianHandle;

/// The time for the whole ladder: for finding Apptainers, and for their first containers. Each step has a
/// shorter deadline of its own.
const WITHIN: Duration = Duration::from_mins(3);
/// For the inode of a program that has just been started.
const IDENTIFIED_WITHIN: Duration = Duration::from_secs(5);

/// The search, with everything that it has found so far.
#[derive(Debug)]
pub struct ApptainerSearch<'a> {
    guard: &'a GuardianHandle,
    /// Where the children may write.
    scratch: &'a Path,
    environment: ApptainerEnvironment,
    places: ApptainerPlaces,
    ahead: std::vec::IntoIter<ApptainerCandidate>,
    seen: Vec<LookedAt>,
    /// What is left of [`WITHIN`].
    left: Duration,
}

/// A candidate, and the result of the look at it.
#[derive(Debug)]
struct LookedAt {
    candidate: ApptainerCandidate,
    /// Its file system and inode: PATH often has one program under two names.
    identity: Option<(u64, u64)>,
    /// Its version.
    result: Result<String, UnfitProgram>,
    failed: Vec<FailedRung>,
}

impl<'a> ApptainerSearch<'a> {
    #[must_use]
    pub fn new(
        guard: &'a GuardianHandle,
        scratch: &'a Path,
        environment: ApptainerEnvironment,
        places: ApptainerPlaces,
    ) -> Self {
        Self {
            guard,
            scratch,
            environment,
            ahead: places.candidates().into_iter(),
            places,
            seen: Vec::new(),
            left: WITHIN,
        }
    }

    /// The next Apptainer; `None` after the last.
    ///
    /// # Errors
    /// When the machine can't start any program.
    pub async fn next(&mut self) -> Result<Option<Apptainer>, CheckProblem> {
        while let Some(candidate) = self.ahead.next() {
            let apptainer = Apptainer::new(candidate.program.clone(), self.environment.clone());
            let result = self.look(&candidate, &apptainer).await;
            if let Err(UnfitProgram::Broken { cause, said }) = &result
                && !cause.depends_on_apptainer()
            {
                return Err(CheckProblem::of(*cause, said));
            }
            let identity = match &result {
                // A file system that hangs would not tell it either.
                Err(
                    UnfitProgram::Absent(_)
                    | UnfitProgram::Broken {
                        cause: Cause::Hanging,
                        ..
                    },
                ) => None,
                _ => identity(candidate.program.clone()).await,
            };
            if identity.is_some() && self.seen.iter().any(|seen| seen.identity == identity) {
                continue;
            }
            let is_fit = result.is_ok();
            self.seen.push(LookedAt {
                candidate,
                identity,
                result,
                failed: Vec::new(),
            });
            if is_fit {
                return Ok(Some(apptainer));
            }
        }
        Ok(None)
    }

    async fn look(
        &mut self,
        candidate: &ApptainerCandidate,
        apptainer: &Apptainer,
    ) -> Result<String, UnfitProgram> {
        let program = &candidate.program;
        if !program.is_absolute() {
            return Err(UnfitProgram::Absent("the path is not absolute".to_owned()));
        }
        let (guard, scratch) = (self.guard, self.scratch);
        let asked = self.spend(version(guard, apptainer, scratch)).await;
        asked.unwrap_or_else(|| {
            Err(UnfitProgram::Broken {
                cause: Cause::Hanging,
                said: format!("`{}` was not tried: {}", program.display(), over()),
            })
        })
    }

    /// Does `work` in the time that is left for the whole ladder; `None` when that is over.
    pub(super) async fn spend<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let done = tokio::time::timeout(self.left, work).await;
        self.left = self.left.saturating_sub(began.elapsed());
        done.ok()
    }

    /// Notes that an Apptainer that was found is of no use, or not in this way.
    pub(super) fn failed(&mut self, failed: FailedRung) {
        let program = failed.rung.apptainer.program();
        let mut seen = self.seen.iter_mut();
        if let Some(seen) = seen.find(|seen| seen.candidate.program == program) {
            seen.failed.push(failed);
        }
    }

    /// Notes that an Apptainer can't convert the image.
    pub fn converts_nothing(&mut self, apptainer: &Apptainer, error: &dyn std::error::Error) {
        let program = apptainer.program().display();
        warn!(apptainer = %program, %error, "this Apptainer can't convert the image");
        self.failed(FailedRung {
            rung: Rung::plain(apptainer.clone()),
            cause: Cause::Unknown,
            said: error.to_string(),
        });
    }

    /// The lines about the Apptainers. `used` is the one that makes the containers, if one does.
    #[must_use]
    pub fn notes(&self, used: Option<&Path>) -> Vec<CheckNote> {
        self.seen
            .iter()
            .filter_map(|seen| seen.note(used))
            .collect()
    }

    /// The problem of a machine without any Apptainer.
    #[must_use]
    pub fn nothing_found(&self) -> CheckProblem {
        let is_broken = |seen: &LookedAt| matches!(seen.result, Err(UnfitProgram::Broken { .. }));
        if self.seen.iter().any(is_broken) {
            return self.nothing_holds();
        }
        let elsewhere = self.seen.iter().filter_map(LookedAt::passed_over);
        let elsewhere: Vec<String> = elsewhere.collect();
        let seen = if self.places.setting.is_some() {
            format!("no Apptainer: {}", elsewhere.join("; "))
        } else {
            let path = self.places.path.display();
            format!(
                "no executable `apptainer` in PATH `{path}`, and none elsewhere: {}",
                elsewhere.join("; ")
            )
        };
        CheckProblem {
            class: FaultClass::Ep,
            diagnosis: Diagnosis::new(seen, self.places.remedy()),
        }
    }

    /// The problem of a machine on which no rung holds, with all reasons.
    pub(super) fn nothing_holds(&self) -> CheckProblem {
        let reasons: Vec<LadderReason> = self.seen.iter().flat_map(LookedAt::reasons).collect();
        problem_of(&reasons)
    }
}

fn over() -> String {
    format!(
        "the {} s for finding an Apptainer that makes containers are over",
        WITHIN.as_secs()
    )
}

/// The failure of a rung that the time for all of them ended.
pub(super) fn out_of_time() -> Obstacle {
    Obstacle::of(Cause::Hanging, over())
}

async fn identity(program: PathBuf) -> Option<(u64, u64)> {
    let looked = blocking::within(IDENTIFIED_WITHIN, move || program.metadata()).await;
    let found = looked.ok()?.ok()?;
    Some((found.dev(), found.ino()))
}

impl LookedAt {
    /// Its line. A candidate that isn't there has none.
    fn note(&self, used: Option<&Path>) -> Option<CheckNote> {
        let ApptainerCandidate { program, place } = &self.candidate;
        let version = match &self.result {
            Ok(version) => version,
            Err(UnfitProgram::Absent(_)) => return None,
            Err(unfit) => {
                let said = format!("{place}: {}", unfit.sentence(program));
                return Some(match unfit {
                    UnfitProgram::Broken { cause, .. } => {
                        CheckNote::WorkedAround(said, cause.remedy().to_owned())
                    }
                    _ => CheckNote::Fine(said),
                });
            }
        };
        let is = format!("`{}` is `{version}` ({place})", program.display());
        if used.is_some_and(|used| used != program) && !self.failed.is_empty() {
            let reasons = self.reasons();
            let remedies = remedies(reasons.iter());
            let why = joined(reasons.iter().map(LadderReason::short));
            return Some(CheckNote::WorkedAround(
                format!("{is}, but it makes no containers: {why}"),
                remedies,
            ));
        }
        if is_comparable(version) {
            return Some(CheckNote::Fine(is));
        }
        // The check `container`, which follows, decides.
        Some(CheckNote::WorkedAround(
            format!("{is}, which is no version that can be compared"),
            "ask the site for a release of Apptainer".to_owned(),
        ))
    }

    /// Why it was passed over, for a list; `None` where a look was only a step of a search.
    fn passed_over(&self) -> Option<String> {
        let ApptainerCandidate { program, place } = &self.candidate;
        match &self.result {
            Err(UnfitProgram::Absent(_)) if *place == ApptainerPlace::Path => None,
            Err(unfit) => Some(format!("{place}: {}", unfit.sentence(program))),
            Ok(_) => None,
        }
    }

    /// Why it makes no containers: each reason once, with the ways in which it was tried.
    fn reasons(&self) -> Vec<LadderReason> {
        let program = &self.candidate.program;
        if let Err(unfit) = &self.result {
            let cause = match unfit {
                UnfitProgram::Absent(_) => return Vec::new(),
                UnfitProgram::Stranger(_) => None,
                UnfitProgram::Broken { cause, .. } => Some(*cause),
            };
            return vec![LadderReason {
                program: None,
                ways: Vec::new(),
                cause,
                said: match unfit {
                    UnfitProgram::Broken { said, .. } => said.clone(),
                    _ => unfit.sentence(program),
                },
            }];
        }
        let mut reasons: Vec<LadderReason> = Vec::new();
        for FailedRung { rung, cause, said } in &self.failed {
            let way = rung.flags();
            let mut known = reasons.iter_mut();
            match known.find(|known| known.cause == Some(*cause) && known.said == *said) {
                Some(known) => known.ways.push(way),
                None => reasons.push(LadderReason {
                    program: Some(program.clone()),
                    ways: vec![way],
                    cause: Some(*cause),
                    said: said.clone(),
                }),
            }
        }
        reasons
    }
}
