//! The queue that needs no server: a directory. One file is one event; its content is the event's data, a
//! JSON value if the file is called `.json`, else text.
//!
//! ```text
//! QUEUE/NAME               waits; put it there under a name that starts with a dot, then rename
//! QUEUE/claimed/ID/NAME    held by a pilot that lives, or is about to be taken back
//! QUEUE/done/NAME          worked through
//! QUEUE/failed/NAME        given up after three tries; the error is in NAME.error.txt
//! QUEUE/.tries/NAME        how often a waiting event has failed, and its last error
//! ```
//!
//! Any number of pilots, on any number of machines, may share a queue: each step is one rename, which can
//! succeed only once. Events are taken in the order of their names. A result is a file of its own, on disk
//! before it is visible, and named after its event: that of `p1.json` is `p1.json`, or `p1.txt` if it is
//! text, with a number if that name is taken (`p1.2.json`). The result of an event without a name, from
//! RabbitMQ, is `TIME-ORDERED-UUID.json` or `.txt`. Anything that is no file (a link, a directory) is warned
//! of once.
//!
//! | file | what it is |
//! | --- | --- |
//! | `paths` | directories, names, moves that never replace a file |
//! | `lease` | who holds claims, and whether they are dead |
//! | `claim` | one event: claim, read, settle |
//! | `backlog` | which file comes next |
//! | `inotify` | the kernel's reports of new files |
//! | `lease_renewer` | the thread that renews the lease and looks for dead holders |
//! | `source`, `sink` | the interface to the pilot's event loop; all file work is done off it |

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

mod backlog;
mod claim;
mod inotify;
mod lease;
mod lease_renewer;
mod paths;
mod sink;
mod source;

use self::paths::SpoolPaths;
pub use self::sink::SpoolSink;
pub(super) use self::source::SpoolReceipt;
pub use self::source::SpoolSource;
use super::{BrokerError, Direction, Endpoint, QueueLook};
use crate::blocking::{self, Panicked};

/// The number of events that wait in a queue, and of pilots that hold events of it.
pub(super) async fn look(
    direction: Direction,
    queue: &str,
    directory: &Path,
) -> Result<QueueLook, BrokerError> {
    let paths = Arc::new(SpoolPaths::new(direction, queue, directory)?);
    let looking = Arc::clone(&paths);
    let look = match off_the_loop(move || looking.look()).await {
        Ok(looked) => looked.map_err(|trouble| trouble.into_broker(&paths.at))?,
        Err(error) => return Err(died(&paths.at, error)),
    };
    if let (QueueLook::There { .. }, Direction::Outgoing | Direction::DeadLetters) =
        (look, direction)
    {
        sink::try_to_write(&paths).await?;
    }
    Ok(look)
}

/// Runs `work` on a thread for blocking work: file systems may be slow, and shared ones very slow.
fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, Panicked>> {
    blocking::start(work)
}

fn died(at: &Endpoint, error: Panicked) -> BrokerError {
    BrokerError::Thread {
        at: at.clone(),
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
