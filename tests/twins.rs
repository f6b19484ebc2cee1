//! Uncertain acknowledgements: the connection is cut just after the broker got one, or just before. No event
//! is taken for another one with an equal body, and possible duplicates are counted.

use std::fs;
use std::time::Duration;

use crate::support::proxy::{FirstAck, Proxy};
use crate::support::rabbitmq::{ADDRESS, Queue, messages_of};
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, images};

const TWIN: &str = r#""twin""#;

/// A task that says that it was started, and copies its event.
const TASK: &str = r#"sh -c "echo start >> {{DATA_HUB}}/starts; cp {{INFILE}} {{OUTFILE}}""#;

/// How a pilot ended whose connection was cut at its first acknowledgement, how many tasks it started, and
/// the results.
#[track_caller]
fn run(incoming: &Queue, first_ack: FirstAck, left: usize) -> (Outcome, usize, Vec<String>) {
    let outgoing = Queue::unique("twins-out");
    let name = incoming.name().to_owned();
    let proxy = Proxy::start(ADDRESS, first_ack, move || messages_of(&name) == left);
    let scene = Scene::task(images::busybox(), TASK)
        .rabbitmq(incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", proxy.address())
        // Asking the broker what it has takes seconds on a busy machine.
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "15");
    let outcome = scene.run(SOON * 4);
    outcome.assert_code(0);
    assert!(
        outcome.stderr.contains("session is lost"),
        "it was not cut; stderr:\n{}",
        outcome.stderr
    );
    let starts = fs::read_to_string(scene.hub("starts")).unwrap_or_default();
    let results = outgoing.consume(3, Duration::from_secs(1));
    assert_eq!(incoming.total(), 0, "stderr:\n{}", outcome.stderr);
    (outcome, starts.lines().count(), results)
}

#[test]
fn an_event_that_comes_again_is_never_taken_for_an_equal_one_that_is_done() {
    let incoming = Queue::unique("twins");
    incoming.produce([TWIN; 2]);
    // Flags both as delivered before, as another pilot that gave them back does.
    incoming.delivery_counts();
    let (outcome, starts, results) = run(&incoming, FirstAck::Arrives, 1);
    assert_eq!(results, [TWIN; 2], "stderr:\n{}", outcome.stderr);
    assert_eq!(starts, 2, "stderr:\n{}", outcome.stderr);
}

#[test]
fn an_event_whose_acknowledgement_is_lost_runs_again_and_is_counted() {
    let incoming = Queue::unique("doubt");
    incoming.produce([TWIN]);
    let (outcome, starts, results) = run(&incoming, FirstAck::IsLost, 1);
    assert_eq!(
        (starts, results.len()),
        (2, 2),
        "stderr:\n{}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains("possible_duplicates=1"),
        "stderr:\n{}",
        outcome.stderr
    );
}

#[test]
fn an_event_whose_acknowledgement_is_lost_is_recognised_by_the_id_of_its_message() {
    let incoming = Queue::unique("named");
    incoming.publish_named(&[("7", r#"{"headers": {}, "data": "twin"}"#)]);
    let (outcome, starts, results) = run(&incoming, FirstAck::IsLost, 1);
    assert_eq!(
        (starts, results.len()),
        (1, 1),
        "stderr:\n{}",
        outcome.stderr
    );
}

/// Ids are their producer's, and may be wrong.
#[test]
fn an_equal_id_settles_no_event_with_another_body() {
    let incoming = Queue::unique("misnamed");
    let events = [
        ("7", r#"{"headers": {}, "data": "one"}"#),
        ("7", r#"{"headers": {}, "data": "two"}"#),
    ];
    incoming.publish_named(&events);
    incoming.delivery_counts();
    let (outcome, starts, mut results) = run(&incoming, FirstAck::Arrives, 1);
    results.sort();
    assert_eq!(
        results,
        [r#""one""#, r#""two""#],
        "stderr:\n{}",
        outcome.stderr
    );
    assert_eq!(starts, 2, "stderr:\n{}", outcome.stderr);
}
