//! One event as the server sent it, taken out of amqprs' message. Knows messages; what is large of one
//! goes to the disk at once.

use amqprs::channel::ConsumerMessage;
use amqprs::{BasicProperties, FieldValue};

use super::unacked::{Fingerprint, Flag};
use crate::broker::{Body, BodyStore};
use crate::ids::{DeliveryTag, QueueIndex};

#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) queue: QueueIndex,
    pub(super) tag: DeliveryTag,
    pub(super) fingerprint: Fingerprint,
    pub(super) body: Body,
    pub(super) flag: Flag,
    pub(super) earlier_deliveries: Option<u64>,
    pub(super) origin: Origin,
}

/// What kind of queue it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Queue,
    /// Acknowledgements take nothing out of it: every pilot would run all that was ever sent.
    Stream,
}

impl Arrival {
    /// Nothing, when amqprs sends an end instead of a message. Blocks while it puts a large one on the
    /// disk: so the next is not read before, and only one is in memory.
    pub(super) fn of(
        message: ConsumerMessage,
        queue: QueueIndex,
        bodies: &BodyStore,
    ) -> Option<Self> {
        let deliver = message.deliver?;
        let properties = message.basic_properties.as_ref();
        let counted = properties.and_then(delivery_count);
        // The producer's, if it set one.
        let message_id = properties
            .and_then(|properties| properties.message_id())
            .filter(|id| !id.is_empty());
        let flag = if deliver.redelivered() {
            Flag::Redelivered
        } else {
            Flag::First
        };
        let first = (flag == Flag::First).then_some(0);
        let body = message.content.unwrap_or_default();
        Some(Self {
            fingerprint: Fingerprint::of(queue, &body, message_id.map(String::as_str)),
            queue,
            tag: DeliveryTag(deliver.delivery_tag()),
            body: bodies.keep(body),
            flag,
            earlier_deliveries: counted.or(first),
            origin: match properties.and_then(|properties| header(properties, "x-stream-offset")) {
                Some(_) => Origin::Stream,
                None => Origin::Queue,
            },
        })
    }
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a FieldValue> {
    properties.headers()?.get(&name.try_into().ok()?)
}

/// Quorum queues count deliveries in the header `x-delivery-count`.
fn delivery_count(properties: &BasicProperties) -> Option<u64> {
    match header(properties, "x-delivery-count")? {
        FieldValue::l(count) => u64::try_from(*count).ok(),
        FieldValue::I(count) => u64::try_from(*count).ok(),
        FieldValue::s(count) => u64::try_from(*count).ok(),
        FieldValue::b(count) => u64::try_from(*count).ok(),
        FieldValue::i(count) => Some(u64::from(*count)),
        FieldValue::u(count) => Some(u64::from(*count)),
        FieldValue::B(count) => Some(u64::from(*count)),
        _ => None,
    }
}
