//! Results into a directory, written on threads for blocking work.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;
use uuid::Uuid;

use super::paths::{SpoolError, SpoolPaths, move_as_result};
use super::{died, off_the_loop};
use crate::broker::outbox::{self, UnsentFile, UnsentResult, WhenUndeliverable};
use crate::broker::refused_result::{NextTry, RefusedResult, RefusesSince};
use crate::broker::{
    Body, BrokerError, Content, Direction, Endpoint, FileFormat, OutagePolicy, PublishError,
};
use crate::ids::QueueIndex;

/// The most results in flight, and their bytes.
const PUBLISHES_MAX: usize = 32;
const PUBLISH_BYTES_MAX: u32 = 64 * 1024 * 1024;

pub struct SpoolSink {
    paths: Arc<SpoolPaths>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    refuses: RefusesSince,
    outage_policy: OutagePolicy,
}

impl SpoolSink {
    pub(in crate::broker) async fn open(
        queue: &str,
        directory: &Path,
        outage_policy: &OutagePolicy,
    ) -> Result<Self, BrokerError> {
        let paths = create(Direction::Outgoing, queue, directory).await?;
        try_to_write(&paths).await?;
        let slots = Arc::new(Semaphore::new(PUBLISHES_MAX));
        let bytes = Arc::new(Semaphore::new(PUBLISH_BYTES_MAX as usize));
        let sink = Self {
            paths,
            slots,
            bytes,
            refuses: RefusesSince::default(),
            outage_policy: outage_policy.clone(),
        };
        let publish = async |_queue, result| sink.publish_kept(result).await;
        outbox::send_all(&sink.paths.at, outage_policy, publish).await;
        Ok(sink)
    }

    /// Publishes a result that an earlier pilot left; it stays there unless this succeeds.
    async fn publish_kept(&self, result: UnsentResult) -> Result<(), PublishError> {
        let Some(UnsentFile { format, event }) = result.file else {
            return Err(PublishError::WrongEncoding);
        };
        let event = event.map(OsString::from);
        self.publish_file(format, result.body, event, WhenUndeliverable::Forget)
            .await
    }

    pub(in crate::broker) fn place(&self) -> &Endpoint {
        &self.paths.at
    }

    pub(in crate::broker) fn publish(
        &self,
        content: Content,
        event: Option<OsString>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let publishing = match content {
            Content::File(format, body) => {
                Ok(self.publish_file(format, body, event, WhenUndeliverable::Keep))
            }
            Content::Frame(_) => Err(PublishError::WrongEncoding),
        };
        async move { publishing?.await }
    }

    fn publish_file(
        &self,
        format: FileFormat,
        body: Body,
        event: Option<OsString>,
        otherwise: WhenUndeliverable,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let paths = Arc::clone(&self.paths);
        let (slots, room) = (Arc::clone(&self.slots), Arc::clone(&self.bytes));
        let (refuses, outage_policy) = (self.refuses.clone(), self.outage_policy.clone());
        async move {
            let gone = || PublishError::SessionLost {
                detail: "the spool was closed".into(),
            };
            // A file has no size limit; one that is larger than all the room takes all of it.
            let at = paths.at.clone();
            let weight = u32::try_from(body.len())
                .unwrap_or(u32::MAX)
                .min(PUBLISH_BYTES_MAX);
            let slot = slots.acquire_owned().await.map_err(|_closed| gone())?;
            let room = room
                .acquire_many_owned(weight)
                .await
                .map_err(|_closed| gone())?;
            // The writing thread holds them too, since the publish may stop waiting.
            let permits = Arc::new((slot, room));
            let mut waiting = None;
            loop {
                let paths = Arc::clone(&paths);
                let (event_name, bytes) = (event.clone(), body.clone());
                let permits = Arc::clone(&permits);
                // A directory that was deleted is created again, like a queue.
                let is_again = waiting.is_some();
                let written = off_the_loop(move || {
                    let _while_writing = permits;
                    let made = if is_again { paths.create() } else { Ok(()) };
                    made.and_then(|()| write_result(&paths, event_name.as_deref(), format, &bytes))
                        .map_err(SpoolError::into_publish)
                });
                let error = match written.await {
                    Ok(Ok(())) => {
                        refuses.takes();
                        return Ok(());
                    }
                    Ok(Err(error)) => error,
                    Err(_died) => return Err(gone()),
                };
                if otherwise == WhenUndeliverable::Forget {
                    return Err(error);
                }
                let waiting = waiting.get_or_insert_with(|| RefusedResult::new(&outage_policy));
                if waiting.next_try(&at, &refuses, &error).await == NextTry::None {
                    let event = event.and_then(|name| name.into_string().ok());
                    let file = Some(UnsentFile { format, event });
                    outbox::keep(
                        &at,
                        QueueIndex(0),
                        UnsentResult { file, body },
                        &outage_policy,
                    )
                    .await;
                    return Err(error);
                }
            }
        }
    }
}

/// Creates the directories of a queue, so that it can be used.
pub(super) async fn create(
    direction: Direction,
    queue: &str,
    directory: &Path,
) -> Result<Arc<SpoolPaths>, BrokerError> {
    let paths = Arc::new(SpoolPaths::new(direction, queue, directory)?);
    let created = {
        let paths = Arc::clone(&paths);
        off_the_loop(move || paths.create()).await
    };
    match created {
        Ok(Ok(())) => Ok(paths),
        Ok(Err(trouble)) => Err(trouble.into_broker(&paths.at)),
        Err(error) => Err(died(&paths.at, error)),
    }
}

/// Checks that results can be written, before a task is run for one.
pub(super) async fn try_to_write(paths: &Arc<SpoolPaths>) -> Result<(), BrokerError> {
    let trying = Arc::clone(paths);
    let tried = off_the_loop(move || {
        let hidden = trying.waiting.join(format!(".{}", Uuid::new_v4().simple()));
        File::create_new(&hidden)
            .and_then(|_made| fs::remove_file(&hidden))
            .map_err(SpoolError::on("write", &hidden))
    });
    match tried.await {
        Ok(tried) => tried.map_err(|trouble| trouble.into_broker(&paths.at)),
        Err(error) => Err(died(&paths.at, error)),
    }
}

/// Syncs the file, makes it visible, then syncs the directory. A result of an event without a name gets a
/// time-ordered one.
fn write_result(
    paths: &SpoolPaths,
    event: Option<&OsStr>,
    format: FileFormat,
    body: &Body,
) -> Result<(), SpoolError> {
    let directory = &paths.waiting;
    let nameless = OsString::from(Uuid::now_v7().to_string());
    let event = event.unwrap_or(&nameless);
    let hidden = directory.join(format!(".{}", Uuid::new_v4().simple()));
    let write = || {
        let mut file = File::create_new(&hidden)?;
        body.write_to(&mut file)?;
        file.sync_all()
    };
    let written = write()
        .map_err(SpoolError::on("write", &hidden))
        .and_then(|()| move_as_result(&hidden, directory, event, format));
    if written.is_err() {
        // The error has the reason; a leftover hidden file does no harm.
        let _leftover = fs::remove_file(&hidden);
    }
    written?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(SpoolError::on("sync directory", directory))
}
