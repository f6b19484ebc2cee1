//! The table of unacknowledged events: which delivery stands for which event, and the event's state. Its
//! rules decide whether a task is run twice and whether an event is lost. No I/O, no clock.
//!
//! An event outlives the connection that it came through. When that is lost, its tag is void, the task runs
//! on, and the broker delivers the event again, flagged as redelivered. Such a delivery is *adopted*: it
//! becomes the tag of the event in hand instead of a new event. The event is recognised by its queue, its
//! body and, if its producer set one, its `message_id`.
//!
//! | state | with an owner | after its connection was lost |
//! | --- | --- | --- |
//! | open: its task runs, or its result is on its way | it can be settled | adopted, goes on |
//! | settled: done, or rejected for good | acknowledged, or rejected, at once | adopted and settled so |
//! | sent: settled, not proven to have arrived | forgotten when proven | in doubt |
//! | in doubt: the settlement may have arrived or not | | adopted and settled so if it has a `message_id`, else forgotten |
//!
//! Events with equal bodies are interchangeable as long as the broker still has all of them: each run
//! acknowledges one. An event in doubt may be gone already, and a delivery with its body may be another event
//! that was never run. So a body alone never settles an event in doubt: the event runs again, as a duplicate
//! is cheaper than a loss.

use std::collections::{BTreeMap, HashSet, VecDeque};

use twox_hash::XxHash3_128;

use crate::broker::Verdict;
use crate::ids::{DeliveryTag, Generation, QueueIndex};

/// The number of fingerprints remembered, to recognise a `message_id` that a producer used more than once.
const REMEMBERED: usize = 8_192;

/// Recognises an event in its queue: its body, by 128 bits of XXH3 and its length, and its `message_id`. An
/// equal id with another body is another event, since producers choose the ids. The same body in another
/// queue is another event. A cryptographic hash would hold up the loop for 19 ms with a body of 8 MB; and a
/// producer that can forge bodies can do worse to its own queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint {
    queue: QueueIndex,
    hash: u128,
    bytes: usize,
    message_id: Option<u128>,
}

impl Fingerprint {
    pub(super) fn of(queue: QueueIndex, body: &[u8], message_id: Option<&str>) -> Self {
        Self {
            queue,
            hash: XxHash3_128::oneshot(body),
            bytes: body.len(),
            message_id: message_id.map(|id| XxHash3_128::oneshot(id.as_bytes())),
        }
    }
}

/// A fingerprint as it is remembered: 8 of its 64 bytes, since thousands are kept in a list and a set. A
/// collision only makes the pilot more careful, see [`UnackedTable::reused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ShortFingerprint(u64);

impl Fingerprint {
    fn short(&self) -> ShortFingerprint {
        let hash = self.hash ^ self.message_id.unwrap_or_default();
        let low = u64::try_from(hash & u128::from(u64::MAX)).unwrap_or_default();
        let queue = u64::try_from(self.queue.0).unwrap_or_default();
        ShortFingerprint(low ^ queue)
    }
}

/// Whether the broker says that it delivered the event before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeliveryFlag {
    First,
    Redelivered,
}

/// Identifies one event in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UnackedId(u64);

/// A tag and the only connection in which it is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionTag {
    pub(super) generation: Generation,
    pub(super) tag: DeliveryTag,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnackedState {
    Open,
    Settled(FinalVerdict, AckSent),
}

/// A final verdict, after which the broker forgets the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FinalVerdict {
    Done,
    Rejected,
}

/// How far a final verdict has been sent to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AckSent {
    Nothing,
    /// The settlement's number in its connection.
    Sent(u64),
    InDoubt,
}

impl From<FinalVerdict> for Verdict {
    fn from(verdict: FinalVerdict) -> Self {
        match verdict {
            FinalVerdict::Done => Self::Done,
            FinalVerdict::Rejected => Self::Rejected,
        }
    }
}

impl UnackedEvent {
    fn is_in_doubt(&self) -> bool {
        matches!(self.state, UnackedState::Settled(_, AckSent::InDoubt))
    }
}

#[derive(Debug)]
struct UnackedEvent {
    fingerprint: Fingerprint,
    owner: Option<SessionTag>,
    state: UnackedState,
}

/// How a delivery was recognised.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recognition {
    /// An event that is not in hand.
    New,
    Running,
    /// An event that is done or rejected; to be settled with this verdict.
    Settled(UnackedId, Verdict),
}

/// How to settle an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settling {
    Send(SessionTag),
    /// The event's connection is lost. The acknowledgement follows when the event is delivered again.
    Deferred,
    /// The event's connection is lost, so the broker has taken the event back, as the verdict wanted.
    GivenBackAlready,
}

#[derive(Debug, Default)]
pub(super) struct UnackedTable {
    entries: BTreeMap<UnackedId, UnackedEvent>,
    last: u64,
    /// Fingerprints of events with a `message_id`. Those without are not needed: no doubt about them is
    /// trusted.
    remembered: VecDeque<ShortFingerprint>,
    seen: HashSet<ShortFingerprint>,
    /// Fingerprints, ids included, that more than one event has.
    reused: HashSet<ShortFingerprint>,
}

impl UnackedTable {
    pub(super) fn enter(
        &mut self,
        fingerprint: Fingerprint,
        owner: SessionTag,
        flag: DeliveryFlag,
    ) -> UnackedId {
        if fingerprint.message_id.is_some() {
            self.remember(fingerprint.short(), flag);
        }
        self.last += 1;
        let id = UnackedId(self.last);
        let entry = UnackedEvent {
            fingerprint,
            owner: Some(owner),
            state: UnackedState::Open,
        };
        self.entries.insert(id, entry);
        id
    }

    fn remember(&mut self, half: ShortFingerprint, flag: DeliveryFlag) {
        if self.seen.insert(half) {
            self.remembered.push_back(half);
            if self.remembered.len() > REMEMBERED
                && let Some(oldest) = self.remembered.pop_front()
            {
                self.seen.remove(&oldest);
                self.reused.remove(&oldest);
            }
        } else if flag == DeliveryFlag::First {
            self.reused.insert(half);
        }
    }

    /// Recognises a delivery. One that is not flagged as redelivered is never of an event in hand.
    pub(super) fn recognise(
        &mut self,
        fingerprint: Fingerprint,
        owner: SessionTag,
        flag: DeliveryFlag,
    ) -> Recognition {
        if flag == DeliveryFlag::First {
            return Recognition::New;
        }
        let reused = self.reused.contains(&fingerprint.short());
        let candidates = self.entries.iter_mut().filter(|(_, entry)| {
            entry.owner.is_none()
                && entry.fingerprint == fingerprint
                // To acknowledge the twin of an event that the broker has forgotten would lose the twin.
                && !(reused && entry.is_in_doubt())
        });
        // Events in doubt come last, since the others are surely still at the broker.
        let Some((id, entry)) = candidates.min_by_key(|(_, entry)| entry.is_in_doubt()) else {
            return Recognition::New;
        };
        entry.owner = Some(owner);
        match entry.state {
            UnackedState::Open => Recognition::Running,
            UnackedState::Settled(verdict, _) => {
                entry.state = UnackedState::Settled(verdict, AckSent::Nothing);
                Recognition::Settled(*id, verdict.into())
            }
        }
    }

    /// Applies the verdict on an event in hand. `number` is that of its settlement in the connection.
    pub(super) fn settle(&mut self, id: UnackedId, verdict: &Verdict, number: u64) -> Settling {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Settling::GivenBackAlready;
        };
        let owner = entry.owner;
        let verdict = match verdict {
            Verdict::Done => FinalVerdict::Done,
            Verdict::Rejected => FinalVerdict::Rejected,
            Verdict::Failed { .. } | Verdict::Released => {
                self.entries.remove(&id);
                return owner.map_or(Settling::GivenBackAlready, Settling::Send);
            }
        };
        if let Some(owner) = owner {
            entry.state = UnackedState::Settled(verdict, AckSent::Sent(number));
            Settling::Send(owner)
        } else {
            entry.state = UnackedState::Settled(verdict, AckSent::Nothing);
            Settling::Deferred
        }
    }

    /// The delivery that stands for an event, and its queue.
    pub(super) fn delivery_of(&self, id: UnackedId) -> Option<(SessionTag, QueueIndex)> {
        let entry = self.entries.get(&id)?;
        Some((entry.owner?, entry.fingerprint.queue))
    }

    /// The broker has read the connection's settlements up to `number`.
    pub(super) fn proven(&mut self, number: u64) {
        self.entries
            .retain(|_, entry| !matches!(entry.state, UnackedState::Settled(_, AckSent::Sent(sent)) if sent <= number));
    }

    /// The connection is lost, and all its tags are void. Returns the number of events that are done and
    /// forgotten in doubt: if their acknowledgement did not arrive, they are run again.
    pub(super) fn session_lost(&mut self) -> u64 {
        for entry in self.entries.values_mut() {
            entry.owner = None;
            if let UnackedState::Settled(_, told @ AckSent::Sent(_)) = &mut entry.state {
                *told = AckSent::InDoubt;
            }
        }
        self.forget_doubts(|entry| entry.fingerprint.message_id.is_none())
    }

    /// Every event that the broker took back has come again, here or elsewhere. Returns the same count as
    /// [`session_lost`](Self::session_lost).
    pub(super) fn end_doubts(&mut self) -> u64 {
        self.forget_doubts(|entry| entry.owner.is_none())
    }

    fn forget_doubts(&mut self, which: impl Fn(&UnackedEvent) -> bool) -> u64 {
        let mut done = 0;
        self.entries.retain(|_, entry| {
            let forgotten = entry.is_in_doubt() && which(entry);
            if forgotten && matches!(entry.state, UnackedState::Settled(FinalVerdict::Done, _)) {
                done += 1;
            }
            !forgotten
        });
        done
    }

    /// The number of events that may be delivered again.
    pub(super) fn ownerless(&self) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.owner.is_none())
            .count()
    }

    /// The number of events of this queue that may be delivered again.
    pub(super) fn ownerless_of(&self, queue: QueueIndex) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.owner.is_none() && entry.fingerprint.queue == queue)
            .count()
    }

    /// The number of events that are settled here but not surely at the broker, with nothing under way.
    pub(super) fn owed(&self) -> usize {
        self.entries
            .values()
            .filter(|entry| entry.owner.is_none() && entry.state != UnackedState::Open)
            .count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests;
