//! Events that fail each time: they leave the queue, and are never lost.

use std::fs;

use crate::records::of_kind;
use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images};

fn failing(incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), "sh -c 'echo bad event >&2; exit 1'")
        .rabbitmq(incoming, outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "3")
        .set("EWMS_PILOT_MAX_DELIVERIES", "3")
}

#[test]
fn an_event_that_failed_too_often_is_in_the_dead_letter_queue_with_its_reason() {
    let (incoming, outgoing) = (Queue::unique("poison"), Queue::unique("poison-out"));
    let dead = Queue::unique("poison-dead");
    incoming.produce(["{\"a\": 1}"]);
    let scene = failing(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_DEAD_LETTER", dead.name())
        .set("EWMS_PILOT_INFILE_EXT", ".json");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert!(
        outcome.stderr.contains("dead-letter queue"),
        "{}",
        outcome.stderr
    );
    assert_eq!((incoming.depth(), dead.depth()), (0, 1));
    let outcomes: Vec<_> = of_kind(&scene, "task")
        .iter()
        .map(|task| task["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["failed", "failed", "dead_lettered"]);
    assert_eq!(of_kind(&scene, "pilot_end")[0]["dead_lettered"], 1);
    let headers = &dead.headers()[0];
    assert_eq!(
        headers["x-ewms-error"],
        "ContainerRunError('task failed (exit code 1): bad event')"
    );
    assert_eq!(headers["x-ewms-deliveries"], "3");
    assert_eq!(headers["x-ewms-fault-class"], "task");
    assert_eq!(headers["x-ewms-queue"], incoming.name());
    assert!(eventually(SOON, || dead.depth() == 1));
    let body = dead.consume(1, SOON);
    assert_eq!(body, ["{\"a\": 1}"], "the event itself, byte for byte");
}

#[test]
fn without_a_dead_letter_queue_it_is_rejected_and_kept() {
    let (incoming, outgoing) = (Queue::unique("rejected"), Queue::unique("rejected-out"));
    incoming.produce(["\"x\""]);
    let scene = failing(&incoming, &outgoing);
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert_eq!(incoming.depth(), 0);
    let kept = fs::read_dir(scene.dir().join("rejected")).expect("it is there");
    let mut names: Vec<_> = kept
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    let id = of_kind(&scene, "task")[2]["task_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    assert_eq!(names, [format!("{id}.error.txt"), format!("{id}.json.zst")]);
    let reason = fs::read_to_string(scene.dir().join("rejected").join(&names[0])).expect("read");
    assert!(reason.contains("bad event"), "{reason}");
    assert_eq!(of_kind(&scene, "task")[2]["outcome"], "rejected");
}

#[test]
fn a_dead_letter_queue_that_no_broker_can_have_is_a_configuration_error_and_no_event_is_taken() {
    let (incoming, outgoing) = (Queue::unique("stays"), Queue::unique("stays-out"));
    incoming.produce(["\"x\""]);
    let scene = failing(&incoming, &outgoing)
        .set("EWMS_PILOT_QUEUE_DEAD_LETTER", "d".repeat(300))
        .set("EWMS_PILOT_MAX_DELIVERIES", "1");
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    assert!(
        outcome.stderr.contains("EWMS_PILOT_QUEUE_DEAD_LETTER"),
        "{}",
        outcome.stderr
    );
    assert_eq!(incoming.depth(), 1);
}

#[test]
fn an_event_that_the_broker_is_about_to_delete_is_warned_of() {
    let (incoming, outgoing) = (Queue::unique("warned"), Queue::unique("warned-out"));
    incoming.produce(["\"x\""]);
    assert!(eventually(SOON, || incoming.depth() == 1));
    for _ in 0..17 {
        incoming.delivery_counts();
    }
    let scene = Scene::task(images::busybox(), "true").rabbitmq(&incoming, &outgoing);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome.stderr.contains("ABOUT TO BE DELETED"),
        "{}",
        outcome.stderr
    );
}
