//! Pilots and brokers that end in the middle of a task: no event is lost, and no pilot hangs.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::broker::Broker;
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Pilot, Scene};
use crate::support::{SOON, eventually, images, processes};

/// A task that says it runs, by a file in the data hub, and copies when there is the file `release`.
const HELD: &str = r#"sh -c "
    touch {{DATA_HUB}}/running
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.05; done
    cp {{INFILE}} {{OUTFILE}}""#;

const EVENT: &str = r#""pixel""#;

/// A pilot whose task runs until it is released.
fn held(incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), HELD).rabbitmq(incoming, outgoing)
}

#[track_caller]
fn await_running(scene: &Scene) {
    assert!(eventually(SOON, || scene.hub("running").exists()));
}

fn release(scene: &Scene) {
    fs::write(scene.hub("release"), "").expect("the hub is writable");
}

/// Another pilot, on another machine, does what the first one did not.
#[track_caller]
fn assert_another_pilot_does_it_once(incoming: &Queue, outgoing: &Queue) {
    Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
        .rabbitmq(incoming, outgoing)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20")
        .run(SOON)
        .assert_code(0);
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)), [EVENT]);
    assert_eq!(incoming.depth(), 0);
}

#[test]
fn an_event_whose_pilot_is_told_to_end_is_done_by_another() {
    let (incoming, outgoing) = (Queue::unique("sigterm"), Queue::unique("sigterm"));
    incoming.produce([EVENT]);
    let scene = held(&incoming, &outgoing).set("EWMS_PILOT_KILL_GRACE", "1");
    let pilot = scene.start();
    await_running(&scene);
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 15);
    // Back at once, not when somebody notices.
    assert_eq!((incoming.depth(), outgoing.depth()), (1, 0));
    assert_another_pilot_does_it_once(&incoming, &outgoing);
}

#[test]
fn an_event_whose_pilot_is_killed_is_done_by_another() {
    let (incoming, outgoing) = (Queue::unique("sigkill"), Queue::unique("sigkill"));
    incoming.produce([EVENT]);
    let scene = held(&incoming, &outgoing);
    let pilot = scene.start();
    await_running(&scene);
    pilot.signal(Signal::SIGKILL);
    assert_eq!(pilot.wait(SOON).signal, Some(9));
    assert_another_pilot_does_it_once(&incoming, &outgoing);
    // Its task may have outlived it.
    release(&scene);
    let hub = scene.hub("");
    processes::assert_nothing_runs(&hub.to_string_lossy(), SOON);
}

/// Kills the broker while a pilot with `slots` runs one task, lets `meanwhile` look at it, lets the
/// task end, and asserts that the pilot says so and that the event is still there for another.
#[track_caller]
fn assert_a_lost_broker_loses_no_event(slots: &str, meanwhile: impl FnOnce(&mut Pilot)) {
    let mut broker = Broker::start();
    let address = broker.address();
    let incoming = Queue::unique_at("lost-in", &address);
    let outgoing = Queue::unique_at("lost-out", &address);
    incoming.produce([EVENT]);
    let scene = held(&incoming, &outgoing)
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", slots)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "600")
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "1");
    let mut pilot = scene.start();
    await_running(&scene);
    broker.await_durable(&incoming);
    broker.await_durable(&outgoing);

    broker.kill();
    meanwhile(&mut pilot);
    assert!(!pilot.has_ended(), "its task still runs");
    release(&scene);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.starts_with("RuntimeError: "), "{last}");
    let broker_lost = format!("the broker at `{address}` (queue `");
    assert!(last.contains(&broker_lost), "{last}");
    assert!(
        outcome.stderr.contains("task succeeded"),
        "{}",
        outcome.stderr
    );

    broker.start_again();
    assert_another_pilot_does_it_once(&incoming, &outgoing);
}

#[test]
fn a_pilot_that_waits_for_events_notices_a_lost_broker_and_ends_after_its_task() {
    assert_a_lost_broker_loses_no_event("2", |pilot| {
        pilot.wait_for_line("no more events can be taken", SOON);
    });
}

#[test]
fn a_pilot_whose_slots_are_busy_ends_after_its_task_when_the_broker_is_lost() {
    assert_a_lost_broker_loses_no_event("1", |_| {});
}
