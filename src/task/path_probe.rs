//! Looks at paths that may hang or fail, through a child of the pilot's own binary: a process that waits for
//! a dead file server can't be killed, so it must not be the pilot. Both sides are here.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};
use tokio::sync::watch;

use crate::process::{
    CaptureError, CaptureQuery, ChildLimits, ExitStatus, GuardianHandle, ShutdownPhase, StopCause,
    capture,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeDepth {
    /// The file or directory alone: its entries may be mounted on demand, or hang themselves.
    Itself,
    /// The first entries and the beginning of a file: enough to know that a file system answers.
    Glance,
    /// Every byte: enough to know that a task can read it.
    Through,
}

impl ProbeDepth {
    /// The child's option for it, see `cli`.
    fn option(self) -> Option<&'static str> {
        match self {
            Self::Itself => Some("--itself"),
            Self::Glance => None,
            Self::Through => Some("--through"),
        }
    }

    /// The most entries to look at.
    fn entries(self) -> usize {
        match self {
            Self::Itself => 1,
            Self::Glance => 64,
            Self::Through => usize::MAX,
        }
    }

    /// The most bytes to read of a file.
    fn bytes(self) -> u64 {
        match self {
            Self::Itself | Self::Glance => 4096,
            Self::Through => u64::MAX,
        }
    }

    /// The cold cache of a network file system takes seconds, an image of a few gigabytes minutes.
    fn deadline(self) -> Duration {
        match self {
            Self::Itself | Self::Glance => Duration::from_secs(30),
            Self::Through => Duration::from_mins(5),
        }
    }
}

#[derive(Debug)]
pub enum PathHealth {
    /// Everything could be read. Missing files count as clear: other checks report them better.
    Clear,
    Failing {
        path: PathBuf,
        error: io::Error,
    },
    /// No answer for this long.
    Hanging(Duration),
}

/// The argument that makes the pilot's binary the child, see `cli`.
pub const WORD: &str = "look";

/// How long a failing file system has to recover before the second try.
const COME_BACK: Duration = Duration::from_secs(1);

/// Looks at `paths`. A transient error (`ENOTCONN`, `EIO`, `ESTALE`) gets one more try. The child's output
/// goes into the directory `scratch`.
///
/// # Errors
/// When no child can be started or its output can't be kept.
pub async fn look(
    guard: &GuardianHandle,
    paths: &[PathBuf],
    extent: ProbeDepth,
    scratch: &Path,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Result<PathHealth, CaptureError> {
    match look_once(guard, paths, extent, scratch, shutdown).await? {
        PathHealth::Failing { path, error } if may_pass(&error) => {
            tracing::warn!(path = %path.display(), %error, "a file system fails: will look again");
            tokio::time::sleep(COME_BACK).await;
            look_once(guard, paths, extent, scratch, shutdown).await
        }
        sight => Ok(sight),
    }
}

/// Whether the file system failed, rather than a permission or a name being wrong.
#[must_use]
pub fn may_pass(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOTCONN | Errno::EIO | Errno::ESTALE)
    )
}

async fn look_once(
    guard: &GuardianHandle,
    paths: &[PathBuf],
    extent: ProbeDepth,
    scratch: &Path,
    shutdown: &watch::Receiver<ShutdownPhase>,
) -> Result<PathHealth, CaptureError> {
    let mut args = vec![WORD.into()];
    args.extend(extent.option().map(Into::into));
    args.push("--".into());
    args.extend(paths.iter().map(Into::into));
    let query = CaptureQuery {
        // Our own binary, even if its file has been replaced or removed.
        program: "/proc/self/exe".into(),
        args,
        env: Vec::new(),
        cwd: None,
        scratch: scratch.to_path_buf(),
    };
    let limits = ChildLimits {
        timeout: Some(extent.deadline()),
        grace: Duration::ZERO,
    };
    let seen = capture(guard, query, limits, shutdown.clone()).await?;
    Ok(match (seen.ended_by, seen.exit) {
        (StopCause::Timeout, _) => PathHealth::Hanging(extent.deadline()),
        (StopCause::Shutdown, _) | (StopCause::Itself, ExitStatus::Code(0)) => PathHealth::Clear,
        (StopCause::Itself, _) => failing(&seen.stdout),
    })
}

/// Parses the output of [`child`].
fn failing(answer: &[u8]) -> PathHealth {
    let mut parts = answer.splitn(2, |byte| *byte == b'\t');
    let number = parts
        .next()
        .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    let path = parts.next().unwrap_or_default().to_vec();
    PathHealth::Failing {
        path: std::ffi::OsString::from_vec(path).into(),
        error: io::Error::from_raw_os_error(number.unwrap_or(Errno::EIO as i32)),
    }
}

/// The child: looks at each path. At the first failure it writes `ERRNO<TAB>PATH` to stdout and exits with 1.
#[must_use]
pub fn child(paths: &[PathBuf], extent: ProbeDepth) -> ExitCode {
    for path in paths {
        let mut left = extent.entries();
        let Err((at, error)) = walk(path, extent, &mut left) else {
            continue;
        };
        let number = error.raw_os_error().unwrap_or(Errno::EIO as i32);
        let mut answer = format!("{number}\t").into_bytes();
        answer.extend_from_slice(at.as_os_str().as_bytes());
        // With stdout gone, nothing can receive the answer.
        let _ = io::stdout().write_all(&answer);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Reads a file, or the contents of a directory. Follows a link only at the top. Missing and forbidden
/// entries are no failure of the file system.
fn walk(top: &Path, extent: ProbeDepth, left: &mut usize) -> Result<(), (PathBuf, io::Error)> {
    // Files of /proc and /sys may fail to be read, but never hang on a server.
    if let Ok(found) = statfs(top)
        && matches!(found.filesystem_type(), PROC_SUPER_MAGIC | SYSFS_MAGIC)
    {
        return Ok(());
    }
    let mut open = vec![top.to_path_buf()];
    while let Some(path) = open.pop() {
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        if let Err(error) = visit(&path, path == top, extent, *left, &mut open) {
            let is_no_failure = match error.kind() {
                // Longer than the longest path: a task can make one, and it needn't be followed.
                io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename => true,
                io::ErrorKind::PermissionDenied => path != top,
                _ => false,
            };
            if !is_no_failure {
                return Err((path, error));
            }
        }
    }
    Ok(())
}

fn visit(
    path: &Path,
    is_top: bool,
    extent: ProbeDepth,
    most: usize,
    open: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let found = if is_top {
        fs::metadata(path)?
    } else {
        fs::symlink_metadata(path)?
    };
    if found.is_dir() {
        // `Itself` reads one entry as well, so that the server has to answer.
        for entry in fs::read_dir(path)?.take(most.max(1)) {
            open.push(entry?.path());
        }
    } else if found.is_file() {
        io::copy(&mut File::open(path)?.take(extent.bytes()), &mut io::sink())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_reads_what_is_there_and_skips_what_is_not_for_us() {
        let top = tempfile::tempdir().expect("a directory");
        fs::create_dir(top.path().join("sub")).expect("made");
        fs::write(top.path().join("sub/file"), "x").expect("written");
        std::os::unix::fs::symlink("/nowhere", top.path().join("link")).expect("linked");
        for extent in [ProbeDepth::Glance, ProbeDepth::Through] {
            assert!(walk(top.path(), extent, &mut extent.entries()).is_ok());
        }
        assert!(walk(Path::new("/no/such/path"), ProbeDepth::Glance, &mut 9).is_ok());
        for made_up in ["/proc", "/sys"] {
            assert!(
                walk(
                    Path::new(made_up),
                    ProbeDepth::Through,
                    &mut ProbeDepth::Through.entries()
                )
                .is_ok()
            );
        }
    }

    #[test]
    fn a_glance_ends() {
        let top = tempfile::tempdir().expect("a directory");
        for name in 0..200 {
            fs::write(top.path().join(name.to_string()), "x").expect("written");
        }
        let mut left = ProbeDepth::Glance.entries();
        assert!(walk(top.path(), ProbeDepth::Glance, &mut left).is_ok());
        assert_eq!(left, 0);
    }

    #[test]
    fn the_childs_answer_keeps_its_path_and_reason() {
        let PathHealth::Failing { path, error } = failing(b"5\t/a\tb\xff") else {
            panic!("it fails");
        };
        assert_eq!(path.as_os_str().as_bytes(), b"/a\tb\xff");
        assert!(may_pass(&error));
        let PathHealth::Failing { error, .. } = failing(b"") else {
            panic!("it fails");
        };
        assert!(may_pass(&error), "a child that died says nothing");
    }
}
