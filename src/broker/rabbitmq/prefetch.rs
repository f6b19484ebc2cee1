//! Events as the broker sent them, and the buffer of events that were not handed out yet.
//!
//! The buffer keeps them by queue, and the queues take turns, so that a busy queue does not starve the others
//! that share its connection.

use std::collections::VecDeque;

use amqprs::channel::ConsumerMessage;
use amqprs::{BasicProperties, FieldValue};

use super::unacked::{DeliveryFlag, Fingerprint};
use crate::broker::Body;
use crate::ids::{DeliveryTag, QueueIndex};

/// One delivery, without its body.
#[derive(Debug, Clone)]
pub(super) struct ReceivedEvent {
    pub(super) queue: QueueIndex,
    pub(super) tag: DeliveryTag,
    pub(super) fingerprint: Fingerprint,
    pub(super) flag: DeliveryFlag,
    pub(super) earlier_deliveries: Option<u64>,
    pub(super) origin: QueueKind,
}

/// The kind of queue that an event came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueKind {
    Queue,
    /// Acknowledgements remove nothing from a stream: every pilot would run all events that were ever sent.
    Stream,
}

impl ReceivedEvent {
    /// Splits a message into delivery and body. `None` when amqprs sends an end instead of a message.
    pub(super) fn of(message: ConsumerMessage, queue: QueueIndex) -> Option<(Self, Vec<u8>)> {
        let deliver = message.deliver?;
        let properties = message.basic_properties.as_ref();
        let counted = properties.and_then(delivery_count);
        // Set by the producer, if at all.
        let message_id = properties
            .and_then(|properties| properties.message_id())
            .filter(|id| !id.is_empty());
        let flag = if deliver.redelivered() {
            DeliveryFlag::Redelivered
        } else {
            DeliveryFlag::First
        };
        let first = (flag == DeliveryFlag::First).then_some(0);
        let body = message.content.unwrap_or_default();
        let arrival = Self {
            fingerprint: Fingerprint::of(queue, &body, message_id.map(String::as_str)),
            queue,
            tag: DeliveryTag(deliver.delivery_tag()),
            flag,
            earlier_deliveries: counted.or(first),
            origin: match properties.and_then(|properties| header(properties, "x-stream-offset")) {
                Some(_) => QueueKind::Stream,
                None => QueueKind::Queue,
            },
        };
        Some((arrival, body))
    }
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a FieldValue> {
    properties.headers()?.get(&name.try_into().ok()?)
}

/// The delivery count, which quorum queues send in the header `x-delivery-count`.
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

/// Events that were not handed out yet, with their bodies. Bounded by the window of each queue.
#[derive(Debug, Default)]
pub(super) struct PrefetchBuffer {
    /// In the order of turns, next one first. A queue without events has no entry.
    queues: VecDeque<(QueueIndex, VecDeque<(ReceivedEvent, Body)>)>,
}

impl PrefetchBuffer {
    pub(super) fn push(&mut self, arrival: ReceivedEvent, body: Body) {
        let queue = arrival.queue;
        match self.queues.iter_mut().find(|(of, _)| *of == queue) {
            Some((_, events)) => events.push_back((arrival, body)),
            None => self
                .queues
                .push_back((queue, VecDeque::from([(arrival, body)]))),
        }
    }

    /// The next event. Its queue goes to the end of the turns.
    pub(super) fn pop(&mut self) -> Option<(ReceivedEvent, Body)> {
        let (queue, mut events) = self.queues.pop_front()?;
        let event = events.pop_front();
        if !events.is_empty() {
            self.queues.push_back((queue, events));
        }
        event
    }

    pub(super) fn take(&mut self) -> impl Iterator<Item = ReceivedEvent> + use<> {
        std::mem::take(&mut self.queues)
            .into_iter()
            .flat_map(|(_, events)| events)
            .map(|(arrival, _)| arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(buffer: &mut PrefetchBuffer, queue: usize, tag: u64) {
        let arrival = ReceivedEvent {
            queue: QueueIndex(queue),
            tag: DeliveryTag(tag),
            fingerprint: Fingerprint::of(QueueIndex(queue), &[], None),
            flag: DeliveryFlag::First,
            earlier_deliveries: None,
            origin: QueueKind::Queue,
        };
        buffer.push(arrival, Vec::new().into());
    }

    fn tags(buffer: &mut PrefetchBuffer) -> Vec<u64> {
        std::iter::from_fn(|| buffer.pop())
            .map(|(arrival, _)| arrival.tag.0)
            .collect()
    }

    #[test]
    fn queues_take_turns_and_each_keeps_its_order() {
        let mut buffer = PrefetchBuffer::default();
        for (queue, tag) in [(0, 1), (0, 2), (0, 3), (2, 4), (1, 5), (1, 6)] {
            arrive(&mut buffer, queue, tag);
        }
        assert_eq!(tags(&mut buffer), [1, 4, 5, 2, 6, 3]);
    }

    #[test]
    fn an_event_that_comes_to_an_empty_queue_waits_for_no_more_than_one_of_each_other() {
        let mut buffer = PrefetchBuffer::default();
        for tag in 1..=4 {
            arrive(&mut buffer, 0, tag);
        }
        let first = buffer.pop().map(|(arrival, _)| arrival.tag.0);
        assert_eq!(first, Some(1));
        arrive(&mut buffer, 1, 5);
        assert_eq!(tags(&mut buffer), [2, 5, 3, 4]);
    }

    #[test]
    fn taking_all_leaves_none() {
        let mut buffer = PrefetchBuffer::default();
        for (queue, tag) in [(0, 1), (1, 2), (0, 3)] {
            arrive(&mut buffer, queue, tag);
        }
        assert_eq!(buffer.take().count(), 3);
        assert!(buffer.pop().is_none());
    }
}
