//! A cluster of three nodes, known by one name with three addresses: its leader is killed, its majority is
//! stopped for a while, all its nodes are killed and started. One of each at least.

use std::time::{Duration, Instant};

use super::{Dice, Endurance, Settings, pause};
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::rabbitmq::Queue;

/// For a first result after a fault: connections are tried again every few seconds by then.
const WORKS_AGAIN_WITHIN: Duration = Duration::from_mins(3);

#[derive(Debug, Clone, Copy)]
enum Fault {
    LeaderKilled,
    MajorityStopped,
    AllKilled,
}

const FAULTS: [Fault; 3] = [
    Fault::LeaderKilled,
    Fault::MajorityStopped,
    Fault::AllKilled,
];

impl Fault {
    /// Happens, lasts, and is undone. Gives its name.
    fn happen(self, dice: &mut Dice, cluster: &mut Cluster, queues: [&Queue; 2]) -> &'static str {
        match self {
            Self::LeaderKilled => {
                let queue = queues[usize::from(dice.throw(2) == 1)];
                let leader = cluster.leader_of(queue);
                cluster.kill(&[leader]);
                pause(dice.seconds(1, 10));
                cluster.start_again(&[leader]);
                "leader killed"
            }
            Self::MajorityStopped => {
                let stays = usize::try_from(dice.throw(3)).expect("there are three");
                let majority: Vec<usize> = (0..3).filter(|node| *node != stays).collect();
                cluster.stop(&majority);
                pause(Duration::from_secs(15));
                cluster.start_again(&majority);
                "majority stopped"
            }
            Self::AllKilled => {
                cluster.kill(&[0, 1, 2]);
                pause(dice.seconds(0, 5));
                cluster.start_again(&[0, 1, 2]);
                "all nodes killed"
            }
        }
    }
}

#[test]
fn no_result_is_missing_when_a_cluster_loses_its_leader_its_majority_and_all_its_nodes() {
    let settings = Settings::read(30);
    let mut dice = Dice(settings.seed);
    let mut cluster = Cluster::start();
    let incoming = Queue::unique_at("events", &cluster.address());
    let outgoing = Queue::unique_at("results", &cluster.address());
    assert_eq!(outgoing.depth(), 0);
    cluster.lift_limits(&incoming);
    let events = settings.events(&mut dice);
    incoming.produce(&events);
    cluster.await_durable(&outgoing);
    cluster.await_durable(&incoming);

    let mut endurance = Endurance::start(settings.pilots, incoming, outgoing, events);
    let end = Instant::now() + Duration::from_secs(settings.seconds);
    let mut once = FAULTS.into_iter();
    loop {
        let fault = match once.next() {
            Some(fault) => fault,
            None if Instant::now() < end => {
                FAULTS[usize::try_from(dice.throw(3)).expect("there are three")]
            }
            None => break,
        };
        // Each fault meets pilots at work, or the last of them already gone.
        let before = endurance.outgoing.depth();
        let works = eventually(WORKS_AGAIN_WITHIN, || {
            let results = endurance.outgoing.depth();
            results > before || results >= endurance.events.len()
        });
        assert!(works, "no result came after {:?}", endurance.faults);
        let queues = [&endurance.incoming, &endurance.outgoing];
        let name = fault.happen(&mut dice, &mut cluster, queues);
        endurance.note(name);
    }
    endurance.assert_nothing_is_missing(settings.seed);
}
