//! The spool, a queue without a server, with several pilots, some of which die.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::Signal;

use crate::support::scene::Scene;
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images};

#[test]
fn two_pilots_share_a_spool_and_each_event_is_done_once() {
    // One write of one line: what two tasks append at once doesn't mix.
    let arguments =
        r#"sh -c "cp {{INFILE}} {{OUTFILE}}; echo $(cat {{INFILE}}) >> {{DATA_HUB}}/ran""#;
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), arguments).spool();
    let scene = scene
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "600")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "2")
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let mut pilots = [scene.start(), scene.start()];
    for pilot in &mut pilots {
        pilot.wait_for_line("AwaitingFirstMessage", SOON);
    }
    let events: BTreeSet<String> = (100..160).map(|number| number.to_string()).collect();
    for event in &events {
        incoming.put(event, event);
    }
    for pilot in pilots {
        let outcome = pilot.wait(3 * SOON);
        outcome.assert_code(0);
        assert!(
            outcome.stderr.contains("task succeeded"),
            "one pilot did it all:\n{}",
            outcome.stderr
        );
    }
    assert_eq!(incoming.done().into_keys().collect::<BTreeSet<_>>(), events);
    let results = outgoing.files().into_values();
    let results: Vec<String> = results
        .map(|bytes| String::from_utf8(bytes).expect("it is UTF-8"))
        .collect();
    assert_eq!(results.len(), events.len());
    assert_eq!(results.into_iter().collect::<BTreeSet<_>>(), events);
    let ran = fs::read_to_string(scene.dir().join("ewms-pilot-data/data-hub/ran"));
    let ran = ran.expect("the tasks wrote it");
    assert_eq!(ran.lines().count(), events.len(), "{ran}");
}

/// A pilot whose first task never ends, and its end by SIGKILL.
fn killed(label: &str) -> (Scene, SpoolQueue, SpoolQueue) {
    let arguments = format!(
        "sh -c 'mkdir {{{{DATA_HUB}}}}/first && exec sleep {label}; cp {{{{INFILE}}}} {{{{OUTFILE}}}}'"
    );
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("one", "event");
    let pilot = scene.start();
    await_first_task(&scene);
    pilot.signal(Signal::SIGKILL);
    assert_eq!(pilot.wait(SOON).signal, Some(9));
    assert!(
        incoming.files().is_empty() && incoming.done().is_empty(),
        "the dead pilot holds it"
    );
    (scene, incoming, outgoing)
}

/// Until the task's own first command ran: its name stands in Apptainer's arguments before that.
fn await_first_task(scene: &Scene) {
    assert!(eventually(SOON, || scene.hub("first").exists()));
}

#[test]
fn the_claim_of_a_killed_pilot_is_taken_back_by_the_next() {
    let (scene, incoming, outgoing) = killed("8232");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(incoming.done().into_keys().collect::<Vec<_>>(), ["one"]);
    assert_eq!(
        outgoing.files().into_values().collect::<Vec<_>>(),
        [b"event".to_vec()]
    );
}

#[test]
fn the_claim_of_a_killed_pilot_is_taken_back_by_one_that_waits() {
    let arguments =
        "sh -c 'mkdir {{DATA_HUB}}/first && exec sleep 8233; cp {{INFILE}} {{OUTFILE}}'";
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), arguments).spool();
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "600");
    incoming.put("one", "event");
    let first = scene.start();
    await_first_task(&scene);
    let mut second = scene.start();
    second.wait_for_line("AwaitingFirstMessage", SOON);
    first.signal(Signal::SIGKILL);
    let outcome = second.wait(SOON);
    outcome.assert_code(0);
    assert_eq!(outgoing.files().len(), 1);
}

#[test]
fn a_living_pilots_claim_is_left_alone() {
    let arguments = r#"sh -c "echo x >> {{DATA_HUB}}/ran
        until [ -e {{DATA_HUB}}/go ]; do sleep 0.05; done; cp {{INFILE}} {{OUTFILE}}""#;
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("one", "event");
    let mut first = scene.start();
    first.wait_for_line("task started", SOON);
    let second = scene.run(SOON);
    second.assert_code(0);
    assert!(
        second.stderr.contains("No Messages Were Received."),
        "{}",
        second.stderr
    );
    let hub = scene.dir().join("ewms-pilot-data/data-hub");
    fs::write(hub.join("go"), "").expect("written");
    first.wait(SOON).assert_code(0);
    assert_eq!(outgoing.files().len(), 1);
    assert_eq!(
        fs::read_to_string(hub.join("ran")).expect("the task wrote it"),
        "x\n"
    );
}
