//! The main job: events from a real producer, each run by the real Apptainer, results to a real
//! consumer, through a real broker.

use std::time::Duration;

use nix::unistd::Uid;

use crate::support::rabbitmq::{Queue, rabbitmqctl};
use crate::support::scene::Scene;
use crate::support::{SOON, images};

/// A pilot whose tasks take and give JSON.
fn json_pilot(arguments: &str, incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), arguments)
        .rabbitmq(incoming, outgoing)
        .set("EWMS_PILOT_INFILE_EXT", ".json")
        .set("EWMS_PILOT_OUTFILE_EXT", ".json")
}

fn pair(label: &str) -> (Queue, Queue) {
    let (incoming, outgoing) = (format!("{label}-in"), format!("{label}-out"));
    (Queue::unique(&incoming), Queue::unique(&outgoing))
}

#[test]
fn each_event_of_a_producer_becomes_one_result_for_a_consumer() {
    let (incoming, outgoing) = pair("main-job");
    let mut events: Vec<_> = (0..24)
        .map(|pixel| format!(r#"{{"pixel": {pixel}, "theta": 0.1}}"#))
        .collect();
    incoming.produce(&events);

    let scene = json_pilot("cp {{INFILE}} {{OUTFILE}}", &incoming, &outgoing)
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let outcome = scene.run(SOON * 2);
    outcome.assert_code(0);

    let mut results = outgoing.consume(events.len() + 1, Duration::from_secs(1));
    results.sort();
    events.sort();
    assert_eq!(results, events);
    assert_eq!(incoming.total(), 0, "{}", outcome.stderr);
}

#[test]
fn tasks_run_as_the_pilots_own_ordinary_user() {
    let (incoming, outgoing) = pair("user");
    incoming.produce(["0"]);
    let script = r#"sh -c "id -u > {{OUTFILE}}""#;
    json_pilot(script, &incoming, &outgoing)
        .run(SOON)
        .assert_code(0);
    let me = Uid::effective();
    assert!(!me.is_root());
    assert_eq!(
        outgoing.consume(1, Duration::from_secs(1)),
        [me.to_string()]
    );
}

#[test]
fn a_task_without_an_outfile_sends_nothing_and_its_event_is_done() {
    let (incoming, outgoing) = pair("no-output");
    incoming.produce(["1", "2"]);
    json_pilot("true", &incoming, &outgoing)
        .run(SOON)
        .assert_code(0);
    assert_eq!((incoming.total(), outgoing.total()), (0, 0));
}

#[test]
fn an_empty_outfile_of_text_sends_an_empty_string() {
    let (incoming, outgoing) = pair("empty-output");
    incoming.produce(["1"]);
    json_pilot("touch {{OUTFILE}}", &incoming, &outgoing)
        .set("EWMS_PILOT_OUTFILE_EXT", ".txt")
        .run(SOON)
        .assert_code(0);
    assert_eq!(outgoing.take_texts(), [r#"{"headers": {}, "data": ""}"#]);
}

/// What the broker knows of a queue, but for its name.
fn properties(queue: &Queue) -> String {
    let columns = ["durable", "auto_delete", "exclusive", "type", "arguments"];
    let arguments: Vec<_> = ["list_queues", "--no-table-headers", "name"]
        .into_iter()
        .chain(columns)
        .collect();
    let listed = rabbitmqctl(&arguments);
    let found = listed
        .lines()
        .find_map(|line| line.strip_prefix(queue.name()));
    found.expect("the queue is there").to_owned()
}

#[test]
fn queues_that_are_absent_are_declared_as_mqclient_declares_them() {
    let (incoming, outgoing) = pair("declared");
    let peers = Queue::unique("declared-peer");
    json_pilot("true", &incoming, &outgoing)
        .run(SOON)
        .assert_code(0);

    // Declares it too.
    assert!(peers.consume(1, Duration::from_secs(1)).is_empty());
    let expected = properties(&peers);
    assert!(expected.contains("quorum"), "{expected}");
    assert_eq!(properties(&incoming), expected);
    assert_eq!(properties(&outgoing), expected);
    // And it would refuse to open what had other properties.
    incoming.produce(["1"]);
    assert!(outgoing.consume(1, Duration::from_secs(1)).is_empty());
}

#[test]
fn queues_that_mqclient_declared_are_used_as_they_are() {
    let (incoming, outgoing) = pair("declared-before");
    incoming.produce([r#"{"pixel": 1}"#]);
    assert!(outgoing.consume(1, Duration::from_secs(1)).is_empty());
    json_pilot("cp {{INFILE}} {{OUTFILE}}", &incoming, &outgoing)
        .run(SOON)
        .assert_code(0);
    assert_eq!(
        outgoing.consume(1, Duration::from_secs(1)),
        [r#"{"pixel": 1}"#]
    );
}
