//! Containers that wait for their event: what a task sees is the same as in one that was made for it, nothing of
//! them outlives the pilot, and one that can't be made closes the intake before it costs an event.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::pool::pilot_images;
use crate::records::of_kind;
use crate::status::await_seen;
use crate::support::condor::run;
use crate::support::processes::{self, Process};
use crate::support::scene::{Pilot, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images, pilot_binary};
use crate::survival::of_scene;

const SETTING: &str = "EWMS_PILOT_WARM_START";

/// A task that ends once its hub has the file `go`.
const UNTIL_GO: &str = "sh -c ': >{{DATA_HUB}}/runs; until [ -e {{DATA_HUB}}/go ]; do sleep 0.05; done; \
                        cp {{INFILE}} {{OUTFILE}}'";

/// Waits until the pilot says that so many containers wait.
#[track_caller]
fn await_waiting(scene: &Scene, pilot: &Pilot, count: u64) {
    await_seen(scene, pilot, |view| view["waiting_containers"] == count);
}

/// Kills the containers of a pilot that wait or come to their gate, as an operator or the kernel would; not the
/// one with the first process `running`. Returns how many there were.
fn kill_waiting(pilot: &Pilot, running: Option<i32>) -> usize {
    let mut found = processes::all();
    found.retain(|process| {
        process.parent == pilot.pid()
            && !process.command_line.contains("ewms-guardian")
            && running != Some(process.pid)
    });
    // One that has ended meanwhile is gone, too.
    let killed = |process: &&Process| kill(Pid::from_raw(process.pid), Signal::SIGKILL).is_ok();
    found.iter().filter(killed).count()
}

/// All that a task may notice of its container, in lines.
const LOOK: &str = "sh -c '{ env; echo; set; echo; ulimit -a; id; umask; pwd; ls -la /proc/self/fd/ | wc -l; \
    ls -a /ewms-pilot-data/task-io /ewms-pilot-data / $HOME /tmp; cat /proc/self/mountinfo; } >{{OUTFILE}} 2>&1'";

/// Without what differs between any two containers, and without the gate's own script.
fn comparable(text: &str) -> Vec<String> {
    let id = |word: &str| word.len() == 32 && word.chars().all(|letter| letter.is_ascii_hexdigit());
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.contains("ewms-pilot-gate.sh"))
        .filter(|line| !line.contains("PPID=") && !line.starts_with("_="))
        .map(|line| {
            let line = mount(line).unwrap_or_else(|| line.to_owned());
            let parts = line.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric());
            parts
                .map(|part| {
                    let word =
                        part.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric());
                    if id(word) {
                        part.replace(word, "<id>")
                    } else {
                        part.to_owned()
                    }
                })
                .collect()
        })
        .collect();
    lines.sort();
    lines
}

/// A line of `mountinfo` without the numbers of the mount and its peers.
fn mount(line: &str) -> Option<String> {
    let (mount, source) = line.split_once(" - ")?;
    let fields: Vec<&str> = mount.split(' ').collect();
    let [_, _, _, root, point, options, ..] = &fields[..] else {
        return None;
    };
    Some(format!("{root} {point} {options} - {source}"))
}

/// The result of a scene's only event, and its record.
#[track_caller]
fn looked(scene: &Scene, incoming: &SpoolQueue, outgoing: &SpoolQueue) -> (Vec<String>, Value) {
    incoming.put("event.txt", "1");
    scene.run(SOON * 2).assert_code(0);
    let path = outgoing.directory().join("event.txt");
    let text = fs::read_to_string(&path).expect("a result in UTF-8");
    fs::remove_file(path).expect("removed");
    let task = of_kind(scene, "task").pop().expect("a record");
    (comparable(&text), task)
}

/// Shows the differences only.
#[track_caller]
fn assert_same(waited: &[String], cold: &[String], what: &str) {
    let only = |these: &[String], others: &[String]| {
        let mut these = these.to_vec();
        these.retain(|line| !others.contains(line));
        these
    };
    assert_eq!(only(waited, cold), only(cold, waited), "{what}");
}

/// A copy of an image, in which this shell has been run.
fn changed_image(image: &Path, name: &str, change: &str) -> (tempfile::TempDir, PathBuf) {
    let top = tempfile::tempdir().expect("a directory");
    let copy = top.path().join(name);
    run(Command::new("cp").arg("-a").arg(image).arg(&copy));
    run(Command::new("sh").args(["-ec", change]).current_dir(&copy));
    (top, copy)
}

#[test]
fn a_task_sees_the_same_in_a_container_that_waited_as_in_one_made_for_it() {
    let busybox = images::busybox();
    let no_base = changed_image(
        &busybox,
        "no-base",
        "chmod -R u+w .; rm .singularity.d/env/99-base.sh",
    );
    let old = "chmod -R u+w .; rm -rf .singularity.d/env environment; echo 'export OLD=1 PATH=/opt:$PATH' >environment";
    let old = changed_image(&busybox, "old", old);
    let external = tempfile::tempdir().expect("a directory");
    let odd = external.path().join("a,b:c");
    fs::create_dir(&odd).expect("made");
    for image in [
        busybox,
        images::busybox_sif(),
        images::python(),
        no_base.1,
        old.1,
    ] {
        let scene = Scene::task(&image, LOOK)
            .set("EWMS_PILOT_TASK_ENV_JSON", r#"{"OWN": "a b", "EMPTY": ""}"#)
            .set(
                "EWMS_PILOT_EXTERNAL_DIRECTORIES",
                format!("['{}', '{}']", external.path().display(), odd.display()),
            )
            .set(
                "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
                "False",
            );
        let (scene, incoming, outgoing) = scene.spool();
        let (waited, record) = looked(&scene, &incoming, &outgoing);
        assert_eq!(record["container_waited"], true, "{record}");
        assert!(
            record["start_latency_secs"].as_f64() < Some(1.0),
            "{record}"
        );
        let scene = scene.set(SETTING, "False");
        let (cold, record) = looked(&scene, &incoming, &outgoing);
        assert_eq!(record["container_waited"], Value::Null);
        assert_same(&waited, &cold, &image.to_string_lossy());
        assert!(cold.iter().any(|line| line == "OWN=a b"), "{cold:#?}");
    }
}

#[test]
fn a_task_that_starts_a_container_itself_is_not_held_at_its_own_gate() {
    let inner = "sh -c 'apptainer --quiet exec --bind /ewms-pilot-data/task-io /images/busybox cp {{INFILE}} {{OUTFILE}}'";
    let (scene, incoming, outgoing) = Scene::task(pilot_images().join("pilot"), inner)
        .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", "/images")
        .spool();
    incoming.put("a.txt", "inner");
    scene.run(SOON * 2).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"inner".to_vec()]);
    assert_eq!(of_kind(&scene, "task")[0]["container_waited"], true);
}

#[test]
fn nested_in_a_container_a_pilots_containers_wait_and_show_the_same() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), LOOK).spool();
    let mut scene = scene.program("/usr/bin/apptainer");
    for word in [
        "--quiet", "exec", "--bind", "/images", "--bind", "/test", "--pwd",
    ] {
        scene = scene.arg(word);
    }
    let directory = scene.dir().to_owned();
    let scene = scene
        .arg(directory)
        .arg(pilot_images().join("pilot"))
        .arg(pilot_binary());
    let (waited, record) = looked(&scene, &incoming, &outgoing);
    assert_eq!(record["container_waited"], true, "{record}");
    let (cold, record) = looked(&scene.set(SETTING, "False"), &incoming, &outgoing);
    assert_eq!(record["container_waited"], Value::Null);
    assert_same(&waited, &cold, "nested");
}

#[test]
fn waiting_containers_are_shown_hidden_from_others_and_ended_at_once_by_a_drain() {
    let (scene, _incoming, _) = Scene::task(images::busybox(), UNTIL_GO).spool();
    let scene = scene
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "600")
        .set("EWMS_PILOT_KILL_GRACE", "60");
    let pilot = scene.start();
    await_waiting(&scene, &pilot, 2);
    // No container sees a way to open a gate, its own or another one's.
    let files = run(Command::new("find")
        .arg(scene.dir().join("ewms-pilot-data"))
        .args(["-path", "*/task-io/*", "-o", "-path", "*/data-hub/*"]));
    assert_eq!(files, "");
    let began = std::time::Instant::now();
    pilot.signal(Signal::SIGTERM);
    let outcome = pilot.wait(SOON);
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "no grace for what runs no task"
    );
    assert!(
        !outcome.stderr.contains("task started"),
        "{}",
        outcome.stderr
    );
    assert_eq!(of_scene(scene.dir()).len(), 0);
    let end = &of_kind(&scene, "pilot_end")[0];
    assert_eq!(
        (&end["received"], &end["started"], &end["failed"]),
        (&0.into(), &0.into(), &0.into())
    );
    let left = fs::read_dir(scene.dir().join("ewms-pilot-data"))
        .expect("there")
        .count();
    assert_eq!(left, 1, "only the hub");
}

#[test]
fn one_that_is_killed_is_replaced_and_costs_no_event() {
    let (scene, incoming, outgoing) =
        Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "20");
    let mut pilot = scene.start();
    await_waiting(&scene, &pilot, 1);
    assert_ne!(kill_waiting(&pilot, None), 0);
    pilot.wait_for_line("a container that waited for its event died", SOON);
    await_waiting(&scene, &pilot, 1);
    incoming.put("a.txt", "1");
    pilot.wait(SOON * 2).assert_code(0);
    assert_eq!(outgoing.files().len(), 1);
    assert_eq!(of_kind(&scene, "task")[0]["container_waited"], true);
}

#[test]
fn a_machine_on_which_they_keep_dying_is_named_and_takes_no_event() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
    let pilot = scene.start();
    await_waiting(&scene, &pilot, 1);
    let deaths = || pilot.stderr().matches("died: another will be made").count();
    for death in 1..=5 {
        assert!(
            eventually(SOON, || kill_waiting(&pilot, None) > 0),
            "{}",
            pilot.stderr()
        );
        // Told when the machine was asked for the cause. Until then the pilot's child is a probe.
        let told = || deaths() == death || pilot.stderr().contains("no more events are taken");
        assert!(eventually(SOON, told), "{}", pilot.stderr());
    }
    incoming.put("a.txt", "1");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(3);
    let last = outcome.last_line();
    assert!(
        last.contains("ended before its task began") && last.contains("(killed)"),
        "{last}"
    );
    assert_eq!(incoming.files().len(), 1, "untouched");
}

#[test]
fn a_machine_that_breaks_shows_it_before_the_next_event_is_taken() {
    let (top, image) = changed_image(&images::busybox(), "image", "true");
    let (scene, incoming, outgoing) = Scene::task(&image, UNTIL_GO).spool();
    for name in ["a.txt", "b.txt", "c.txt"] {
        incoming.put(name, "1");
    }
    let pilot = scene.start();
    let view = await_seen(&scene, &pilot, |view| {
        view["waiting_containers"] == 1 && view["tasks"][0]["pid"].is_u64()
    });
    let running = view["tasks"][0]["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok());
    // The image is gone, as with its CVMFS; the task that runs goes on.
    fs::rename(&image, top.path().join("gone")).expect("renamed");
    assert_ne!(kill_waiting(&pilot, running), 0);
    let told = eventually(SOON, || pilot.stderr().contains("no more events are taken"));
    assert!(told, "{}", pilot.stderr());
    fs::write(scene.hub("go"), "").expect("written");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(6);
    assert_eq!(
        outgoing.files().len(),
        1,
        "the task that ran is done: {}",
        outcome.stderr
    );
    assert_eq!(incoming.files().len(), 2, "the others were never taken");
    let end = &of_kind(&scene, "pilot_end")[0];
    assert_eq!(
        (&end["received"], &end["succeeded"], &end["failed"]),
        (&1.into(), &1.into(), &0.into())
    );
}

#[test]
fn without_a_preflight_nothing_shows_that_a_gate_holds_so_none_is_used() {
    let (scene, incoming, outgoing) =
        Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    incoming.put("a.txt", "1");
    let scene = scene.set("EWMS_PILOT_PREFLIGHT", "False");
    scene.run(SOON * 2).assert_code(0);
    assert_eq!(outgoing.files().len(), 1);
    assert_eq!(of_kind(&scene, "task")[0]["container_waited"], Value::Null);
}

#[test]
fn the_report_says_how_soon_tasks_began_and_a_wrong_setting_is_refused() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    incoming.put("a.txt", "1");
    let outcome = scene.run(SOON * 2);
    outcome.assert_code(0);
    let line = outcome
        .stderr
        .lines()
        .find(|line| line.contains("start, median"));
    let line = line.unwrap_or_else(|| panic!("{}", outcome.stderr));
    assert!(line.contains("100 % found a container waiting"), "{line}");
    let outcome = scene.set(SETTING, "yes").run(SOON);
    outcome.assert_code(2);
    assert!(
        outcome
            .stderr
            .contains("an integer from 1 to 65535, `auto` or `False`"),
        "{}",
        outcome.stderr
    );
}
