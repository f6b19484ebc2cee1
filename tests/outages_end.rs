//! Pilots that are told to end after their last task, while a confirm, an acknowledgement or a disk is still
//! waited for.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::broker::Broker;
use crate::support::faults::OutOfMemory;
use crate::support::mounts::Mounted;
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Pilot, Scene};
use crate::support::{SOON, eventually, images};

/// A task that says that it runs, and copies when there is the file `release`.
const HELD: &str = r#"sh -c "
    touch {{DATA_HUB}}/running
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.05; done
    cp {{INFILE}} {{OUTFILE}}""#;

const EVENT: &str = r#""pixel""#;

/// A pilot that was told to end is gone by then, if no task runs.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A broker of events that is lost while a task runs. Results go to another one.
struct Owed {
    incoming: Queue,
    outgoing: Queue,
    scene: Scene,
    pilot: Pilot,
    started: Instant,
    // Last: the queues are deleted on it when they are dropped.
    broker: Broker,
}

impl Owed {
    /// The task is done, its result confirmed, and its acknowledgement waits for the broker.
    #[track_caller]
    fn new(more: impl FnOnce(Scene) -> Scene) -> Self {
        let mut broker = Broker::start();
        let incoming = Queue::unique_at("owed", &broker.address());
        let outgoing = Queue::unique("owed-out");
        assert_eq!(outgoing.depth(), 0);
        incoming.produce([EVENT]);
        let scene = Scene::task(images::busybox(), HELD)
            .rabbitmq(&incoming, &outgoing)
            .set(
                "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
                outgoing.address(),
            )
            // A free slot, so that it waits for events and notices that none can come.
            .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
            .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "600")
            .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "2");
        let scene = more(scene);
        let started = Instant::now();
        let mut pilot = scene.start();
        let running = eventually(SOON, || scene.hub("running").exists());
        assert!(running, "{}", pilot.stderr());
        broker.await_durable(&incoming);
        broker.kill();
        pilot.wait_for_line("no more events can be taken", SOON);
        fs::write(scene.hub("release"), "").expect("the hub is writable");
        pilot.wait_for_line("will be acknowledged when it is delivered again", SOON);
        Self {
            incoming,
            outgoing,
            scene,
            pilot,
            started,
            broker,
        }
    }

    /// Its result is there, and the event too: it was not acknowledged. Gives how long the pilot took from now on, and
    /// how long it lived.
    #[track_caller]
    fn finish(self) -> (Outcome, Duration, Duration) {
        let Self {
            incoming,
            outgoing,
            scene: _scene,
            pilot,
            started,
            mut broker,
        } = self;
        let began = Instant::now();
        let outcome = pilot.wait(Duration::from_mins(4));
        let (took, lived) = (began.elapsed(), started.elapsed());
        broker.start_again();
        assert!(eventually(SOON, || incoming.depth() == 1));
        assert_eq!(outgoing.consume(2, Duration::from_secs(1)), [EVENT]);
        let stderr = &outcome.stderr;
        assert!(stderr.contains("unacknowledged=1"), "{stderr}");
        // Before its broker, which ends first otherwise.
        drop(incoming);
        (outcome, took, lived)
    }
}

#[test]
fn a_signal_is_obeyed_while_an_acknowledgement_is_owed() {
    let owed = Owed::new(|scene| scene);
    owed.pilot.signal(Signal::SIGTERM);
    let (outcome, took, _) = owed.finish();
    outcome.assert_code(128 + 15);
    let last = outcome.last_line();
    assert!(last.contains("ended by signal 15"), "{last}");
    assert!(took < AT_ONCE, "{took:?}; stderr:\n{}", outcome.stderr);
}

#[test]
fn the_wall_time_is_kept_while_an_acknowledgement_is_owed() {
    let limit = Duration::from_secs(30);
    let owed = Owed::new(|scene| {
        scene
            .set("EWMS_PILOT_MAX_RUNTIME", limit.as_secs().to_string())
            .set("EWMS_PILOT_KILL_GRACE", "1")
    });
    let (outcome, _, lived) = owed.finish();
    outcome.assert_code(4);
    assert!(lived < limit, "{lived:?}; stderr:\n{}", outcome.stderr);
    let stderr = &outcome.stderr;
    assert!(stderr.contains("wall time comes to its end"), "{stderr}");
}

#[test]
fn a_signal_is_obeyed_while_confirms_are_owed() {
    let broker = Broker::start();
    let address = broker.address();
    let incoming = Queue::unique_at("confirm", &address);
    let outgoing = Queue::unique_at("confirm-out", &address);
    assert_eq!(outgoing.depth(), 0);
    incoming.produce([EVENT]);
    let scene = Scene::task(images::busybox(), HELD).rabbitmq(&incoming, &outgoing);
    let mut pilot = scene.start();
    let running = eventually(SOON, || scene.hub("running").exists());
    assert!(running, "{}", pilot.stderr());
    let alarm = OutOfMemory::new(&broker);
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    pilot.wait_for_line("task succeeded", SOON);
    pilot.signal(Signal::SIGTERM);
    let began = Instant::now();
    let outcome = pilot.wait(Duration::from_mins(2));
    let took = began.elapsed();
    outcome.assert_code(128 + 15);
    assert!(took < AT_ONCE, "{took:?}; stderr:\n{}", outcome.stderr);
    let kept = fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count);
    assert_eq!(kept, 1, "{}", outcome.stderr);
    drop(alarm);
}

#[test]
fn an_event_that_is_put_on_a_disk_that_hangs_goes_back_at_once_when_the_pilot_is_told_to_end() {
    let (incoming, outgoing) = (Queue::unique("hung"), Queue::unique("hung-out"));
    assert_eq!((incoming.depth(), outgoing.depth()), (0, 0));
    let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "600");
    let mut pilot = scene.start();
    pilot.wait_for_line("taking events", SOON);
    let hung = Mounted::mute(&scene.dir().join("ewms-pilot-scratch"));
    // More than is kept in memory: of each hexadecimal digit half a byte is left.
    let large: String = (0..600_000)
        .map(|_| uuid::Uuid::new_v4().simple().to_string())
        .collect();
    incoming.produce([format!("\"{large}\"")]);
    assert!(eventually(SOON, || incoming.held() == 1));
    pilot.signal(Signal::SIGTERM);
    let is_back = eventually(AT_ONCE, || incoming.depth() == 1);
    assert!(is_back, "{}", pilot.stderr());
    drop(hung);
    pilot.wait(SOON).assert_code(128 + 15);
}
