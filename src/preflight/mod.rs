//! The checks of an execution point before the first event is taken, so that a broken one takes none, and the
//! presentation of their findings: in the log, to a person, as JSON. `pilot::host_setup` decides on their
//! order and on the consequences of a failure.
//!
//! | check | method |
//! | --- | --- |
//! | `env-file`, `token` | only with `--submit`: the env file is found and read; a token's own end |
//! | `scratch` | a file of 1 MiB is written and read back in the data directory |
//! | `apptainer` | a program that says it is Apptainer, of version 1.1 or later; looked for in PATH, where the site or HTCondor has one, in CVMFS |
//! | `user-namespaces` | a child makes the namespaces of a container |
//! | `cvmfs` | a child looks at it; if it hangs it is left out, which is no failure |
//! | `external-directories`, `image` | a child looks at them, and is killed if they hang |
//! | `fuse` | none: images run as directories, which don't need FUSE |
//! | `container` | one is started, with one Apptainer after the other until one makes it, with a task's image, flags, binds and variables, to try everything that tasks may rely on, and whether the image's runscript could start |
//! | `gpu` | only if tasks get GPUs: the driver's program lists them in a container (`nvidia-smi -L`, `rocminfo`) |
//! | `init-container` | the same with the init container's image |
//! | `broker-incoming`, `broker-outgoing` | the queues are looked at and not declared; in a running pilot this happens during the other checks and the init container |

mod apptainer_search;
mod container;
mod cvmfs;
mod gpu;
mod ladder;
mod ladder_reasons;
mod namespaces;
mod rung;
mod version;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tracing::{info, warn};

pub use apptainer_search::ApptainerSearch;
pub use container::init_container;
pub use cvmfs::{cvmfs, none as no_cvmfs};
pub use gpu::gpus;
pub use ladder::container;
pub use namespaces::{WORD as NAMESPACES, child as namespaces_child, namespaces};

use crate::fault::{Cause, Diagnosis, FaultClass};
use crate::process::{GuardianHandle, ShutdownSender};
use crate::task::disk_space::free;
use crate::task::path_probe::{PathHealth, ProbeDepth, look};
use crate::task::write_something;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    EnvFile,
    Configuration,
    /// How long a queue's token lives.
    Token,
    Scratch,
    Apptainer,
    UserNamespaces,
    ExternalDirectories,
    Cvmfs,
    Image,
    /// `/dev/fuse`.
    Fuse,
    Container,
    Gpu,
    InitContainer,
    BrokerIncoming,
    BrokerOutgoing,
}

impl Check {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EnvFile => "env-file",
            Self::Configuration => "configuration",
            Self::Token => "token",
            Self::Scratch => "scratch",
            Self::Apptainer => "apptainer",
            Self::UserNamespaces => "user-namespaces",
            Self::ExternalDirectories => "external-directories",
            Self::Cvmfs => "cvmfs",
            Self::Image => "image",
            Self::Fuse => "fuse",
            Self::Container => "container",
            Self::Gpu => "gpu",
            Self::InitContainer => "init-container",
            Self::BrokerIncoming => "broker-incoming",
            Self::BrokerOutgoing => "broker-outgoing",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckVerdict {
    Ok,
    /// Not as it should be, but the pilot can work around it.
    WorkedAround,
    /// The pilot can't run here.
    Failed,
    /// Not made, because an earlier check failed.
    Skipped,
}

impl CheckVerdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::WorkedAround => "NOTE",
            Self::Failed => "FAIL",
            Self::Skipped => "skip",
        }
    }
}

/// A failed check's diagnosis, and whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckProblem {
    pub class: FaultClass,
    pub diagnosis: Diagnosis,
}

impl CheckProblem {
    /// A known cause and its observation.
    #[must_use]
    pub fn of(cause: Cause, seen: impl fmt::Display) -> Self {
        Self {
            class: cause.class(),
            diagnosis: Diagnosis::of(cause, seen),
        }
    }
}

/// The observation of a check that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckNote {
    Fine(String),
    /// A defect that the pilot works around, and the advice for fixing it.
    WorkedAround(String, String),
    /// A setting that is seldom intended. The text names the possible mistake.
    Odd(String),
}

/// A check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: Check,
    pub verdict: CheckVerdict,
    pub seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    #[serde(flatten)]
    pub depth: Option<QueueDepth>,
}

/// How much waits in a queue, and for how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueueDepth {
    pub queue: String,
    pub waiting_events: u64,
    pub consumers: u64,
}

/// All checks so far, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a check that passed.
    pub fn seen(&mut self, check: Check, seen: CheckNote) {
        let (verdict, seen, fix) = match seen {
            CheckNote::Fine(seen) => (CheckVerdict::Ok, seen, None),
            CheckNote::WorkedAround(seen, fix) => (CheckVerdict::WorkedAround, seen, Some(fix)),
            CheckNote::Odd(seen) => (CheckVerdict::WorkedAround, seen, None),
        };
        self.add(check, verdict, seen, fix);
    }

    /// Adds the numbers of a queue to the last finding, for programs.
    pub fn counted(&mut self, depth: QueueDepth) {
        if let Some(finding) = self.0.last_mut() {
            finding.depth = Some(depth);
        }
    }

    /// Adds a check that failed.
    pub fn failed(&mut self, check: Check, diagnosis: &Diagnosis) {
        let Diagnosis { seen, fix } = diagnosis.clone();
        self.add(check, CheckVerdict::Failed, seen, fix);
    }

    /// A line for each defect that the pilot works around, and for each odd setting.
    pub fn worked_around(&self) -> impl Iterator<Item = String> {
        let odd = |finding: &&Finding| finding.verdict == CheckVerdict::WorkedAround;
        self.0.iter().filter(odd).map(|finding| match &finding.fix {
            Some(fix) => format!("{}; {fix}", finding.seen),
            None => finding.seen.clone(),
        })
    }

    /// Adds a check that was not made.
    pub fn skipped(&mut self, check: Check) {
        let seen = "not tried, because of what failed above".to_owned();
        self.add(check, CheckVerdict::Skipped, seen, None);
    }

    fn add(&mut self, check: Check, verdict: CheckVerdict, seen: String, fix: Option<String>) {
        match verdict {
            CheckVerdict::WorkedAround => {
                let fix = fix.as_deref().unwrap_or_default();
                warn!(check = check.name(), %seen, fix, "preflight: worked around");
            }
            CheckVerdict::Ok => info!(check = check.name(), %seen, "preflight"),
            // The caller logs it once, where it ends the pilot.
            CheckVerdict::Failed | CheckVerdict::Skipped => {}
        }
        self.0.push(Finding {
            check,
            verdict,
            seen,
            fix,
            depth: None,
        });
    }
}

/// One line for each finding: verdict, check, observation, fix.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.0 {
            let Finding {
                check,
                verdict,
                seen,
                fix,
                depth: _,
            } = finding;
            // Keeps it to one line, even if a broken machine gives several.
            let seen = seen.replace(['\n', '\r'], " ");
            write!(f, "{:<4}  {:<20}  {seen}", verdict.word(), check.name())?;
            if let Some(fix) = fix {
                write!(f, "; {fix}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Checks that files can be written in `directory` and read back.
///
/// # Errors
/// When they can't.
pub fn scratch(directory: &Path) -> Result<CheckNote, CheckProblem> {
    write_something(directory).map_err(|error: io::Error| {
        let seen = format!(
            "no file can be written in `{}`: {error}",
            directory.display()
        );
        CheckProblem::of(Cause::of_io(&error), seen)
    })?;
    let free = free(directory).map(|bytes| format!(", {:.1} GB free", bytes_as_gb(bytes)));
    Ok(CheckNote::Fine(format!(
        "`{}` can be written{}",
        directory.display(),
        free.unwrap_or_default()
    )))
}

fn bytes_as_gb(bytes: u64) -> f64 {
    // The megabytes of any disk of today fit into 32 bits, which f64 represents exactly.
    f64::from(u32::try_from(bytes / 1_000_000).unwrap_or(u32::MAX)) / 1000.0
}

/// Checks that `paths` answer. A missing path passes, because a later check has a better text for it.
///
/// # Errors
/// When a path hangs or fails.
pub async fn reachable(
    guard: &GuardianHandle,
    paths: &[PathBuf],
    scratch: &Path,
) -> Result<CheckNote, CheckProblem> {
    let shutdown = ShutdownSender::new().subscribe();
    for path in paths {
        let sight = look(
            guard,
            std::slice::from_ref(path),
            ProbeDepth::Glance,
            scratch,
            &shutdown,
        )
        .await;
        match sight {
            Ok(PathHealth::Clear) => {}
            Ok(PathHealth::Failing { path, error }) => {
                let seen = format!("`{}` can't be read: {error}", path.display());
                return Err(CheckProblem::of(Cause::Storage, seen));
            }
            Ok(PathHealth::Hanging(after)) => {
                let seen = format!(
                    "`{}` gave no answer within {} s",
                    path.display(),
                    after.as_secs()
                );
                return Err(CheckProblem::of(Cause::Hanging, seen));
            }
            Err(error) => return Err(CheckProblem::of(Cause::Limits, error.to_string())),
        }
    }
    let names: Vec<String> = paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    Ok(CheckNote::Fine(if names.is_empty() {
        "none".to_owned()
    } else {
        format!("{} can be read", names.join(", "))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_with_verdict_check_what_was_seen_and_the_fix() {
        let mut findings = Findings::default();
        findings.seen(
            Check::Scratch,
            CheckNote::Fine("`/x` can be written".to_owned()),
        );
        findings.failed(
            Check::Image,
            &Diagnosis::new("image `a\nb` does not exist here", "check the path"),
        );
        findings.skipped(Check::Container);
        let text = findings.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok    scratch               `/x` can be written");
        assert_eq!(
            lines[1],
            "FAIL  image                 image `a b` does not exist here; check the path"
        );
        assert!(lines[2].starts_with("skip  container "), "{text}");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_machine_reads_the_same_as_json() {
        let mut findings = Findings::default();
        findings.failed(
            Check::UserNamespaces,
            &Diagnosis::new("none", "ask the site"),
        );
        let json = serde_json::to_string(&findings).expect("it is plain data");
        assert_eq!(
            json,
            r#"[{"check":"user-namespaces","verdict":"failed","seen":"none","fix":"ask the site"}]"#
        );
    }

    #[test]
    fn a_directory_without_space_or_rights_is_a_problem_of_the_machine() {
        let problem = scratch(Path::new("/proc")).expect_err("nothing can be written there");
        assert_eq!(problem.class, FaultClass::Ep);
        let here = tempfile::tempdir().expect("a directory");
        assert!(matches!(scratch(here.path()), Ok(CheckNote::Fine(_))));
    }
}
