//! Failed events that wait before they go back, outside the window in which events run. Decides which of them
//! wait, and which go back early when there are too many. Has no clock; is told when a pause is over.

use std::collections::VecDeque;
use std::time::Duration;

use crate::broker::Verdict;
use crate::ids::TaskId;

/// The most events that wait outside the window: more than a queue mostly has, and few enough to hold.
pub(super) const SET_ASIDE_MAX: usize = 32;

/// After this long an event may go back early, to make room. Twenty deliveries, after which RabbitMQ
/// deletes an event, still take two minutes.
pub(super) const MAY_GO_AFTER: Duration = Duration::from_secs(8);

/// Whether an event has waited long enough to go back early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SetAsideRest {
    Short,
    /// The event has waited for [`MAY_GO_AFTER`].
    Enough,
}

#[derive(Debug)]
struct WaitingEvent {
    id: TaskId,
    verdict: Verdict,
    pause: Duration,
    rest: SetAsideRest,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum SetAsideStep {
    /// The event leaves the window and waits this long.
    SetAside(TaskId, Duration),
    GoBack(TaskId, Verdict),
}

#[derive(Debug, Default)]
pub(super) struct FailedEvents {
    /// Events outside the window, the oldest first.
    aside: VecDeque<WaitingEvent>,
    /// Events that keep their place in the window until there is room in `aside`.
    crowded: VecDeque<WaitingEvent>,
}

impl FailedEvents {
    /// The number of events outside the window.
    pub(super) fn set_aside(&self) -> usize {
        self.aside.len()
    }

    /// Adds an event that failed and is to wait for `pause`.
    pub(super) fn add(
        &mut self,
        id: TaskId,
        verdict: Verdict,
        pause: Duration,
    ) -> Vec<SetAsideStep> {
        self.crowded.push_back(WaitingEvent {
            id,
            verdict,
            pause,
            rest: SetAsideRest::Short,
        });
        self.make_room()
    }

    /// Notes that an event has waited for [`MAY_GO_AFTER`].
    pub(super) fn rested(&mut self, id: TaskId) -> Vec<SetAsideStep> {
        if let Some(waiting) = self.aside.iter_mut().find(|waiting| waiting.id == id) {
            waiting.rest = SetAsideRest::Enough;
        }
        self.make_room()
    }

    /// Notes that the pause of an event is over.
    pub(super) fn pause_over(&mut self, id: TaskId) -> Vec<SetAsideStep> {
        let Some(place) = self.aside.iter().position(|waiting| waiting.id == id) else {
            return Vec::new();
        };
        let over = self.aside.remove(place);
        let mut steps: Vec<SetAsideStep> = over.into_iter().map(go_back).collect();
        steps.extend(self.make_room());
        steps
    }

    /// Removes and returns all events.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (TaskId, Verdict)> + use<> {
        let all = std::mem::take(&mut self.aside)
            .into_iter()
            .chain(std::mem::take(&mut self.crowded));
        all.map(|waiting| (waiting.id, waiting.verdict))
    }

    fn make_room(&mut self) -> Vec<SetAsideStep> {
        let mut steps = Vec::new();
        while !self.crowded.is_empty() {
            if self.aside.len() >= SET_ASIDE_MAX {
                let oldest = self
                    .aside
                    .pop_front_if(|oldest| oldest.rest == SetAsideRest::Enough);
                let Some(oldest) = oldest else { break };
                steps.push(go_back(oldest));
            }
            if let Some(next) = self.crowded.pop_front() {
                steps.push(SetAsideStep::SetAside(next.id, next.pause));
                self.aside.push_back(next);
            }
        }
        steps
    }
}

fn go_back(waiting: WaitingEvent) -> SetAsideStep {
    SetAsideStep::GoBack(waiting.id, waiting.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    fn failed() -> Verdict {
        Verdict::Failed {
            reason: "why".into(),
        }
    }

    /// As many events as there is room for.
    fn full() -> (FailedEvents, Vec<TaskId>) {
        let mut events = FailedEvents::default();
        let ids: Vec<TaskId> = (0..SET_ASIDE_MAX).map(|_| TaskId::random()).collect();
        for id in &ids {
            let steps = events.add(*id, failed(), PAUSE);
            assert_eq!(steps, [SetAsideStep::SetAside(*id, PAUSE)]);
        }
        (events, ids)
    }

    #[test]
    fn one_goes_back_when_its_pause_is_over_and_only_then() {
        let (mut events, ids) = full();
        assert_eq!(events.rested(ids[3]), []);
        assert_eq!(
            events.pause_over(ids[3]),
            [SetAsideStep::GoBack(ids[3], failed())]
        );
        assert_eq!(events.pause_over(ids[3]), []);
        assert_eq!(events.set_aside(), SET_ASIDE_MAX - 1);
    }

    #[test]
    fn beyond_the_bound_the_oldest_goes_back_once_it_has_waited_enough() {
        let (mut events, ids) = full();
        let more = TaskId::random();
        assert_eq!(events.add(more, failed(), PAUSE), [], "it keeps its place");
        assert_eq!(events.rested(ids[1]), [], "it is not the oldest");
        assert_eq!(
            events.rested(ids[0]),
            [
                SetAsideStep::GoBack(ids[0], failed()),
                SetAsideStep::SetAside(more, PAUSE)
            ]
        );
        assert_eq!(events.set_aside(), SET_ASIDE_MAX);
    }

    #[test]
    fn a_place_that_becomes_free_is_taken_by_the_next() {
        let (mut events, ids) = full();
        let more = TaskId::random();
        events.add(more, failed(), PAUSE);
        assert_eq!(
            events.pause_over(ids[5]),
            [
                SetAsideStep::GoBack(ids[5], failed()),
                SetAsideStep::SetAside(more, PAUSE)
            ]
        );
    }

    #[test]
    fn all_are_given_when_all_are_taken() {
        let (mut events, mut ids) = full();
        let more = TaskId::random();
        events.add(more, failed(), PAUSE);
        ids.push(more);
        let taken: Vec<TaskId> = events.take_all().map(|(id, _)| id).collect();
        assert_eq!(taken, ids);
        assert_eq!(events.set_aside(), 0);
    }
}
