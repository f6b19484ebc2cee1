//! Events that came and are not handed out yet, kept by queue so that the queues take turns. Pure.
//! Apart, because a busy queue must not starve the others that share its session.

use std::collections::VecDeque;

use super::delivery::Arrival;
use super::unacked::Fingerprint;
use crate::ids::QueueIndex;

type BufferedEvent = (Fingerprint, Arrival);

/// See the module. Bounded by the window of each queue.
#[derive(Debug, Default)]
pub(super) struct PrefetchBuffer {
    /// In turn: the first is asked first. A queue without events has no place.
    queues: VecDeque<(QueueIndex, VecDeque<BufferedEvent>)>,
}

impl PrefetchBuffer {
    pub(super) fn push(&mut self, fingerprint: Fingerprint, arrival: Arrival) {
        let event = (fingerprint, arrival);
        let queue = event.1.queue;
        match self.queues.iter_mut().find(|(of, _)| *of == queue) {
            Some((_, events)) => events.push_back(event),
            None => self.queues.push_back((queue, VecDeque::from([event]))),
        }
    }

    /// The next event. Its queue is asked last from now on.
    pub(super) fn pop(&mut self) -> Option<BufferedEvent> {
        let (queue, mut events) = self.queues.pop_front()?;
        let event = events.pop_front();
        if !events.is_empty() {
            self.queues.push_back((queue, events));
        }
        event
    }

    /// All that is there, and none is left.
    pub(super) fn take(&mut self) -> impl Iterator<Item = BufferedEvent> + use<> {
        std::mem::take(&mut self.queues)
            .into_iter()
            .flat_map(|(_, events)| events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::rabbitmq::delivery::Origin;
    use crate::broker::rabbitmq::unacked::Flag;
    use crate::ids::DeliveryTag;

    fn arrive(ready: &mut PrefetchBuffer, queue: usize, tag: u64) {
        let arrival = Arrival {
            queue: QueueIndex(queue),
            tag: DeliveryTag(tag),
            fingerprint: Fingerprint::of(QueueIndex(queue), &[], None),
            body: Vec::new().into(),
            flag: Flag::First,
            earlier_deliveries: None,
            origin: Origin::Queue,
        };
        ready.push(arrival.fingerprint, arrival);
    }

    fn tags(ready: &mut PrefetchBuffer) -> Vec<u64> {
        std::iter::from_fn(|| ready.pop())
            .map(|(_, arrival)| arrival.tag.0)
            .collect()
    }

    #[test]
    fn queues_take_turns_and_each_keeps_its_order() {
        let mut ready = PrefetchBuffer::default();
        for (queue, tag) in [(0, 1), (0, 2), (0, 3), (2, 4), (1, 5), (1, 6)] {
            arrive(&mut ready, queue, tag);
        }
        assert_eq!(tags(&mut ready), [1, 4, 5, 2, 6, 3]);
    }

    #[test]
    fn an_event_that_comes_to_an_empty_queue_waits_for_no_more_than_one_of_each_other() {
        let mut ready = PrefetchBuffer::default();
        for tag in 1..=4 {
            arrive(&mut ready, 0, tag);
        }
        let first = ready.pop().map(|(_, arrival)| arrival.tag.0);
        assert_eq!(first, Some(1));
        arrive(&mut ready, 1, 5);
        assert_eq!(tags(&mut ready), [2, 5, 3, 4]);
    }

    #[test]
    fn taking_all_leaves_none() {
        let mut ready = PrefetchBuffer::default();
        for (queue, tag) in [(0, 1), (1, 2), (0, 3)] {
            arrive(&mut ready, queue, tag);
        }
        assert_eq!(ready.take().count(), 3);
        assert!(ready.pop().is_none());
    }
}
