//! The life of a pilot as a real HTCondor job: the bundled template, submitted by an ordinary user to a
//! pool of two machines, with RabbitMQ beside it.

mod container;
mod environment;
mod faults;
mod gpus;
mod inputs;
mod life;
mod service;
mod stops;
mod templates;

pub(crate) use container::pilot_images;

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::condor::Submission;
use crate::support::rabbitmq::Queue;
use crate::support::{eventually, images};

/// For results that are there already.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Queues of its own and pilots that use them: the tasks run `arguments` in `image`.
pub(crate) fn pilots(image: &Path, arguments: &str) -> (Submission, Queue, Queue) {
    let (events, results) = (Queue::unique("events"), Queue::unique("results"));
    let submission = Submission::new(image, arguments).rabbitmq(&events, &results);
    (submission, events, results)
}

/// Pilots whose tasks run `script` in busybox's shell.
fn shell_pilots(script: &str) -> (Submission, Queue, Queue) {
    pilots(&images::busybox(), &sh(script))
}

/// The argument string that runs `script` in the image's shell.
pub(crate) fn sh(script: &str) -> String {
    format!("sh -c {}", shell_words::quote(script))
}

/// A directory that every job sees; /tmp is each job's own.
pub(crate) fn on_the_ep() -> TempDir {
    let home = std::env::var_os("HOME").expect("the tests have a home");
    tempfile::tempdir_in(home).expect("a home is writable")
}

/// Puts `count` events into a queue: numbers as texts, whatever the infile's suffix.
pub(crate) fn fill(queue: &Queue, count: usize) -> Vec<String> {
    let events: Vec<String> = (0..count).map(|number| format!("\"{number}\"")).collect();
    queue.produce(&events);
    assert!(eventually(Duration::from_secs(10), || queue.depth() == count));
    events
}

/// Panics unless the queue holds exactly the results of `events`, each of which may be there twice.
#[track_caller]
pub(crate) fn assert_results(queue: &Queue, events: &[String]) {
    let mut results = queue.consume(2 * events.len() + 1, AT_ONCE);
    results.sort();
    results.dedup();
    let mut expected = events.to_vec();
    expected.sort();
    assert_eq!(results, expected);
}

/// Panics unless every event is back in its queue.
#[track_caller]
fn assert_given_back(queue: &Queue, count: usize) {
    let back = eventually(Duration::from_secs(20), || queue.depth() == count);
    assert!(back, "{} of {count} events are back", queue.depth());
}
