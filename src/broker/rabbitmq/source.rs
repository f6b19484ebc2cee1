//! The pilot's end of a session that consumes. Talks to it through channels only. Apart from
//! [`consume`](super::consume), because that runs on the session's thread and this on the pilot's.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::confirms::Confirms;
use super::consume::{Arrival, Command, Consumer};
use super::link::Link;
use super::session::{self, End, Hold};
use crate::broker::{BrokerError, Content, Delivery, Place, ReceiptKind, SettleError, Verdict};
use crate::config::AmqpAddress;
use crate::ids::{DeliveryTag, Generation};

/// Stopping is one call to the server, closing up to two and the good-byes.
const STOP_WITHIN: Duration = Duration::from_secs(12);
const CLOSE_WITHIN: Duration = Duration::from_secs(25);

/// Events from a queue.
pub struct Source {
    hold: Hold,
    commands: mpsc::Sender<Command>,
    arrivals: mpsc::Receiver<Arrival>,
}

/// A tag with the way into its own session.
pub(in crate::broker) struct Receipt {
    tag: DeliveryTag,
    generation: Generation,
    commands: mpsc::Sender<Command>,
}

impl Source {
    /// A session that consumes.
    pub(super) async fn open(
        at: &Place,
        address: &AmqpAddress,
        window: u16,
        generation: Generation,
    ) -> Result<Self, BrokerError> {
        let (to_pilot, arrivals) = mpsc::channel(usize::from(window));
        let (commands, to_session) = mpsc::channel(usize::from(window) + 2);
        let (place, address) = (at.clone(), address.clone());
        let hold = session::start(generation, at, move |ready, owner| async move {
            let confirms = Arc::new(Mutex::new(Confirms::new(&place.queue, String::new())));
            let consumer = async {
                let link = Link::open(&address, &place, &confirms).await?;
                Consumer::start(link, window, to_pilot).await
            };
            match consumer.await {
                Ok(consumer) => {
                    // Nobody waits any more: the owner's signal ends it at once.
                    let _gone = ready.send(Ok(()));
                    consumer.run(to_session, owner).await
                }
                Err(error) => {
                    let _gone = ready.send(Err(error));
                    End::Abandoned
                }
            }
        })
        .await?;
        Ok(Self {
            hold,
            commands,
            arrivals,
        })
    }

    pub(in crate::broker) async fn recv(&mut self) -> Result<Delivery, BrokerError> {
        let Self {
            hold,
            commands,
            arrivals,
        } = self;
        tokio::select! {
            // Events of a dead session come again; running them now would run them twice.
            biased;
            error = hold.lost() => Err(error),
            Some(arrival) = arrivals.recv() => {
                let Arrival { tag, body, earlier_deliveries } = arrival;
                let generation = hold.generation;
                let receipt = Receipt { tag, generation, commands: commands.clone() };
                Ok(Delivery {
                    content: Content::Frame(body),
                    earlier_deliveries,
                    receipt: crate::broker::Receipt::new(ReceiptKind::RabbitMq(receipt)),
                })
            }
        }
    }

    pub(in crate::broker) async fn stop(&mut self) -> Result<(), BrokerError> {
        let stopping = async {
            let (done, is_done) = oneshot::channel();
            let sent = self.commands.send(Command::Stop { done }).await.is_ok();
            if !sent || is_done.await.is_err() {
                return Err(self.hold.lost().await);
            }
            // The session has closed its end: what it had handed to us is all here.
            while let Some(Arrival { tag, .. }) = self.arrivals.recv().await {
                let generation = self.hold.generation;
                let receipt = Receipt {
                    tag,
                    generation,
                    commands: self.commands.clone(),
                };
                if receipt.settle(Verdict::Released).await.is_err() {
                    return Err(self.hold.lost().await);
                }
            }
            Ok(())
        };
        match timeout(STOP_WITHIN, stopping).await {
            Ok(stopped) => stopped,
            Err(_elapsed) => Err(BrokerError::TimedOut {
                at: self.hold.at.clone(),
                step: "giving events back",
                after: STOP_WITHIN,
            }),
        }
    }

    pub(in crate::broker) async fn close(mut self) {
        if let Err(error) = self.stop().await {
            tracing::warn!(%error, "the incoming queue was not closed in order");
            return;
        }
        let (done, is_done) = oneshot::channel();
        let closing = async {
            self.commands.send(Command::Close { done }).await.is_ok() && is_done.await.is_ok()
        };
        if !timeout(CLOSE_WITHIN, closing).await.unwrap_or(false) {
            let at = &self.hold.at;
            let error = self.hold.loss().map(|error| error.to_string());
            tracing::warn!(
                %at, error,
                "the incoming queue was not closed in order; the broker may deliver events again \
                 that are done"
            );
        }
    }
}

impl Receipt {
    pub(in crate::broker) fn generation(&self) -> Generation {
        self.generation
    }

    pub(in crate::broker) async fn settle(self, verdict: Verdict) -> Result<(), SettleError> {
        let (done, is_done) = oneshot::channel();
        let command = Command::Settle {
            tag: self.tag,
            verdict,
            done,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_closed| SettleError::SessionLost)?;
        is_done.await.map_err(|_dropped| SettleError::SessionLost)
    }

    pub(in crate::broker) fn report_drop(self) {
        if self.commands.is_closed() {
            return;
        }
        let (delivery_tag, generation) = (self.tag.0, self.generation.0);
        tracing::error!(
            delivery_tag,
            generation,
            "a delivery was dropped unsettled; the broker holds its event until this pilot ends"
        );
    }
}
