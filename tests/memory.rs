//! That a pilot may run for weeks: its memory doesn't know how many events there were.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::scene::Scene;
use crate::support::{images, processes};

const EVENTS: usize = 2000;

/// How much more memory the pilot may have at the end than after the first tenth. Every event is 4 KiB
/// and so is its result: a pilot that kept either would have 7 MiB more. What may grow are its
/// statistics, bounded by half a megabyte, and the allocator's fragments; measured were 20 KB in all.
const GROWTH: u64 = 2 * 1024 * 1024;

#[test]
fn two_thousand_events_leave_memory_flat_and_are_done_once_each() {
    let (scene, incoming, outgoing) =
        Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    for number in 0..EVENTS {
        incoming.put(&format!("{number:04}"), format!("{number:04}").repeat(1024));
    }
    let scene = scene.set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let mut pilot = scene.start();
    let done = incoming.directory().join("done");
    let (mut early, mut late) = (0, 0);
    let deadline = Instant::now() + Duration::from_mins(10);
    while !pilot.has_ended() {
        assert!(Instant::now() < deadline, "{}", pilot.stderr());
        // Sampled, not waited for: how often it is looked doesn't matter.
        std::thread::sleep(Duration::from_millis(50));
        let finished = fs::read_dir(&done).map_or(0, Iterator::count);
        let Some((now, _)) = processes::memory(pilot.pid()) else {
            continue;
        };
        match finished {
            150..=250 => early = early.max(now),
            // Not the end itself: the report of all records takes its few megabytes once.
            1750..EVENTS => late = late.max(now),
            _ => {}
        }
    }
    let outcome = pilot.wait(Duration::ZERO);
    outcome.assert_code(0);
    assert!(early > 0 && late > 0, "{early} {late}: it was sampled");
    assert!(
        late <= early + GROWTH,
        "{early} bytes after 200 events, {late} after {EVENTS}"
    );
    println!("{early} bytes after 200 events, {late} after {EVENTS}");

    assert_eq!(incoming.done().len(), EVENTS);
    let mut results: Vec<_> = outgoing.files().into_values().collect();
    results.sort();
    results.dedup();
    assert_eq!(results.len(), EVENTS);
    assert_eq!(outgoing.files().len(), EVENTS);
    let started = outcome.stderr.matches("task started").count();
    assert_eq!(started, EVENTS);
    // Nothing of them is left on the disk either, apart from what is to be kept.
    let data = fs::read_dir(scene.dir().join("ewms-pilot-data")).expect("it is there");
    assert_eq!(data.count(), 1, "the data hub");
    let scratch = fs::read_dir(scene.dir().join("ewms-pilot-scratch")).expect("it is there");
    assert_eq!(scratch.count(), 1, "Apptainer's");
}
