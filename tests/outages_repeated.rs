//! Brokers that accept every connection and lose each one soon: an outage like any other, which ends.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::images;
use crate::support::proxy::{EachCut, Proxy};
use crate::support::rabbitmq::{ADDRESS, Queue};
use crate::support::scene::{Outcome, Scene};

/// An outage is borne for so many seconds: longer than the longest pause between two connections, which would be
/// taken for one.
const BORNE: &str = "31";
/// A busy machine adds to that.
const LONG: Duration = Duration::from_secs(90);

const EVENT: &str = r#""pixel""#;

fn scene(incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").rabbitmq(incoming, outgoing)
}

#[track_caller]
fn assert_broker_given_up(outcome: &Outcome) {
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.starts_with("RuntimeError: "), "{last}");
    assert!(last.contains("connection to the broker at"), "{last}");
}

#[test]
fn an_event_that_ends_every_connection_is_an_outage_that_is_given_up() {
    let (incoming, outgoing) = (Queue::unique("kills"), Queue::unique("kills-out"));
    incoming.lift_delivery_limit();
    incoming.produce([EVENT]);
    let proxy = Proxy::cutting_each(ADDRESS, EachCut::AtDelivery);
    let outcome = scene(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", proxy.address())
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", BORNE)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "600")
        .run(LONG);
    assert_broker_given_up(&outcome);
    assert_eq!(incoming.total(), 1);
}

#[test]
fn a_result_that_ends_every_connection_is_kept_and_sent_no_more() {
    let (incoming, outgoing) = (Queue::unique("cut"), Queue::unique("cut-out"));
    assert_eq!(outgoing.depth(), 0);
    incoming.produce([EVENT]);
    let proxy = Proxy::cutting_each(ADDRESS, EachCut::AtPublish);
    let scene = scene(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", proxy.address())
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", BORNE)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "600");
    let outcome = scene.run(LONG);
    assert_broker_given_up(&outcome);
    let kept = fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count);
    assert_eq!(kept, 1, "{}", outcome.stderr);
    assert_eq!((incoming.total(), outgoing.depth()), (1, 0));
}

#[test]
fn the_idle_time_counts_on_through_connections_that_are_lost_soon() {
    let (incoming, outgoing) = (Queue::unique("idle"), Queue::unique("idle-out"));
    assert_eq!((incoming.depth(), outgoing.depth()), (0, 0));
    let life = Duration::from_secs(2);
    let proxy = Proxy::cutting_each(ADDRESS, EachCut::After(life));
    let began = Instant::now();
    let outcome = scene(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", proxy.address())
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "5")
        .run(LONG);
    outcome.assert_code(0);
    let stderr = &outcome.stderr;
    assert!(stderr.contains("no event came for as long"), "{stderr}");
    let lost = stderr.matches("session is lost").count();
    assert!(lost >= 2, "{stderr}");
    // Time without a connection is not idle time.
    assert!(began.elapsed() > life * 2 + Duration::from_secs(1));
}
