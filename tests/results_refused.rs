//! Results that a broker does not take: too large for it ever, or no room for now.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::records::of_kind;
use crate::support::broker::Broker;
use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images};

/// What can't be compressed: as large as the event says, in bytes, in hexadecimal digits of random.
const RANDOM: &str = r#"sh -c "
    echo >> {{DATA_HUB}}/starts
    head -c $(cat {{INFILE}}) /dev/urandom | od -An -v -tx1 | tr -d ' \n' > {{OUTFILE}}""#;

const LIMIT: &str = "EWMS_PILOT_BROKER_MAX_MESSAGE_SIZE";

fn starts(scene: &Scene) -> usize {
    fs::read(scene.hub("starts")).map_or(0, |starts| starts.len())
}

/// The files below `rejected/` with this ending.
fn rejected(scene: &Scene, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(scene.dir().join("rejected")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect()
}

#[test]
fn a_result_that_is_too_large_fails_its_task_for_good_and_its_event_and_files_are_kept() {
    let (incoming, outgoing) = (Queue::unique("large"), Queue::unique("large-out"));
    incoming.produce(["\"200000\"", "\"1\""]);
    let scene = Scene::task(images::busybox(), RANDOM)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "3")
        .set(LIMIT, "100K");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    let last = outcome.last_line();
    assert!(
        last.contains("PublishError('the result is too large for the broker: `2"),
        "{last}"
    );
    assert!(
        last.contains("the limit is `102400`") && last.contains(LIMIT),
        "{last}"
    );
    assert_eq!(
        (starts(&scene), incoming.total()),
        (2, 0),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)).len(), 1);

    let failed = &of_kind(&scene, "task")[0];
    assert_eq!(
        (&failed["outcome"], &failed["fault_class"]),
        (&"rejected".into(), &"task".into())
    );
    assert_eq!(rejected(&scene, ".json.zst").len(), 1);
    let reason = fs::read_to_string(&rejected(&scene, ".error.txt")[0]).expect("it says why");
    assert!(reason.contains("too large"), "{reason}");
    let id = failed["task_id"].as_str().expect("an id");
    let io = scene.dir().join("ewms-pilot-data").join(id).join("task-io");
    let outfile = fs::metadata(io.join(format!("outfile-{id}.out"))).expect("the work is kept");
    assert_eq!(outfile.len(), 400_000);
}

#[test]
fn a_large_event_whose_result_is_too_large_is_in_the_dead_letter_queue_as_it_came() {
    let (incoming, outgoing) = (Queue::unique("heavy"), Queue::unique("heavy-out"));
    let dead = Queue::unique("heavy-dead");
    let large: String = (0..20_000)
        .map(|_| uuid::Uuid::new_v4().simple().to_string())
        .collect();
    let event = format!("\"{large}\"");
    incoming.produce([&event]);
    // The task changes its infile; the event is another matter.
    let scene = Scene::task(
        images::busybox(),
        r#"sh -c "cp {{INFILE}} {{OUTFILE}} && echo > {{INFILE}}""#,
    )
    .rabbitmq(&incoming, &outgoing)
    .set("EWMS_PILOT_MAX_DELIVERIES", "9")
    .set("EWMS_PILOT_QUEUE_DEAD_LETTER", dead.name())
    .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "3")
    .set(LIMIT, "100K");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert_eq!(
        (incoming.total(), outgoing.depth()),
        (0, 0),
        "{}",
        outcome.stderr
    );
    assert_eq!(dead.headers()[0]["x-ewms-deliveries"], "1");
    assert!(eventually(SOON, || dead.depth() == 1));
    assert_eq!(dead.consume(1, SOON), [event]);
}

#[test]
fn a_broker_that_takes_less_than_was_configured_is_believed_at_once() {
    let broker = Broker::start_with("max_message_size = 65536");
    let address = broker.address();
    let (incoming, outgoing) = (
        Queue::unique_at("less", &address),
        Queue::unique_at("less-out", &address),
    );
    incoming.produce(["\"200000\"", "\"200000\"", "\"1\""]);
    let scene = Scene::task(images::busybox(), RANDOM)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "5");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert_eq!(starts(&scene), 3, "{}", outcome.stderr);
    assert_eq!(incoming.depth(), 0);
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)).len(), 1);
    assert_eq!(rejected(&scene, ".json.zst").len(), 2);
    let said = outcome
        .stderr
        .matches("takes smaller messages than")
        .count();
    assert_eq!(said, 1, "{}", outcome.stderr);
}

#[test]
fn a_result_for_which_there_is_no_room_fails_its_event_and_the_pilot_goes_on() {
    let broker = Broker::start();
    let address = broker.address();
    let (incoming, outgoing) = (
        Queue::unique_at("room", &address),
        Queue::unique_at("room-out", &address),
    );
    assert_eq!(outgoing.depth(), 0);
    let full = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
    let queues = ["--apply-to", "queues"];
    let policy = |name: &str, queue: &Queue, value: &str| {
        let pattern = format!("^{}$", queue.name());
        broker.control(&[&["set_policy", name, &pattern, value], &queues[..]].concat());
    };
    policy("full", &outgoing, full);
    policy("again", &incoming, r#"{"delivery-limit": -1}"#);
    let events: Vec<String> = (0..6).map(|event| format!("\"{event}\"")).collect();
    incoming.produce(&events);
    let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "10");
    let mut pilot = scene.start();
    pilot.wait_for_line("the broker refused a result", SOON);
    broker.control(&["clear_policy", "full"]);
    let outcome = pilot.wait(Duration::from_mins(2));
    // It says whose fault the failures were, though all is well by now.
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("did not accept the result"), "{last}");
    let mut results = outgoing.consume(7, Duration::from_secs(1));
    results.sort();
    assert_eq!(results, events);
    assert_eq!(incoming.depth(), 0);
}

#[test]
fn a_result_whose_queue_was_deleted_fails_its_event_and_the_next_ones_have_a_queue_again() {
    let broker = Broker::start();
    let address = broker.address();
    let (incoming, outgoing) = (
        Queue::unique_at("gone", &address),
        Queue::unique_at("gone-out", &address),
    );
    incoming.produce(["\"pixel\""]);
    let task = r#"sh -c "
        echo >> {{DATA_HUB}}/starts
        until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done
        cp {{INFILE}} {{OUTFILE}}""#;
    let scene = Scene::task(images::busybox(), task)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "5");
    let pilot = scene.start();
    assert!(eventually(SOON, || starts(&scene) == 1));
    outgoing.delete();
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    let outcome = pilot.wait(Duration::from_mins(2));
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("unroutable"), "{last}");
    assert_eq!(
        (starts(&scene), incoming.depth()),
        (2, 0),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)), ["\"pixel\""]);
}
