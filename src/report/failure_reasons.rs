//! Counts failures with equal texts, in bounded memory: if there are too many texts, only those that recur
//! are kept.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

/// The most texts that are remembered, each of at most 4 KiB; beyond that the rarer half is dropped.
const MOST: usize = 2000;

/// Texts and how often each was seen.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    seen: HashMap<Box<str>, Seen>,
    forgotten: u64,
}

#[derive(Debug)]
struct Seen {
    class: &'static str,
    count: u64,
    sites: BTreeSet<u32>,
    example: FailureExample,
}

/// A text that failures have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reason {
    pub count: u64,
    /// The class of the first of them.
    pub fault_class: &'static str,
    pub sites: usize,
    pub error: String,
    pub example: FailureExample,
}

/// The first failure with a text: what a person needs to find its log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FailureExample {
    /// HTCondor's `ClusterId.ProcId`, after which the files that came back are named; absent outside of HTCondor.
    pub job_id: Option<String>,
    pub host: String,
    /// Absent if the pilot failed, not a task.
    pub task_id: Option<String>,
}

impl FailureExample {
    /// `job 4711.3 on h7.example.org, task 0f3c…`
    pub(super) fn words(&self) -> String {
        let job = self.job_id.as_ref().map(|job| format!("job {job} "));
        let task = self.task_id.as_ref().map(|task| format!(", task {task}"));
        format!(
            "{}on {}{}",
            job.unwrap_or_default(),
            self.host,
            task.unwrap_or_default()
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum ReasonClass {
    Task,
    Event,
    Image,
    Ep,
    Broker,
    /// The record has none, or a class that this version doesn't know.
    Unknown,
}

impl ReasonClass {
    pub(super) const ALL: [Self; 6] = [
        Self::Task,
        Self::Event,
        Self::Image,
        Self::Ep,
        Self::Broker,
        Self::Unknown,
    ];

    pub(super) fn of(name: Option<&str>) -> Self {
        let known = Self::ALL
            .into_iter()
            .find(|class| Some(class.name()) == name);
        known.unwrap_or(Self::Unknown)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Event => "event",
            Self::Image => "image",
            Self::Ep => "ep",
            Self::Broker => "broker",
            Self::Unknown => "unknown",
        }
    }
}

impl Reasons {
    /// `example` is called only for the first failure with this text.
    pub(super) fn add(
        &mut self,
        class: &'static str,
        text: &str,
        site: u32,
        example: impl FnOnce() -> FailureExample,
    ) {
        if let Some(seen) = self.seen.get_mut(text) {
            seen.count += 1;
            seen.sites.insert(site);
            return;
        }
        if self.seen.len() >= MOST {
            self.forget();
        }
        let seen = Seen {
            class,
            count: 1,
            sites: BTreeSet::from([site]),
            example: example(),
        };
        self.seen.insert(text.into(), seen);
    }

    fn forget(&mut self) {
        let mut counts: Vec<u64> = self.seen.values().map(|seen| seen.count).collect();
        let (_, &mut middle, _) = counts.select_nth_unstable(MOST / 2);
        let forgotten = &mut self.forgotten;
        self.seen.retain(|_, seen| {
            let kept = seen.count > middle;
            if !kept {
                *forgotten += seen.count;
            }
            kept
        });
    }

    /// The most frequent texts, and how many failures had another one.
    pub(super) fn most_frequent(&self, number: usize) -> (Vec<Reason>, u64) {
        let mut all: Vec<_> = self.seen.iter().collect();
        all.sort_by(|(left_text, left), (right_text, right)| {
            right
                .count
                .cmp(&left.count)
                .then_with(|| left_text.cmp(right_text))
        });
        let rest: u64 = all.iter().skip(number).map(|(_, seen)| seen.count).sum();
        let first = all.iter().take(number).map(|(text, seen)| Reason {
            count: seen.count,
            fault_class: seen.class,
            sites: seen.sites.len(),
            error: text.to_string(),
            example: seen.example.clone(),
        });
        (first.collect(), rest + self.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_counted_and_the_rest_is_summed() {
        let mut reasons = Reasons::default();
        for (text, site) in [("b", 1), ("a", 1), ("b", 2), ("c", 1)] {
            reasons.add("task", text, site, FailureExample::default);
        }
        let (first, rest) = reasons.most_frequent(2);
        let found: Vec<_> = first
            .iter()
            .map(|reason| (&*reason.error, reason.count, reason.sites))
            .collect();
        assert_eq!((found, rest), (vec![("b", 2, 2), ("a", 1, 1)], 1));
    }

    #[test]
    fn texts_that_never_come_back_are_forgotten_but_stay_counted() {
        let mut reasons = Reasons::default();
        for number in 0..20_000 {
            reasons.add("task", &format!("new {number}"), 0, FailureExample::default);
            if number % 10 == 0 {
                reasons.add("ep", "again", 0, FailureExample::default);
            }
        }
        assert!(reasons.seen.len() <= MOST);
        let (first, rest) = reasons.most_frequent(1);
        assert_eq!(
            (&*first[0].error, first[0].count, rest),
            ("again", 2000, 20_000)
        );
    }
}
