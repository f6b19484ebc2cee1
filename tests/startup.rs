//! Steps of a start that run at the same time, and that no event is taken before all of them are done.

use std::fs;

use crate::support::broker::Broker;
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Pilot, Scene};
use crate::support::{SOON, eventually, images};

/// A pilot whose init container fills the hub until there is the file `release`, and one event for it.
struct Filling {
    _incoming: Queue,
    outgoing: Queue,
    scene: Scene,
}

impl Filling {
    fn at(broker: &Broker) -> Self {
        let incoming = Queue::unique_at("events", &broker.address());
        let outgoing = Queue::unique_at("results", &broker.address());
        incoming.produce([r#""pixel""#]);
        assert_eq!(outgoing.depth(), 0);
        broker.await_durable(&incoming);
        broker.await_durable(&outgoing);
        let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
            .rabbitmq(&incoming, &outgoing)
            .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
            .set(
                "EWMS_PILOT_INIT_ARGS",
                r#"sh -c "touch {{DATA_HUB}}/begun; until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done""#,
            )
            .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20");
        Self {
            _incoming: incoming,
            outgoing,
            scene,
        }
    }

    #[track_caller]
    fn await_init(&self, pilot: &Pilot) {
        let begun = eventually(SOON, || self.scene.hub("begun").exists());
        assert!(begun, "{}", pilot.stderr());
    }

    #[track_caller]
    fn assert_works(&self, pilot: Pilot) {
        fs::write(self.scene.hub("release"), "").expect("the hub is writable");
        pilot.wait(SOON * 3).assert_code(0);
        assert_eq!(self.outgoing.consume(1, SOON), [r#""pixel""#]);
    }
}

#[test]
fn connections_are_made_while_the_init_container_runs_and_no_event_is_taken() {
    let broker = Broker::start();
    let filling = Filling::at(&broker);
    let pilot = filling.scene.start();
    filling.await_init(&pilot);
    let channels = || broker.control(&["list_channels", "consumer_count", "--no-table-headers"]);
    let connected = eventually(SOON, || channels().lines().count() == 2);
    assert!(connected, "{}\n{}", channels(), pilot.stderr());
    assert_eq!(channels().split_whitespace().collect::<Vec<_>>(), ["0"; 2]);
    filling.assert_works(pilot);
}

#[test]
fn a_broker_that_comes_back_while_the_init_container_runs_was_never_missed() {
    let mut broker = Broker::start();
    let filling = Filling::at(&broker);
    broker.stop();
    let pilot = filling.scene.start();
    filling.await_init(&pilot);
    let tried = eventually(SOON, || pilot.stderr().contains("no connection yet"));
    assert!(tried, "{}", pilot.stderr());
    broker.start_again();
    filling.assert_works(pilot);
}

/// A pilot that was connected and lost its broker while its init container runs.
#[track_caller]
fn lost_while_filling(broker: &mut Broker, filling: &Filling) -> Pilot {
    let mut pilot = filling.scene.start();
    filling.await_init(&pilot);
    let channels = || broker.control(&["list_channels", "consumer_count", "--no-table-headers"]);
    let connected = eventually(SOON, || channels().lines().count() == 2);
    assert!(connected, "{}\n{}", channels(), pilot.stderr());
    broker.kill();
    // In both directions.
    let noticed = eventually(SOON, || {
        pilot.stderr().matches("no connection yet").count() == 2
    });
    assert!(noticed, "{}", pilot.stderr());
    assert!(!pilot.has_ended(), "{}", pilot.stderr());
    pilot
}

#[test]
fn a_broker_that_restarts_while_the_init_container_runs_was_never_missed() {
    let mut broker = Broker::start();
    let mut filling = Filling::at(&broker);
    // Shorter than the restart: no outage has begun.
    filling.scene = filling
        .scene
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "0");
    let pilot = lost_while_filling(&mut broker, &filling);
    broker.start_again();
    filling.assert_works(pilot);
}

#[test]
fn a_broker_that_is_away_when_the_init_container_ends_is_waited_for_as_after_a_loss() {
    let mut broker = Broker::start();
    let filling = Filling::at(&broker);
    let mut pilot = lost_while_filling(&mut broker, &filling);
    fs::write(filling.scene.hub("release"), "").expect("the hub is writable");
    pilot.wait_for_line("will try again", SOON);
    broker.start_again();
    filling.assert_works(pilot);
}
