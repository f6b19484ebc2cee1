//! Events that can't be run and tasks that fail: the effect on them, on other events, and on the pilot.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images};

fn pilot(arguments: &str, incoming: &Queue, outgoing: &Queue) -> Scene {
    Scene::task(images::busybox(), arguments).rabbitmq(incoming, outgoing)
}

/// Runs a pilot on one event that is no good, and asserts what it says last, and that the event is
/// back in the queue, tried once.
#[track_caller]
fn assert_only_the_event_fails(error: &str, label: &str, publish: impl FnOnce(&Queue)) {
    let (incoming, outgoing) = (Queue::unique(label), Queue::unique(label));
    publish(&incoming);
    // Half a gigabyte is written by a debug binary on a busy machine.
    let outcome = pilot("cp {{INFILE}} {{OUTFILE}}", &incoming, &outgoing).run(SOON * 4);
    outcome.assert_code(1);
    let expected = format!("RuntimeError: 1 TASK(S) FAILED: {error}");
    assert_eq!(outcome.last_line(), expected, "{}", outcome.stderr);
    assert_eq!(outgoing.depth(), 0);
    assert_eq!(incoming.delivery_counts(), [1]);
}

#[test]
fn a_body_that_is_not_compressed_fails_its_event() {
    assert_only_the_event_fails(
        "EventDecodeError('message body is no zstd frame (Unknown frame descriptor); send events with oms-mqclient')",
        "garbage",
        |queue| queue.publish_raw(&["Z2FyYmFnZQ=="]),
    );
}

#[test]
fn a_body_that_is_compressed_but_not_json_fails_its_event() {
    assert_only_the_event_fails(
        "EventDecodeError('event is not JSON: expected `{` at byte 0')",
        "not-json",
        |queue| queue.publish_texts(["not json"]),
    );
}

#[test]
fn a_message_without_data_fails_its_event() {
    assert_only_the_event_fails(
        "EventDecodeError('message lacks the key `data`; send events with oms-mqclient')",
        "no-data",
        |queue| queue.publish_texts([r#"{"headers": {}}"#]),
    );
}

#[test]
fn a_string_that_no_file_can_hold_fails_its_event() {
    assert_only_the_event_fails(
        "EventDecodeError('event is a string with a lone surrogate, which no text file can hold; send valid Unicode')",
        "surrogate",
        |queue| queue.produce([r#""\ud800""#]),
    );
}

#[test]
fn a_body_that_says_it_becomes_a_gigabyte_fails_its_event() {
    let bomb = base64(&bomb(StatedSize::Yes));
    assert_only_the_event_fails(
        "EventDecodeError('event has more than `536870912` bytes when decompressed; split it into smaller ones')",
        "bomb-stated",
        |queue| queue.publish_raw(&[&bomb]),
    );
}

#[test]
fn a_body_that_becomes_a_gigabyte_without_saying_so_fails_its_event() {
    let bomb = base64(&bomb(StatedSize::No));
    assert_only_the_event_fails(
        "EventDecodeError('event has more than `536870912` bytes when decompressed; split it into smaller ones')",
        "bomb",
        |queue| queue.publish_raw(&[&bomb]),
    );
}

#[test]
fn data_that_is_not_text_needs_a_json_infile() {
    assert_only_the_event_fails(
        concat!(
            r#"InvalidDataForInfileException("Incoming-message data ('<class 'dict'>' type) must be "#,
            r"JSON-serializable *and* use an infile with a '.json' extension (string or bytes data ",
            r#"can have any file extension) for infile; set EWMS_PILOT_INFILE_EXT=.json")"#
        ),
        "needs-json",
        |queue| queue.produce([r#"{"pixel": 1}"#]),
    );
}

#[derive(Clone, Copy)]
enum StatedSize {
    Yes,
    No,
}

/// A zstd frame of 32 KB that becomes an event with 1 GiB of letters (RFC 8878, sections 3.1.1.1 and
/// 3.1.1.2).
fn bomb(stated: StatedSize) -> Vec<u8> {
    const GIBIBYTE: u64 = 1 << 30;
    const BLOCK: u32 = 128 * 1024;
    const BLOCKS: u32 = 8 * 1024;
    const BEGINNING: &[u8] = br#"{"headers": {}, "data": ""#;
    let mut frame = 0xfd2f_b528_u32.to_le_bytes().to_vec();
    // A window of 1 MiB; the size in eight bytes, or not at all.
    let window = 10 << 3;
    match stated {
        StatedSize::Yes => {
            frame.extend([0b1100_0000, window]);
            frame.extend((GIBIBYTE + BEGINNING.len() as u64).to_le_bytes());
        }
        StatedSize::No => frame.extend([0, window]),
    }
    let as_it_is = u32::try_from(BEGINNING.len()).expect("it is short") << 3;
    frame.extend(&as_it_is.to_le_bytes()[..3]);
    frame.extend(BEGINNING);
    for block in 1..=BLOCKS {
        let last = u32::from(block == BLOCKS);
        let repeat_one_byte = 1 << 1;
        let header = BLOCK << 3 | repeat_one_byte | last;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(b'a');
    }
    frame
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= group.len() {
                char::from(DIGITS[value as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// Each of these used up the stack of the thread that decodes it, and of the next pilot's.
#[test]
fn headers_with_thousands_of_nested_values_end_no_pilot() {
    let (incoming, outgoing) = (Queue::unique("nested"), Queue::unique("nested"));
    incoming.publish_nested([
        r#"{"headers": {}, "data": "tables"}"#,
        r#"{"headers": {}, "data": "arrays"}"#,
    ]);
    incoming.produce([r#""flat""#]);
    let outcome = pilot("cp {{INFILE}} {{OUTFILE}}", &incoming, &outgoing)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "10")
        .run(SOON * 2);
    outcome.assert_code(0);
    assert_eq!(outgoing.depth(), 3, "{}", outcome.stderr);
    let mut results = outgoing.consume(4, Duration::from_secs(1));
    results.sort();
    assert_eq!(results, [r#""arrays""#, r#""flat""#, r#""tables""#]);
    assert_eq!(incoming.total(), 0);
}

#[test]
fn events_that_cant_be_decoded_dont_keep_good_ones_from_being_done() {
    let (incoming, outgoing) = (Queue::unique("mixed"), Queue::unique("mixed"));
    incoming.publish_raw(&["Z2FyYmFnZQ==", ""]);
    incoming.produce([r#""one""#, r#""two""#]);
    incoming.publish_texts([r#"{"headers": {}}"#]);
    incoming.produce([r#""three""#]);
    // The bad ones come back for as long as the pilot listens; this queue doesn't give them up.
    incoming.lift_delivery_limit();

    let scene = pilot("cp {{INFILE}} {{OUTFILE}}", &incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False");
    let pilot = scene.start();
    assert!(
        eventually(SOON, || outgoing.depth() == 3),
        "{}",
        pilot.stderr()
    );
    pilot.signal(Signal::SIGTERM);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(128 + 15);
    let last = outcome.last_line();
    assert!(last.contains("TASK(S) FAILED: EventDecodeError("), "{last}");
    let mut results = outgoing.consume(4, Duration::from_secs(1));
    results.sort();
    assert_eq!(results, [r#""one""#, r#""three""#, r#""two""#]);
    assert_eq!(incoming.depth(), 3);
}

/// Poison in front of good events, more than there are places for: each failed event waits longer and longer
/// before it goes back, and takes no place from a good one meanwhile.
#[track_caller]
fn assert_poison_starves_none(dead_letters: usize, slots: usize) {
    let (incoming, outgoing) = (Queue::unique("starve"), Queue::unique("starve"));
    incoming.publish_raw(&vec!["Z2FyYmFnZQ=="; dead_letters]);
    let good: Vec<String> = (0..10).map(|event| format!("\"good {event}\"")).collect();
    incoming.produce(&good);
    let scene = pilot("cp {{INFILE}} {{OUTFILE}}", &incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", slots.to_string())
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
    let pilot = scene.start();
    assert!(
        eventually(SOON, || outgoing.depth() == good.len()),
        "{} of {} good events are done; stderr:\n{}",
        outgoing.depth(),
        good.len(),
        pilot.stderr()
    );
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 15);
    let mut results = outgoing.consume(good.len() + 1, Duration::from_secs(1));
    results.sort();
    assert_eq!(results, good);
    assert_eq!(incoming.total(), dead_letters, "none is lost");
}

#[test]
fn poison_in_front_of_good_events_takes_no_place_from_them() {
    assert_poison_starves_none(2, 2);
}

#[test]
fn as_much_poison_as_is_set_aside_takes_no_place_from_a_single_slot() {
    assert_poison_starves_none(32, 1);
}

/// Once the poison is gone the pilot holds no more than it may: another one gets the rest.
#[test]
fn a_pilot_that_set_events_aside_takes_no_more_than_its_window_afterwards() {
    let (incoming, outgoing) = (Queue::unique("narrow"), Queue::unique("narrow"));
    incoming.publish_raw(&["Z2FyYmFnZQ=="; 4]);
    let scene = pilot(
        r#"sh -c "until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done; cp {{INFILE}} {{OUTFILE}}""#,
        &incoming,
        &outgoing,
    )
    .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
    .set("EWMS_PILOT_MAX_DELIVERIES", "3")
    .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
    let pilot = scene.start();
    let rejected = || fs::read_dir(scene.dir().join("rejected")).map_or(0, Iterator::count);
    assert!(
        eventually(SOON, || rejected() == 8 && incoming.total() == 0),
        "{}",
        pilot.stderr()
    );
    incoming.produce([r#""one""#, r#""two""#, r#""three""#]);
    assert!(
        eventually(SOON, || incoming.held() == 1),
        "{}",
        pilot.stderr()
    );
    assert_eq!(incoming.depth(), 2, "{}", pilot.stderr());
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    assert!(
        eventually(SOON, || outgoing.depth() == 3),
        "{}",
        pilot.stderr()
    );
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 15);
}

#[test]
fn poison_in_a_spool_takes_no_place_from_good_events() {
    let (scene, incoming, outgoing) =
        Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}").spool();
    // A name that sorts first. It fails thrice, with pauses in between, and is given up.
    for dead_letters in 0..4 {
        incoming.put(&format!("a{dead_letters}.json"), "{");
    }
    for good in 0..4 {
        incoming.put(&format!("b{good}.txt"), "good");
    }
    let scene = scene
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "5");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert_eq!(outgoing.files().len(), 4, "{}", outcome.stderr);
    assert_eq!(incoming.failed().len(), 8, "each with its error");
}

#[test]
fn the_first_failure_closes_the_intake_and_running_tasks_finish() {
    let (incoming, outgoing) = (Queue::unique("stop"), Queue::unique("stop"));
    incoming.produce([r#""slow""#, r#""fail""#]);
    incoming.produce([r#""rest""#; 4]);
    let script = r#"sh -c "
        event=$(cat {{INFILE}})
        echo $event >> {{DATA_HUB}}/ran
        case $event in
        slow) until [ -e {{DATA_HUB}}/release ]; do sleep 0.05; done ;;
        fail) until grep -q slow {{DATA_HUB}}/ran; do sleep 0.05; done; exit 7 ;;
        esac
        cp {{INFILE}} {{OUTFILE}}""#;
    let scene = pilot(script, &incoming, &outgoing)
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
        .set("EWMS_PILOT_PREFETCH", "4");
    let mut pilot = scene.start();
    pilot.wait_for_line("task failed", SOON);
    // The failed one and those taken ahead are there for others while the slow one still runs.
    assert!(
        eventually(SOON, || incoming.depth() == 5),
        "{}",
        pilot.stderr()
    );
    assert!(!pilot.has_ended());
    fs::write(scene.hub("release"), "").expect("the hub is writable");

    let outcome = pilot.wait(SOON);
    outcome.assert_code(1);
    assert_eq!(
        outcome.last_line(),
        "RuntimeError: 1 TASK(S) FAILED: ContainerRunError('task failed (exit code 7): <no stderr logs>')"
    );
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)), [r#""slow""#]);
    let ran = fs::read_to_string(scene.hub("ran")).expect("the tasks wrote it");
    let mut ran: Vec<_> = ran.lines().collect();
    ran.sort_unstable();
    assert_eq!(ran, ["fail", "slow"]);
    assert_eq!(incoming.total(), 5);
}

#[test]
fn a_failed_event_has_one_delivery_more() {
    let (incoming, outgoing) = (Queue::unique("count"), Queue::unique("count"));
    incoming.produce([r#""one""#]);
    for failures in 1..=2 {
        pilot("false", &incoming, &outgoing)
            .run(SOON)
            .assert_code(1);
        // Looking adds one too.
        assert_eq!(incoming.delivery_counts(), [2 * failures - 1]);
    }
}

#[test]
fn an_okay_error_does_not_close_the_intake_and_its_event_is_tried_again() {
    let (incoming, outgoing) = (Queue::unique("okay"), Queue::unique("okay"));
    incoming.produce([r#""hangs once""#, r#""one""#, r#""two""#]);
    let script = r#"sh -c "
        if grep -q hangs {{INFILE}} && [ ! -e {{DATA_HUB}}/hung ]; then
            touch {{DATA_HUB}}/hung
            exec sleep 600
        fi
        cp {{INFILE}} {{OUTFILE}}""#;
    let outcome = pilot(script, &incoming, &outgoing)
        .set("EWMS_PILOT_TASK_TIMEOUT", "3")
        .set("EWMS_PILOT_OKAY_ERRORS", "TimeoutError")
        .run(SOON * 2);
    outcome.assert_code(1);
    assert_eq!(
        outcome.last_line(),
        "RuntimeError: 1 TASK(S) FAILED: ContainerRunError('task failed: [Timeout-Error] timed out after 3s')"
    );
    let mut results = outgoing.consume(4, Duration::from_secs(1));
    results.sort();
    assert_eq!(results, [r#""hangs once""#, r#""one""#, r#""two""#]);
    assert_eq!(incoming.total(), 0);
}

/// The broker's default limit deletes an event after 20 deliveries: a pilot that goes on after errors
/// must not bring that about in seconds.
#[test]
fn an_event_that_fails_again_and_again_goes_back_ever_more_slowly() {
    let (incoming, outgoing) = (Queue::unique("again"), Queue::unique("again"));
    incoming.produce([r#""event""#]);
    let scene = pilot("false", &incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
    let mut pilot = scene.start();
    for pause in ["pause_ms=250", "pause_ms=500", "pause_ms=1000"] {
        pilot.wait_for_line(pause, SOON);
    }
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(128 + 15);
    assert_eq!(incoming.delivery_counts().len(), 1, "it is in its queue");
}
