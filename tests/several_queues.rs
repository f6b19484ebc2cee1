//! Lists of queues, joined with `;` as the service that submits pilots writes them.

use std::fs;
use std::time::Duration;

use crate::support::SOON;
use crate::support::images;
use crate::support::rabbitmq::{ADDRESS, Queue};
use crate::support::scene::Scene;

const COPY: &str = "cp {{INFILE}} {{OUTFILE}}";

fn lists(mut scene: Scene, direction: &str, queues: [&Queue; 2]) -> Scene {
    let name = format!("EWMS_PILOT_QUEUE_{direction}");
    let [first, second] = queues.map(Queue::name);
    for (suffix, [first, second]) in [
        ("", [first, second]),
        ("_BROKER_TYPE", ["rabbitmq"; 2]),
        ("_BROKER_ADDRESS", [ADDRESS; 2]),
    ] {
        scene = scene.set(&format!("{name}{suffix}"), format!("{first};{second}"));
    }
    scene
}

#[test]
fn events_come_from_all_incoming_queues_and_each_result_goes_to_all_outgoing_ones() {
    let (one, two) = (Queue::unique("one"), Queue::unique("two"));
    let (left, right) = (Queue::unique("left"), Queue::unique("right"));
    one.produce((0..5).map(|event| format!("\"one {event}\"")));
    two.produce(["\"two\""]);
    let scene = Scene::task(images::busybox(), COPY);
    let scene = lists(scene, "INCOMING", [&one, &two]);
    let scene = lists(scene, "OUTGOING", [&left, &right]);
    scene
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20")
        .run(SOON)
        .assert_code(0);
    assert_eq!((one.depth(), two.depth()), (0, 0));
    for queue in [&left, &right] {
        let results = queue.consume(7, Duration::from_secs(1));
        // In turn: five others do not make the one wait.
        let place = results.iter().position(|result| result == "\"two\"");
        assert!(place.is_some_and(|place| place <= 2), "{results:?}");
        assert_eq!(results.len(), 6, "{results:?}");
    }
}

#[test]
fn one_queue_may_be_incoming_and_outgoing() {
    const ONCE: &str = r#"sh -c "
        echo >> {{DATA_HUB}}/starts
        [ $(wc -l < {{DATA_HUB}}/starts) -gt 1 ] || cp {{INFILE}} {{OUTFILE}}""#;
    let queue = Queue::unique("loop");
    queue.produce(["\"pixel\""]);
    let scene = Scene::task(images::busybox(), ONCE).rabbitmq(&queue, &queue);
    scene.run(SOON).assert_code(0);
    let starts = fs::read(scene.hub("starts")).expect("tasks ran");
    assert_eq!((starts.len(), queue.depth()), (2, 0));
}
