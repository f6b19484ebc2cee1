//! Programs that hang when they are started: `apptainer` on a file system whose server doesn't answer. The
//! pilot goes on, reports whose fault it is, and leaves nothing behind.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::mounts::Mounted;
use crate::support::processes::{self, Process};
use crate::support::scene::{Pilot, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images};

/// By then nothing of a pilot's children runs.
const GONE_WITHIN: Duration = Duration::from_secs(15);
/// A start that takes longer is the machine's fault: 30 s.
const STARTED_WITHIN: Duration = Duration::from_secs(40);

/// A task of the kind that its event names.
const TASK: &str =
    "sh -c \"read kind <{{INFILE}}; : >{{DATA_HUB}}/$kind; [ $kind = short ] || sleep 4723.25\"";

/// A pilot that finds `apptainer` in a directory of its own.
fn scene() -> (Scene, SpoolQueue, PathBuf) {
    let (scene, incoming, _) = Scene::task(images::busybox(), TASK).spool();
    let bin = scene.dir().join("bin");
    std::fs::create_dir(&bin).expect("made");
    let program = bin.join("apptainer");
    std::fs::write(&program, "#!/bin/sh\nexec /usr/bin/apptainer \"$@\"\n").expect("written");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, executable).expect("set");
    let path = std::env::var("PATH").expect("the tests have a PATH");
    let scene = scene
        .set("PATH", format!("{}:{path}", bin.display()))
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "120")
        // Each event starts its own container.
        .set("EWMS_PILOT_WARM_START", "False");
    (scene, incoming, bin)
}

#[track_caller]
fn await_task(scene: &Scene, pilot: &Pilot, kind: &str) {
    assert!(
        eventually(SOON, || scene.hub(kind).exists()),
        "{}",
        pilot.stderr()
    );
}

/// Children of the pilot that are no program of their own yet. Its guardian is one.
fn unborn(pilot: &Pilot) -> Vec<Process> {
    let mut found = processes::all();
    found.retain(|process| {
        process.parent == pilot.pid()
            && process.session == process.pid
            && process.command_line.contains("ewms-pilot")
            && !process.command_line.contains("guardian")
    });
    found
}

#[track_caller]
fn await_unborn(pilot: &Pilot) -> i32 {
    assert!(
        eventually(SOON, || !unborn(pilot).is_empty()),
        "{}",
        pilot.stderr()
    );
    unborn(pilot)[0].pid
}

#[track_caller]
fn assert_gone(pid: i32) {
    let is_gone = || processes::all().iter().all(|process| process.pid != pid);
    assert!(eventually(GONE_WITHIN, is_gone), "{pid}");
}

#[test]
fn a_start_that_hangs_is_the_machines_fault_and_other_tasks_keep_their_time_limits() {
    let (scene, incoming, bin) = scene();
    let scene = scene
        .set("EWMS_PILOT_TASK_TIMEOUT", "8")
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False");
    incoming.put("1.txt", "long\n");
    let mut pilot = scene.start();
    await_task(&scene, &pilot, "long");
    let _hanging = Mounted::mute(&bin);
    incoming.put("2.txt", "short\n");
    let unborn = await_unborn(&pilot);
    // Long before the start is given up.
    let line = pilot.wait_for_line("task failed", Duration::from_secs(20));
    assert!(line.contains("Timeout"), "{line}");
    let outcome = pilot.wait(STARTED_WITHIN);
    outcome.assert_code(3);
    let line = outcome.last_line();
    assert!(line.contains("(hanging): "), "{line}");
    assert_gone(unborn);
    processes::assert_nothing_runs("sleep 4723.25", GONE_WITHIN);
    let left = incoming.files();
    assert!(left.contains_key("2.txt"), "{left:?}");
}

#[test]
fn a_start_that_hangs_before_its_event_is_known_costs_none() {
    let (scene, incoming, bin) = scene();
    let scene = scene
        .set("EWMS_PILOT_WARM_START", "1")
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "1")
        // Other tests here look for the processes of the usual task.
        .set("EWMS_PILOT_TASK_ARGS", "sh -c ': >{{DATA_HUB}}/short'");
    incoming.put("1.txt", "short\n");
    let pilot = scene.start();
    await_task(&scene, &pilot, "short");
    // The one for the next event may be there; then its replacement hangs.
    let _hanging = Mounted::mute(&bin);
    incoming.put("2.txt", "short\n");
    await_unborn(&pilot);
    incoming.put("3.txt", "short\n");
    let outcome = pilot.wait(STARTED_WITHIN * 2);
    outcome.assert_code(3);
    let line = outcome.last_line();
    assert!(line.contains("(hanging): "), "{line}");
    assert!(incoming.files().contains_key("3.txt"));
    assert!(incoming.failed().is_empty());
}

#[test]
fn sigterm_ends_a_pilot_whose_start_hangs_even_if_its_child_cannot_be_killed() {
    for hang in [Mounted::mute, Mounted::deaf] {
        let (scene, incoming, bin) = scene();
        incoming.put("1.txt", "short\n");
        let pilot = scene.start();
        await_task(&scene, &pilot, "short");
        let hanging = hang(&bin);
        incoming.put("2.txt", "short\n");
        let unborn = await_unborn(&pilot);
        let began = Instant::now();
        pilot.signal(Signal::SIGTERM);
        pilot.wait(SOON).assert_code(143);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
        // Its file system answers at last.
        drop(hanging);
        assert_gone(unborn);
        assert!(incoming.files().contains_key("2.txt"));
    }
}

#[test]
fn a_child_that_hangs_in_its_start_is_killed_when_the_pilot_is() {
    let (scene, incoming, bin) = scene();
    incoming.put("1.txt", "short\n");
    let pilot = scene.start();
    await_task(&scene, &pilot, "short");
    let _hanging = Mounted::mute(&bin);
    incoming.put("2.txt", "short\n");
    let unborn = await_unborn(&pilot);
    pilot.signal(Signal::SIGKILL);
    pilot.wait(SOON);
    assert_gone(unborn);
}

#[test]
fn a_pilot_that_finds_apptainer_only_where_nothing_answers_says_so() {
    let (scene, _, bin) = scene();
    let scene = scene.set("PATH", &bin);
    let _hanging = Mounted::mute(&bin);
    let outcome = scene.run(STARTED_WITHIN * 2);
    outcome.assert_code(3);
    let line = outcome.last_line();
    assert!(
        line.contains("(hanging)") || line.contains("file system that hangs"),
        "{line}"
    );
}
