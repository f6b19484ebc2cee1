//! Queues belong to their operators: an existing one is used as it is, with any arguments and without the
//! permission to configure it. Only queues that can't work are refused, and `ewms-pilot check` declares none.

use std::fs;

use crate::support::rabbitmq::{ADDRESS, Queue, rabbitmqctl};
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, images};

const EVENT: &str = r#"{"headers": {}, "data": "pixel"}"#;

fn queues() -> (Queue, Queue) {
    (Queue::unique("asis-in"), Queue::unique("asis-out"))
}

fn scene(incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").rabbitmq(incoming, outgoing)
}

#[track_caller]
fn assert_done(outcome: &Outcome, outgoing: &Queue) {
    outcome.assert_code(0);
    let results = outgoing.take_texts();
    assert_eq!(results.len(), 1, "stderr:\n{}", outcome.stderr);
    assert!(results[0].contains("pixel"), "{results:?}");
}

/// Runs a pilot that can't take events from a queue, and asserts what it says last.
#[track_caller]
fn assert_unusable(incoming: &Queue, why: &str) {
    let outgoing = Queue::unique("asis-out");
    let outcome = scene(incoming, &outgoing).run(SOON * 2);
    outcome.assert_code(4);
    let last = outcome.last_line();
    let start = format!(
        "RuntimeError: the queue at `{ADDRESS}` (queue `{}`) can't be used",
        incoming.name()
    );
    assert!(last.starts_with(&start), "{last}");
    assert!(last.contains(why), "{last}");
    assert!(last.ends_with("check EWMS_PILOT_QUEUE_INCOMING"), "{last}");
}

#[test]
fn queues_with_other_arguments_are_used_as_they_are() {
    for arguments in [
        "{}",
        r#"{"x-queue-type": "quorum", "x-max-length": 100000}"#,
        r#"{"x-queue-type": "classic", "x-max-priority": 5}"#,
    ] {
        let (incoming, outgoing) = queues();
        incoming.declare(arguments);
        outgoing.declare(arguments);
        incoming.publish_texts([EVENT]);
        let outcome = scene(&incoming, &outgoing).run(SOON);
        assert_done(&outcome, &outgoing);
        assert_eq!(incoming.depth(), 0, "{arguments}");
    }
}

#[test]
fn a_stream_that_results_go_to_is_used() {
    let (incoming, outgoing) = queues();
    incoming.publish_texts([EVENT]);
    outgoing.declare(r#"{"x-queue-type": "stream"}"#);
    scene(&incoming, &outgoing).run(SOON).assert_code(0);
    assert_eq!(incoming.total(), 0);
}

#[test]
fn a_stream_of_events_is_refused() {
    let stream = Queue::unique("asis-stream");
    stream.declare(r#"{"x-queue-type": "stream"}"#);
    stream.publish_texts([EVENT]);
    assert_unusable(&stream, "it is a stream");
}

#[test]
fn a_queue_that_another_connection_has_alone_is_refused() {
    let queue = Queue::unique("asis-alone");
    let _exclusive = queue.declare_exclusive();
    assert_unusable(&queue, "it is another connection's alone");
}

/// A user of the broker who may use queues and not declare any; gone when dropped.
struct Restricted(String);

impl Restricted {
    fn new() -> Self {
        let name = format!("user-{}", uuid::Uuid::new_v4().simple());
        rabbitmqctl(&["add_user", &name, "secret"]);
        rabbitmqctl(&["set_permissions", &name, "^$", ".*", ".*"]);
        Self(name)
    }

    fn address(&self) -> String {
        format!("{}:secret@{ADDRESS}", self.0)
    }
}

impl Drop for Restricted {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            rabbitmqctl(&["delete_user", &self.0]);
        }
    }
}

#[test]
fn a_user_who_may_not_configure_queues_uses_those_that_exist() {
    let user = Restricted::new();
    let (incoming, outgoing) = queues();
    let scene = scene(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", user.address())
        .set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", user.address());
    incoming.publish_texts([EVENT]);
    let outcome = scene.run(SOON);
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("denies access"), "{last}");
    // RabbitMQ 3.10 doesn't say which access.
    assert!(last.contains("access to queue"), "{last}");
    assert_eq!(incoming.delivery_counts(), [0]);

    assert_eq!(outgoing.depth(), 0, "it is there now");
    assert_done(&scene.run(SOON), &outgoing);
}

#[test]
fn check_declares_nothing_and_says_what_waits() {
    let (incoming, missing) = queues();
    incoming.publish_texts([EVENT; 2]);
    let outcome = scene(&incoming, &missing).arg("check").run(SOON);
    outcome.assert_code(0);
    for line in [
        format!(
            "ok    broker-incoming       queue `{}` exists: 2 events wait, 0 consumers",
            incoming.name()
        ),
        format!(
            "NOTE  broker-outgoing       queue `{}` is missing",
            missing.name()
        ),
    ] {
        assert!(outcome.stdout.contains(&line), "{}", outcome.stdout);
    }
    let queues = rabbitmqctl(&["list_queues", "name"]);
    assert!(!queues.contains(missing.name()), "{queues}");
    assert_eq!(incoming.delivery_counts(), [0, 0]);
}

#[test]
fn check_makes_no_directory_of_a_spool() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
    incoming.put("a.json", "1");
    let scene = scene
        .set("EWMS_PILOT_QUEUE_OUTGOING", "elsewhere")
        .arg("check");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    for words in [
        "queue `events` exists: 1 events wait, 0 consumers",
        "queue `elsewhere` is missing",
    ] {
        assert!(outcome.stdout.contains(words), "{}", outcome.stdout);
    }
    assert!(fs::metadata(scene.dir().join("spool/elsewhere")).is_err());
    assert!(fs::metadata(scene.dir().join("spool/events/claimed")).is_err());
}
