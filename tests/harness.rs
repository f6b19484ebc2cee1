//! The parts that all other tests rely on, each tried without the pilot. If one of these fails, look at the
//! machine and at `tests/support` before looking at the pilot.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::support::rabbitmq::{self, Queue};
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images, processes};

/// A shell in the pilot's place.
fn shell(script: &str) -> Scene {
    Scene::new().program("/bin/sh").arg("-c").arg(script)
}

#[test]
fn apptainer_runs_every_image_for_an_ordinary_user() {
    assert!(
        !Uid::effective().is_root(),
        "the tests run as an ordinary user"
    );
    for image in [images::busybox(), images::busybox_sif(), images::python()] {
        let scene = Scene::new().program("apptainer");
        let flags = ["run", "--containall", "--no-eval"];
        let scene = flags.into_iter().fold(scene, Scene::arg);
        let scene = scene
            .arg(image)
            .arg("sh")
            .arg("-c")
            .arg("echo from $0 inside");
        assert_eq!(scene.run(SOON).assert_code(0).stdout, "from sh inside\n");
    }
}

#[test]
fn a_scene_passes_on_what_it_was_given_and_nothing_else() {
    let scene = Scene::bare().program("/usr/bin/env").set("GIVEN", "a=b c");
    assert_eq!(scene.run(SOON).assert_code(0).stdout, "GIVEN=a=b c\n");
}

#[test]
fn lines_signals_and_ends_are_waited_for() {
    let scene =
        shell("trap 'echo last >&2; exit 9' TERM; echo up >&2; while :; do sleep 0.1; done");
    let mut started = scene.start();
    assert_eq!(started.wait_for_line("u", SOON), "up");
    let (now, most) = processes::memory(started.pid()).expect("it runs");
    assert!(0 < now && now <= most, "{now} {most}");
    started.signal(Signal::SIGTERM);
    let outcome = started.wait(SOON);
    assert_eq!(outcome.assert_code(9).last_line(), "last");

    let started = scene.start();
    started.signal(Signal::SIGKILL);
    assert_eq!(started.wait(SOON).signal, Some(9));
}

#[test]
fn what_is_dropped_runs_no_longer() {
    let scene = shell("trap '' TERM; sleep 71.25; true").set("LABEL", "seen by others");
    let started = scene.start();
    let found = processes::await_running("sleep 71.25", SOON);
    assert!(found.iter().any(|process| process.pid == started.pid()));
    assert!(eventually(SOON, || {
        let children = processes::matching("sleep 71.25");
        children
            .iter()
            .any(|process| process.parent == started.pid())
    }));
    for process in found {
        assert_ne!(process.session, 0);
        let environment = String::from_utf8_lossy(&process.environment).into_owned();
        assert!(
            environment.contains("LABEL=seen by others"),
            "{environment}"
        );
    }
    let pid = started.pid();
    drop(started);
    assert!(processes::memory(pid).is_none());
    for orphan in processes::matching("sleep 71.25") {
        let pid = nix::unistd::Pid::from_raw(orphan.pid);
        nix::sys::signal::kill(pid, Signal::SIGKILL).expect("it is ours");
    }
    processes::assert_nothing_runs("sleep 71.25", SOON);
}

#[test]
fn a_spool_shows_each_file_where_it_is() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), "true").spool();
    incoming.put("one.json", "1");
    assert_eq!(incoming.files()["one.json"], b"1");
    assert!(incoming.directory().starts_with(scene.dir()));
    assert!(outgoing.files().is_empty());
    for (name, seen) in [
        ("claimed", incoming.claimed()),
        ("done", incoming.done()),
        ("failed", incoming.failed()),
    ] {
        assert!(seen.is_empty(), "{name}");
    }
}

#[test]
fn values_survive_mqclient_and_the_broker() {
    let values = [
        r#"{"z": 1, "a": [true, null, -0.0, 1e-07]}"#,
        "[NaN, Infinity, -Infinity]",
        "123456789012345678901234567890123456789012345678901234567890",
        r#""lone \ud800 surrogate, \u00fc, \n""#,
        r#""""#,
    ];
    let queue = Queue::unique("harness");
    queue.produce(values);
    assert!(eventually(SOON, || queue.depth() == values.len()));
    assert_eq!(queue.consume(values.len(), Duration::from_secs(5)), values);
    assert!(queue.consume(1, Duration::from_secs(1)).is_empty());
}

#[test]
fn an_event_given_back_counts_one_delivery_more() {
    let (queue, other) = (Queue::unique("harness-raw"), Queue::unique("harness-other"));
    let scene = Scene::new()
        .rabbitmq(&queue, &other)
        .program("/usr/bin/env");
    assert!(scene.run(SOON).stdout.contains(queue.name()));
    queue.publish_raw(&["bm90IHpzdGQ=", ""]);
    assert!(eventually(SOON, || queue.depth() == 2));
    assert_eq!(queue.delivery_counts(), [0, 0]);
    assert!(eventually(SOON, || queue.depth() == 2));
    assert_eq!(queue.delivery_counts(), [1, 1]);
    let listed = rabbitmq::rabbitmqctl(&["list_queues", "name"]);
    assert!(listed.lines().any(|line| line == queue.name()), "{listed}");
}
