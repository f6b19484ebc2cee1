//! The updates that HTCondor has yet to get: the newest value of each attribute, and the last few of those
//! that are sent at once, in their order. Gets the time as an argument and does no I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How many values to be sent at once are kept, and how many of them are sent in one interval: more than a
/// pilot's life has states. Beyond that, only the newest of each attribute is sent, so that neither an outage
/// nor a pilot whose every task fails differently floods the job event log.
const AT_ONCE_MAX: usize = 16;

/// How often a value may be refused before it is given up.
const REFUSALS_MAX: u32 = 3;

/// Longer intervals make no difference to a job, and adding them to the time could overflow.
const INTERVAL_MAX: Duration = Duration::from_hours(365 * 24);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// At once, as every later value too, in order: a status, a fatal error.
    AtOnce,
    /// At most once an interval, the newest only: a count.
    WithinInterval,
}

/// Which values a round of sending takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpdateScope {
    Due,
    Everything,
}

/// What happens to a refused value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Kept,
    /// The value was refused too often, or is no longer queued.
    GivenUp,
}

/// Identifies one value that was set. Later values have larger ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct UpdateId(u64);

/// A value to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueuedUpdate {
    pub(super) ticket: UpdateId,
    pub(super) attribute: &'static str,
    pub(super) text: String,
    urgency: Urgency,
    /// The time since which its attribute has had an unsent value.
    since: Instant,
    refusals: u32,
}

/// Bounded: at most [`AT_ONCE_MAX`] entries besides one or two for each attribute, each of at most
/// [`super::value::REPORT_MAX`] bytes, and the names of attributes are compiled in.
#[derive(Debug)]
pub(super) struct UpdateQueue {
    interval: Duration,
    /// How long a count waits for others, and for a status, to be sent with.
    company_wait: Duration,
    last_ticket: UpdateId,
    /// In the order of sending.
    entries: Vec<QueuedUpdate>,
    /// The newest value that the pilot set.
    newest: BTreeMap<&'static str, String>,
    /// The newest value that HTCondor accepted.
    sent: BTreeMap<&'static str, String>,
    /// Values that can wait are not sent before this time.
    rest_until: Option<Instant>,
    /// The end of the interval in which values sent at once are counted, and their number.
    burst: Option<(Instant, usize)>,
}

impl UpdateQueue {
    pub(super) fn new(interval: Duration, company_wait: Duration) -> Self {
        Self {
            interval: interval.min(INTERVAL_MAX),
            company_wait,
            last_ticket: UpdateId::default(),
            entries: Vec::new(),
            newest: BTreeMap::new(),
            sent: BTreeMap::new(),
            rest_until: None,
            burst: None,
        }
    }

    /// Sets `attribute` to `text`.
    pub(super) fn set(
        &mut self,
        attribute: &'static str,
        text: String,
        urgency: Urgency,
        now: Instant,
    ) {
        if self.newest.get(attribute) == Some(&text) {
            return;
        }
        self.newest.insert(attribute, text.clone());
        let waiting = self.entries.iter().find(|e| e.attribute == attribute);
        // Keeps the earlier time, or a value that changes all the time would wait all the time.
        let since = waiting.map_or(now, |entry| entry.since);
        self.entries
            .retain(|e| e.attribute != attribute || e.urgency == Urgency::AtOnce);
        let back_to_sent = self.sent.get(attribute) == Some(&text)
            && !self.entries.iter().any(|e| e.attribute == attribute);
        if back_to_sent {
            return;
        }
        self.push(attribute, text, urgency, since);
        self.forget_superseded();
    }

    fn push(&mut self, attribute: &'static str, text: String, urgency: Urgency, since: Instant) {
        self.last_ticket.0 += 1;
        self.entries.push(QueuedUpdate {
            ticket: self.last_ticket,
            attribute,
            text,
            urgency,
            since,
            refusals: 0,
        });
    }

    /// When the next update is due; `None` if there is nothing to send.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let times = self.entries.iter().map(|entry| match entry.urgency {
            Urgency::AtOnce => match self.burst {
                Some((end, AT_ONCE_MAX..)) => end.max(now),
                _ => now,
            },
            Urgency::WithinInterval => {
                let company = entry.since + self.company_wait;
                self.rest_until
                    .filter(|_| !self.is_first(entry))
                    .map_or(company, |end| end.max(company))
                    .max(now)
            }
        });
        times.min()
    }

    /// Whether HTCondor knows nothing of this attribute yet: its first value waits for no interval.
    fn is_first(&self, entry: &QueuedUpdate) -> bool {
        !self.sent.contains_key(entry.attribute)
    }

    /// The updates to send now, those sent at once first. They stay in the queue until they are known to have
    /// arrived.
    pub(super) fn take(&self, scope: UpdateScope, now: Instant) -> Vec<QueuedUpdate> {
        let open = |end: Instant| scope == UpdateScope::Everything || end <= now;
        let burst_left = match self.burst {
            Some((end, used)) if !open(end) => AT_ONCE_MAX.saturating_sub(used),
            _ => usize::MAX,
        };
        let of = |urgency| {
            self.entries
                .iter()
                .filter(move |e| e.urgency == urgency)
                .cloned()
        };
        let mut batch: Vec<_> = of(Urgency::AtOnce).take(burst_left).collect();
        let mut counts = of(Urgency::WithinInterval);
        let first_is_due = counts.any(|e| self.is_first(&e) && e.since + self.company_wait <= now);
        if self.rest_until.is_none_or(open) || first_is_due {
            batch.extend(of(Urgency::WithinInterval));
        }
        batch
    }

    /// HTCondor accepted `entry`. Older values of its attribute are dropped, since they would now be wrong.
    pub(super) fn delivered(&mut self, entry: &QueuedUpdate, now: Instant) {
        self.entries
            .retain(|e| e.attribute != entry.attribute || e.ticket > entry.ticket);
        self.sent.insert(entry.attribute, entry.text.clone());
        match entry.urgency {
            Urgency::WithinInterval => self.rest_until = Some(now + self.interval),
            Urgency::AtOnce => {
                self.burst = Some(match self.burst {
                    Some((end, used)) if end > now => (end, used + 1),
                    _ => (now + self.interval, 1),
                });
            }
        }
        // The pilot may have gone back to the value before `entry` while `entry` was under way.
        let newest = self
            .newest
            .get(entry.attribute)
            .filter(|newest| **newest != entry.text);
        if let Some(newest) = newest.cloned()
            && !self.entries.iter().any(|e| e.attribute == entry.attribute)
        {
            self.push(entry.attribute, newest, entry.urgency, now);
        }
    }

    /// HTCondor refused `entry`.
    pub(super) fn refused(&mut self, entry: &QueuedUpdate) -> Refusal {
        let Some(index) = self.entries.iter().position(|e| e.ticket == entry.ticket) else {
            return Refusal::GivenUp;
        };
        self.entries[index].refusals += 1;
        if self.entries[index].refusals < REFUSALS_MAX {
            return Refusal::Kept;
        }
        self.entries.remove(index);
        Refusal::GivenUp
    }

    /// Drops the oldest values that have a successor, until there are few enough.
    fn forget_superseded(&mut self) {
        while self
            .entries
            .iter()
            .filter(|e| e.urgency == Urgency::AtOnce)
            .count()
            > AT_ONCE_MAX
        {
            let superseded = self.entries.iter().enumerate().position(|(index, entry)| {
                self.entries[index + 1..]
                    .iter()
                    .any(|later| later.attribute == entry.attribute)
            });
            let Some(index) = superseded else { return };
            self.entries.remove(index);
        }
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
