//! The kernel's reports of new files in a directory. They cover changes by this machine only, so a directory
//! that others write to must still be searched from time to time.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// A watch on one directory. It never reports if there is no inotify instance left, as the kernel limits
/// their number.
pub(super) struct DirectoryWatch(Option<AsyncFd<WatchedDirectory>>);

struct WatchedDirectory(Inotify);

impl AsRawFd for WatchedDirectory {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum DirectoryEvent {
    /// A file was closed after writing, or moved here.
    Complete(OsString),
    /// Something happened that isn't reported in full.
    Unclear,
}

impl DirectoryWatch {
    pub(super) fn watch(directory: &Path) -> Self {
        let open = || {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let what = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
            inotify.add_watch(directory, what | AddWatchFlags::IN_ONLYDIR)?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe for the sake of types that change their \
                          descriptor; `Watch` owns one and never does"
            )]
            let registered = AsyncFd::new(WatchedDirectory(inotify));
            registered.map_err(|error| {
                error
                    .raw_os_error()
                    .map_or(Errno::UnknownErrno, Errno::from_raw)
            })
        };
        Self(match open() {
            Ok(watch) => Some(watch),
            Err(error) => {
                let directory = directory.display();
                tracing::debug!(%error, %directory, "no notices of new files; looking for them");
                None
            }
        })
    }

    /// Waits for reports. Cancel-safe: reports that aren't returned come the next time.
    pub(super) async fn next(&self) -> Vec<DirectoryEvent> {
        let Some(watch) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = watch.readable().await else {
                return std::future::pending().await;
            };
            match ready.get_inner().0.read_events() {
                Ok(events) => {
                    return events
                        .into_iter()
                        .map(|event| {
                            event
                                .name
                                .map_or(DirectoryEvent::Unclear, DirectoryEvent::Complete)
                        })
                        .collect();
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(_broken) => return std::future::pending().await,
            }
        }
    }
}
