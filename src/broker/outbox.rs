//! The outbox: results that could not be sent, on disk. A pilot leaves them when its broker stays away or its
//! spool can't be written, and the next pilot on the same data directory sends them first.
//!
//! A file is one line of JSON that names the broker and the queue, followed by the result. It holds no
//! secret: the pilot that sends it uses its own credentials. It is synced before it gets its name, locked
//! while a pilot sends it, and removed once it has arrived. The disk may hang, so all of this is done on
//! threads for blocking work, with a deadline.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Body, Endpoint, FileFormat, OutagePolicy, PublishError};
use crate::blocking;
use crate::ids::QueueIndex;
use crate::regular_file;

const SUFFIX: &str = "unsent";
/// Names of queues, and of files, have 255 bytes at most.
const LABEL_BYTES_MAX: u64 = 64 * 1024;
/// The deadline for writing one result. The disk may hang, and the event is not lost.
const KEEP_WITHIN: Duration = Duration::from_mins(2);
/// The deadline for sending all results found at the start. The rest stays for the next pilot.
const SEND_WITHIN: Duration = Duration::from_mins(2);

/// Whether a result that can't be sent for too long is kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenUndeliverable {
    Keep,
    Forget,
}

/// A result, with what can't be told from its queue.
#[derive(Debug, Clone)]
pub(super) struct UnsentResult {
    /// Set for a spool's result only: a message describes itself.
    pub(super) file: Option<UnsentFile>,
    pub(super) body: Body,
}

/// How a spool's result is written.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct UnsentFile {
    pub(super) format: FileFormat,
    /// The name of its event, if that is UTF-8.
    pub(super) event: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct OutboxLabel {
    broker: String,
    queue: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<UnsentFile>,
}

impl OutboxLabel {
    fn of(at: &Endpoint, queue: QueueIndex, file: Option<UnsentFile>) -> Self {
        Self {
            broker: at.address.clone(),
            queue: at.name(queue).to_owned(),
            file,
        }
    }

    /// The queue of `at` that the result is for.
    fn queue_at(&self, at: &Endpoint) -> Option<QueueIndex> {
        let mut queues = at.indices();
        queues.find(|queue| self.broker == at.address && self.queue == at.name(*queue))
    }
}

/// Writes a result to disk. A failure is logged: the result is lost then, but its event is not.
pub(super) async fn keep(
    at: &Endpoint,
    queue: QueueIndex,
    result: UnsentResult,
    outage_policy: &OutagePolicy,
) {
    let Some(directory) = outage_policy.unsent().map(Path::to_owned) else {
        return;
    };
    let UnsentResult { file, body } = result;
    let (shown, label) = (
        directory.display().to_string(),
        OutboxLabel::of(at, queue, file),
    );
    let written = blocking::start(move || write(&directory, &label, &body));
    let written = tokio::select! {
        biased;
        written = timeout(KEEP_WITHIN, written) => written.ok(),
        () = outage_policy.short_wait_over() => None,
    };
    let written = match written {
        Some(written) => written.unwrap_or_else(|died| Err(died.into())),
        None => Err(io::ErrorKind::TimedOut.into()),
    };
    match written {
        Ok(path) => {
            outage_policy.count(|stats| stats.kept_unsent += 1);
            tracing::error!(
                at = %at.only(queue), file = %path.display(),
                "a result that can't be sent is kept; a pilot started on the same data directory sends it"
            );
        }
        Err(error) => {
            tracing::error!(at = %at.only(queue), directory = shown, %error, "a result can neither be sent nor kept: its event will be run again");
        }
    }
}

fn write(directory: &Path, label: &OutboxLabel, body: &Body) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let name = Uuid::now_v7().simple().to_string();
    let hidden = directory.join(format!(".{name}"));
    let path = directory.join(format!("{name}.{SUFFIX}"));
    let mut file = File::create_new(&hidden)?;
    let written = serde_json::to_writer(&mut file, label)
        .map_err(io::Error::from)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| body.write_to(&mut file))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&hidden, &path));
    if written.is_err() {
        // The reason is in the error; a leftover hidden file does no harm.
        let _leftover = fs::remove_file(&hidden);
    }
    written?;
    File::open(directory)?.sync_all()?;
    Ok(path)
}

/// Sends the results that earlier pilots left for the queues of `at`.
pub(super) async fn send_all(
    at: &Endpoint,
    outage_policy: &OutagePolicy,
    publish: impl AsyncFn(QueueIndex, UnsentResult) -> Result<(), PublishError>,
) {
    let Some(directory) = outage_policy.unsent().map(Path::to_owned) else {
        return;
    };
    let shown = directory.display().to_string();
    let sending = async {
        let listed = blocking::start(move || list(&directory)).await;
        let paths = match listed.unwrap_or_else(|died| Err(died.into())) {
            Ok(paths) => paths,
            Err(error) => {
                tracing::warn!(directory = shown, %error, "can't look for unsent results");
                return;
            }
        };
        for path in paths {
            send(at, path, outage_policy, &publish).await;
        }
    };
    if timeout(SEND_WITHIN, sending).await.is_err() {
        let waited_secs = SEND_WITHIN.as_secs();
        tracing::warn!(
            %at, waited_secs,
            "unsent results are left for the next pilot: the disk is slow to give them or the broker to confirm them"
        );
    }
}

async fn send(
    at: &Endpoint,
    path: PathBuf,
    outage_policy: &OutagePolicy,
    publish: &impl AsyncFn(QueueIndex, UnsentResult) -> Result<(), PublishError>,
) {
    let file = path.display().to_string();
    let claimed = {
        let (path, at) = (path.clone(), at.clone());
        blocking::start(move || claim(&path, &at)).await
    };
    let (lock, queue, result) = match claimed.unwrap_or_else(|died| Err(died.into())) {
        Ok(Some(claimed)) => claimed,
        Ok(None) => {
            tracing::debug!(file, "an unsent result is for another queue, or being sent");
            return;
        }
        Err(error) => {
            tracing::warn!(file, %error, "an unsent result can't be read");
            return;
        }
    };
    match publish(queue, result).await {
        Ok(()) => {
            outage_policy.count(|stats| stats.sent_late += 1);
            tracing::info!(file, "an earlier pilot's result is sent");
            let removed = blocking::start(move || {
                let removed = fs::remove_file(&path);
                drop(lock);
                removed
            });
            if let Err(error) = removed.await.unwrap_or_else(|died| Err(died.into())) {
                tracing::warn!(file, %error, "a result that was sent can't be removed from the disk, and would be sent again");
            }
        }
        Err(error) => tracing::warn!(file, %error, "an unsent result could not be sent"),
    }
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            paths.push(path);
        }
    }
    // The names begin with the time.
    paths.sort();
    Ok(paths)
}

/// The locked file, its queue and the result. `None` if the result is for another queue, or another pilot
/// sends it.
fn claim(path: &Path, at: &Endpoint) -> io::Result<Option<(Arc<File>, QueueIndex, UnsentResult)>> {
    let file = match regular_file::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.try_lock().is_err() || !path.exists() {
        return Ok(None);
    }
    let mut label = Vec::new();
    BufReader::new(&file)
        .take(LABEL_BYTES_MAX)
        .read_until(b'\n', &mut label)?;
    if label.pop() != Some(b'\n') {
        return Err(io::Error::other("it does not say where to"));
    }
    let from = label.len() as u64 + 1;
    let label: OutboxLabel = serde_json::from_slice(&label)?;
    let Some(queue) = label.queue_at(at) else {
        return Ok(None);
    };
    let file = Arc::new(file);
    let body = Body::of_file(Arc::clone(&file), from)?;
    let result = UnsentResult {
        file: label.file,
        body,
    };
    Ok(Some((file, queue, result)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Direction;

    fn at(queues: &[&str]) -> Endpoint {
        Endpoint {
            direction: Direction::Outgoing,
            address: "mq:5672".into(),
            queues: queues.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// A message for the first of these queues.
    fn label(queue: &str) -> OutboxLabel {
        OutboxLabel::of(&at(&[queue]), QueueIndex(0), None)
    }

    fn body_of(path: &Path, queue: &str) -> Body {
        claim(path, &at(&[queue])).unwrap().unwrap().2.body
    }

    #[test]
    fn what_is_kept_is_found_byte_for_byte_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let unsent = directory.path().join("unsent");
        assert!(list(&unsent).unwrap().is_empty());
        let first = write(&unsent, &label("q"), &b"\n1\0\n".to_vec().into()).unwrap();
        let second = write(&unsent, &label("q"), &b"".to_vec().into()).unwrap();
        assert_eq!(list(&unsent).unwrap(), [first.clone(), second.clone()]);
        assert_eq!(body_of(&first, "q"), b"\n1\0\n".to_vec().into());
        assert_eq!(body_of(&second, "q"), Vec::new().into());
    }

    #[test]
    fn a_file_has_its_format_and_its_events_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = UnsentFile {
            format: FileFormat::Text,
            event: Some("p 1.txt".into()),
        };
        let label = OutboxLabel::of(&at(&["q"]), QueueIndex(0), Some(file.clone()));
        let path = write(directory.path(), &label, &b"1".to_vec().into()).unwrap();
        let (_lock, _, found) = claim(&path, &at(&["q"])).unwrap().unwrap();
        assert_eq!(found.file, Some(file));
    }

    #[test]
    fn a_result_for_another_queue_or_in_others_hands_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = write(directory.path(), &label("q"), &b"1".to_vec().into()).unwrap();
        assert!(claim(&path, &at(&["other"])).unwrap().is_none());
        let (lock, ..) = claim(&path, &at(&["q"])).unwrap().unwrap();
        assert!(claim(&path, &at(&["q"])).unwrap().is_none());
        drop(lock);
        assert!(claim(&path, &at(&["q"])).unwrap().is_some());
    }

    #[test]
    fn a_file_that_was_cut_is_an_error_and_not_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.unsent");
        fs::write(&path, "{\"broker\": \"mq").unwrap();
        assert!(claim(&path, &at(&["q"])).is_err());
    }

    #[test]
    fn each_of_several_queues_gets_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = write(directory.path(), &label("b"), &b"1".to_vec().into()).unwrap();
        let (_lock, queue, _) = claim(&path, &at(&["a", "b"])).unwrap().unwrap();
        assert_eq!(queue, QueueIndex(1));
    }
}
