//! Dead letters: an event that failed too often, or would fail each time, goes into the dead-letter queue, or
//! into `rejected/` beside the pilot data, before the broker is told to drop it. `state` decides which event
//! that is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::address;
use super::recorder::class_name;
use crate::blocking;
use crate::broker::{self, Content, FileFormat, OutagePolicy, PublishError, Sink};
use crate::config::{Config, QueueConfig};
use crate::fault::TaskError;
use crate::ids::TaskId;
use crate::records::{PilotIdentity, shorten};
use crate::task::EventCopy;

/// The directory for events that no dead-letter queue takes.
pub const REJECTED_DIR: &str = "rejected";
/// The most bytes in it, since it comes home with the job. Pilots that share the directory share the limit.
const REJECTED_BYTES_MAX: u64 = 100 * 1024 * 1024;

#[derive(Debug, Clone)]
pub struct DeadLetters {
    queue: Option<QueueConfig>,
    directory: PathBuf,
    incoming: String,
    source: PilotIdentity,
    outage_policy: OutagePolicy,
}

/// The failure that is noted with an event that is put away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureNote {
    pub error: TaskError,
    /// How often it was delivered, this time included.
    pub deliveries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// In the dead-letter queue, confirmed.
    DeadLettered,
    /// In `rejected/`.
    Kept,
}

/// The reason why an event could not be put away and stays in its queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPutAway {
    /// The dead-letter queue did not take it for as long as an outage may last.
    #[error("{0}")]
    Refused(String),
    /// There is no such queue, or no room in `rejected/`.
    #[error("{0}")]
    Failed(String),
}

impl DeadLetters {
    /// Dead letters as configured. While the dead-letter queue refuses events, no others are taken.
    #[must_use]
    pub fn new(config: &Config, source: &PilotIdentity, outage_policy: &OutagePolicy) -> Self {
        Self {
            queue: config.dead_letter.clone(),
            directory: config.data_parent.join(REJECTED_DIR),
            incoming: names(&config.incoming),
            source: source.clone(),
            outage_policy: outage_policy.for_dead_letters(),
        }
    }

    /// Puts one event away.
    ///
    /// # Errors
    /// Fails if the event could not be put away; it must stay in its queue then.
    pub async fn dispose(
        self,
        id: TaskId,
        event: EventCopy,
        failure_note: FailureNote,
    ) -> Result<Disposition, NotPutAway> {
        let reason = failure_note.error.repr();
        let deliveries = failure_note.deliveries;
        let event = off_the_loop(move || event.into_content())
            .await
            .map_err(NotPutAway::Failed)?;
        if let Some(queue) = &self.queue {
            let headers = self.headers(&failure_note);
            publish(queue, event, &headers, &self.outage_policy).await?;
            warn!(
                task_id = %id, deliveries, queue = queue.name, error = reason,
                "an event failed too often, or for good: it is in the dead-letter queue"
            );
            return Ok(Disposition::DeadLettered);
        }
        let directory = self.directory.clone();
        let text = format!("failed after {deliveries} deliveries:\n{reason}\n");
        off_the_loop(move || keep(&directory, id, &event, &text))
            .await
            .map_err(|error| {
                let directory = self.directory.display();
                NotPutAway::Failed(format!("can't keep it in `{directory}`: {error}"))
            })?;
        warn!(
            task_id = %id, deliveries, directory = %self.directory.display(), error = reason,
            "an event failed too often, or for good: it is rejected, and kept here"
        );
        Ok(Disposition::Kept)
    }

    fn headers(&self, failure_note: &FailureNote) -> Vec<(&'static str, String)> {
        let error = &failure_note.error;
        vec![
            ("x-ewms-error", shorten(&error.repr())),
            ("x-ewms-error-name", error.name().to_owned()),
            ("x-ewms-fault-class", class_name(error.class()).to_owned()),
            ("x-ewms-deliveries", failure_note.deliveries.to_string()),
            ("x-ewms-queue", self.incoming.clone()),
            ("x-ewms-host", self.source.host.clone()),
            ("x-ewms-site", self.source.site.clone().unwrap_or_default()),
            (
                "x-ewms-resource",
                self.source.resource.clone().unwrap_or_default(),
            ),
            ("x-ewms-pilot-id", self.source.pilot_id.clone()),
        ]
    }
}

async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    match blocking::start(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn names(queues: &[QueueConfig]) -> String {
    let names: Vec<&str> = queues.iter().map(|queue| queue.name.as_str()).collect();
    names.join(";")
}

/// Opens a session for one event. Dead letters are rare, and keeping a connection for them would cost every
/// pilot one.
async fn publish(
    queue: &QueueConfig,
    event: Content,
    headers: &[(&'static str, String)],
    outage_policy: &OutagePolicy,
) -> Result<(), NotPutAway> {
    let sink: Sink = broker::open_dead_letters(&queue.name, address(&queue.broker), outage_policy)
        .await
        .map_err(|error| NotPutAway::Failed(error.to_string()))?;
    let published = sink.publish_with(event, headers).await;
    sink.close().await;
    published.map_err(|error| match error {
        PublishError::Nacked { .. }
        | PublishError::Unroutable { .. }
        | PublishError::SessionLost { .. }
        | PublishError::Spool { .. } => NotPutAway::Refused(error.to_string()),
        PublishError::TooLarge { .. }
        | PublishError::Unreadable { .. }
        | PublishError::WrongEncoding => NotPutAway::Failed(error.to_string()),
    })
}

/// Writes the reason first, so that no body is there without one. Both are synced before this returns,
/// because the broker deletes its copy then.
fn keep(directory: &Path, id: TaskId, event: &Content, reason: &str) -> io::Result<()> {
    let suffix = match event {
        Content::Frame(_) => "json.zst",
        Content::File(FileFormat::Json, _) => "json",
        Content::File(FileFormat::Text, _) => "txt",
    };
    let body = event.body();
    fs::create_dir_all(directory)?;
    let parent = directory.parent().unwrap_or(directory);
    let mut taken = body.len();
    for entry in fs::read_dir(directory)? {
        taken = taken.saturating_add(entry?.metadata()?.len());
    }
    if taken > REJECTED_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it holds more than `{REJECTED_BYTES_MAX}` bytes with this one; name a dead-letter queue with \
             EWMS_PILOT_QUEUE_DEAD_LETTER"
        )));
    }
    write(&directory.join(format!("{id}.error.txt")), |file| {
        file.write_all(reason.as_bytes())
    })?;
    write(&directory.join(format!("{id}.{suffix}")), |file| {
        body.write_to(file)
    })?;
    // The directories hold the names, so they are synced, too.
    for directory in [directory, parent] {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn write(path: &Path, content: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = File::create(path)?;
    content(&mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_event_is_kept_with_its_reason_until_the_directory_is_full() {
        let top = tempfile::tempdir().expect("a directory");
        let (dir, id) = (top.path().join(REJECTED_DIR), TaskId::random());
        let event = Content::File(FileFormat::Json, b"[1]".to_vec().into());
        keep(&dir, id, &event, "why").expect("kept");
        assert_eq!(
            fs::read(dir.join(format!("{id}.json"))).expect("there"),
            b"[1]"
        );
        assert_eq!(
            fs::read_to_string(dir.join(format!("{id}.error.txt"))).expect("there"),
            "why"
        );
        let large = fs::File::create(dir.join("large")).expect("made");
        large.set_len(REJECTED_BYTES_MAX).expect("sparse");
        assert!(keep(&dir, TaskId::random(), &event, "why").is_err());
    }
}
