//! The rules of the table, one by one.

use super::*;

const A: &[u8] = b"pixel 1";

fn owner(generation: u64, tag: u64) -> SessionTag {
    SessionTag {
        generation: Generation(generation),
        tag: DeliveryTag(tag),
    }
}

fn fingerprint(body: &[u8]) -> Fingerprint {
    Fingerprint::of(QueueIndex(0), body, None)
}

/// The fingerprint of an event whose producer gave it this id.
fn named(body: &[u8], id: &str) -> Fingerprint {
    Fingerprint::of(QueueIndex(0), body, Some(id))
}

/// A table with an event that is done, and whose acknowledgement is in doubt.
fn in_doubt(fingerprint: Fingerprint) -> (UnackedTable, UnackedId) {
    let mut table = UnackedTable::default();
    let id = table.enter(fingerprint, owner(1, 7), DeliveryFlag::First);
    table.settle(id, &Verdict::Done, 2);
    table.proven(1);
    table.session_lost();
    (table, id)
}

fn named_again(table: &mut UnackedTable, body: &[u8], id: &str) -> Recognition {
    table.recognise(named(body, id), owner(2, 3), DeliveryFlag::Redelivered)
}

fn failed() -> Verdict {
    Verdict::Failed {
        reason: String::new(),
    }
}

fn again(table: &mut UnackedTable, body: &[u8], tag: u64) -> Recognition {
    table.recognise(fingerprint(body), owner(2, tag), DeliveryFlag::Redelivered)
}

fn running(body: &[u8]) -> (UnackedTable, UnackedId) {
    let mut table = UnackedTable::default();
    let id = table.enter(fingerprint(body), owner(1, 7), DeliveryFlag::First);
    (table, id)
}

#[test]
fn a_running_event_that_comes_again_gets_the_new_tag() {
    let (mut table, id) = running(A);
    table.session_lost();
    assert_eq!(again(&mut table, A, 3), Recognition::Running);
    assert_eq!(
        table.settle(id, &Verdict::Done, 1),
        Settling::Send(owner(2, 3))
    );
    table.proven(1);
    assert!(table.is_empty());
}

#[test]
fn one_delivery_adopts_one_event() {
    let (mut table, _) = running(A);
    table.enter(fingerprint(A), owner(1, 8), DeliveryFlag::First);
    table.session_lost();
    assert_eq!(again(&mut table, A, 1), Recognition::Running);
    assert_eq!(again(&mut table, A, 2), Recognition::Running);
    assert_eq!(again(&mut table, A, 3), Recognition::New);
}

#[test]
fn nothing_adopts_an_event_whose_session_lives_and_no_unflagged_delivery_adopts() {
    let (mut table, _) = running(A);
    assert_eq!(again(&mut table, A, 3), Recognition::New);
    table.session_lost();
    let fresh = table.recognise(fingerprint(A), owner(2, 4), DeliveryFlag::First);
    assert_eq!(fresh, Recognition::New);
    assert_eq!(again(&mut table, b"pixel 2", 5), Recognition::New);
}

#[test]
fn an_event_done_during_the_outage_is_acknowledged_when_it_comes_again() {
    let (mut table, id) = running(A);
    table.session_lost();
    assert_eq!(table.settle(id, &Verdict::Done, 1), Settling::Deferred);
    assert_eq!((table.owed(), table.ownerless()), (1, 1));
    assert_eq!(
        again(&mut table, A, 3),
        Recognition::Settled(id, Verdict::Done)
    );
    assert_eq!(
        table.settle(id, &Verdict::Done, 1),
        Settling::Send(owner(2, 3))
    );
    assert_eq!(table.owed(), 0);
}

#[test]
fn an_event_rejected_during_the_outage_is_rejected_when_it_comes_again() {
    let (mut table, id) = running(A);
    table.session_lost();
    assert_eq!(table.settle(id, &Verdict::Rejected, 1), Settling::Deferred);
    let rejected = Recognition::Settled(id, Verdict::Rejected);
    assert_eq!(again(&mut table, A, 3), rejected);
}

#[test]
fn an_event_that_failed_during_the_outage_is_back_already() {
    let (mut table, id) = running(A);
    table.session_lost();
    assert_eq!(table.settle(id, &failed(), 1), Settling::GivenBackAlready);
    assert_eq!(again(&mut table, A, 3), Recognition::New);
}

#[test]
fn an_acknowledgement_in_doubt_is_never_settled_by_a_body() {
    let mut table = UnackedTable::default();
    let id = table.enter(fingerprint(A), owner(1, 7), DeliveryFlag::First);
    table.settle(id, &Verdict::Done, 1);
    assert_eq!(table.session_lost(), 1, "it may be run again");
    assert_eq!(table.owed(), 0, "nobody waits for it");
    assert_eq!(again(&mut table, A, 3), Recognition::New);
}

#[test]
fn an_acknowledgement_in_doubt_is_settled_by_the_id_of_its_message() {
    let (mut table, id) = in_doubt(named(A, "1"));
    assert_eq!(table.owed(), 1);
    let settled = Recognition::Settled(id, Verdict::Done);
    assert_eq!(named_again(&mut table, A, "1"), settled);
}

#[test]
fn an_id_with_another_body_and_a_body_with_another_id_settle_nothing() {
    let (mut table, _) = in_doubt(named(A, "1"));
    assert_eq!(named_again(&mut table, b"pixel 2", "1"), Recognition::New);
    assert_eq!(named_again(&mut table, A, "2"), Recognition::New);
    assert_eq!(again(&mut table, A, 3), Recognition::New);
    assert_eq!(table.owed(), 1);
}

#[test]
fn an_id_that_two_events_have_settles_none_in_doubt() {
    let mut table = UnackedTable::default();
    let first = table.enter(named(A, "1"), owner(1, 7), DeliveryFlag::First);
    let second = table.enter(named(A, "1"), owner(1, 8), DeliveryFlag::First);
    table.settle(first, &Verdict::Done, 1);
    table.session_lost();
    assert_eq!(named_again(&mut table, A, "1"), Recognition::Running);
    assert_eq!(named_again(&mut table, A, "1"), Recognition::New);
    assert_eq!(
        table.settle(second, &Verdict::Done, 1),
        Settling::Send(owner(2, 3))
    );
}

#[test]
fn doubt_never_swallows_the_twin_of_an_event() {
    let (mut table, first) = running(A);
    let second = table.enter(fingerprint(A), owner(1, 8), DeliveryFlag::First);
    table.settle(first, &Verdict::Done, 1);
    table.session_lost();
    assert_eq!(again(&mut table, A, 3), Recognition::Running);
    assert_eq!(again(&mut table, A, 4), Recognition::New);
    assert_eq!(
        table.settle(second, &Verdict::Done, 1),
        Settling::Send(owner(2, 3))
    );
}

#[test]
fn each_run_acknowledges_one_of_twins_whichever_comes() {
    let (mut table, first) = running(A);
    let second = table.enter(fingerprint(A), owner(1, 8), DeliveryFlag::First);
    table.session_lost();
    assert_eq!(table.settle(first, &Verdict::Done, 1), Settling::Deferred);
    let settled = Recognition::Settled(first, Verdict::Done);
    let came = [again(&mut table, A, 3), again(&mut table, A, 4)];
    assert!(came.contains(&settled), "{came:?}");
    assert!(came.contains(&Recognition::Running), "{came:?}");
    assert_eq!(again(&mut table, A, 5), Recognition::New);
    let settling = table.settle(second, &Verdict::Done, 1);
    assert!(matches!(settling, Settling::Send(_)), "{settling:?}");
}

#[test]
fn doubts_end_and_are_counted_but_what_was_never_acknowledged_is_owed_on() {
    let (mut table, _) = in_doubt(named(A, "1"));
    let done = table.enter(fingerprint(b"b"), owner(2, 8), DeliveryFlag::First);
    table.session_lost();
    table.settle(done, &Verdict::Done, 1);
    assert_eq!(table.end_doubts(), 1);
    assert_eq!(table.owed(), 1);
    assert_eq!(named_again(&mut table, A, "1"), Recognition::New);
    assert_eq!(
        again(&mut table, b"b", 2),
        Recognition::Settled(done, Verdict::Done)
    );
}

#[test]
fn a_second_settlement_of_a_forgotten_event_sends_nothing() {
    let (mut table, id) = running(A);
    table.settle(id, &Verdict::Released, 1);
    assert_eq!(
        table.settle(id, &Verdict::Done, 2),
        Settling::GivenBackAlready
    );
}

#[test]
fn an_event_is_adopted_by_its_own_queue_only() {
    let (mut table, first) = running(A);
    let other_queue = Fingerprint::of(QueueIndex(1), A, None);
    let second = table.enter(other_queue, owner(1, 8), DeliveryFlag::First);
    table.session_lost();
    let ownerless =
        |table: &UnackedTable| [0, 1].map(|queue| table.ownerless_of(QueueIndex(queue)));
    assert_eq!(ownerless(&table), [1, 1]);
    let other = |table: &mut UnackedTable, tag| {
        table.recognise(other_queue, owner(2, tag), DeliveryFlag::Redelivered)
    };
    assert_eq!(other(&mut table, 3), Recognition::Running);
    assert_eq!(ownerless(&table), [1, 0]);
    assert_eq!(other(&mut table, 4), Recognition::New);
    assert_eq!(again(&mut table, A, 5), Recognition::Running);
    for (id, tag) in [(first, 5), (second, 3)] {
        let settling = table.settle(id, &Verdict::Done, 1);
        assert_eq!(settling, Settling::Send(owner(2, tag)));
    }
}

#[test]
fn the_same_id_in_another_queue_is_no_twin() {
    let mut table = UnackedTable::default();
    let id = table.enter(named(A, "1"), owner(1, 7), DeliveryFlag::First);
    let elsewhere = Fingerprint::of(QueueIndex(1), A, Some("1"));
    table.enter(elsewhere, owner(1, 8), DeliveryFlag::First);
    table.settle(id, &Verdict::Done, 1);
    table.session_lost();
    // A reused id would not be trusted in doubt, and the event would be run again.
    assert_eq!(
        named_again(&mut table, A, "1"),
        Recognition::Settled(id, Verdict::Done)
    );
}
