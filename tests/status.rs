//! `ewms-pilot status` in a job's directory, and the small file that the pilot writes for it: the file holds
//! no secret, isn't rewritten while nothing happens, and is removed at the pilot's end.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Pilot, Scene};
use crate::support::{SOON, eventually, images, pilot_binary, processes};

/// A task that says how far it is, until there is the file `release`.
const HELD: &str = r#"sh -c "
    i=0
    until [ -e {{DATA_HUB}}/release ]; do i=$((i + 1)); echo pixel $i; sleep 0.2; done
    cp {{INFILE}} {{OUTFILE}}""#;

/// A scene with one event, whose task is held.
fn held() -> Scene {
    let (scene, incoming, _) = Scene::task(images::busybox(), HELD).spool();
    incoming.put("a.txt", "x");
    scene
}

fn release(scene: &Scene) {
    fs::write(scene.hub("release"), "").expect("the hub is writable");
}

/// The status files in a scene's directory.
fn files(scene: &Scene) -> Vec<PathBuf> {
    let entries = fs::read_dir(scene.dir()).expect("it is there");
    let named = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains("ewms-pilot-status-")
    };
    entries
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| named(path))
        .collect()
}

fn status(arguments: &[&str], place: &Path) -> Outcome {
    let scene = Scene::new().arg("status").arg(place);
    let scene = arguments.iter().fold(scene, Scene::arg);
    scene.run(SOON)
}

/// What `--json` says of the only pilot there, if it is there.
pub(crate) fn seen(scene: &Scene) -> Value {
    let outcome = status(&["--json"], scene.dir());
    let views: Value = serde_json::from_str(&outcome.stdout).expect("it is JSON");
    views[0].clone()
}

/// Waits until the pilot is seen as `condition` wants it, and gives what is seen then.
#[track_caller]
pub(crate) fn await_seen(
    scene: &Scene,
    pilot: &Pilot,
    condition: impl Fn(&Value) -> bool,
) -> Value {
    let mut last = Value::Null;
    let is_so = eventually(SOON, || {
        last = seen(scene);
        condition(&last)
    });
    assert!(is_so, "{last:#}\n{}", pilot.stderr());
    last
}

/// A task whose container is known and wrote something.
fn has_a_task(view: &Value) -> bool {
    let task = &view["tasks"][0];
    task["memory_bytes"].is_u64() && task["last_line"].is_string()
}

#[test]
fn a_running_task_is_shown_with_its_age_memory_cpu_and_last_line() {
    let scene = held()
        .set("GLIDEIN_Site", "Northpole")
        .set("EWMS_PILOT_MAX_RUNTIME", "3600");
    let pilot = scene.start();
    let view = await_seen(&scene, &pilot, has_a_task);
    assert_eq!(
        (&view["state"], &view["status"], &view["site"]),
        (&"running".into(), &"Tasking".into(), &"Northpole".into())
    );
    assert_eq!(view["process"]["pid"], pilot.pid());
    assert_eq!(view["events"]["received"], 1);
    let left = view["remaining_secs"].as_f64().expect("it is limited");
    assert!((3000.0..3600.0).contains(&left), "{left}");
    assert!(view["free_disk_bytes"].as_u64() > Some(0));
    let directions = [0, 1].map(|queue| view["queues"][queue]["link"].clone());
    assert_eq!(directions, ["up", "up"]);
    let task = &view["tasks"][0];
    assert_eq!(task["slot"], 1);
    assert!(task["age_secs"].as_f64() > Some(0.0), "{task}");
    assert!(task["cpu_percent"].as_f64() >= Some(0.0), "{task}");
    assert!(task["memory_bytes"].as_u64() > Some(100_000), "{task}");
    assert!(task["last_output_secs_ago"].as_f64() < Some(10.0), "{task}");
    let id = task["task_id"].as_str().expect("text");
    assert!(scene.dir().join("ewms-pilot-data").join(id).is_dir());

    let shown = status(&[], scene.dir());
    shown.assert_code(0);
    let row = shown.stdout.lines().last().unwrap_or_default();
    assert!(row.contains(&id[..8]) && row.contains("pixel "), "{row}");
    assert!(
        shown.stdout.contains("running, Tasking"),
        "{}",
        shown.stdout
    );
    assert_eq!(shown.stderr, "");
    release(&scene);
    pilot.wait(SOON).assert_code(0);
}

#[test]
fn without_a_path_the_jobs_scratch_directory_is_looked_in() {
    let scene = held();
    let pilot = scene.start();
    await_seen(&scene, &pilot, has_a_task);
    let shown = Scene::new()
        .set("_CONDOR_SCRATCH_DIR", scene.dir())
        .arg("status")
        .run(SOON);
    shown.assert_code(0);
    assert!(shown.stdout.contains("pixel "), "{}", shown.stdout);
    release(&scene);
    pilot.wait(SOON).assert_code(0);
}

#[test]
fn the_file_goes_with_the_pilot_however_that_ends_in_order() {
    let scene = held();
    let pilot = scene.start();
    await_seen(&scene, &pilot, has_a_task);
    release(&scene);
    pilot.wait(SOON).assert_code(0);
    assert_eq!(files(&scene), Vec::<PathBuf>::new());

    let scene = held().set("EWMS_PILOT_KILL_GRACE", "0.1");
    let pilot = scene.start();
    await_seen(&scene, &pilot, has_a_task);
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 15);
    assert_eq!(files(&scene), Vec::<PathBuf>::new());

    let (scene, _, _) = Scene::task("/nowhere/image", "true").spool();
    scene.run(SOON).assert_code(6);
    assert_eq!(files(&scene), Vec::<PathBuf>::new());

    let none = status(&[], scene.dir());
    none.assert_code(2);
    let directory = format!("`{}`", scene.dir().display());
    assert!(none.stderr.contains(&directory), "{}", none.stderr);
    assert!(none.last_line().contains("ewms-pilot status DIRECTORY"));
}

#[test]
fn a_killed_pilot_is_shown_as_dead_until_another_starts_there() {
    let scene = held();
    let pilot = scene.start();
    let pid = pilot.pid();
    await_seen(&scene, &pilot, has_a_task);
    pilot.signal(Signal::SIGKILL);
    assert_eq!(pilot.wait(SOON).signal, Some(9));
    let outcome = status(&["--json"], scene.dir());
    outcome.assert_code(2);
    let view = &seen(&scene);
    assert_eq!(view["state"], "dead");
    assert_eq!(view["process"]["pid"], pid);
    assert!(view["tasks"][0]["memory_bytes"].is_null(), "{view:#}");
    let shown = status(&[], scene.dir());
    assert!(shown.stdout.contains("DEAD"), "{}", shown.stdout);
    assert!(shown.stdout.contains("pixel "), "what its task said last");

    release(&scene);
    scene.run(SOON).assert_code(0);
    assert_eq!(files(&scene), Vec::<PathBuf>::new());
    processes::assert_nothing_runs(&scene.hub("").to_string_lossy(), SOON);
}

#[test]
fn nothing_is_written_while_nothing_happens_to_the_pilot() {
    let scene = held();
    let pilot = scene.start();
    let view = await_seen(&scene, &pilot, has_a_task);
    let line = |view: &Value| -> u64 {
        let line = view["tasks"][0]["last_line"].as_str().expect("text");
        let number = line.strip_prefix("pixel ").expect("it is the task's");
        number.parse().expect("a number")
    };
    // Some seconds of the task's own time, after the last change could have been written.
    let settled = line(&view) + 10;
    await_seen(&scene, &pilot, |view| line(view) >= settled);
    let [file] = files(&scene).try_into().expect("there is one");
    let state = |file: &Path| {
        let found = fs::metadata(file).expect("it is there");
        (found.ino(), found.mtime(), found.mtime_nsec())
    };
    let before = state(&file);
    await_seen(&scene, &pilot, |view| line(view) >= settled + 15);
    assert_eq!(state(&file), before);
    release(&scene);
    pilot.wait(SOON).assert_code(0);
}

#[test]
fn the_file_is_for_its_user_only_and_holds_no_secret() {
    let (incoming, outgoing) = (Queue::unique("status"), Queue::unique("status"));
    incoming.produce([r#""pixel""#]);
    let scene = Scene::task(images::busybox(), HELD)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_TASK_ENV_JSON", r#"{"KEY": "s3cr3t-of-task"}"#)
        .set(
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            format!("guest:guest-word@{}", incoming.address()),
        )
        .set("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "guest");
    let pilot = scene.start();
    let view = await_seen(&scene, &pilot, has_a_task);
    let [file] = files(&scene).try_into().expect("there is one");
    let mode = fs::metadata(&file).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).expect("it is text");
    let address = view["queues"][1]["address"].as_str().expect("text");
    assert!(text.contains(address), "{text}");
    for secret in ["s3cr3t", "guest", "word", "TOKEN"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    release(&scene);
    pilot.wait(SOON).assert_code(0);
}

#[test]
fn a_lost_broker_is_shown_and_so_is_its_return() {
    let mut broker = Broker::start();
    let incoming = Queue::unique_at("status-in", &broker.address());
    let outgoing = Queue::unique_at("status-out", &broker.address());
    incoming.produce([r#""pixel""#]);
    assert_eq!(outgoing.depth(), 0);
    broker.await_durable(&incoming);
    broker.await_durable(&outgoing);
    let scene = Scene::task(images::busybox(), HELD)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "20");
    let pilot = scene.start();
    await_seen(&scene, &pilot, has_a_task);
    let all = |state: &'static str| {
        move |view: &Value| (0..2).all(|queue| view["queues"][queue]["link"] == state)
    };
    broker.kill();
    let view = await_seen(&scene, &pilot, all("down"));
    assert_eq!(view["queues"][0]["address"], broker.address());
    let error = view["queues"][0]["error"].as_str().expect("there is one");
    assert!(error.contains("the broker at"), "{error}");
    assert!(has_a_task(&view), "it runs on: {view:#}");
    let shown = status(&[], scene.dir()).stdout;
    assert_eq!(shown.matches("DOWN for").count(), 2, "{shown}");

    broker.start_again();
    let back = eventually(SOON * 3, || all("up")(&seen(&scene)));
    assert!(back, "{:#}\n{}", seen(&scene), pilot.stderr());
    let reconnects = seen(&scene)["reconnects"].as_u64();
    assert!(reconnects >= Some(2), "{reconnects:?}");
    release(&scene);
    pilot.wait(SOON * 3).assert_code(0);
}

#[test]
fn the_init_container_is_shown_while_it_runs() {
    let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
    let scene = scene.set("EWMS_PILOT_INIT_IMAGE", images::busybox()).set(
        "EWMS_PILOT_INIT_ARGS",
        r#"sh -c "echo filling; until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done""#,
    );
    let pilot = scene.start();
    let view = await_seen(&scene, &pilot, has_a_task);
    assert_eq!(view["status"], "RunningInitCommand");
    assert_eq!(view["tasks"][0]["last_line"], "filling");
    assert!(view["tasks"][0]["slot"].is_null());
    release(&scene);
    pilot.wait(SOON).assert_code(0);
}

/// A command line that watches `place`, on a terminal of 24 lines that `script` records in `screen`.
fn watch_on_a_terminal(scene: Scene, place: &Path, screen: &Path) -> Scene {
    let command = format!(
        "stty cols 80 rows 24; exec {} status --watch=1 {}",
        pilot_binary().display(),
        place.display()
    );
    let scene = scene.set("TERM", "xterm").set("SHELL", "/bin/sh");
    let scene = scene.program("/usr/bin/script");
    let arguments = ["--quiet", "--return", "--flush", "--command", &command];
    arguments.iter().fold(scene, Scene::arg).arg(screen)
}

#[test]
fn watching_prints_a_block_a_turn_or_redraws_a_terminal_until_it_is_interrupted() {
    let scene = held();
    let pilot = scene.start();
    await_seen(&scene, &pilot, has_a_task);
    let watching = Scene::new().arg("status").arg("--watch=1").arg(scene.dir());
    let shown = |text: &str| text.matches("running, Tasking").count();

    let interrupted = watching.start();
    let twice = eventually(SOON, || shown(&interrupted.stdout()) >= 2);
    assert!(twice, "{}", interrupted.stdout());
    interrupted.signal(Signal::SIGINT);
    let outcome = interrupted.wait(SOON);
    outcome.assert_code(0);
    assert!(!outcome.stdout.contains('\x1b'), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("pixel "), "{}", outcome.stdout);

    let screen = scene.dir().join(".screen");
    let terminal = watch_on_a_terminal(Scene::new(), scene.dir(), &screen);
    let on_a_terminal = terminal.start();
    let drawn = || {
        let bytes = fs::read(&screen).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let twice = eventually(SOON, || shown(&drawn()) >= 2);
    assert!(twice, "{}", drawn());
    let frames = drawn().matches("\x1b[H").count();
    assert!(frames >= 2, "{}", drawn());
    drop(on_a_terminal);

    let to_the_end = watching.start();
    assert!(eventually(SOON, || shown(&to_the_end.stdout()) >= 1));
    release(&scene);
    pilot.wait(SOON).assert_code(0);
    let outcome = to_the_end.wait(SOON);
    outcome.assert_code(0);
    assert!(
        outcome.last_line().contains("no pilot runs here any more"),
        "{}",
        outcome.stderr
    );
    status(&["--watch"], scene.dir()).assert_code(2);
}
