//! Signals to a pilot and its containers: eviction, stop and continue, a parent that blocks or ignores
//! signals, and a pilot that is pid 1.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::processes;
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images};

/// A task that runs for so many tenths of a second, not counting those in which it is stopped.
fn tenths(count: u32, marker: &str) -> String {
    format!(
        "sh -c \"i=0; while [ $i -lt {count} ]; do sleep 0.1; i=$((i+1)); done; echo {marker} >{{{{OUTFILE}}}}\""
    )
}

/// The letters of `/proc/PID/stat`: T is stopped.
fn states(marker: &str) -> Vec<char> {
    processes::matching(marker)
        .iter()
        .filter_map(|process| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        })
        .collect()
}

#[test]
fn an_evicted_pilot_publishes_what_ends_in_time_and_gives_back_the_rest() {
    let task = "sh -c \"read kind <{{INFILE}}; echo $kind >{{OUTFILE}}; trap '[ $kind = quick ] && exit 0' TERM; \
                : evicted-4715; while :; do sleep 0.1; done\"";
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), task).spool();
    for name in ["quick", "stubborn"] {
        incoming.put(&format!("{name}.txt"), format!("{name}\n"));
    }
    // HTCondor's 7 s leave 2 for the grace.
    fs::write(scene.dir().join(".job.ad"), "JobMaxVacateTime = 7\n").expect("written");
    let scene = scene
        .set("_CONDOR_JOB_AD", ".job.ad")
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let pilot = scene.start();
    assert!(eventually(SOON, || {
        let running = processes::matching("evicted-4715");
        let shells = running.iter().filter(|process| {
            process.command_line.starts_with("sh ") && !process.command_line.contains("apptainer")
        });
        shells.count() == 2
    }));
    incoming.put("late.txt", "late\n");
    // The traps are set when the outfiles are written.
    assert!(eventually(SOON, || outfiles(&scene) == 2));
    let began = Instant::now();
    pilot.signal(Signal::SIGTERM);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(143);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(7),
        "{took:?}"
    );
    let results: Vec<Vec<u8>> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"quick\n"]);
    assert!(incoming.done().contains_key("quick.txt"));
    let mut waiting: Vec<String> = incoming.files().into_keys().collect();
    waiting.sort();
    assert_eq!(waiting, ["late.txt", "stubborn.txt"], "{}", outcome.stderr);
    processes::assert_nothing_runs("evicted-4715", Duration::ZERO);
}

/// Outfiles that have content.
fn outfiles(scene: &Scene) -> usize {
    let tasks = fs::read_dir(scene.dir().join("ewms-pilot-data")).into_iter();
    tasks
        .flatten()
        .filter_map(|task| fs::read_dir(task.ok()?.path().join("task-io")).ok())
        .flatten()
        .filter_map(Result::ok)
        .filter(|file| file.file_name().to_string_lossy().starts_with("outfile-"))
        .filter(|file| file.metadata().is_ok_and(|data| data.len() > 0))
        .count()
}

#[test]
fn sigtstp_stops_the_containers_too_and_their_time_stands_still() {
    let task = tenths(20, "4716");
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), &task).spool();
    let scene = scene.set("EWMS_PILOT_TASK_TIMEOUT", "5");
    incoming.put("1.txt", "");
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    pilot.signal(Signal::SIGTSTP);
    assert!(
        eventually(SOON, || {
            let own = fs::read_to_string(format!("/proc/{}/stat", pilot.pid())).unwrap_or_default();
            let states = states("echo 4716");
            own.contains(") T ") && !states.is_empty() && states.iter().all(|state| *state == 'T')
        }),
        "{:?}",
        states("echo 4716")
    );
    sleep(Duration::from_secs(7));
    assert!(!pilot.has_ended() && outgoing.files().is_empty());
    pilot.signal(Signal::SIGCONT);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);
    assert!(outcome.stderr.contains("going on"), "{}", outcome.stderr);
    assert_eq!(outgoing.files().len(), 1);
}

#[test]
fn a_task_is_not_timed_out_for_a_time_in_which_the_pilot_was_stopped() {
    let task = tenths(80, "4717");
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), &task).spool();
    let scene = scene.set("EWMS_PILOT_TASK_TIMEOUT", "6");
    incoming.put("1.txt", "");
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    // The task itself goes on: that the pilot didn't run shall be what counts.
    pilot.signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(7));
    pilot.signal(Signal::SIGCONT);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);
    assert_eq!(outgoing.files().len(), 1, "{}", outcome.stderr);
}

#[test]
fn a_pilot_that_waited_while_it_was_stopped_waits_on() {
    let (scene, incoming, outgoing) =
        Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "4");
    let mut pilot = scene.start();
    pilot.wait_for_line("AwaitingFirstMessage", SOON);
    pilot.signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(6));
    pilot.signal(Signal::SIGCONT);
    sleep(Duration::from_secs(1));
    incoming.put("1.txt", "x");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);
    assert_eq!(outgoing.files().len(), 1, "{}", outcome.stderr);
}

#[test]
fn what_a_careless_parent_blocked_or_ignored_reaches_neither_pilot_nor_task() {
    let task = "sh -c \"grep Sig /proc/self/status >{{OUTFILE}}; sleep 4718.25\"";
    let (scene, incoming, _) = Scene::task(images::busybox(), task).spool();
    incoming.put("1.txt", "");
    let pilot_binary = crate::support::pilot_binary();
    let scene = scene
        .program("/usr/bin/env")
        .arg("--block-signal=TERM,CHLD,USR1,TSTP")
        .arg("--ignore-signal=PIPE,USR2,QUIT,CHLD")
        .arg(pilot_binary);
    let pilot = scene.start();
    processes::await_running("sleep 4718.25", SOON);
    assert!(eventually(SOON, || outfiles(&scene) == 1));
    let tasks = fs::read_dir(scene.dir().join("ewms-pilot-data")).expect("there");
    let outfile = tasks
        .flatten()
        .filter_map(|task| fs::read_dir(task.path().join("task-io")).ok())
        .flatten()
        .flatten()
        .find(|file| file.file_name().to_string_lossy().starts_with("outfile-"))
        .expect("there");
    let status = fs::read_to_string(outfile.path()).expect("text");
    for mask in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(status.contains(mask), "{status}");
    }
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(143);
    processes::assert_nothing_runs("sleep 4718.25", SOON);
}

#[test]
fn as_pid_1_it_reaps_orphans_runs_tasks_and_hears_signals() {
    let (scene, incoming, outgoing) = Scene::task(
        images::busybox(),
        "sh -c \"cp {{INFILE}} {{OUTFILE}}; sleep 4719.25\"",
    )
    .spool();
    for number in 0..4 {
        incoming.put(&format!("{number}.txt"), "x");
    }
    let pilot_binary = crate::support::pilot_binary();
    // Its first children are orphans of the shell's, and end while it runs.
    let shell = format!(
        "(sleep 1.11 & sleep 1.22 &); sleep 1.33 & exec {}",
        pilot_binary.display()
    );
    let scene = scene
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
        .set("EWMS_PILOT_TASK_TIMEOUT", "3")
        .set("EWMS_PILOT_KILL_GRACE", "0")
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .program("/usr/bin/unshare")
        .arg("--user")
        .arg("--map-current-user")
        .arg("--pid")
        .arg("--fork")
        .arg("--mount-proc")
        .arg("/bin/sh")
        .arg("-c")
        .arg(shell);
    let mut outside = scene.start();
    outside.wait_for_line("pid=1", SOON);
    outside.wait_for_line("task failed", SOON);
    let children = processes::all();
    let pilot = children
        .iter()
        .find(|process| process.parent == outside.pid())
        .expect("unshare's child")
        .pid;
    assert!(
        eventually(SOON, || zombies(pilot).is_empty()),
        "{:?}",
        zombies(pilot)
    );
    kill(Pid::from_raw(pilot), Signal::SIGTERM).expect("it is ours");
    outside.wait(SOON).assert_code(143);
    assert!(outgoing.files().is_empty());
    processes::assert_nothing_runs("sleep 4719.25", SOON);
}

/// Children of `parent` that nobody waited for, and that are older than a moment.
fn zombies(parent: i32) -> Vec<String> {
    let stats = || -> Vec<String> {
        fs::read_dir("/proc")
            .expect("/proc is mounted")
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
            .filter(|stat| stat.contains(&format!(") Z {parent} ")))
            .collect()
    };
    let before = stats();
    sleep(Duration::from_millis(100));
    stats()
        .into_iter()
        .filter(|stat| before.contains(stat))
        .collect()
}
