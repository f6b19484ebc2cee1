//! What a container sees, how it ends, and what is left of it: the pilot with the real Apptainer, events
//! from a spool.

mod arguments;
mod deadlines;
mod environment;
mod failures;
mod init;
mod isolation;
mod outputs;
mod scratch;
mod secrets;
mod signals;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, eventually, images};

/// The argument string that runs `script` in the image's shell.
fn sh(script: &str) -> String {
    format!("sh -c {}", shell_words::quote(script))
}

/// A scene whose tasks run `script` in busybox's shell.
fn shell_task(script: &str) -> Scene {
    Scene::task(images::busybox(), sh(script))
}

/// A scene whose tasks run `source` in Python.
fn python_task(source: &str) -> Scene {
    let args = format!("python3 -c {}", shell_words::quote(source));
    Scene::task(images::python(), args)
}

/// Runs one event, which must succeed and have a result: that.
#[track_caller]
fn result_of(scene: Scene) -> String {
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "the event");
    scene.run(SOON).assert_code(0);
    let results = outgoing.files();
    assert_eq!(results.len(), 1, "{results:?}");
    let result = results.into_values().next().expect("there is one");
    String::from_utf8(result).expect("a text result is UTF-8")
}

/// Runs one event, which must fail, with no failure but its own.
#[track_caller]
fn failure_of(scene: Scene) -> (Scene, Outcome) {
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "the event");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert!(outgoing.files().is_empty(), "{:?}", outgoing.files());
    assert!(incoming.files().contains_key("event.txt"));
    (scene, outcome)
}

/// The data hub, seen from the execution point.
fn hub(scene: &Scene) -> PathBuf {
    scene.dir().join("ewms-pilot-data/data-hub")
}

/// Waits for a file that a container makes.
#[track_caller]
fn await_file(path: &Path) {
    assert!(
        eventually(SOON, || path.exists()),
        "no {} after {SOON:?}",
        path.display()
    );
}

/// The names in a directory; none if it isn't there.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The one directory of a container that was kept.
#[track_caller]
fn kept(scene: &Scene) -> PathBuf {
    let data = scene.dir().join("ewms-pilot-data");
    let mut kept = names(&data);
    assert!(kept.remove("data-hub"), "{kept:?}");
    assert_eq!(kept.len(), 1, "{kept:?}");
    data.join(kept.pop_first().expect("there is one"))
}

/// Panics unless nothing of any container is left on the execution point but the data hub.
#[track_caller]
fn assert_only_the_hub_is_left(scene: &Scene) {
    let left = names(&scene.dir().join("ewms-pilot-data"));
    assert_eq!(left, BTreeSet::from(["data-hub".to_owned()]));
    assert_no_scratch(scene);
}

/// Panics if a container's /tmp, /var/tmp or home is left on the execution point.
#[track_caller]
fn assert_no_scratch(scene: &Scene) {
    let mut left = names(&scene.dir().join("ewms-pilot-scratch"));
    left.remove("apptainer");
    assert!(left.is_empty(), "{left:?}");
}
