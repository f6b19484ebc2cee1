//! Brokers that can't be used: each reason soon gets a line of its own, with the address and the variable to
//! look at, and without a secret.

use std::time::Duration;

use crate::support::images;
use crate::support::rabbitmq::{ADDRESS, Queue};
use crate::support::scene::Scene;

/// Never to be seen.
const SECRET: &str = "correct-horse-battery-staple";

/// Tries within 20 s, each of which may take 10 s to be over.
const BOUNDED: Duration = Duration::from_secs(45);

fn pilot(incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), "true").rabbitmq(incoming, outgoing)
}

/// Runs a pilot that can't connect, and asserts that its last line begins with `start` and says to
/// look at `variable`.
#[track_caller]
fn assert_refused(scene: &Scene, start: &str, variable: &str) {
    let outcome = scene.run(BOUNDED);
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(
        last.starts_with(&format!("RuntimeError: {start}")),
        "{last}"
    );
    assert!(last.contains(variable), "{last}");
    for output in [&outcome.stderr, &outcome.stdout] {
        assert!(!output.contains(SECRET), "{output}");
        assert!(!output.contains("panicked"), "{output}");
    }
}

/// The same for a broker of the incoming queue that is at `address`.
#[track_caller]
fn assert_address_refused(address: &str, start: impl FnOnce(&Queue) -> String) {
    let (incoming, outgoing) = (Queue::unique("refused"), Queue::unique("refused"));
    let variable = "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS";
    let scene = pilot(&incoming, &outgoing).set(variable, address);
    assert_refused(&scene, &start(&incoming), variable);
}

#[test]
fn a_port_where_nobody_listens() {
    assert_address_refused("localhost:1", |queue| {
        format!(
            "the broker at `localhost:1` (queue `{}`) refused the connection",
            queue.name()
        )
    });
}

#[test]
fn a_host_that_nobody_knows() {
    assert_address_refused("mq.invalid", |queue| {
        format!(
            "unknown host in broker address `mq.invalid:5672` (queue `{}`)",
            queue.name()
        )
    });
}

#[test]
fn a_password_that_is_wrong() {
    assert_address_refused(&format!("guest:{SECRET}@{ADDRESS}"), |queue| {
        format!(
            "the broker at `{ADDRESS}` (queue `{}`) did not accept the credentials",
            queue.name()
        )
    });
}

#[test]
fn a_token_that_is_wrong() {
    let (incoming, outgoing) = (Queue::unique("token"), Queue::unique("token"));
    let variable = "EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN";
    let scene = pilot(&incoming, &outgoing).set(variable, SECRET);
    let start = format!(
        "the broker at `{ADDRESS}` (queue `{}`) did not accept the credentials",
        outgoing.name()
    );
    assert_refused(&scene, &start, variable);
}

#[test]
fn a_virtual_host_that_is_not_there() {
    assert_address_refused(&format!("{ADDRESS}/nowhere"), |queue| {
        format!(
            "virtual host `nowhere` can't be used at broker `{ADDRESS}/nowhere` (queue `{}`)",
            queue.name()
        )
    });
}
