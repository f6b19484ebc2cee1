//! Faults of all kinds at random, from a printed seed, while a few pilots work on one queue: no
//! result may be missing, and every pilot ends well. A task may run twice, when the broker took its
//! event back and another pilot got it; how many did is reported. `scripts/chaos` runs it for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::broker::Broker;
use crate::support::faults::{
    DroppedPackets, OutOfMemory, Suspended, close_all_connections, lift_limits,
    limit_acknowledgements,
};
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Pilot, Scene};
use crate::support::{eventually, images};

/// An event is `"NUMBER SECONDS"`.
const TASK: &str = r#"sh -c "
    set -- $(cat {{INFILE}})
    echo $1 >> {{DATA_HUB}}/starts
    sleep $2
    cp {{INFILE}} {{OUTFILE}}""#;
const SLOTS: u64 = 3;
const LONGEST_TASK_SECS: u64 = 5;
/// Without a fault and without a new result. Back-offs, the broker's notice of old connections and the
/// pilots' idle time take less, however busy the machine is; how much work is left depends on it.
const HUNG_AFTER: Duration = Duration::from_mins(5);
/// How often results are counted meanwhile.
const COUNTED_EVERY: Duration = Duration::from_secs(10);

/// A `SplitMix64` generator: the same faults for the same seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn seconds(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_secs(least + self.throw(most - least + 1))
    }
}

/// What a run is made of, from `scripts/chaos`.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is `{text}`: expected a number"))
    })
}

fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// Does one thing to the broker or a pilot, and undoes it. Gives its name.
fn break_something(
    dice: &mut Dice,
    broker: &mut Broker,
    events: &str,
    pilots: &[(Scene, Pilot)],
) -> &'static str {
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
            limit_acknowledgements(broker, events, 2_000);
            pause(dice.seconds(4, 10));
            lift_limits(broker, events);
            "acknowledgements late"
        }
        _ => {
            let which = usize::try_from(dice.throw(pilots.len() as u64)).expect("they are few");
            pilots[which].1.signal(Signal::SIGSTOP);
            pause(dice.seconds(2, 40));
            pilots[which].1.signal(Signal::SIGCONT);
            "pilot suspended"
        }
    }
}

/// Waits for all pilots to end, as long as results come. False when a pilot hangs.
fn await_end(pilots: &mut [(Scene, Pilot)], outgoing: &Queue) -> bool {
    let (mut results, mut since) = (outgoing.depth(), Instant::now());
    loop {
        let ended = eventually(COUNTED_EVERY, || {
            pilots.iter_mut().all(|(_, pilot)| pilot.has_ended())
        });
        let now = outgoing.depth();
        if now != results {
            (results, since) = (now, Instant::now());
        }
        if ended || since.elapsed() >= HUNG_AFTER {
            return ended;
        }
    }
}

#[test]
fn no_result_is_missing_after_faults_at_random() {
    let seconds = setting("EWMS_CHAOS_SECONDS", 60);
    let random = uuid::Uuid::new_v4().as_u64_pair().0 >> 16;
    let seed = setting("EWMS_CHAOS_SEED", random);
    let crew = setting("EWMS_CHAOS_PILOTS", 3);
    eprintln!("chaos: seed {seed}, {seconds} s, {crew} pilots");
    let mut dice = Dice(seed);

    // About half as much work as could be done in that time without any fault.
    let count = (seconds * crew * SLOTS / (LONGEST_TASK_SECS + 1)).max(20);
    let mut broker = Broker::start();
    let incoming = Queue::unique_at("events", &broker.address());
    let outgoing = Queue::unique_at("results", &broker.address());
    assert_eq!(outgoing.depth(), 0);
    lift_limits(&broker, incoming.name());
    let events: BTreeSet<String> = (0..count)
        .map(|event| format!("\"{event} {}\"", dice.throw(LONGEST_TASK_SECS + 1)))
        .collect();
    incoming.produce(&events);
    broker.await_durable(&outgoing);
    broker.await_durable(&incoming);

    let mut pilots: Vec<(Scene, Pilot)> = (0..crew)
        .map(|_| {
            let scene = Scene::task(images::busybox(), TASK)
                .rabbitmq(&incoming, &outgoing)
                .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", SLOTS.to_string())
                .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
            let pilot = scene.start();
            (scene, pilot)
        })
        .collect();

    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        pause(dice.seconds(1, 8));
        let fault = break_something(&mut dice, &mut broker, incoming.name(), &pilots);
        eprintln!("chaos: {fault}");
        *faults.entry(fault).or_default() += 1;
    }

    if !await_end(&mut pilots, &outgoing) {
        for (_, pilot) in &pilots {
            let said = pilot.stderr();
            let lines: Vec<&str> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("chaos: the last that a pilot said:\n{}", last.join("\n"));
        }
        let (waiting, done) = (incoming.depth(), outgoing.depth());
        panic!("a pilot still runs; {waiting} events wait, {done} results are there");
    }
    let mut starts: BTreeMap<String, u32> = BTreeMap::new();
    let mut troubles = String::new();
    for (scene, pilot) in pilots {
        let text = fs::read_to_string(scene.hub("starts")).unwrap_or_default();
        for event in text.lines() {
            *starts.entry(event.to_owned()).or_default() += 1;
        }
        let outcome = pilot.wait(Duration::ZERO);
        for line in outcome
            .stderr
            .lines()
            .filter(|line| line.contains("outages of the broker"))
        {
            eprintln!("chaos: {line}");
        }
        if outcome.code != Some(0) {
            troubles.push_str(&outcome.stderr);
        }
    }
    let results = outgoing.consume(2 * events.len(), Duration::from_secs(2));
    let distinct: BTreeSet<String> = results.iter().cloned().collect();
    let missing = events.difference(&distinct).count();
    let again: u32 = starts.values().map(|count| count - 1).sum();
    let left = incoming.depth();
    let total: u32 = faults.values().sum();
    eprintln!("chaos: faults {faults:?}");
    eprintln!(
        "chaos: {} events, {total} faults, {missing} missing, {again} tasks run twice, {} duplicate \
         outputs, {left} events left, seed {seed}",
        events.len(),
        results.len() - distinct.len()
    );
    assert!(troubles.is_empty(), "a pilot ended badly:\n{troubles}");
    assert_eq!((missing, left), (0, 0));
    assert!(crew > 1 || again == 0, "one pilot runs no task twice");
}
