//! Tests of which updates are due at which time.

use std::sync::LazyLock;

use super::Urgency::{AtOnce, WithinInterval};
use super::*;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

const INTERVAL: Duration = Duration::from_mins(1);
const COMPANY_WAIT: Duration = Duration::from_secs(5);

fn board() -> (UpdateQueue, Instant) {
    (UpdateQueue::new(INTERVAL, COMPANY_WAIT), *START)
}

fn set(board: &mut UpdateQueue, attribute: &'static str, text: &impl ToString, urgency: Urgency) {
    board.set(attribute, text.to_string(), urgency, *START);
}

/// Sends the updates that are due, and returns them.
fn send(board: &mut UpdateQueue, scope: UpdateScope, now: Instant) -> Vec<(&'static str, String)> {
    let batch = board.take(scope, now);
    for entry in &batch {
        board.delivered(entry, now);
    }
    batch.into_iter().map(|e| (e.attribute, e.text)).collect()
}

fn one(attribute: &'static str, text: &str) -> Vec<(&'static str, String)> {
    vec![(attribute, text.to_owned())]
}

#[test]
fn statuses_go_at_once_each_and_in_order() {
    let (mut board, now) = board();
    assert_eq!(board.due(now), None);
    for status in ["Tasking", "PendingRemainingTasks", "Done"] {
        set(&mut board, "Status", &status, AtOnce);
    }
    assert_eq!(board.due(now), Some(now));
    let sent: Vec<_> = send(&mut board, UpdateScope::Due, now)
        .into_iter()
        .map(|(_, t)| t)
        .collect();
    assert_eq!(sent, ["Tasking", "PendingRemainingTasks", "Done"]);
    assert_eq!(board.due(now), None);
}

#[test]
fn a_count_goes_once_an_interval_and_only_the_newest() {
    let (mut board, start) = board();
    set(&mut board, "TasksTotal", &1, WithinInterval);
    assert_eq!(
        send(&mut board, UpdateScope::Due, start),
        one("TasksTotal", "1")
    );
    set(&mut board, "TasksTotal", &2, WithinInterval);
    set(&mut board, "TasksTotal", &3, WithinInterval);
    assert_eq!(board.due(start), Some(start + INTERVAL));
    assert_eq!(board.take(UpdateScope::Due, start + INTERVAL / 2), []);
    assert_eq!(
        send(&mut board, UpdateScope::Due, start + INTERVAL),
        one("TasksTotal", "3")
    );
}

#[test]
fn a_status_does_not_take_counts_along_before_their_time() {
    let (mut board, start) = board();
    set(&mut board, "TasksTotal", &1, WithinInterval);
    send(&mut board, UpdateScope::Due, start);
    set(&mut board, "TasksTotal", &2, WithinInterval);
    set(&mut board, "Status", &"Done", AtOnce);
    assert_eq!(
        send(&mut board, UpdateScope::Due, start),
        one("Status", "Done")
    );
    assert_eq!(
        send(&mut board, UpdateScope::Everything, start),
        one("TasksTotal", "2")
    );
}

#[test]
fn a_count_waits_a_little_for_a_status_to_go_with() {
    let (mut board, start) = board();
    set(&mut board, "TasksSuccess", &1, WithinInterval);
    assert_eq!(board.due(start), Some(start + COMPANY_WAIT));
    let status = "PendingRemainingTasks";
    set(&mut board, "Status", &status, AtOnce);
    assert_eq!(board.due(start), Some(start));
    assert_eq!(
        send(&mut board, UpdateScope::Due, start),
        [one("Status", status), one("TasksSuccess", "1")].concat()
    );
}

#[test]
fn the_first_value_of_each_count_waits_for_no_interval_and_takes_the_others_along() {
    let (mut board, start) = board();
    set(&mut board, "TasksRunning", &0, WithinInterval);
    send(&mut board, UpdateScope::Due, start);
    let later = start + Duration::from_secs(10);
    board.set("TasksRunning", "1".to_owned(), WithinInterval, later);
    assert_eq!(board.due(later), Some(start + INTERVAL));
    board.set("TasksTotal", "1".to_owned(), WithinInterval, later);
    assert_eq!(board.due(later), Some(later + COMPANY_WAIT));
    assert_eq!(board.take(UpdateScope::Due, later), []);
    let then = later + COMPANY_WAIT;
    let both = [one("TasksRunning", "1"), one("TasksTotal", "1")].concat();
    assert_eq!(send(&mut board, UpdateScope::Due, then), both);
    board.set("TasksTotal", "2".to_owned(), WithinInterval, then);
    assert_eq!(board.due(then), Some(then + INTERVAL));
}

#[test]
fn a_count_that_changes_all_the_time_does_not_wait_all_the_time() {
    let (mut board, start) = board();
    for number in 1..10 {
        let now = start + Duration::from_secs(number);
        board.set("TasksTotal", number.to_string(), WithinInterval, now);
    }
    let first_set = start + Duration::from_secs(1);
    assert_eq!(board.due(start), Some(first_set + COMPANY_WAIT));
}

#[test]
fn what_goes_at_once_goes_before_what_can_wait() {
    let (mut board, now) = board();
    set(&mut board, "TasksTotal", &1, WithinInterval);
    set(&mut board, "Error", &"lost", AtOnce);
    let order: Vec<_> = send(&mut board, UpdateScope::Due, now)
        .into_iter()
        .map(|(a, _)| a)
        .collect();
    assert_eq!(order, ["Error", "TasksTotal"]);
}

#[test]
fn an_unchanged_value_is_not_sent_again() {
    let (mut board, now) = board();
    for urgency in [AtOnce, WithinInterval] {
        set(&mut board, "A", &"same", urgency);
        send(&mut board, UpdateScope::Due, now);
        set(&mut board, "A", &"same", urgency);
        assert_eq!(board.due(now), None);
    }
}

#[test]
fn a_count_that_came_back_within_the_interval_is_not_sent_again() {
    let (mut board, now) = board();
    set(&mut board, "TasksRunning", &2, WithinInterval);
    send(&mut board, UpdateScope::Due, now);
    set(&mut board, "TasksRunning", &1, WithinInterval);
    set(&mut board, "TasksRunning", &2, WithinInterval);
    assert_eq!(board.due(now), None);
    set(&mut board, "TasksRunning", &1, WithinInterval);
    assert_eq!(board.due(now), Some(now + INTERVAL));
}

#[test]
fn an_outage_leaves_the_newest_values_and_every_recent_status() {
    let (mut board, now) = board();
    for number in 0..1_000 {
        set(&mut board, "TasksTotal", &number, WithinInterval);
        set(&mut board, "Error", &number, AtOnce);
    }
    set(&mut board, "Status", &"Done", AtOnce);
    let batch = board.take(UpdateScope::Everything, now);
    assert_eq!(batch.len(), AT_ONCE_MAX + 1);
    assert_eq!(batch[0].text, (1_000 + 1 - AT_ONCE_MAX).to_string());
    assert_eq!(batch[AT_ONCE_MAX - 1].text, "Done");
    assert_eq!(batch[AT_ONCE_MAX].text, "999");
}

#[test]
fn ever_new_errors_do_not_flood_the_log() {
    let (mut board, start) = board();
    let mut sent = 0;
    for number in 0..600 {
        let now = start + Duration::from_millis(100) * number;
        set(&mut board, "Error", &number, AtOnce);
        if board.due(now) == Some(now) {
            sent += send(&mut board, UpdateScope::Due, now).len();
        }
    }
    assert_eq!(sent, AT_ONCE_MAX);
    assert_eq!(board.due(start), Some(start + INTERVAL));
    let last = send(&mut board, UpdateScope::Due, start + INTERVAL);
    assert_eq!(last.last(), Some(&("Error", "599".to_owned())));
}

#[test]
fn what_was_set_while_a_round_was_under_way_is_still_sent() {
    let (mut board, now) = board();
    set(&mut board, "TasksTotal", &1, WithinInterval);
    set(&mut board, "Status", &"Tasking", AtOnce);
    let batch = board.take(UpdateScope::Due, now);
    set(&mut board, "TasksTotal", &2, WithinInterval);
    set(&mut board, "Status", &"Done", AtOnce);
    for entry in &batch {
        board.delivered(entry, now);
    }
    let rest = send(&mut board, UpdateScope::Everything, now);
    assert_eq!(
        rest,
        [one("Status", "Done"), one("TasksTotal", "2")].concat()
    );
}

#[test]
fn a_value_that_was_undone_while_under_way_is_sent_again() {
    let (mut board, now) = board();
    set(&mut board, "TasksRunning", &1, WithinInterval);
    send(&mut board, UpdateScope::Due, now);
    set(&mut board, "TasksRunning", &2, WithinInterval);
    let batch = board.take(UpdateScope::Everything, now);
    set(&mut board, "TasksRunning", &1, WithinInterval);
    board.delivered(&batch[0], now);
    assert_eq!(
        send(&mut board, UpdateScope::Everything, now),
        one("TasksRunning", "1")
    );
}

#[test]
fn a_refused_value_is_tried_thrice_and_then_given_up() {
    let (mut board, now) = board();
    set(&mut board, "Error", &"odd", AtOnce);
    let entry = board.take(UpdateScope::Due, now).remove(0);
    assert_eq!(board.refused(&entry), Refusal::Kept);
    assert_eq!(board.refused(&entry), Refusal::Kept);
    assert_eq!(board.refused(&entry), Refusal::GivenUp);
    assert_eq!(board.due(now), None);
}

#[test]
fn a_refused_status_never_overwrites_a_later_one() {
    let (mut board, now) = board();
    set(&mut board, "Status", &"Tasking", AtOnce);
    set(&mut board, "Status", &"Done", AtOnce);
    let batch = board.take(UpdateScope::Due, now);
    board.refused(&batch[0]);
    board.delivered(&batch[1], now);
    assert_eq!(board.due(now), None);
}
