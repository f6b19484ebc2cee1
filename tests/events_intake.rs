//! How many events a pilot takes and runs at once, and when it stops waiting for more.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::records::of_kind;
use crate::support::proxy::Proxy;
use crate::support::rabbitmq::{ADDRESS, Queue};
use crate::support::scene::{Pilot, Scene};
use crate::support::{SOON, eventually, images};

/// A task that says it runs, by a file in the data hub, and copies when there is the file `release`.
const HELD: &str = r#"sh -c "
    touch {{DATA_HUB}}/running-$(cat {{INFILE}})
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.05; done
    cp {{INFILE}} {{OUTFILE}}""#;

const IDLE: &str = "no event came for as long as configured";

struct Setting {
    incoming: Queue,
    outgoing: Queue,
    scene: Scene,
}

fn setting(label: &str, arguments: &str) -> Setting {
    let (incoming, outgoing) = (Queue::unique(label), Queue::unique(label));
    let scene = Scene::task(images::busybox(), arguments).rabbitmq(&incoming, &outgoing);
    Setting {
        incoming,
        outgoing,
        scene,
    }
}

fn numbered(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!(r#""{number:02}""#))
        .collect()
}

fn running(scene: &Scene) -> usize {
    let Ok(entries) = fs::read_dir(scene.hub("")) else {
        return 0;
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("running-"))
        .count()
}

#[track_caller]
fn await_running(scene: &Scene, count: usize, pilot: &Pilot) {
    assert!(
        eventually(SOON, || running(scene) == count),
        "{} of {count}; {}",
        running(scene),
        pilot.stderr()
    );
}

fn release(scene: &Scene) {
    fs::write(scene.hub("release"), "").expect("the hub is writable");
}

#[track_caller]
fn assert_results(outgoing: &Queue, expected: &[String]) {
    let mut results = outgoing.consume(expected.len() + 1, Duration::from_secs(1));
    results.sort();
    assert_eq!(results, expected);
}

#[test]
fn all_slots_are_filled_whatever_prefetch_says() {
    // No task ends before all sixteen run: a pilot that fills fewer slots at once never ends.
    let Setting {
        incoming,
        outgoing,
        scene,
    } = setting(
        "slots",
        r#"sh -c "
            touch {{DATA_HUB}}/running-$(cat {{INFILE}})
            until [ $(ls {{DATA_HUB}} | wc -l) = 16 ]; do sleep 0.1; done
            cp {{INFILE}} {{OUTFILE}}""#,
    );
    let events = numbered(16);
    incoming.produce(&events);
    let outcome = scene
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "16")
        .set("EWMS_PILOT_PREFETCH", "1")
        .run(SOON * 2);
    outcome.assert_code(0);
    // And they were started as one wave, before the first of them ended.
    let position = |what: &str, which: fn(&str, &str) -> Option<usize>| {
        which(&outcome.stderr, what).expect("it is in the log")
    };
    let last_start = position("task started", |log, what| log.rfind(what));
    let first_end = position("task succeeded", |log, what| log.find(what));
    assert!(last_start < first_end, "{}", outcome.stderr);
    assert_results(&outgoing, &events);
}

#[test]
fn a_pilot_holds_no_more_than_twice_its_slots() {
    let Setting {
        incoming,
        outgoing,
        scene,
    } = setting("window", HELD);
    let events = numbered(10);
    incoming.produce(&events);
    let scene = scene
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
        .set("EWMS_PILOT_PREFETCH", "100");
    let pilot = scene.start();
    await_running(&scene, 2, &pilot);
    assert_eq!((incoming.held(), incoming.total()), (4, 10));
    release(&scene);
    pilot.wait(SOON).assert_code(0);
    assert_results(&outgoing, &events);
    assert_eq!(incoming.total(), 0);
}

/// Between two tasks lie the confirm, the acknowledgement and the delivery, if a pilot may hold one event.
#[test]
fn short_tasks_far_from_their_broker_have_their_next_events_waiting() {
    let Setting {
        incoming,
        outgoing,
        scene,
    } = setting("far", "cp {{INFILE}} {{OUTFILE}}");
    let events = numbered(20);
    incoming.produce(&events);
    // A fake of a network: nothing here is as far away.
    let proxy = Proxy::delaying(ADDRESS, Duration::from_millis(50));
    let scene = scene
        .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", proxy.address())
        .set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", proxy.address())
        .set("EWMS_PILOT_PREFETCH", "1");
    scene.run(SOON).assert_code(0);
    assert_results(&outgoing, &events);
    assert_eq!(incoming.total(), 0);
    let mut tasks = of_kind(&scene, "task");
    let time = |task: &Value, name: &str| task[name].as_f64().expect("a time");
    tasks.sort_by(|a, b| time(a, "started_unix_secs").total_cmp(&time(b, "started_unix_secs")));
    let is_ahead = |tasks: &[Value]| {
        time(&tasks[1], "received_unix_secs") < time(&tasks[0], "ended_unix_secs")
    };
    assert!(tasks.windows(2).any(is_ahead), "{tasks:#?}");
}

/// The infiles of tasks.
fn staged(scene: &Scene) -> usize {
    let Ok(entries) = fs::read_dir(scene.dir().join("ewms-pilot-data")) else {
        return 0;
    };
    let files = entries
        .flatten()
        .filter_map(|entry| fs::read_dir(entry.path().join("task-io")).ok());
    files.flatten().count()
}

/// One task that runs and one whose infile waits for the slot.
fn one_ahead(label: &str) -> (Setting, Pilot) {
    let mut setting = setting(label, HELD);
    setting.incoming.produce(numbered(3));
    setting.scene = setting.scene.set("EWMS_PILOT_PREFETCH", "2");
    let pilot = setting.scene.start();
    await_running(&setting.scene, 1, &pilot);
    let ahead = eventually(SOON, || staged(&setting.scene) == 2);
    assert!(ahead, "{}", pilot.stderr());
    assert_eq!(running(&setting.scene), 1);
    (setting, pilot)
}

#[test]
fn an_event_that_was_taken_ahead_is_made_ready_while_the_slot_is_busy() {
    let (setting, pilot) = one_ahead("ahead");
    release(&setting.scene);
    pilot.wait(SOON).assert_code(0);
    assert_results(&setting.outgoing, &numbered(3));
    assert_eq!(staged(&setting.scene), 0);
}

#[test]
fn an_event_that_was_made_ready_goes_back_untried_when_the_pilot_is_told_to_end() {
    let (setting, pilot) = one_ahead("untried");
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(143);
    assert_eq!((setting.incoming.held(), setting.incoming.total()), (0, 3));
    assert_eq!(running(&setting.scene), 1, "the second was never started");
    assert_eq!(staged(&setting.scene), 0);

    release(&setting.scene);
    setting.scene.run(SOON).assert_code(0);
    assert_results(&setting.outgoing, &numbered(3));
}

#[test]
fn a_pilot_with_one_slot_leaves_the_other_events_to_others() {
    let Setting {
        incoming,
        outgoing,
        scene,
    } = setting("one-slot", HELD);
    let events = numbered(3);
    incoming.produce(&events);
    let busy = scene.start();
    await_running(&scene, 1, &busy);
    assert_eq!(incoming.held(), 1);

    let other = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}");
    let other = other.rabbitmq(&incoming, &outgoing);
    other.run(SOON).assert_code(0);
    assert_eq!((incoming.held(), incoming.total()), (1, 1));

    release(&scene);
    busy.wait(SOON).assert_code(0);
    assert_results(&outgoing, &events);
}

#[test]
fn an_empty_queue_ends_the_pilot_well_and_with_a_warning() {
    let Setting {
        scene, incoming, ..
    } = setting("empty", "true");
    let outcome = scene
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "2")
        .run(SOON);
    outcome.assert_code(0);
    let warning =
        |line: &str| line.contains("WARN") && line.ends_with("No Messages Were Received.");
    assert!(outcome.stderr.lines().any(warning), "{}", outcome.stderr);
    let unused = format!(
        "the queue `{}` is empty and has no other consumers: is this its name",
        incoming.name()
    );
    assert!(outcome.stderr.contains(&unused), "{}", outcome.stderr);
}

#[test]
fn an_empty_queue_with_another_consumer_is_not_said_to_be_unused() {
    let Setting { scene, .. } = setting("shared", "true");
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "600");
    let mut other = scene.start();
    other.wait_for_line("AwaitingFirstMessage", SOON);
    let outcome = scene
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "1")
        .run(SOON);
    let stderr = &outcome.assert_code(0).stderr;
    assert!(stderr.contains("others take its events"), "{stderr}");
    assert!(!stderr.contains("no other consumers"), "{stderr}");
}

#[test]
fn the_first_event_may_take_longer_than_the_others() {
    let Setting {
        incoming,
        outgoing,
        scene,
    } = setting("first", "cp {{INFILE}} {{OUTFILE}}");
    let scene = scene
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "60")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "1");
    let mut pilot = scene.start();
    pilot.wait_for_line("AwaitingFirstMessage", SOON);
    // The time is the point: longer than the other timeout.
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!pilot.has_ended(), "{}", pilot.stderr());
    incoming.produce(numbered(1));
    pilot.wait(SOON).assert_code(0);
    assert_results(&outgoing, &numbered(1));
}

#[test]
fn a_pilot_that_is_idle_waits_for_its_running_task() {
    let Setting {
        incoming,
        outgoing,
        scene,
    } = setting("idle", HELD);
    incoming.produce(numbered(1));
    let scene = scene.set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let mut pilot = scene.start();
    pilot.wait_for_line(IDLE, SOON);
    await_running(&scene, 1, &pilot);
    assert!(!pilot.has_ended());
    // Whatever comes now is for others.
    incoming.produce(numbered(2).split_off(1));
    release(&scene);
    pilot.wait(SOON).assert_code(0);
    assert_results(&outgoing, &numbered(1));
    assert_eq!(incoming.depth(), 1);
}

#[test]
fn time_in_which_every_slot_is_busy_is_not_idle() {
    let Setting {
        incoming,
        outgoing,
        scene,
    } = setting("busy", HELD);
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "1");
    incoming.produce(numbered(1));
    let pilot = scene.start();
    await_running(&scene, 1, &pilot);
    // The time is the point: longer than the timeout.
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!pilot.stderr().contains(IDLE), "{}", pilot.stderr());
    incoming.produce(numbered(2).split_off(1));
    release(&scene);
    pilot.wait(SOON).assert_code(0);
    assert_results(&outgoing, &numbered(2));
}
