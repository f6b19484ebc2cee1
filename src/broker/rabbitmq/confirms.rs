//! The table of publishes that wait for the broker's confirm, with the rules for multiple confirms, returns
//! and losses. It reads the clock and does no I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::broker::{Endpoint, PublishError};
use crate::ids::QueueIndex;

/// Whether a confirm settles one tag or all tags up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConfirmReach {
    One,
    UpTo,
}

impl From<bool> for ConfirmReach {
    fn from(multiple: bool) -> Self {
        if multiple { Self::UpTo } else { Self::One }
    }
}

/// One publish that waits for its confirm.
#[derive(Debug)]
pub(super) struct PendingConfirm {
    pub(super) queue: QueueIndex,
    /// Gets the outcome.
    pub(super) outcome: oneshot::Sender<Result<(), PublishError>>,
    pub(super) since: Instant,
    pub(super) bytes: usize,
    /// The permits that bound the publishes in flight. The publish holds them too, but it may be dropped
    /// while the body is still in memory, until the broker has it. `None` for a message that is no result.
    pub(super) permits: Option<Arc<[OwnedSemaphorePermit; 2]>>,
}

/// All publishes of one channel that wait for their confirm.
#[derive(Debug)]
pub(super) struct Confirms {
    at: Endpoint,
    /// Makes message ids unique across connections and pilots.
    session: String,
    last_tag: u64,
    pending: BTreeMap<u64, (PendingConfirm, Option<PublishError>)>,
    lost: Option<String>,
    heard: Option<Instant>,
    results_confirmed: u64,
}

impl Confirms {
    pub(super) fn new(at: &Endpoint, session: String) -> Self {
        Self {
            at: at.clone(),
            session,
            last_tag: 0,
            pending: BTreeMap::new(),
            lost: None,
            heard: None,
            results_confirmed: 0,
        }
    }

    /// Enters the next publish and returns its message id. The message must be published on the channel
    /// before the next call, since tags are counted in that order; the confirm may come before publishing
    /// returns. `None` when the channel is gone: the publish has its outcome then.
    pub(super) fn insert(&mut self, pending: PendingConfirm) -> Option<String> {
        if let Some(detail) = &self.lost {
            settle(
                pending,
                Err(PublishError::SessionLost {
                    detail: detail.clone(),
                }),
            );
            return None;
        }
        self.last_tag += 1;
        self.pending.insert(self.last_tag, (pending, None));
        Some(format!("{}:{}", self.session, self.last_tag))
    }

    /// The broker has the message, or has returned it before.
    pub(super) fn ack(&mut self, tag: u64, reach: ConfirmReach) {
        for (pending, returned) in self.take(tag, reach) {
            if returned.is_none() && pending.permits.is_some() {
                self.results_confirmed += 1;
            }
            settle(pending, returned.map_or(Ok(()), Err));
        }
    }

    /// The broker refuses the message.
    pub(super) fn nack(&mut self, tag: u64, reach: ConfirmReach) {
        for (pending, returned) in self.take(tag, reach) {
            let queue = self.at.name(pending.queue);
            let nacked = || PublishError::Nacked {
                queue: queue.to_owned(),
            };
            settle(pending, Err(returned.unwrap_or_else(nacked)));
        }
    }

    /// The broker found no queue for the message. Its ack still comes, and settles it. A return that matches
    /// no publish may be of any of them, so then no ack can be trusted any more.
    pub(super) fn returned(&mut self, message_id: &str, code: u16, text: &str) {
        let tag = message_id
            .strip_prefix(self.session.as_str())
            .and_then(|rest| rest.strip_prefix(':'))
            .and_then(|tag| tag.parse().ok());
        let Some((pending, returned)) = tag.and_then(|tag: u64| self.pending.get_mut(&tag)) else {
            tracing::error!(
                message_id,
                code,
                text,
                "the broker returned a message that matches no result"
            );
            self.lose_all("the broker returned a message that matches no result");
            return;
        };
        *returned = Some(PublishError::Unroutable {
            queue: self.at.name(pending.queue).to_owned(),
            code,
            text: text.to_owned(),
        });
    }

    /// The channel is gone: fails all publishes that wait, and all later ones. The first reason counts, since
    /// later ones only follow from it. A message that is too large for the broker gets an error of its own,
    /// as it would end every further channel too.
    pub(super) fn lose_all(&mut self, detail: &str) {
        let limit = message_limit(detail);
        let detail = self.lost.get_or_insert_with(|| detail.to_owned()).clone();
        for (_, (pending, returned)) in std::mem::take(&mut self.pending) {
            let lost = || PublishError::SessionLost {
                detail: detail.clone(),
            };
            let bytes = pending.bytes;
            let too_large = limit.filter(|limit| bytes > *limit);
            let too_large = too_large.map(|limit| PublishError::TooLarge { bytes, limit });
            settle(pending, Err(too_large.or(returned).unwrap_or_else(lost)));
        }
    }

    /// The broker closed the channel because the pilot may not publish. It reads publishes in their order, so
    /// the last one has not arrived: it was refused, or came after the refused one.
    pub(super) fn denied(&mut self, detail: &str) {
        if self.lost.is_none() {
            // Dropping it tells its sender that it was not sent.
            drop(self.pending.pop_last());
        }
        self.lose_all(detail);
    }

    /// The number of publishes that wait, their bytes, and the start of the oldest.
    pub(super) fn waiting(&self) -> Option<(usize, usize, Instant)> {
        let (oldest, _) = self.pending.values().next()?;
        let bytes = self
            .pending
            .values()
            .map(|(pending, _)| pending.bytes)
            .sum();
        Some((self.pending.len(), bytes, oldest.since))
    }

    /// The time of the broker's last confirm.
    pub(super) fn last_heard(&self) -> Option<Instant> {
        self.heard
    }

    /// The number of results that the broker has confirmed on this connection.
    pub(super) fn results_confirmed(&self) -> u64 {
        self.results_confirmed
    }

    fn take(
        &mut self,
        tag: u64,
        reach: ConfirmReach,
    ) -> Vec<(PendingConfirm, Option<PublishError>)> {
        self.heard = Some(Instant::now());
        match reach {
            ConfirmReach::One => self.pending.remove(&tag).into_iter().collect(),
            ConfirmReach::UpTo => {
                // Tag 0 means all so far.
                let later = match tag {
                    0 => BTreeMap::new(),
                    tag => self.pending.split_off(&(tag + 1)),
                };
                std::mem::replace(&mut self.pending, later)
                    .into_values()
                    .collect()
            }
        }
    }
}

/// The broker's limit, from its reason for closing a channel over a larger message: `PRECONDITION_FAILED -
/// message size 16777217 is larger than configured max size 16777216`.
fn message_limit(detail: &str) -> Option<usize> {
    let (_, told) = detail.split_once("message size ")?;
    let (_, limit) = told.split_once(" max size ")?;
    limit.trim().parse().ok()
}

fn settle(pending: PendingConfirm, outcome: Result<(), PublishError>) {
    // The publish may have stopped waiting: the pilot was told to end.
    let _gone = pending.outcome.send(outcome);
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use tokio::sync::oneshot::Receiver;

    use super::*;
    use crate::broker::Direction;

    struct Table {
        confirms: Confirms,
        permits: Arc<Semaphore>,
    }

    impl Table {
        fn new() -> Self {
            let at = Endpoint {
                direction: Direction::Outgoing,
                address: "mq:5672".into(),
                queues: vec!["results".into(), "copies".into()],
            };
            Self {
                confirms: Confirms::new(&at, "s".into()),
                permits: Arc::new(Semaphore::new(20)),
            }
        }

        fn publish(&mut self) -> Receiver<Result<(), PublishError>> {
            self.publish_to(QueueIndex(0))
        }

        fn publish_to(&mut self, queue: QueueIndex) -> Receiver<Result<(), PublishError>> {
            let (outcome, waits) = oneshot::channel();
            let permit = || Arc::clone(&self.permits).try_acquire_owned().unwrap();
            let permits = Arc::new([permit(), permit()]);
            let pending = PendingConfirm {
                queue,
                outcome,
                since: Instant::now(),
                bytes: 10,
                permits: Some(permits),
            };
            self.confirms.insert(pending);
            waits
        }
    }

    #[test]
    fn an_ack_settles_its_own_publish_and_frees_itspermits() {
        let mut table = Table::new();
        let (mut first, mut second) = (table.publish(), table.publish());
        table.confirms.ack(2, ConfirmReach::One);
        assert_eq!(second.try_recv(), Ok(Ok(())));
        assert!(first.try_recv().is_err());
        assert_eq!(table.permits.available_permits(), 18);
    }

    #[test]
    fn an_ack_of_several_settles_all_up_to_its_tag_and_none_beyond() {
        let mut table = Table::new();
        let mut waits: Vec<_> = (0..5).map(|_| table.publish()).collect();
        table.confirms.ack(2, ConfirmReach::One);
        table.confirms.ack(4, ConfirmReach::UpTo);
        for waits in &mut waits[..4] {
            assert_eq!(waits.try_recv(), Ok(Ok(())));
        }
        assert!(waits[4].try_recv().is_err());
        assert_eq!(
            table
                .confirms
                .waiting()
                .map(|(count, bytes, _)| (count, bytes)),
            Some((1, 10))
        );
    }

    #[test]
    fn tag_zero_settles_all() {
        let mut table = Table::new();
        let (mut first, mut second) = (table.publish(), table.publish());
        table.confirms.nack(0, ConfirmReach::UpTo);
        let nacked = PublishError::Nacked {
            queue: "results".into(),
        };
        assert_eq!(first.try_recv(), Ok(Err(nacked.clone())));
        assert_eq!(second.try_recv(), Ok(Err(nacked)));
    }

    #[test]
    fn each_failure_names_its_own_queue() {
        let mut table = Table::new();
        let (mut first, mut second) = (table.publish(), table.publish_to(QueueIndex(1)));
        table.confirms.returned("s:1", 312, "NO_ROUTE");
        table.confirms.nack(2, ConfirmReach::UpTo);
        let unroutable = first.try_recv().unwrap().unwrap_err();
        assert!(unroutable.to_string().contains("`results`"), "{unroutable}");
        let nacked = PublishError::Nacked {
            queue: "copies".into(),
        };
        assert_eq!(second.try_recv(), Ok(Err(nacked)));
    }

    #[test]
    fn a_returned_message_is_unroutable_although_it_is_acked() {
        let mut table = Table::new();
        let (mut first, mut second) = (table.publish(), table.publish());
        table.confirms.returned("s:1", 312, "NO_ROUTE");
        table.confirms.ack(2, ConfirmReach::UpTo);
        let unroutable = PublishError::Unroutable {
            queue: "results".into(),
            code: 312,
            text: "NO_ROUTE".into(),
        };
        assert_eq!(first.try_recv(), Ok(Err(unroutable)));
        assert_eq!(second.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn a_returned_message_that_matches_no_publish_makes_every_confirm_unbelievable() {
        for id in ["other:1", "s:3", "s:x", ""] {
            let mut table = Table::new();
            let (mut first, mut second) = (table.publish(), table.publish());
            table.confirms.returned(id, 312, "NO_ROUTE");
            table.confirms.ack(2, ConfirmReach::UpTo);
            for waits in [&mut first, &mut second] {
                let outcome = waits.try_recv();
                assert!(
                    matches!(outcome, Ok(Err(PublishError::SessionLost { .. }))),
                    "{id}: {outcome:?}"
                );
            }
        }
    }

    #[test]
    fn of_publishes_that_were_denied_the_last_was_not_sent() {
        let mut table = Table::new();
        let (mut first, mut last) = (table.publish(), table.publish());
        table.confirms.denied("ACCESS_REFUSED");
        assert!(matches!(
            first.try_recv(),
            Ok(Err(PublishError::SessionLost { .. }))
        ));
        // The broker ends the channel after that.
        table.confirms.lose_all("ended");
        let outcome = last.try_recv();
        assert_eq!(
            outcome,
            Err(tokio::sync::oneshot::error::TryRecvError::Closed)
        );
    }

    #[test]
    fn a_channel_that_died_of_a_large_message_fails_that_one_for_good_and_no_other() {
        let mut table = Table::new();
        let mut large = table.publish();
        table
            .confirms
            .lose_all("PRECONDITION_FAILED - message size 10 is larger than configured max size 9");
        let (bytes, limit) = (10, 9);
        assert_eq!(
            large.try_recv(),
            Ok(Err(PublishError::TooLarge { bytes, limit }))
        );
        let mut table = Table::new();
        let mut small = table.publish();
        table
            .confirms
            .lose_all("PRECONDITION_FAILED - message size 11 is larger than max size 10");
        assert!(matches!(
            small.try_recv(),
            Ok(Err(PublishError::SessionLost { .. }))
        ));
    }

    #[test]
    fn after_the_channel_died_every_publish_is_lost_with_the_first_reason() {
        let mut table = Table::new();
        let mut before = table.publish();
        table.confirms.lose_all("CONNECTION_FORCED");
        table.confirms.lose_all("the channel ended");
        let mut after = table.publish();
        let lost = PublishError::SessionLost {
            detail: "CONNECTION_FORCED".into(),
        };
        assert_eq!(before.try_recv(), Ok(Err(lost.clone())));
        assert_eq!(after.try_recv(), Ok(Err(lost)));
        assert_eq!(table.permits.available_permits(), 20);
    }
}
