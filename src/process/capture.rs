//! Runs a short-lived child and returns its output: for a version, a probe, a conversion. Uses [`supervise`]
//! with temporary files, so the same limits and the same sweep apply.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use tokio::sync::{oneshot, watch};

use super::child::{ChildLimits, ChildSpec, Leftovers, SpawnError, StopCause};
use super::guardian::client::GuardianHandle;
use super::output::tail_of;
use super::shutdown::ShutdownPhase;
use super::signal::ExitStatus;
use super::supervise::supervise;
use crate::blocking;

/// How many bytes of each stream are returned: its end, because errors stand there.
const KEPT: usize = 64 * 1024;

#[derive(Debug, Clone)]
pub struct CaptureQuery {
    /// Absolute.
    pub program: PathBuf,
    /// Without the program's name.
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    /// The working directory; `None` is the pilot's own.
    pub cwd: Option<PathBuf>,
    /// A directory for the output files, which have no names.
    pub scratch: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub exit: ExitStatus,
    pub ended_by: StopCause,
    pub leftovers: Leftovers,
    /// The last 64 KiB, starting at the beginning of a line.
    pub stdout: Vec<u8>,
    /// The last 64 KiB, starting at the beginning of a line.
    pub stderr: Vec<u8>,
}

impl Captured {
    /// Whether it ended by itself with exit code 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.ended_by == StopCause::Itself && self.exit == ExitStatus::Code(0)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(
        "can't keep a command's output in `{scratch}`: {source}; check its free space and permissions"
    )]
    Output { scratch: PathBuf, source: io::Error },
}

/// Runs `query` within `limits` and returns the end of its output.
///
/// # Errors
/// When it can't be started or its output can't be kept. An unsuccessful exit is no error here.
pub async fn capture(
    guard: &GuardianHandle,
    query: CaptureQuery,
    limits: ChildLimits,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> Result<Captured, CaptureError> {
    let CaptureQuery {
        program,
        args,
        env,
        cwd,
        scratch,
    } = query;
    let output = |source| CaptureError::Output {
        scratch: scratch.clone(),
        source,
    };
    let directory = scratch.clone();
    let files = move || -> io::Result<_> {
        let stdout = tempfile::tempfile_in(&directory)?;
        let stderr = tempfile::tempfile_in(&directory)?;
        let copies = [stdout.try_clone()?, stderr.try_clone()?];
        Ok(([stdout, stderr], copies))
    };
    let (kept, [stdout, stderr]) = blocking::small_files(files).await.map_err(output)?;
    let job = ChildSpec {
        program,
        args,
        env,
        cwd,
        stdout,
        stderr,
    };
    let ended = supervise(guard, job, limits, shutdown, oneshot::channel().0).await?;
    let [mut stdout, mut stderr] = kept;
    let tails = move || Ok((tail_of(&mut stdout, KEPT)?, tail_of(&mut stderr, KEPT)?));
    let (stdout, stderr) = blocking::small_files(tails).await.map_err(output)?;
    Ok(Captured {
        exit: ended.exit,
        ended_by: ended.ended_by,
        leftovers: ended.leftovers,
        stdout,
        stderr,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::ShutdownSender;

    async fn ask(script: &str, timeout: Duration) -> Captured {
        let scratch = tempfile::tempdir().expect("a directory");
        let query = CaptureQuery {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: None,
            scratch: scratch.path().into(),
        };
        let limits = ChildLimits {
            timeout: Some(timeout),
            grace: Duration::from_secs(1),
        };
        let shutdown = ShutdownSender::new().subscribe();
        let captured = capture(&GuardianHandle::in_thread(), query, limits, shutdown)
            .await
            .expect("started");
        let left = std::fs::read_dir(scratch.path()).expect("listed").count();
        assert_eq!(left, 0, "capture left files behind");
        captured
    }

    #[tokio::test]
    async fn both_streams_and_the_code_come_back() {
        let captured = ask("echo out; echo err >&2; exit 3", Duration::from_secs(30)).await;
        assert_eq!(captured.exit, ExitStatus::Code(3));
        assert_eq!(
            (captured.stdout.as_slice(), captured.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert!(!captured.succeeded());
    }

    #[tokio::test]
    async fn only_the_end_of_a_long_answer_is_kept() {
        let captured = ask("seq 1 100000", Duration::from_secs(30)).await;
        assert!(captured.succeeded());
        assert!(captured.stdout.len() <= KEPT);
        assert!(captured.stdout.ends_with(b"\n99999\n100000\n"));
    }

    #[tokio::test]
    async fn a_query_has_a_deadline() {
        let captured = ask("echo before; exec sleep 1000", Duration::from_millis(200)).await;
        assert_eq!(captured.ended_by, StopCause::Timeout);
        assert!(captured.stdout.is_empty() || captured.stdout == b"before\n");
        assert!(!captured.succeeded());
    }
}
