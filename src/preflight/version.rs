//! The check `apptainer`: it runs, and is new enough.

use std::path::Path;
use std::time::Duration;

use super::{CheckNote, CheckProblem};
use crate::container::Apptainer;
use crate::fault::{self, Cause};
use crate::process::{
    CaptureError, CaptureQuery, ChildLimits, GuardianHandle, ShutdownSender, StopCause, capture,
};
use crate::task::probe_container::cause_of_spawn;

/// The first version with `--no-eval`, without which an image's own shell would expand arguments and
/// variables; also the first that needs no setuid program.
const OLDEST: (u32, u32) = (1, 1);
/// Enough for a program that prints one line.
const DEADLINE: Duration = Duration::from_secs(30);

/// Checks that Apptainer runs and is new enough.
///
/// # Errors
/// When it doesn't run or is too old.
pub async fn version(
    guard: &GuardianHandle,
    apptainer: &Apptainer,
    scratch: &Path,
) -> Result<CheckNote, CheckProblem> {
    let program = apptainer.program().display();
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
        .map_err(|error| {
            let cause = match &error {
                CaptureError::Spawn(error) => cause_of_spawn(error),
                CaptureError::Output { source, .. } => Cause::of_io(source),
            };
            CheckProblem::of(cause, error.to_string())
        })?;
    if said.ended_by == StopCause::Timeout {
        let seen = format!(
            "`{program} --version` gave no answer within {} s",
            DEADLINE.as_secs()
        );
        return Err(CheckProblem::of(Cause::Hanging, seen));
    }
    let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if !said.succeeded() {
        let reason = fault::reason(&said.stderr);
        let cause = fault::find_cause(&said.stderr);
        return Err(CheckProblem::of(
            cause.map_or(Cause::Unknown, |(cause, _)| cause),
            format!("`{program} --version` fails: {reason}"),
        ));
    }
    match parse(&text) {
        Some(found) if found < OLDEST => Err(CheckProblem::of(
            Cause::ApptainerTooOld,
            format!("`{program}` is `{text}`"),
        )),
        Some(_) => Ok(CheckNote::Fine(format!("`{program}` is `{text}`"))),
        // The check `container`, which follows, decides.
        None => Ok(CheckNote::WorkedAround(
            format!("`{program}` is `{text}`, which is no version that can be compared"),
            "ask the site for a release of Apptainer".to_owned(),
        )),
    }
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
}
