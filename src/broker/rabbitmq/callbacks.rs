//! amqprs' callbacks, turned into events. They run inside amqprs' reader, so they never wait and never call
//! amqprs.
//!
//! amqprs signals every way in which a channel or connection can end, its own panics included, by one thing
//! only: it drops the callback.

use std::sync::{Arc, Mutex, PoisonError};

use amqprs::callbacks::{ChannelCallback, ConnectionCallback};
use amqprs::channel::Channel;
use amqprs::connection::Connection;
use amqprs::{Ack, BasicProperties, Cancel, Close, CloseChannel, Nack, Return};
use async_trait::async_trait;
use tokio::sync::mpsc::UnboundedSender;

use super::confirms::Confirms;

const ACCESS_REFUSED: u16 = 403;

type CallbackResult = Result<(), amqprs::error::Error>;

/// An event on a channel or connection, caused by the broker or amqprs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChannelEvent {
    /// The server closed the channel or the connection, and gave a reason.
    Closed {
        /// AMQP's reply code.
        code: u16,
        text: String,
    },
    /// The server cancelled the consumer with this tag: its queue was deleted or lost its leader.
    ConsumerCancelled(String),
    /// The server found no queue for a result. It was deleted; the next connection declares it again.
    Returned,
    /// The channel or connection is gone without a reason.
    Dropped,
}

/// Confirms that are awaited, shared by the connection and the callbacks that settle them.
pub(super) type SharedConfirms = Arc<Mutex<Confirms>>;

/// Changes the table. No await happens under its lock.
pub(super) fn with<T>(confirms: &SharedConfirms, change: impl FnOnce(&mut Confirms) -> T) -> T {
    change(&mut confirms.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(super) struct ConnectionCallbacks {
    signals: UnboundedSender<ChannelEvent>,
    confirms: SharedConfirms,
}

impl ConnectionCallbacks {
    pub(super) fn new(signals: UnboundedSender<ChannelEvent>, confirms: SharedConfirms) -> Self {
        Self { signals, confirms }
    }
}

impl Drop for ConnectionCallbacks {
    fn drop(&mut self) {
        let _session_ended = self.signals.send(ChannelEvent::Dropped);
    }
}

#[async_trait]
impl ConnectionCallback for ConnectionCallbacks {
    async fn close(&mut self, _: &Connection, close: Close) -> CallbackResult {
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        with(&self.confirms, |confirms| confirms.lose_all(&text));
        let _session_ended = self.signals.send(ChannelEvent::Closed { code, text });
        Ok(())
    }

    async fn blocked(&mut self, _: &Connection, reason: String) {
        tracing::warn!(%reason, "the broker takes no messages for now");
    }

    async fn unblocked(&mut self, _: &Connection) {
        tracing::info!("the broker takes messages again");
    }

    async fn secret_updated(&mut self, _: &Connection) {}
}

/// Watches a channel. For one that publishes, it also settles the confirms.
pub(super) struct ChannelCallbacks {
    signals: UnboundedSender<ChannelEvent>,
    confirms: SharedConfirms,
}

impl ChannelCallbacks {
    pub(super) fn new(signals: UnboundedSender<ChannelEvent>, confirms: SharedConfirms) -> Self {
        Self { signals, confirms }
    }
}

impl Drop for ChannelCallbacks {
    fn drop(&mut self) {
        with(&self.confirms, |confirms| {
            confirms.lose_all("the connection ended without a word");
        });
        let _session_ended = self.signals.send(ChannelEvent::Dropped);
    }
}

#[async_trait]
impl ChannelCallback for ChannelCallbacks {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> CallbackResult {
        let (code, text) = (close.reply_code(), close.reply_text().clone());
        with(&self.confirms, |confirms| match code {
            ACCESS_REFUSED => confirms.denied(&text),
            _ => confirms.lose_all(&text),
        });
        let _session_ended = self.signals.send(ChannelEvent::Closed { code, text });
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, cancel: Cancel) -> CallbackResult {
        let consumer = cancel.consumer_tag().clone();
        let _session_ended = self.signals.send(ChannelEvent::ConsumerCancelled(consumer));
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        with(&self.confirms, |confirms| {
            confirms.ack(ack.delivery_tag(), ack.mutiple().into());
        });
    }

    async fn publish_nack(&mut self, _: &Channel, nack: Nack) {
        with(&self.confirms, |confirms| {
            confirms.nack(nack.delivery_tag(), nack.multiple().into());
        });
    }

    async fn publish_return(
        &mut self,
        _: &Channel,
        returned: Return,
        properties: BasicProperties,
        _content: Vec<u8>,
    ) {
        let id = properties.message_id().map_or("", String::as_str);
        with(&self.confirms, |confirms| {
            confirms.returned(id, returned.reply_code(), returned.reply_text());
        });
        let _session_ended = self.signals.send(ChannelEvent::Returned);
    }
}
