//! No container outlives the pilot, however it dies: pilots that are killed at random moments of
//! starting and running containers, and a guardian that dies before its pilot.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes::{self, Process};
use crate::support::scene::{Pilot, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images};

/// What the issue is about: by then, nothing of a task runs.
const DEADLINE: Duration = Duration::from_secs(10);

/// Says that it runs. Two processes a task, one of them in a session of its own and deaf to signals. A
/// task whose event is `short` leaves that one behind.
const TASK: &str = "sh -c \": >{{DATA_HUB}}/runs; setsid sh -c 'trap : TERM INT HUP; sleep 4711.25 & wait; \
                    sleep 4711.25' & read kind <{{INFILE}}; [ $kind = short ] || sleep 4711.25\"";

fn busy_scene(image: impl AsRef<std::ffi::OsStr>) -> (Scene, SpoolQueue) {
    let (scene, incoming, _) = Scene::task(image, TASK).spool();
    for number in 0..9 {
        let kind = if number % 3 == 0 { "long\n" } else { "short\n" };
        incoming.put(&format!("{number}.txt"), kind);
    }
    let scene = scene.set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "3");
    (scene, incoming)
}

/// What runs of a scene: Apptainer's processes have its directory in their environment, and so has a
/// task, as its home.
pub(crate) fn of_scene(directory: &Path) -> Vec<Process> {
    let directory = directory.to_str().expect("its name is text");
    let mut found = processes::all();
    found.retain(|process| {
        process.command_line.contains(directory)
            || process
                .environment
                .windows(directory.len())
                .any(|window| window == directory.as_bytes())
    });
    found
}

fn guardian_of(pilot: &Pilot) -> Option<i32> {
    let mut found = processes::matching("ewms-guardian");
    found.retain(|process| process.parent == pilot.pid());
    found.first().map(|process| process.pid)
}

/// A random number below `limit`.
fn below(limit: u64) -> u64 {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    random % limit
}

/// What became of many kills.
#[derive(Debug, Default)]
struct Toll {
    kills: usize,
    /// Processes that were there when their pilot was killed.
    killed: usize,
    /// Their command lines.
    survivors: Vec<String>,
    slowest: Duration,
}

/// Starts pilots, kills each at a random moment, and waits for what they left.
fn kill_batch(scenes: &[Scene], line: &str, window: Duration, toll: &mut Toll) {
    let window = u64::try_from(window.as_millis()).expect("a short time");
    std::thread::scope(|scope| {
        let victims: Vec<_> = scenes
            .iter()
            .map(|scene| {
                let mut pilot = scene.start();
                scope.spawn(move || {
                    // From its own start on, from the first container's, or when that runs.
                    match below(4) {
                        0 => {}
                        1 => drop(pilot.wait_for_line(line, SOON)),
                        _ => {
                            let runs = scene.dir().join("ewms-pilot-data/data-hub/runs");
                            assert!(eventually(SOON, || runs.exists()), "{}", pilot.stderr());
                        }
                    }
                    sleep(Duration::from_millis(below(window)));
                    let mut there = of_scene(scene.dir());
                    there.retain(|process| process.pid != pilot.pid());
                    // A crash now and then: the same to the kernel, but for the signal.
                    let signal = if below(10) == 0 {
                        Signal::SIGABRT
                    } else {
                        Signal::SIGKILL
                    };
                    pilot.signal(signal);
                    let outcome = pilot.wait(SOON);
                    assert_eq!(outcome.signal, Some(signal as i32), "{}", outcome.stderr);
                    there.len()
                })
            })
            .collect();
        for victim in victims {
            toll.kills += 1;
            toll.killed += victim.join().expect("it was killed");
        }
    });
    let began = Instant::now();
    let left = || -> Vec<Process> {
        scenes
            .iter()
            .flat_map(|scene| of_scene(scene.dir()))
            .collect()
    };
    eventually(DEADLINE, || left().is_empty());
    toll.slowest = toll.slowest.max(began.elapsed());
    toll.survivors
        .extend(left().into_iter().map(|process| process.command_line));
}

#[test]
fn a_hundred_pilots_killed_at_random_moments_leave_nothing() {
    let mut toll = Toll::default();
    while toll.kills < 100 && toll.survivors.is_empty() {
        let scenes: Vec<Scene> = (0..5).map(|_| busy_scene(images::busybox()).0).collect();
        kill_batch(&scenes, "task started", Duration::from_secs(1), &mut toll);
    }
    println!(
        "{} pilots killed, {} processes with them, {} survivors, the slowest gone after {:?}",
        toll.kills,
        toll.killed,
        toll.survivors.len(),
        toll.slowest
    );
    assert!(
        toll.killed > 3 * toll.kills,
        "the tasks didn't run: {toll:?}"
    );
    assert!(toll.survivors.is_empty(), "{toll:#?}");
}

#[test]
fn pilots_killed_while_they_convert_an_image_leave_nothing() {
    let mut toll = Toll::default();
    while toll.kills < 20 && toll.survivors.is_empty() {
        let scenes: Vec<Scene> = (0..4)
            .map(|_| {
                let (scene, _) = busy_scene(images::busybox_sif());
                let workdir = scene.dir().to_owned();
                scene
                    .set(
                        "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
                        "False",
                    )
                    .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", workdir)
            })
            .collect();
        kill_batch(
            &scenes,
            "converting",
            Duration::from_millis(1500),
            &mut toll,
        );
    }
    println!(
        "{} converting pilots killed, {} processes with them, {} survivors, the slowest gone after {:?}",
        toll.kills,
        toll.killed,
        toll.survivors.len(),
        toll.slowest
    );
    assert!(toll.killed > toll.kills, "nothing was converted: {toll:?}");
    assert!(toll.survivors.is_empty(), "{toll:#?}");
}

#[test]
fn a_guardian_that_dies_is_replaced_and_its_successor_guards_what_runs() {
    let (scene, incoming, outgoing) = Scene::task(
        images::busybox(),
        "sh -c \"read kind <{{INFILE}}; [ $kind = short ] || sleep 4713.25; echo $kind >{{OUTFILE}}\"",
    )
    .spool();
    let scene = scene.set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
    // The only child is the task's container.
    let scene = scene.set("EWMS_PILOT_WARM_START", "False");
    incoming.put("long.txt", "long\n");
    let mut pilot = scene.start();
    // Not just any container: that of the preflight comes first.
    assert!(eventually(SOON, || !processes::matching("sleep 4713.25").is_empty()));

    // Signals that are sent to all of a job's processes are not for it.
    let first = guardian_of(&pilot).expect("a guardian");
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        kill(Pid::from_raw(first), signal).expect("it is ours");
    }
    incoming.put("before.txt", "short\n");
    assert!(eventually(SOON, || outgoing.files().len() == 1));
    assert_eq!(guardian_of(&pilot), Some(first));

    kill(Pid::from_raw(first), Signal::SIGKILL).expect("it is ours");
    let line = pilot.wait_for_line("guardian", SOON);
    assert!(
        line.contains("replaced") && line.contains("children=1"),
        "{line}"
    );
    let second = guardian_of(&pilot).expect("another one");
    assert_ne!(first, second);

    // It still takes in new ones, and lost sight of none.
    incoming.put("after.txt", "short\n");
    assert!(eventually(SOON, || outgoing.files().len() == 2));
    assert!(!processes::matching("sleep 4713.25").is_empty());
    pilot.signal(Signal::SIGKILL);
    pilot.wait(SOON);
    assert!(
        eventually(DEADLINE, || of_scene(scene.dir()).is_empty()),
        "{} processes",
        of_scene(scene.dir()).len()
    );
    assert!(eventually(SOON, || processes::all()
        .iter()
        .all(|process| process.pid != second)));
}

#[test]
fn a_guardian_is_small_and_idle_and_has_nothing_of_the_pilots() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "sleep 4714.25").spool();
    incoming.put("1.txt", "");
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    let guardian = guardian_of(&pilot).expect("a guardian");
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/{guardian}/{name}")).expect("it is ours")
    };
    let descriptors = std::fs::read_dir(format!("/proc/{guardian}/fd"))
        .expect("it is ours")
        .count();
    assert_eq!(descriptors, 3, "stdin, stdout and stderr");
    assert!(read("environ").is_empty());
    let field = |name: &str| -> u64 {
        let status = read("status");
        let line = status.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value.expect("a field").parse().expect("a number")
    };
    assert!(field("RssAnon:") < 2048, "{} KiB", field("RssAnon:"));
    let switches = || field("voluntary_ctxt_switches:");
    // On a busy machine it may still be about to read its last notice.
    assert!(eventually(SOON, || {
        let before = switches();
        sleep(Duration::from_secs(2));
        before == switches()
    }));
    drop(pilot);
    processes::assert_nothing_runs("sleep 4714.25", DEADLINE);
}
