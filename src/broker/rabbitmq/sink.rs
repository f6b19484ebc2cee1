//! The pilot's end of a session that publishes. Talks to it through channels only. Apart from
//! [`publish`](super::publish), because that runs on the session's thread and this on the pilot's.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::confirms::{Confirms, Pending};
use super::link::Link;
use super::publish::{Command, Publisher};
use super::session::{self, End, Hold};
use crate::broker::{BrokerError, Content, Place, PublishError};
use crate::config::AmqpAddress;
use crate::ids::Generation;

/// RabbitMQ's `max_message_size`. One byte more closes the channel, after all were sent.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Results in flight; 100 are enough for the most that one connection gives, 23,600 a second.
const PUBLISHES_MAX: u32 = 128;
/// And their bytes: four of the largest.
const PUBLISH_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// For the last confirms before closing; whoever cared has waited for them already.
const LAST_CONFIRMS_WITHIN: Duration = Duration::from_secs(5);
/// For the good-byes.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// Results into a queue.
pub struct Sink {
    hold: Hold,
    commands: mpsc::Sender<Command>,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Sink {
    /// A session that publishes.
    pub(super) async fn open(
        at: &Place,
        address: &AmqpAddress,
        generation: Generation,
    ) -> Result<Self, BrokerError> {
        let (commands, to_session) = mpsc::channel(16);
        let (place, address) = (at.clone(), address.clone());
        let hold = session::start(generation, at, move |ready, owner| async move {
            let name = Uuid::new_v4().simple().to_string();
            let confirms = Arc::new(Mutex::new(Confirms::new(&place.queue, name)));
            let publisher = async {
                let link = Link::open(&address, &place, &confirms).await?;
                Publisher::start(link, Arc::clone(&confirms)).await
            };
            match publisher.await {
                Ok(publisher) => {
                    // Nobody waits any more: the owner's signal ends it at once.
                    let _gone = ready.send(Ok(()));
                    publisher.run(to_session, owner).await
                }
                Err(error) => {
                    let _gone = ready.send(Err(error));
                    End::Abandoned
                }
            }
        })
        .await?;
        let slots = Arc::new(Semaphore::new(PUBLISHES_MAX as usize));
        let bytes = Arc::new(Semaphore::new(PUBLISH_BYTES_MAX as usize));
        Ok(Self {
            hold,
            commands,
            slots,
            bytes,
        })
    }

    pub(in crate::broker) fn publish(
        &self,
        content: Content,
        headers: Vec<(&'static str, String)>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + use<> + 'static {
        let (slots, bytes) = (Arc::clone(&self.slots), Arc::clone(&self.bytes));
        let (commands, lost) = (self.commands.clone(), self.hold.watch());
        async move {
            let Content::Frame(body) = content else {
                return Err(PublishError::WrongEncoding);
            };
            let size = body.len();
            if size > MESSAGE_BYTES_MAX {
                return Err(PublishError::TooLarge {
                    bytes: size,
                    limit: MESSAGE_BYTES_MAX,
                });
            }
            let weight = u32::try_from(size).unwrap_or(PUBLISH_BYTES_MAX);
            let closed = |_| PublishError::SessionLost {
                detail: "it was closed".into(),
            };
            let slot = slots.acquire_owned().await.map_err(closed)?;
            let room = bytes.acquire_many_owned(weight).await.map_err(closed)?;
            let (outcome, is_settled) = oneshot::channel();
            let pending = Pending {
                outcome,
                since: Instant::now(),
                bytes: size,
                permits: [slot, room],
            };
            let command = Command::Publish {
                body,
                headers,
                pending,
            };
            if commands.send(command).await.is_ok()
                && let Ok(outcome) = is_settled.await
            {
                return outcome;
            }
            Err(session_lost(lost).await)
        }
    }

    pub(in crate::broker) async fn close(self) {
        let all = self.slots.acquire_many(PUBLISHES_MAX);
        if timeout(LAST_CONFIRMS_WITHIN, all).await.is_err() {
            let at = &self.hold.at;
            tracing::warn!(%at, "closing although results wait for their confirm");
        }
        let (done, is_done) = oneshot::channel();
        let closing = async {
            self.commands.send(Command::Close { done }).await.is_ok() && is_done.await.is_ok()
        };
        if !timeout(CLOSE_WITHIN, closing).await.unwrap_or(false) {
            let (at, error) = (
                &self.hold.at,
                self.hold.loss().map(|error| error.to_string()),
            );
            tracing::debug!(%at, error, "the outgoing queue was not closed in order");
        }
    }
}

/// The session has let go of a publish: it is ending, and about to say why.
async fn session_lost(mut lost: watch::Receiver<Option<BrokerError>>) -> PublishError {
    let detail = match lost.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(error)) => error.to_string(),
        Ok(None) | Err(_) => "it ended".to_owned(),
    };
    PublishError::SessionLost { detail }
}
