//! Decides when the status file is due to be written: at once after a change, but at most once a second, and
//! only if something is different. It is given the time, and does no I/O.

use std::time::Duration;

use tokio::time::Instant;

use super::Snapshot;

/// The least time between two writes.
const PACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Debounce {
    current: Snapshot,
    /// The last snapshot handed out to be written, even if that failed: a full disk is tried again when
    /// something changes, not every second.
    taken: Option<Snapshot>,
    rest_until: Option<Instant>,
}

impl Debounce {
    pub(super) fn new(first: Snapshot) -> Self {
        Self {
            current: first,
            taken: None,
            rest_until: None,
        }
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.current);
    }

    /// When to write, if there is anything new.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        (self.taken.as_ref() != Some(&self.current))
            .then(|| self.rest_until.map_or(now, |end| end.max(now)))
    }

    pub(super) fn take(&mut self, now: Instant) -> Snapshot {
        self.taken = Some(self.current.clone());
        self.rest_until = Some(now + PACE);
        self.current.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(board: &mut Debounce, slots: u32) {
        board.change(|snapshot| snapshot.facts.slots = slots);
    }

    #[test]
    fn the_first_word_is_due_at_once_and_silence_is_never_due() {
        let now = Instant::now();
        let mut board = Debounce::new(Snapshot::default());
        assert_eq!(board.due(now), Some(now));
        board.take(now);
        for later in [0, 1, 3600] {
            assert_eq!(board.due(now + Duration::from_secs(later)), None);
        }
    }

    #[test]
    fn a_change_within_the_second_is_due_when_it_is_over_and_a_later_one_at_once() {
        let now = Instant::now();
        let mut board = Debounce::new(Snapshot::default());
        board.take(now);
        slots(&mut board, 1);
        assert_eq!(board.due(now), Some(now + PACE));
        slots(&mut board, 2);
        let later = now + PACE / 2;
        assert_eq!(board.due(later), Some(now + PACE));
        assert_eq!(board.take(now + PACE).facts.slots, 2, "the newest");
        slots(&mut board, 3);
        let much_later = now + PACE * 5;
        assert_eq!(board.due(much_later), Some(much_later));
    }

    #[test]
    fn what_is_as_it_was_is_no_change() {
        let now = Instant::now();
        let mut board = Debounce::new(Snapshot::default());
        board.take(now);
        slots(&mut board, 1);
        slots(&mut board, 0);
        assert_eq!(board.due(now), None);
    }

    #[test]
    fn whatever_happens_it_is_written_once_a_second_at_most() {
        let began = Instant::now();
        let mut board = Debounce::new(Snapshot::default());
        let mut writes = 0;
        for millis in 0..10_000 {
            let now = began + Duration::from_millis(millis);
            slots(&mut board, u32::try_from(millis).expect("small"));
            if board.due(now) == Some(now) {
                board.take(now);
                writes += 1;
            }
        }
        assert_eq!(writes, 10);
    }
}
