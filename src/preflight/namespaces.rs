//! The check `user-namespaces`: a child of the pilot's own binary makes the namespaces of a container. It
//! must be a child, because a process can't leave a namespace that it made. Both sides are here.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::{CheckNote, CheckProblem};
use crate::fault::Cause;
use crate::process::{
    CaptureQuery, ChildLimits, ExitStatus, GuardianHandle, ShutdownSender, capture,
};

/// The argument that makes the pilot's binary the child, see `cli`.
pub const WORD: &str = "namespaces";
const DEADLINE: Duration = Duration::from_secs(30);

/// Checks that the namespaces can be made. A failure is only a note, because an Apptainer that is installed
/// setuid needs no user namespace; the check `container` decides.
///
/// # Errors
/// When no child can be started.
pub async fn namespaces(guard: &GuardianHandle, scratch: &Path) -> Result<CheckNote, CheckProblem> {
    let query = CaptureQuery {
        program: "/proc/self/exe".into(),
        args: vec![WORD.into()],
        env: Vec::new(),
        cwd: None,
        scratch: scratch.to_path_buf(),
    };
    let limits = ChildLimits {
        timeout: Some(DEADLINE),
        grace: Duration::ZERO,
    };
    let answer = capture(guard, query, limits, ShutdownSender::new().subscribe())
        .await
        .map_err(|error| CheckProblem::of(Cause::Limits, error.to_string()))?;
    Ok(match answer.exit {
        ExitStatus::Code(0) => {
            CheckNote::Fine("user, pid and mount namespaces can be made".to_owned())
        }
        _ => CheckNote::WorkedAround(
            format!(
                "no user namespace can be made: {}; only an Apptainer that is installed setuid could run here",
                String::from_utf8_lossy(&answer.stdout)
            ),
            Cause::Namespaces.remedy().to_owned(),
        ),
    })
}

/// The child: makes the namespaces, or writes the error to stdout and exits with 1.
#[must_use]
pub fn child() -> ExitCode {
    let wanted = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    match unshare(wanted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without stdout only the exit code is left.
            let _ = write!(io::stdout(), "{}", io::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
