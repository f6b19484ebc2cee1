//! One broker, and everything that can be done to it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Dice, Endurance, Settings, pause};
use crate::support::broker::Broker;
use crate::support::faults::{
    DroppedPackets, OutOfMemory, Suspended, close_all_connections, lift_limits,
    limit_acknowledgements,
};
use crate::support::rabbitmq::Queue;

/// Does one thing to the broker or a pilot, and undoes it. Gives its name.
fn break_something(dice: &mut Dice, broker: &mut Broker, endurance: &Endurance) -> &'static str {
    match dice.throw(8) {
        0 => {
            broker.kill();
            pause(dice.seconds(0, 6));
            broker.start_again();
            "broker killed"
        }
        1 => {
            broker.stop();
            pause(dice.seconds(0, 6));
            broker.start_again();
            "broker stopped"
        }
        2 => {
            let _until_dropped = Suspended::new(broker);
            pause(dice.seconds(2, 40));
            "broker suspended"
        }
        3 => {
            let _until_dropped = DroppedPackets::of(broker);
            pause(dice.seconds(2, 40));
            "packets dropped"
        }
        4 => {
            close_all_connections(broker);
            "connections closed"
        }
        5 => {
            let _until_dropped = OutOfMemory::new(broker);
            pause(dice.seconds(2, 20));
            "memory alarm"
        }
        6 => {
            let events = endurance.incoming.name();
            limit_acknowledgements(broker, events, 2_000);
            pause(dice.seconds(4, 10));
            lift_limits(broker, events);
            "acknowledgements late"
        }
        _ => {
            let pilots = &endurance.pilots;
            let which = usize::try_from(dice.throw(pilots.len() as u64)).expect("they are few");
            pilots[which].1.signal(Signal::SIGSTOP);
            pause(dice.seconds(2, 40));
            pilots[which].1.signal(Signal::SIGCONT);
            "pilot suspended"
        }
    }
}

#[test]
fn no_result_is_missing_after_faults_at_random() {
    let settings = Settings::read(60);
    let mut dice = Dice(settings.seed);
    let mut broker = Broker::start();
    let incoming = Queue::unique_at("events", &broker.address());
    let outgoing = Queue::unique_at("results", &broker.address());
    assert_eq!(outgoing.depth(), 0);
    lift_limits(&broker, incoming.name());
    let events = settings.events(&mut dice);
    incoming.produce(&events);
    broker.await_durable(&outgoing);
    broker.await_durable(&incoming);

    let mut endurance = Endurance::start(settings.pilots, incoming, outgoing, events);
    let end = Instant::now() + Duration::from_secs(settings.seconds);
    while Instant::now() < end {
        pause(dice.seconds(1, 8));
        let fault = break_something(&mut dice, &mut broker, &endurance);
        endurance.note(fault);
    }
    endurance.assert_nothing_is_missing(settings.seed);
}
