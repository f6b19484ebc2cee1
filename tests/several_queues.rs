//! Lists of queues, joined with `;` as the service that submits pilots writes them: on one broker, whose
//! connections they share, and on several.

use std::fs;
use std::time::Duration;

use crate::support::broker::Broker;
use crate::support::faults::limit_acknowledgements;
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Pilot, Scene};
use crate::support::{SOON, eventually, images};

const COPY: &str = "cp {{INFILE}} {{OUTFILE}}";

/// A task that says which event it was started for, and copies it when there is the file `release`.
const HELD: &str = r#"sh -c "
    echo $(cat {{INFILE}}) >> {{DATA_HUB}}/starts
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done
    cp {{INFILE}} {{OUTFILE}}""#;

/// For what waits until the broker has taken events back, or for events that never come again.
const LONG: Duration = Duration::from_secs(150);

fn lists(mut scene: Scene, direction: &str, queues: &[Queue]) -> Scene {
    let variable = format!("EWMS_PILOT_QUEUE_{direction}");
    let join = |item: fn(&Queue) -> &str| queues.iter().map(item).collect::<Vec<_>>().join(";");
    for (suffix, list) in [
        ("", join(Queue::name)),
        ("_BROKER_TYPE", join(|_| "rabbitmq")),
        ("_BROKER_ADDRESS", join(Queue::address)),
    ] {
        scene = scene.set(&format!("{variable}{suffix}"), list);
    }
    scene
}

#[test]
fn lists_of_queues_may_be_written_as_the_workflow_service_writes_arrays() {
    let queues = |what| [Queue::unique(what), Queue::unique(what)];
    let (incoming, outgoing) = (queues("events"), queues("results"));
    for (number, queue) in incoming.iter().enumerate() {
        queue.produce([format!("\"{number}\"")]);
    }
    let mut scene = Scene::task(images::busybox(), COPY);
    for (direction, queues) in [("INCOMING", &incoming), ("OUTGOING", &outgoing)] {
        let variable = format!("EWMS_PILOT_QUEUE_{direction}");
        let [first, second] = queues;
        for (suffix, list) in [
            ("", format!("['{}', '{}']", first.name(), second.name())),
            ("_BROKER_TYPE", r#"["rabbitmq", "rabbitmq"]"#.to_owned()),
            (
                "_BROKER_ADDRESS",
                format!("['{}', '{}']", first.address(), second.address()),
            ),
        ] {
            scene = scene.set(&format!("{variable}{suffix}"), list);
        }
    }
    scene.run(SOON).assert_code(0);
    for queue in &outgoing {
        let mut results = queue.consume(3, Duration::from_secs(1));
        results.sort();
        assert_eq!(results, [r#""0""#, r#""1""#]);
    }
}

/// Events in two queues, two more for the results, and a pilot with a slot for each event.
struct Held {
    incoming: [Queue; 2],
    outgoing: [Queue; 2],
    scene: Scene,
    pilot: Pilot,
    events: Vec<String>,
}

impl Held {
    /// A task of each event runs. The first queue of each direction is on the first broker, the second
    /// one on the second, which may be the same.
    #[track_caller]
    fn start(brokers: [&Broker; 2], events: [&[&str]; 2]) -> Self {
        Self::with(brokers, events, HELD, |scene| scene)
    }

    #[track_caller]
    fn with(
        brokers: [&Broker; 2],
        events: [&[&str]; 2],
        task: &str,
        more: impl FnOnce(Scene) -> Scene,
    ) -> Self {
        let queues = |label: &str| {
            brokers.map(|broker| {
                let queue = Queue::unique_at(label, &broker.address());
                assert_eq!(queue.depth(), 0);
                broker.await_durable(&queue);
                queue
            })
        };
        let (incoming, outgoing) = (queues("events"), queues("results"));
        for (queue, events) in incoming.iter().zip(events) {
            queue.produce(events);
        }
        let mut all: Vec<String> = events.concat().iter().map(|&event| event.into()).collect();
        all.sort();
        let scene = Scene::task(images::busybox(), task)
            .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", all.len().to_string())
            .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "4")
            .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20");
        let scene = lists(scene, "INCOMING", &incoming);
        let scene = more(lists(scene, "OUTGOING", &outgoing));
        let pilot = scene.start();
        let held = Self {
            incoming,
            outgoing,
            scene,
            pilot,
            events: all,
        };
        held.await_starts(held.events.len());
        held
    }

    #[track_caller]
    fn await_starts(&self, count: usize) {
        let run = eventually(SOON, || self.starts().len() == count);
        assert!(run, "{}", self.pilot.stderr());
    }

    /// The events for which a task was started.
    fn starts(&self) -> Vec<String> {
        let starts = fs::read_to_string(self.scene.hub("starts")).unwrap_or_default();
        starts.lines().map(|event| format!("\"{event}\"")).collect()
    }

    fn put(&self, name: &str) {
        fs::write(self.scene.hub(name), "").expect("the hub is writable");
    }

    #[track_caller]
    fn await_line(&mut self, pattern: &str) -> String {
        self.pilot.wait_for_line(pattern, LONG)
    }

    /// Lets the tasks end, and waits for the pilot's end: each was started once, its result is in both
    /// queues once, and no event is left. Gives stderr.
    #[track_caller]
    fn assert_all_done_once(self) -> String {
        self.put("release");
        let outcome = self.pilot.wait(LONG);
        outcome.assert_code(0);
        let starts = fs::read_to_string(self.scene.hub("starts")).unwrap_or_default();
        let mut starts: Vec<String> = starts.lines().map(|event| format!("\"{event}\"")).collect();
        starts.sort();
        assert_eq!(starts, self.events, "tasks; stderr:\n{}", outcome.stderr);
        for queue in &self.outgoing {
            assert_eq!(
                results(queue, &self.events),
                self.events,
                "{}",
                outcome.stderr
            );
        }
        for queue in &self.incoming {
            assert_eq!(queue.depth(), 0, "stderr:\n{}", outcome.stderr);
        }
        outcome.stderr
    }
}

/// All that is in the queue, if it is not much more than expected.
fn results(queue: &Queue, expected: &[String]) -> Vec<String> {
    let mut results = queue.consume(2 * expected.len() + 1, Duration::from_secs(1));
    results.sort();
    results
}

#[test]
fn events_come_from_all_incoming_queues_and_each_result_goes_to_all_outgoing_ones() {
    let incoming = ["one", "two"].map(Queue::unique);
    let outgoing = ["left", "right"].map(Queue::unique);
    incoming[0].produce((0..5).map(|event| format!("\"one {event}\"")));
    incoming[1].produce(["\"two\""]);
    let scene = Scene::task(images::busybox(), COPY);
    let scene = lists(scene, "INCOMING", &incoming);
    let scene = lists(scene, "OUTGOING", &outgoing);
    scene
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20")
        .run(SOON)
        .assert_code(0);
    assert_eq!(incoming.each_ref().map(Queue::depth), [0, 0]);
    for queue in &outgoing {
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

#[test]
fn a_queue_that_cannot_be_used_is_named_among_those_that_share_its_broker() {
    let queues = ["fine", "alone"].map(Queue::unique);
    let _alone = queues[1].declare_exclusive();
    let results = Queue::unique("results");
    let scene = Scene::task(images::busybox(), COPY).rabbitmq(&results, &results);
    let outcome = lists(scene, "OUTGOING", &queues).run(SOON);
    outcome.assert_code(4);
    let line = outcome.last_line();
    let [fine, alone] = queues.each_ref().map(Queue::name);
    assert!(line.contains(&format!("(queue `{alone}`)")), "{line}");
    assert!(!line.contains(fine), "{line}");
}

#[test]
fn queues_of_one_broker_share_one_connection_for_each_direction() {
    let broker = Broker::start();
    let held = Held::start([&broker; 2], [&["\"a\""], &["\"b\""]]);
    let list = |what: &[&str]| {
        let text = broker.control(&[&["--no-table-headers"], what].concat());
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let mut channels = Vec::new();
    let mut connections = Vec::new();
    // Until those of the producers are gone.
    eventually(SOON, || {
        channels = list(&["list_channels", "consumer_count", "confirm"]);
        connections = list(&["list_connections", "pid"]);
        connections.len() == 2
    });
    assert_eq!(connections.len(), 2, "{connections:?}");
    assert_eq!(channels, ["0\ttrue", "2\tfalse"]);
    held.assert_all_done_once();
}

#[test]
fn tasks_of_all_queues_run_on_while_their_broker_is_killed_and_started_again() {
    let mut broker = Broker::start();
    let events: [&[&str]; 2] = [&["\"twin\"", "\"a\""], &["\"twin\"", "\"b\""]];
    let mut held = Held::start([&broker; 2], events);
    broker.start_again();
    let back = held.await_line("the incoming queue is back");
    let [one, two] = held.incoming.each_ref().map(Queue::name);
    assert!(
        back.contains(&format!("(queues `{one}`, `{two}`)")),
        "{back}"
    );
    let stderr = held.assert_all_done_once();
    assert!(stderr.contains("adopted=4"), "{stderr}");
    assert!(stderr.contains("possible_duplicates=0"), "{stderr}");
}

#[test]
fn an_event_is_not_taken_for_its_twin_in_another_queue() {
    /// The first fails, the second does not.
    const FIRST_FAILS: &str = r#"sh -c "
        echo $(cat {{INFILE}}) >> {{DATA_HUB}}/starts
        if [ $(wc -l < {{DATA_HUB}}/starts) = 1 ]; then
            until [ -e {{DATA_HUB}}/fail ]; do sleep 0.1; done
            exit 1
        fi
        until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done
        cp {{INFILE}} {{OUTFILE}}""#;
    let mut broker = Broker::start();
    let mut held = Held::with([&broker; 2], [&["\"twin\""], &[]], FIRST_FAILS, |scene| {
        scene
            .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
            .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "20")
    });
    // Now, so that its task is the second.
    held.incoming[1].produce(["\"twin\""]);
    held.await_starts(2);
    broker.kill();
    held.await_line("the incoming queue's session is lost");
    held.put("release");
    held.await_line("task succeeded");
    held.put("fail");
    held.await_line("task failed");
    broker.start_again();
    let outcome = held.pilot.wait(LONG);
    // The one that failed comes first again. It is not acknowledged in the other's stead.
    let depths = held.incoming.each_ref().map(Queue::depth);
    assert_eq!(depths, [1, 0], "{}", outcome.stderr);
    for queue in &held.outgoing {
        assert_eq!(results(queue, &held.events), ["\"twin\""]);
    }
}

#[test]
fn a_late_acknowledgement_for_one_queue_starts_no_task_of_any_again() {
    let broker = Broker::start();
    let mut held = Held::start([&broker; 2], [&["\"a\""], &["\"b\""]]);
    // The broker looks at the oldest delivery on a channel only, which is one from this queue.
    limit_acknowledgements(&broker, held.incoming[0].name(), 3_000);
    held.await_line("delivery acknowledgement");
    held.await_line("was delivered again: it is not started again");
    held.assert_all_done_once();
}

#[test]
fn a_queue_deleted_under_its_consumer_is_named_and_costs_the_other_nothing() {
    let broker = Broker::start();
    let mut held = Held::start([&broker; 2], [&["\"a\""], &["\"b\""]]);
    held.incoming[1].delete();
    let lost = held.await_line("the server cancelled the consumer");
    let name = held.incoming[1].name();
    assert!(lost.contains(&format!("(queue `{name}`)")), "{lost}");
    held.await_line("the incoming queue is back");
    // Nobody can acknowledge what is in no queue.
    let stderr = held.assert_all_done_once();
    assert!(stderr.contains("unacknowledged=1"), "{stderr}");
}

#[test]
fn results_that_cannot_be_sent_are_kept_for_each_queue_and_sent_to_it_by_the_next_pilot() {
    let mut broker = Broker::start();
    let mut held = Held::with([&broker; 2], [&["\"a\""], &["\"b\""]], HELD, |scene| {
        scene.set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "3")
    });
    broker.kill();
    held.await_line("can't be reached yet");
    held.put("release");
    held.pilot.wait(LONG).assert_code(4);
    let unsent = held.scene.dir().join("unsent");
    let kept = || fs::read_dir(&unsent).map_or(0, Iterator::count);
    assert_eq!(kept(), 4);

    broker.start_again();
    for queue in &held.incoming {
        assert!(eventually(SOON, || queue.depth() == 1));
        queue.consume(1, Duration::from_secs(5));
    }
    held.scene.run(LONG).assert_code(0);
    assert_eq!(kept(), 0);
    for queue in &held.outgoing {
        assert_eq!(results(queue, &held.events), held.events);
    }
}

#[test]
fn two_brokers_serve_one_pilot_also_while_one_of_them_is_away() {
    let (mut first, second) = (Broker::start(), Broker::start());
    let events: [&[&str]; 2] = [&["\"twin\"", "\"a\""], &["\"twin\"", "\"b\""]];
    let mut held = Held::start([&first, &second], events);
    first.kill();
    held.await_line("the incoming queue's session is lost");
    held.put("release");
    // The events of both brokers wait for the first one's confirms.
    held.await_line("can't be reached yet");
    first.start_again();
    let stderr = held.assert_all_done_once();
    assert!(stderr.contains("adopted=2"), "{stderr}");
}
