//! Faults of all kinds at random, from a printed seed, while a few pilots work on one queue: no
//! result may be missing, and every pilot ends well. A task may run twice, when the broker took its
//! event back and another pilot got it; how many did is reported. `scripts/chaos` runs it for longer.

mod cluster;
mod single_broker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

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

/// What a run is made of, from `scripts/chaos`.
struct Settings {
    seconds: u64,
    pilots: u64,
    seed: u64,
}

impl Settings {
    /// Those of `scripts/chaos`; else this long, three pilots, and a seed of its own.
    fn read(seconds: u64) -> Self {
        let random = uuid::Uuid::new_v4().as_u64_pair().0 >> 16;
        let settings = Self {
            seconds: setting("EWMS_CHAOS_SECONDS", seconds),
            pilots: setting("EWMS_CHAOS_PILOTS", 3),
            seed: setting("EWMS_CHAOS_SEED", random),
        };
        let Self {
            seconds,
            pilots,
            seed,
        } = settings;
        eprintln!("chaos: seed {seed}, {seconds} s, {pilots} pilots");
        settings
    }

    /// About half as many events as could be done in that time without any fault.
    fn events(&self, dice: &mut Dice) -> BTreeSet<String> {
        let count = (self.seconds * self.pilots * SLOTS / (LONGEST_TASK_SECS + 1)).max(20);
        (0..count)
            .map(|event| format!("\"{event} {}\"", dice.throw(LONGEST_TASK_SECS + 1)))
            .collect()
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is `{text}`: expected a number"))
    })
}

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

/// How long a fault lasts: nothing is waited for.
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// A few pilots on one queue, the events in it, and what was done to their broker.
struct Endurance {
    incoming: Queue,
    outgoing: Queue,
    events: BTreeSet<String>,
    pilots: Vec<(Scene, Pilot)>,
    faults: BTreeMap<&'static str, u32>,
}

impl Endurance {
    /// Starts the pilots; the events are in `incoming`.
    fn start(count: u64, incoming: Queue, outgoing: Queue, events: BTreeSet<String>) -> Self {
        let pilots = (0..count)
            .map(|_| {
                let scene = Scene::task(images::busybox(), TASK)
                    .rabbitmq(&incoming, &outgoing)
                    .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", SLOTS.to_string())
                    .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
                let pilot = scene.start();
                (scene, pilot)
            })
            .collect();
        Self {
            incoming,
            outgoing,
            events,
            pilots,
            faults: BTreeMap::new(),
        }
    }

    fn note(&mut self, fault: &'static str) {
        eprintln!("chaos: {fault}");
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Waits for all pilots to end, as long as results come. False when a pilot hangs.
    fn await_end(&mut self) -> bool {
        let (mut results, mut since) = (self.outgoing.depth(), Instant::now());
        loop {
            let ended = eventually(COUNTED_EVERY, || {
                self.pilots.iter_mut().all(|(_, pilot)| pilot.has_ended())
            });
            let now = self.outgoing.depth();
            if now != results {
                (results, since) = (now, Instant::now());
            }
            if ended || since.elapsed() >= HUNG_AFTER {
                return ended;
            }
        }
    }

    /// Waits for the end: every event has its result, every pilot ended well, and one that was alone ran
    /// no task twice.
    #[track_caller]
    fn assert_nothing_is_missing(mut self, seed: u64) {
        if !self.await_end() {
            for (_, pilot) in &self.pilots {
                let said = pilot.stderr();
                let lines: Vec<&str> = said.lines().collect();
                let last = &lines[lines.len().saturating_sub(40)..];
                eprintln!("chaos: the last that a pilot said:\n{}", last.join("\n"));
            }
            let (waiting, done) = (self.incoming.depth(), self.outgoing.depth());
            panic!("a pilot still runs; {waiting} events wait, {done} results are there");
        }
        let mut starts: BTreeMap<String, u32> = BTreeMap::new();
        let mut troubles = String::new();
        let crew = self.pilots.len();
        for (scene, pilot) in self.pilots {
            let text = fs::read_to_string(scene.hub("starts")).unwrap_or_default();
            for event in text.lines() {
                *starts.entry(event.to_owned()).or_default() += 1;
            }
            let outcome = pilot.wait(Duration::ZERO);
            let mut lines = outcome.stderr.lines();
            if let Some(line) = lines.find(|line| line.contains("outages of the broker")) {
                eprintln!("chaos: {line}");
            }
            if outcome.code != Some(0) {
                troubles.push_str(&outcome.stderr);
            }
        }
        let results = self
            .outgoing
            .consume(2 * self.events.len(), Duration::from_secs(2));
        let distinct: BTreeSet<String> = results.iter().cloned().collect();
        let missing = self.events.difference(&distinct).count();
        let again: u32 = starts.values().map(|count| count - 1).sum();
        let left = self.incoming.depth();
        let total: u32 = self.faults.values().sum();
        eprintln!("chaos: faults {:?}", self.faults);
        eprintln!(
            "chaos: {} events, {total} faults, {missing} missing, {again} tasks run twice, {} duplicate \
             outputs, {left} events left, seed {seed}",
            self.events.len(),
            results.len() - distinct.len()
        );
        assert!(troubles.is_empty(), "a pilot ended badly:\n{troubles}");
        assert_eq!((missing, left), (0, 0));
        assert!(crew > 1 || again == 0, "one pilot runs no task twice");
    }
}
