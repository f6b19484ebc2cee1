//! The spool, a queue without a server, with one pilot: its results, and where its events end up.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::scene::{Pilot, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images, processes};

const COPY: &str = "cp {{INFILE}} {{OUTFILE}}";

/// Contents, sorted: the names of results are the pilot's.
fn contents(files: BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let texts = files.into_values().map(String::from_utf8);
    let mut texts: Vec<_> = texts.map(|text| text.expect("it is UTF-8")).collect();
    texts.sort();
    texts
}

fn names(files: &BTreeMap<String, Vec<u8>>) -> Vec<&str> {
    files.keys().map(String::as_str).collect()
}

/// All files below a directory, hidden ones too, by their path in it.
fn everything(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)
        .expect("it is a directory")
        .flatten()
    {
        if entry.path().is_dir() {
            found.extend(everything(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn json_events_give_json_results() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), COPY).spool();
    let values = [
        r#"{"z": 1, "a": NaN}"#,
        "123456789012345678901234567890",
        r#"[null, "\ud800"]"#,
    ];
    for (number, value) in values.iter().enumerate() {
        incoming.put(&format!("{number}.json"), value);
    }
    let scene = scene
        .set("EWMS_PILOT_INFILE_EXT", ".json")
        .set("EWMS_PILOT_OUTFILE_EXT", "json");
    scene.run(SOON).assert_code(0);
    let results = outgoing.files();
    for name in results.keys() {
        assert_eq!(Path::new(name).extension(), Some(OsStr::new("json")));
    }
    let mut expected = values.map(str::to_owned);
    expected.sort();
    assert_eq!(contents(results), expected);
}

#[test]
fn results_and_records_have_the_names_of_their_events() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), COPY).spool();
    // There from an earlier run, or from another pilot.
    outgoing.put("p1.json", "older");
    for (name, value) in [
        ("p1.json", "1"),
        ("p2.json", "2"),
        ("q.txt", "3"),
        ("run.17", "4"),
    ] {
        incoming.put(name, value);
    }
    let scene = scene
        .set("EWMS_PILOT_INFILE_EXT", ".json")
        .set("EWMS_PILOT_OUTFILE_EXT", ".json");
    scene.run(SOON).assert_code(0);
    let results = outgoing.files();
    let texts = |name: &str| String::from_utf8_lossy(&results[name]).into_owned();
    assert_eq!(
        names(&results),
        ["p1.2.json", "p1.json", "p2.json", "q.json", "run.17.json"]
    );
    assert_eq!(
        (texts("p1.json"), texts("p1.2.json")),
        ("older".into(), "1".into())
    );
    assert_eq!(
        (texts("p2.json"), texts("q.json")),
        ("2".into(), "3".into())
    );
    let tasks = crate::records::of_kind(&scene, "task");
    let mut events: Vec<_> = tasks
        .iter()
        .filter_map(|task| task["event_name"].as_str())
        .collect();
    events.sort_unstable();
    assert_eq!(events, ["p1.json", "p2.json", "q.txt", "run.17"]);
}

#[test]
fn what_is_no_file_is_warned_of_once_and_left_alone() {
    let scene = Scene::task(images::busybox(), COPY).set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "8");
    let (scene, incoming, outgoing) = scene.spool();
    let place = |name: &str| incoming.directory().join(name);
    fs::create_dir(place("a directory.json")).expect("made");
    fs::write(scene.dir().join("real"), "text").expect("written");
    std::os::unix::fs::symlink(scene.dir().join("real"), place("a link")).expect("linked");
    nix::unistd::mkfifo(&place("a fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    incoming.put("a file", "event");
    let mut pilot = scene.start();
    pilot.wait_for_line("a fifo", SOON);
    // One that comes while the pilot looks, and is moved in as an event is.
    std::os::unix::fs::symlink("nowhere", scene.dir().join("moved")).expect("linked");
    fs::rename(scene.dir().join("moved"), place("a moved link")).expect("moved");
    // It looks several times before it ends.
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);
    for (name, kind) in [
        ("a directory.json", "a directory"),
        ("a link", "a symbolic link"),
        ("a fifo", "a FIFO"),
        ("a moved link", "a symbolic link"),
    ] {
        let path = place(name).display().to_string();
        let told = |line: &&str| line.contains("WARN") && line.contains(&format!("path={path}"));
        let lines: Vec<&str> = outcome.stderr.lines().filter(told).collect();
        assert_eq!(lines.len(), 1, "{name}: {}", outcome.stderr);
        assert!(lines[0].contains(kind), "{lines:?}");
        assert!(place(name).symlink_metadata().is_ok());
    }
    assert_eq!(
        outcome.stderr.matches("is not taken for an event").count(),
        4
    );
    assert_eq!(names(&outgoing.files()), ["a file.txt"]);
}

#[test]
fn text_events_give_text_results() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), COPY).spool();
    let values = ["", "no \"JSON\", CR LF:\r\n", "{\"not\": \"parsed\"}"];
    for (number, value) in values.iter().enumerate() {
        incoming.put(&format!("{number}.txt"), value);
    }
    scene.run(SOON).assert_code(0);
    let results = outgoing.files();
    for name in results.keys() {
        assert_eq!(Path::new(name).extension(), Some(OsStr::new("txt")));
    }
    assert_eq!(contents(results), values.map(str::to_owned));
}

#[test]
fn results_have_names_in_the_order_in_which_they_came() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), COPY).spool();
    let values: Vec<String> = (10..20).map(|number| number.to_string()).collect();
    for value in &values {
        incoming.put(value, value);
    }
    scene.run(SOON).assert_code(0);
    // One slot takes events in the order of their names; the map is sorted by the results' names.
    let results: Vec<Vec<u8>> = outgoing.files().into_values().collect();
    assert_eq!(results.len(), 10);
    for (result, value) in results.iter().zip(&values) {
        assert_eq!(result, value.as_bytes());
    }
}

#[test]
fn what_was_worked_through_lies_in_done_as_it_came() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), "true").spool();
    incoming.put("one.json", "{\"a\":   1}");
    incoming.put("two", "text");
    let scene = scene.set("EWMS_PILOT_INFILE_EXT", ".json");
    scene.run(SOON).assert_code(0);
    let done = incoming.done();
    assert_eq!(names(&done), ["one.json", "two"]);
    assert_eq!(done["one.json"], b"{\"a\":   1}");
    assert!(incoming.files().is_empty());
    let claimed = everything(&incoming.directory().join("claimed"));
    assert!(claimed.is_empty(), "{claimed:?}");
    assert!(outgoing.files().is_empty(), "no outfile is no result");
}

#[test]
fn files_that_are_still_written_are_no_events() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), COPY).spool();
    incoming.put("good", "good");
    for name in [".hidden", "x.tmp", "x.part", "x~"] {
        fs::write(incoming.directory().join(name), "half").expect("written");
    }
    scene.run(SOON).assert_code(0);
    assert_eq!(contents(outgoing.files()), ["good"]);
    assert_eq!(names(&incoming.files()), ["x.part", "x.tmp", "x~"]);
}

#[test]
fn an_event_that_fails_three_times_is_given_up_with_its_error_beside_it() {
    let arguments = "sh -c 'echo x >> {{DATA_HUB}}/tries; echo cause >&2; exit 9'";
    let (scene, incoming, _) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("bad.txt", "event");
    let scene = scene.set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False");
    scene.run(SOON).assert_code(1);
    assert_eq!(hub(&scene, "tries"), "x\nx\nx\n");
    let failed = incoming.failed();
    assert_eq!(names(&failed), ["bad.txt", "bad.txt.error.txt"]);
    assert_eq!(failed["bad.txt"], b"event");
    let error = String::from_utf8_lossy(&failed["bad.txt.error.txt"]).into_owned();
    assert!(
        error.contains("ContainerRunError('task failed (exit code 9): cause')"),
        "{error}"
    );
    assert!(incoming.files().is_empty() && incoming.done().is_empty());
}

#[test]
fn failures_in_different_pilots_add_up() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "false").spool();
    incoming.put("bad", "event");
    for earlier in 0..3 {
        assert_eq!(names(&incoming.files()), ["bad"], "after {earlier}");
        let outcome = scene.run(SOON);
        outcome.assert_code(1);
        let line = outcome.last_line();
        assert!(
            line.starts_with("RuntimeError: 1 TASK(S) FAILED: "),
            "{line}"
        );
    }
    assert!(incoming.failed().contains_key("bad"));
    assert!(incoming.files().is_empty());
}

#[test]
fn an_event_given_back_on_sigterm_has_not_failed() {
    let arguments =
        r#"sh -c "[ -e {{DATA_HUB}}/go ] || exec sleep 8131; cp {{INFILE}} {{OUTFILE}}""#;
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), arguments).spool();
    incoming.put("long", "event");
    let scene = scene.set("EWMS_PILOT_KILL_GRACE", "0.2");
    // Once more than an event may fail.
    for _ in 0..4 {
        let mut pilot = scene.start();
        pilot.wait_for_line("task started", SOON);
        pilot.signal(Signal::SIGTERM);
        pilot.wait(SOON).assert_code(143);
        processes::assert_nothing_runs("sleep 8131", SOON);
        assert_eq!(names(&incoming.files()), ["long"]);
    }
    fs::write(hub_file(&scene, "go"), "").expect("written");
    scene.run(SOON).assert_code(0);
    assert_eq!(contents(outgoing.files()), ["event"]);
}

#[test]
fn a_result_is_seen_complete_or_not_at_all() {
    const SIZE: usize = 30_000_000;
    let arguments = format!(r#"sh -c "head -c {SIZE} /dev/zero | tr '\0' x > {{{{OUTFILE}}}}""#);
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), arguments).spool();
    for number in 0..4 {
        incoming.put(&number.to_string(), "");
    }
    let mut pilot = scene.start();
    let mut seen = BTreeMap::new();
    while !pilot.has_ended() {
        for entry in fs::read_dir(outgoing.directory())
            .expect("it is there")
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                // Its size when it was seen first.
                let size = || entry.metadata().map_or(0, |found| found.len());
                seen.entry(name).or_insert_with(size);
            }
        }
    }
    pilot.wait(SOON).assert_code(0);
    assert_eq!(seen.len(), 4);
    for (name, size) in seen {
        assert_eq!(size, u64::try_from(SIZE).expect("it fits"), "{name}");
    }
    // Nothing temporary is left either.
    assert_eq!(everything(outgoing.directory()).len(), 4);
}

#[test]
fn a_result_that_cannot_be_written_loses_no_event() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), COPY).spool();
    incoming.put("a", "event");
    set_mode(&outgoing, 0o555);
    let outcome = scene.run(SOON);
    set_mode(&outgoing, 0o755);
    outcome.assert_code(4);
    assert!(
        !outcome.stderr.contains("task started"),
        "{}",
        outcome.stderr
    );
    assert_eq!(names(&incoming.files()), ["a"]);
    let line = outcome.last_line();
    let directory = outgoing.directory().display().to_string();
    assert!(
        line.contains(&directory) && line.contains("Permission denied"),
        "{line}"
    );
    // Once it can be written again, the event's turn comes.
    scene.run(SOON).assert_code(0);
    assert_eq!(contents(outgoing.files()), ["event"]);
}

/// A task that copies its event when there is the file `release`.
const HELD: &str = r#"sh -c "
    echo >> {{DATA_HUB}}/starts
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done
    cp {{INFILE}} {{OUTFILE}}""#;

/// For how long a result was refused when it was last tried; the pauses between tries vary.
fn refused_secs(pilot: &Pilot) -> u64 {
    let stderr = pilot.stderr();
    let (_, last) = stderr.rsplit_once("refused_secs=").unwrap_or_default();
    let digits = last.split(|letter: char| !letter.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[test]
fn a_result_for_which_there_is_no_directory_now_waits_and_is_written_when_there_is() {
    // It can't be written; it is gone.
    let lock = |outgoing: &SpoolQueue| set_mode(outgoing, 0o555);
    let remove = |outgoing: &SpoolQueue| {
        fs::remove_dir_all(outgoing.directory()).expect("it is ours");
        let parent = outgoing.directory().parent().expect("it has one");
        fs::set_permissions(parent, Permissions::from_mode(0o555)).expect("it is ours");
    };
    for spoil in [lock as fn(&SpoolQueue), remove] {
        let (scene, incoming, outgoing) = Scene::task(images::busybox(), HELD).spool();
        incoming.put("a", "event");
        let mut pilot = scene.start();
        assert!(eventually(SOON, || hub_file(&scene, "starts").exists()));
        spoil(&outgoing);
        fs::write(hub_file(&scene, "release"), "").expect("the hub is writable");
        pilot.wait_for_line("the broker refused a result", SOON);
        // It comes while no event is taken, and longer ago than the idle time is.
        incoming.put("b", "another");
        assert!(eventually(SOON, || refused_secs(&pilot) >= 2));
        assert_eq!(hub(&scene, "starts").len(), 1, "{}", pilot.stderr());
        let parent = outgoing.directory().parent().expect("it has one");
        fs::set_permissions(parent, Permissions::from_mode(0o755)).expect("it is ours");
        if outgoing.directory().exists() {
            set_mode(&outgoing, 0o755);
        }
        pilot.wait(SOON).assert_code(0);
        assert_eq!(hub(&scene, "starts").len(), 2);
        assert_eq!(contents(outgoing.files()), ["another", "event"]);
        assert_eq!(names(&incoming.done()), ["a", "b"]);
    }
}

#[test]
fn a_result_that_cannot_be_written_for_too_long_is_kept_and_its_event_goes_back_unmarked() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), HELD).spool();
    let scene = scene.set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "3");
    incoming.put("a", "event");
    let pilot = scene.start();
    assert!(eventually(SOON, || hub_file(&scene, "starts").exists()));
    set_mode(&outgoing, 0o555);
    fs::write(hub_file(&scene, "release"), "").expect("the hub is writable");
    let outcome = pilot.wait(SOON);
    set_mode(&outgoing, 0o755);
    outcome.assert_code(4);
    assert!(
        outcome.last_line().contains("Permission denied"),
        "{}",
        outcome.last_line()
    );
    assert_eq!(hub(&scene, "starts").len(), 1);
    assert_eq!(names(&incoming.files()), ["a"]);
    let tries = incoming.directory().join(".tries");
    assert_eq!(fs::read_dir(tries).map_or(0, Iterator::count), 0);
    let kept = || fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count);
    assert_eq!((kept(), outgoing.files().len()), (1, 0));

    // The next one writes it first, under its event's name, and runs the event again.
    scene.run(SOON).assert_code(0);
    assert_eq!(kept(), 0);
    assert_eq!(contents(outgoing.files()), ["event", "event"]);
}

#[test]
fn a_spool_that_cannot_be_made_is_told_before_any_event_is_taken() {
    let (scene, incoming, _) = Scene::task(images::busybox(), COPY).spool();
    incoming.put("a", "event");
    let file = scene.dir().join("file");
    fs::write(&file, "").expect("written");
    let scene = scene.set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", &file);
    let outcome = scene.run(SOON);
    outcome.assert_code(4);
    let line = outcome.last_line();
    assert!(line.contains(&file.display().to_string()), "{line}");
    assert!(
        !outcome.stderr.contains("task started"),
        "{}",
        outcome.stderr
    );
    assert_eq!(names(&incoming.files()), ["a"]);
}

#[test]
fn an_event_that_comes_while_the_pilot_waits_is_taken_at_once() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), COPY).spool();
    let scene = scene.set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "600");
    let mut pilot = scene.start();
    pilot.wait_for_line("AwaitingFirstMessage", SOON);
    incoming.put("late", "event");
    pilot.wait_for_line("task started", Duration::from_secs(5));
    pilot.wait(SOON).assert_code(0);
    assert_eq!(contents(outgoing.files()), ["event"]);
}

fn set_mode(queue: &SpoolQueue, mode: u32) {
    fs::set_permissions(queue.directory(), Permissions::from_mode(mode)).expect("it is ours");
}

fn hub_file(scene: &Scene, name: &str) -> PathBuf {
    scene.dir().join("ewms-pilot-data/data-hub").join(name)
}

fn hub(scene: &Scene, name: &str) -> String {
    fs::read_to_string(hub_file(scene, name)).expect("the tasks wrote it")
}
