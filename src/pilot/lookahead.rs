//! How many events the pilot holds beyond its slots, so that short tasks don't wait for a broker that is far
//! away: between the end of one task and the event of the next lie the confirm of its result, its
//! acknowledgement and the delivery.
//!
//! Long tasks need none: their pilot holds exactly as many events as it runs, because an event that waits
//! here can't be run by another pilot.

use std::time::Duration;

/// The round trips for which a slot without an event ahead may wait: the confirm, the acknowledgement with
/// the next delivery, and the proof that acknowledgements were read, during which nothing else is read.
const ROUND_TRIPS: u32 = 3;
/// A broker that answers sooner is near: what it costs is lost in the time that a container takes to start.
const NEAR: Duration = Duration::from_millis(5);
/// The longest time that an event waits here before its task starts.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The most events beyond the slots.
const MOST: u16 = 128;
/// A task counts this much for the mean time of a task, and all earlier ones the rest.
const WEIGHT: f64 = 0.25;

/// Follows the times of tasks and round trips.
#[derive(Debug)]
pub(super) struct Lookahead {
    slots: usize,
    /// The mean time of the last tasks, in seconds.
    task_secs: Option<f64>,
    held: u16,
}

impl Lookahead {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots,
            task_secs: None,
            held: 0,
        }
    }

    /// A task ended after this time. Returns the new number of events to hold beyond the slots, if it changes.
    pub(super) fn task_ended(
        &mut self,
        wall: Duration,
        round_trip: Option<Duration>,
    ) -> Option<u16> {
        let secs = wall.as_secs_f64();
        let mean = self
            .task_secs
            .map_or(secs, |mean| mean + WEIGHT * (secs - mean));
        self.task_secs = Some(mean);
        let wanted = self.wanted(mean, round_trip?);
        // Each change costs two round trips.
        if wanted > self.held || wanted == 0 && self.held > 0 || wanted < self.held / 2 {
            self.held = wanted;
            return Some(wanted);
        }
        None
    }

    fn wanted(&self, task_secs: f64, round_trip: Duration) -> u16 {
        if round_trip < NEAR {
            return 0;
        }
        let slots = u32::try_from(self.slots).unwrap_or(u32::MAX);
        let tasks_in =
            |time: Duration| f64::from(slots) * time.as_secs_f64() / task_secs.max(0.001);
        let needed = whole(tasks_in(round_trip * ROUND_TRIPS).ceil());
        // Rounded up, so that small changes of the times change nothing.
        let rounded = needed.checked_next_power_of_two().unwrap_or(MOST);
        rounded.min(whole(tasks_in(WAIT_MAX).floor())).min(MOST)
    }
}

/// A count of events; counts above [`MOST`] are [`MOST`].
fn whole(count: f64) -> u16 {
    (0..=MOST)
        .rev()
        .find(|most| f64::from(*most) <= count)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Option<Duration> = Some(Duration::from_millis(100));

    fn settled(lookahead: &mut Lookahead, wall_ms: u64, round_trip: Option<Duration>) -> u16 {
        for _ in 0..50 {
            let _changed = lookahead.task_ended(Duration::from_millis(wall_ms), round_trip);
        }
        lookahead.held
    }

    #[test]
    fn short_tasks_far_from_their_broker_have_events_ahead() {
        assert_eq!(settled(&mut Lookahead::new(1), 104, FAR), 4);
        assert_eq!(settled(&mut Lookahead::new(8), 104, FAR), 32);
    }

    #[test]
    fn a_near_broker_needs_none() {
        let near = Some(Duration::from_millis(1));
        assert_eq!(settled(&mut Lookahead::new(1), 104, near), 0);
        assert_eq!(settled(&mut Lookahead::new(1), 104, None), 0);
    }

    #[test]
    fn an_event_waits_two_seconds_at_most() {
        assert_eq!(settled(&mut Lookahead::new(1), 900, FAR), 1);
        assert_eq!(settled(&mut Lookahead::new(1), 2_100, FAR), 0);
        let farther = Some(Duration::from_secs(1));
        assert_eq!(settled(&mut Lookahead::new(2), 500, farther), 8);
    }

    #[test]
    fn tasks_that_become_long_end_it_and_small_changes_change_nothing() {
        let mut lookahead = Lookahead::new(1);
        assert_eq!(settled(&mut lookahead, 104, FAR), 4);
        for wall_ms in [90, 130, 104, 140] {
            let wall = Duration::from_millis(wall_ms);
            assert_eq!(lookahead.task_ended(wall, FAR), None, "{wall_ms}");
        }
        assert_eq!(settled(&mut lookahead, 60_000, FAR), 0);
    }
}
