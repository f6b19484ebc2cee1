//! The broker fails while tasks run, in every known way: all results arrive, each task was started once, and
//! the pilot succeeds. Each test breaks a broker of its own.

use std::fs;
use std::time::Duration;

use crate::support::broker::Broker;
use crate::support::faults::{DroppedPackets, OutOfMemory, Suspended, close_all_connections};
use crate::support::rabbitmq::{Queue, server_version};
use crate::support::scene::{Pilot, Scene};
use crate::support::{SOON, eventually, images};

/// A task that says which event it was started for, and copies it when there is the file `release`.
const HELD: &str = r#"sh -c "
    echo $(cat {{INFILE}}) >> {{DATA_HUB}}/starts
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done
    cp {{INFILE}} {{OUTFILE}}""#;

/// A session's end is noticed after up to two heartbeats of 15 s, the broker takes events back a
/// heartbeat later, and then everything still has to run.
const LONG: Duration = Duration::from_secs(150);

/// Three events run at a time; three more wait in the queue.
const SLOTS: usize = 3;

/// A broker of its own, events in it, and a pilot that runs the first of them.
struct Outage {
    incoming: Queue,
    outgoing: Queue,
    scene: Scene,
    pilot: Pilot,
    events: Vec<String>,
}

impl Outage {
    /// A pilot with a task in every slot.
    fn before(broker: &Broker, events: usize) -> Self {
        Self::with(broker, events, |scene| scene)
    }

    fn with(broker: &Broker, events: usize, more: impl FnOnce(Scene) -> Scene) -> Self {
        let address = broker.address();
        let incoming = Queue::unique_at("events", &address);
        let outgoing = Queue::unique_at("results", &address);
        let events: Vec<String> = (0..events)
            .map(|event| format!("\"pixel {event}\""))
            .collect();
        assert_eq!(outgoing.depth(), 0);
        incoming.produce(&events);
        broker.await_durable(&outgoing);
        broker.await_durable(&incoming);
        let scene = Scene::task(images::busybox(), HELD)
            .rabbitmq(&incoming, &outgoing)
            .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", SLOTS.to_string())
            .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "4")
            .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20");
        let scene = more(scene);
        let pilot = scene.start();
        let outage = Self {
            incoming,
            outgoing,
            scene,
            pilot,
            events,
        };
        assert!(
            eventually(SOON, || outage.starts().len()
                == SLOTS.min(outage.events.len())),
            "{}",
            outage.pilot.stderr()
        );
        outage
    }

    /// The events for which a task was started, in the order of their start.
    fn starts(&self) -> Vec<String> {
        let starts = fs::read_to_string(self.scene.hub("starts")).unwrap_or_default();
        starts.lines().map(|event| format!("\"{event}\"")).collect()
    }

    fn release(&self) {
        fs::write(self.scene.hub("release"), "").expect("the hub is writable");
    }

    #[track_caller]
    fn await_line(&mut self, pattern: &str) {
        self.pilot.wait_for_line(pattern, LONG);
    }

    /// Waits for the pilot's end: no result is missing, no task was started twice, and what is there
    /// twice was counted. Gives its stderr.
    #[track_caller]
    fn assert_all_done_once(self) -> String {
        let starts = self.scene.hub("starts");
        let outcome = self.pilot.wait(LONG);
        outcome.assert_code(0);
        let starts = fs::read_to_string(starts).unwrap_or_default();
        let mut starts: Vec<String> = starts.lines().map(|event| format!("\"{event}\"")).collect();
        starts.sort();
        assert_eq!(
            starts, self.events,
            "tasks started; stderr:\n{}",
            outcome.stderr
        );
        let mut results = self
            .outgoing
            .consume(2 * self.events.len() + 1, Duration::from_secs(1));
        results.sort();
        let found = results.len();
        results.dedup();
        assert_eq!(results, self.events, "results; stderr:\n{}", outcome.stderr);
        let duplicates = found - results.len();
        assert!(
            duplicates <= possible_duplicates(&outcome.stderr),
            "{duplicates} uncounted; stderr:\n{}",
            outcome.stderr
        );
        assert_eq!(self.incoming.depth(), 0, "stderr:\n{}", outcome.stderr);
        outcome.stderr
    }
}

/// How many outputs the pilot says may be there twice.
fn possible_duplicates(stderr: &str) -> usize {
    let count = summary(stderr).split_once("possible_duplicates=");
    count.map_or(0, |(_, count)| {
        count.trim().parse().expect("it is a number")
    })
}

/// The line of the summary that says what outages did.
fn summary(stderr: &str) -> &str {
    let mut lines = stderr.lines();
    lines
        .find(|line| line.contains("outages of the broker"))
        .unwrap_or_default()
}

#[test]
fn tasks_run_on_while_the_broker_is_killed_and_started_again() {
    let mut broker = Broker::start();
    let mut outage = Outage::before(&broker, 6);
    broker.start_again();
    outage.await_line("the incoming queue is back");
    outage.release();
    let stderr = outage.assert_all_done_once();
    assert!(summary(&stderr).contains("adopted=3"), "{stderr}");
}

#[test]
fn tasks_that_end_while_the_broker_is_down_are_published_and_acknowledged_afterwards() {
    let mut broker = Broker::start();
    let mut outage = Outage::before(&broker, 3);
    broker.kill();
    outage.await_line("the outgoing queue's session is lost");
    outage.release();
    outage.await_line("the incoming queue can't be reached yet");
    broker.start_again();
    let stderr = outage.assert_all_done_once();
    assert!(summary(&stderr).contains("adopted=3"), "{stderr}");
}

#[test]
fn tasks_run_on_when_every_connection_is_closed() {
    let broker = Broker::start();
    let mut outage = Outage::before(&broker, 6);
    close_all_connections(&broker);
    outage.await_line("was delivered again: it is not started again");
    outage.release();
    let stderr = outage.assert_all_done_once();
    assert!(
        summary(&stderr).contains("possible_duplicates=0"),
        "{stderr}"
    );
}

#[test]
fn tasks_run_on_while_no_packet_arrives() {
    let broker = Broker::start();
    let mut outage = Outage::before(&broker, 6);
    let dropped = DroppedPackets::of(&broker);
    outage.await_line("the incoming queue's session is lost");
    outage.release();
    outage.await_line("the incoming queue can't be reached yet");
    drop(dropped);
    outage.assert_all_done_once();
}

#[test]
fn tasks_run_on_while_the_broker_is_suspended() {
    let broker = Broker::start();
    let mut outage = Outage::before(&broker, 6);
    let suspended = Suspended::new(&broker);
    outage.await_line("the incoming queue's session is lost");
    drop(suspended);
    outage.await_line("the incoming queue is back");
    outage.release();
    outage.assert_all_done_once();
}

#[test]
fn results_wait_while_the_broker_has_no_memory() {
    let broker = Broker::start();
    let outage = Outage::before(&broker, 3);
    let alarm = OutOfMemory::new(&broker);
    outage.release();
    // Longer than two heartbeats: patience is not mistaken for death.
    std::thread::sleep(Duration::from_secs(35));
    assert_eq!(outage.outgoing.depth(), 0);
    drop(alarm);
    let stderr = outage.assert_all_done_once();
    assert_eq!(summary(&stderr), "", "{stderr}");
}

#[test]
fn a_task_longer_than_the_acknowledgement_timeout_is_not_started_again() {
    // Before 3.12 no policy sets it.
    let broker = Broker::start_with("consumer_timeout = 3000\n");
    let mut outage = Outage::before(&broker, 3);
    if server_version() < (4, 3) {
        outage.await_line("delivery acknowledgement");
        outage.await_line("was delivered again: it is not started again");
    } else {
        // Newer ones close no channel over it, and there is nothing to wait for but the time.
        std::thread::sleep(Duration::from_secs(6));
    }
    outage.release();
    outage.assert_all_done_once();
}

#[test]
fn a_queue_deleted_under_the_consumer_costs_no_result() {
    let broker = Broker::start();
    let mut outage = Outage::before(&broker, 3);
    outage.incoming.delete();
    outage.await_line("the incoming queue is back");
    outage.release();
    // Nobody can acknowledge what is in no queue.
    let stderr = outage.assert_all_done_once();
    assert!(summary(&stderr).contains("unacknowledged=3"), "{stderr}");
}

#[test]
fn a_broker_that_stays_away_ends_the_pilot_after_its_tasks_and_the_next_pilot_sends_their_results()
{
    let mut broker = Broker::start();
    let mut outage = Outage::with(&broker, 3, |scene| {
        scene.set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "3")
    });
    broker.kill();
    outage.await_line("can't be reached yet");
    assert!(!outage.pilot.has_ended(), "its tasks still run");
    outage.release();
    let Outage {
        incoming,
        outgoing,
        scene,
        pilot,
        events,
    } = outage;
    let outcome = pilot.wait(LONG);
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.starts_with("RuntimeError: "), "{last}");
    assert!(last.contains("refused the connection"), "{last}");
    let unsent = scene.dir().join("unsent");
    let kept = || fs::read_dir(&unsent).map_or(0, Iterator::count);
    assert_eq!(kept(), 3, "{}", outcome.stderr);

    broker.start_again();
    assert!(eventually(SOON, || incoming.depth() == 3));
    incoming.consume(3, Duration::from_secs(5));
    scene.run(LONG).assert_code(0);
    assert_eq!(kept(), 0);
    let mut results = outgoing.consume(4, Duration::from_secs(1));
    results.sort();
    assert_eq!(results, events);
}

#[test]
fn a_pilot_told_to_end_while_the_broker_is_away_does_not_wait_for_it() {
    let mut broker = Broker::start();
    let mut outage = Outage::before(&broker, 3);
    broker.kill();
    outage.await_line("the outgoing queue's session is lost");
    outage.release();
    outage.await_line("can't be reached yet");
    outage.pilot.signal(nix::sys::signal::Signal::SIGTERM);
    let unsent = outage.scene.dir().join("unsent");
    outage.pilot.wait(SOON).assert_code(128 + 15);
    assert_eq!(fs::read_dir(unsent).map_or(0, Iterator::count), 3);
    // The queues can be deleted only where they are.
    broker.start_again();
}

#[test]
fn a_pilot_that_starts_while_the_broker_has_no_memory_runs_its_task_and_waits_for_the_confirm() {
    let broker = Broker::start();
    let (incoming, outgoing) = (
        Queue::unique_at("alarm", &broker.address()),
        Queue::unique_at("alarm-out", &broker.address()),
    );
    assert_eq!(outgoing.depth(), 0);
    incoming.produce(["\"pixel\""]);
    let alarm = OutOfMemory::new(&broker);
    let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "60");
    let mut pilot = scene.start();
    pilot.wait_for_line("task succeeded", LONG);
    drop(alarm);
    let outcome = pilot.wait(LONG);
    outcome.assert_code(0);
    assert!(!outcome.stderr.contains("is lost"), "{}", outcome.stderr);
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)), ["\"pixel\""]);
    assert_eq!(incoming.depth(), 0);
}

#[test]
fn a_pilot_told_to_end_while_the_broker_has_no_memory_does_not_wait_for_it() {
    let broker = Broker::start();
    let mut outage = Outage::before(&broker, 3);
    let alarm = OutOfMemory::new(&broker);
    outage.release();
    outage.await_line("task succeeded");
    outage.pilot.signal(nix::sys::signal::Signal::SIGTERM);
    let unsent = outage.scene.dir().join("unsent");
    outage.pilot.wait(LONG).assert_code(128 + 15);
    assert_ne!(fs::read_dir(unsent).map_or(0, Iterator::count), 0);
    drop(alarm);
}
