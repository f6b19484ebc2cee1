//! Asks a program whether it is Apptainer, and which version.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::container::Apptainer;
use crate::fault::{self, Cause};
use crate::process::{
    CaptureError, CaptureQuery, Captured, ChildLimits, GuardianHandle, ShutdownSender, SpawnError,
    StopCause, capture,
};
use crate::task::probe_container::cause_of_spawn;

/// The first version with `--no-eval`, without which an image's own shell would expand arguments and
/// variables; also the first that needs no setuid program.
const OLDEST: (u32, u32) = (1, 1);
/// Enough for a program that prints one line.
const DEADLINE: Duration = Duration::from_secs(30);

/// The reason why a program can't be used as Apptainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnfitProgram {
    /// There is none, or it may not be executed.
    Absent(String),
    /// It is another program: `SingularityCE`, for example.
    Stranger(String),
    /// It doesn't run, or is too old. The text names it.
    Broken { cause: Cause, said: String },
}

impl UnfitProgram {
    /// The reason as a sentence.
    pub(super) fn sentence(&self, program: &Path) -> String {
        let program = program.display();
        match self {
            Self::Absent(error) => format!("`{program}` can't be started: {error}"),
            Self::Stranger(text) => format!("`{program}` says `{text}`, so it is no Apptainer"),
            Self::Broken { cause, said } => format!("{said} ({cause})"),
        }
    }
}

/// The version that `apptainer` says it is.
///
/// # Errors
/// When it isn't Apptainer, doesn't run or is too old.
pub(super) async fn version(
    guard: &GuardianHandle,
    apptainer: &Apptainer,
    scratch: &Path,
) -> Result<String, UnfitProgram> {
    let invocation = apptainer.version();
    let query = CaptureQuery {
        program: invocation.program,
        args: invocation.args,
        env: invocation.env,
        cwd: None,
        scratch: scratch.to_path_buf(),
    };
    let limits = ChildLimits {
        timeout: Some(DEADLINE),
        grace: Duration::ZERO,
    };
    let said = capture(guard, query, limits, ShutdownSender::new().subscribe())
        .await
        .map_err(|error| unstarted(&error))?;
    judge(apptainer.program(), &said)
}

fn unstarted(error: &CaptureError) -> UnfitProgram {
    let cause = match error {
        CaptureError::Spawn(SpawnError::Program { source, .. }) if is_absence(source) => {
            return UnfitProgram::Absent(source.to_string());
        }
        CaptureError::Spawn(error) => cause_of_spawn(error),
        CaptureError::Output { source, .. } => Cause::of_io(source),
    };
    UnfitProgram::Broken {
        cause,
        said: error.to_string(),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
    )
}

fn judge(program: &Path, said: &Captured) -> Result<String, UnfitProgram> {
    let program = program.display();
    if said.ended_by == StopCause::Timeout {
        return Err(UnfitProgram::Broken {
            cause: Cause::Hanging,
            said: format!(
                "`{program} --version` gave no answer within {} s",
                DEADLINE.as_secs()
            ),
        });
    }
    if !said.succeeded() {
        let cause = fault::find_cause(&said.stderr);
        return Err(UnfitProgram::Broken {
            cause: cause.map_or(Cause::Unknown, |(cause, _)| cause),
            said: format!(
                "`{program} --version` fails: {}",
                fault::reason(&said.stderr)
            ),
        });
    }
    let text = String::from_utf8_lossy(&said.stdout);
    let mut lines = text.lines().map(str::trim);
    let Some(line) = lines.find(|line| line.starts_with("apptainer version")) else {
        let first = text.lines().next().unwrap_or_default();
        return Err(UnfitProgram::Stranger(first.trim().to_owned()));
    };
    match parse(line) {
        Some(found) if found < OLDEST => Err(UnfitProgram::Broken {
            cause: Cause::ApptainerTooOld,
            said: format!("`{program}` is `{line}`"),
        }),
        _ => Ok(line.to_owned()),
    }
}

/// Whether a text names a version that can be compared.
pub(super) fn is_comparable(text: &str) -> bool {
    parse(text).is_some()
}

/// Major and minor version of a text such as `apptainer version 1.4.5-2.el9`.
fn parse(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().next_back()?.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor: String = numbers
        .next()?
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    Some((major, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{ExitStatus, Leftovers};

    #[test]
    fn versions_of_all_packagings_are_compared() {
        for (text, version) in [
            ("apptainer version 1.4.5", Some((1, 4))),
            ("apptainer version 1.0.3-1.el8", Some((1, 0))),
            ("apptainer version 1.1.0~rc.1", Some((1, 1))),
            ("apptainer version 1.10.0+ds1-3", Some((1, 10))),
            ("apptainer version 2.0", Some((2, 0))),
            ("apptainer version 1.2-dev", Some((1, 2))),
            ("apptainer version unknown", None),
            ("", None),
        ] {
            assert_eq!(parse(text), version, "{text}");
        }
        assert!((1, 0) < OLDEST && (1, 10) > OLDEST && (2, 0) > OLDEST);
    }

    fn asked(stdout: &str, code: i32) -> Result<String, UnfitProgram> {
        let said = Captured {
            exit: ExitStatus::Code(code),
            ended_by: StopCause::Itself,
            leftovers: Leftovers::None,
            stdout: stdout.into(),
            stderr: b"no such luck\n".to_vec(),
        };
        judge(Path::new("/x"), &said)
    }

    #[test]
    fn only_a_program_that_says_it_is_apptainer_is_taken_for_it() {
        for text in [
            "apptainer version 1.4.5\n",
            "loading module\napptainer version 1.3.0-1.el9\n",
            "apptainer version unknown\n",
        ] {
            assert!(asked(text, 0).is_ok(), "{text}");
        }
        for text in [
            "singularity-ce version 4.1.0",
            "singularity version 3.8.7-1.el8",
            "rm (GNU coreutils) 9.7",
            "",
        ] {
            let unfit = asked(text, 0).expect_err(text);
            assert_eq!(unfit, UnfitProgram::Stranger(text.to_owned()));
        }
        for (text, code, sentence) in [
            (
                "apptainer version 1.0.3\n",
                0,
                "`/x` is `apptainer version 1.0.3` (apptainer-too-old)",
            ),
            (
                "apptainer version 1.4.5\n",
                255,
                "`/x --version` fails: no such luck (unknown)",
            ),
            (
                "singularity-ce version 4.1.0\n",
                0,
                "`/x` says `singularity-ce version 4.1.0`, so it is no Apptainer",
            ),
        ] {
            let unfit = asked(text, code).expect_err(text);
            assert_eq!(unfit.sentence(Path::new("/x")), sentence);
        }
    }
}
