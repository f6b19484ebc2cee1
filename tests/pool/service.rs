//! What a submitting service sees of its pilots: the number of each status and the texts of the errors, to the
//! letter. All task forces run at once; each test looks at one of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::container::pilot_images;
use super::{AT_ONCE, on_the_ep, sh};
use crate::support::condor::{BY_THEN, run};
use crate::support::mounts::Mounted;
use crate::support::rabbitmq::{self, Queue};
use crate::support::service::{Awaited, Service, StatusCounts, Taskforce};
use crate::support::{images, pilot_binary, source_dir};

/// Where the repository is that the pool's machines have mounted.
const CVMFS: &str = "/cvmfs/service.org";

/// Says what the task's event is, what the init container found on CVMFS, and the task itself; then every file
/// that could be of the job's scratch, or CVMFS, and how many variables are the job's or the pilot's.
const LOOK: &str = "echo \"$(cat {{INFILE}})|$(cat {{DATA_HUB}}/startup)|$(cat /cvmfs/service.org/table.fits)|\
    $(find / -path /proc -prune -o \\( -name 'ewms_*' -o -name '.chirp*' -o -name '.job.ad' \
    -o -name '.machine.ad' -o -name 'condor_exec*' -o -name '_condor*' -o -name table.fits \\) -print 2>/dev/null)|\
    $(env | grep -c -e CONDOR -e EWMS_PILOT)\" >{{OUTFILE}}; true";

/// The file system that machines have at [`CVMFS`]: a table, and the pilot's image.
struct Repository {
    directory: TempDir,
    _mounted: Mounted,
}

impl Repository {
    fn publish() -> Self {
        let directory = on_the_ep();
        fs::write(directory.path().join("table.fits"), "splines").expect("writable");
        let image = directory.path().join("ewms-pilot");
        let copy = |from: &Path, to: &Path| run(Command::new("cp").arg("-a").args([from, to]));
        copy(&pilot_images().join("pilot"), &image);
        copy(&pilot_binary(), &image.join("usr/bin/ewms-pilot"));
        let wrapper = source_dir().join("condor/ewms-pilot-wrapper");
        copy(&wrapper, &image.join("usr/bin/ewms-pilot-wrapper"));
        let runscript = image.join(".singularity.d/runscript");
        fs::write(runscript, "#!/bin/sh\nexec ewms-pilot-wrapper \"$@\"\n").expect("writable");
        run(Command::new("chmod").arg("755").args([directory.path()]));
        run(Command::new("sudo").args(["mkdir", "-p", CVMFS]));
        let mounted = Mounted::bind(directory.path(), Path::new(CVMFS));
        Self {
            directory,
            _mounted: mounted,
        }
    }

    fn image() -> PathBuf {
        Path::new(CVMFS).join("ewms-pilot")
    }
}

/// A task force while it is made: its settings, and its queues.
struct Plan {
    name: &'static str,
    environment: Map<String, Value>,
    incoming: Vec<Queue>,
    outgoing: Vec<Queue>,
}

impl Plan {
    /// Tasks run `script` in busybox's shell; each of so many queues has these events. Several are an array in
    /// one direction, and joined in the other: services write both.
    fn new(name: &'static str, script: &str, queues: usize, events: &[&str]) -> Self {
        let make =
            |label: &str| -> Vec<Queue> { (0..queues).map(|_| Queue::unique(label)).collect() };
        let (incoming, outgoing) = (make("events"), make("results"));
        for (number, queue) in incoming.iter().enumerate() {
            queue.produce(events.iter().map(|event| format!("\"{event}{number}\"")));
        }
        let mut plan = Self {
            name,
            environment: Map::new(),
            incoming,
            outgoing,
        };
        for (direction, queues) in [("INCOMING", &plan.incoming), ("OUTGOING", &plan.outgoing)] {
            let names: Vec<&str> = queues.iter().map(Queue::name).collect();
            let all = |text: &'static str| vec![text; queues.len()];
            for (suffix, values) in [
                ("", names),
                ("_BROKER_TYPE", all("rabbitmq")),
                ("_BROKER_ADDRESS", all(rabbitmq::ADDRESS)),
            ] {
                let name = format!("EWMS_PILOT_QUEUE_{direction}{suffix}");
                let value = match (direction, values.len()) {
                    ("INCOMING", 2..) => json!(values),
                    _ => json!(values.join(";")),
                };
                plan.environment.insert(name, value);
            }
        }
        plan.set("EWMS_PILOT_TASK_IMAGE", json!(images::busybox()))
            .set("EWMS_PILOT_TASK_ARGS", json!(sh(script)))
            .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", json!(5))
    }

    fn set(mut self, name: &str, value: Value) -> Self {
        self.environment.insert(name.to_owned(), value);
        self
    }

    /// Its tasks wait for the test, which waits until both pilots have one.
    fn patient(self) -> Self {
        self.set(
            "EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE",
            json!(100),
        )
    }

    fn init(self, script: &str) -> Self {
        self.set("EWMS_PILOT_INIT_IMAGE", json!(images::busybox()))
            .set("EWMS_PILOT_INIT_ARGS", json!(sh(script)))
    }
}

/// What became of a task force.
struct Ended {
    counts: StatusCounts,
    results: Vec<String>,
    events_left: usize,
    story: String,
}

const COPY: &str = "cp {{INFILE}} {{OUTFILE}}";
const UNTIL_GO: &str =
    "until [ -e /cvmfs/service.org/go ]; do sleep 0.1; done; cp {{INFILE}} {{OUTFILE}}";

fn plans() -> Vec<Plan> {
    vec![
        Plan::new("evicted", UNTIL_GO, 1, &["a", "b"]).patient(),
        Plan::new("busy", "sleep 600", 1, &["a", "b"]).patient(),
        Plan::new("idle", COPY, 1, &[]).set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", json!(600)),
        Plan::new("normal", LOOK, 1, &["a", "b", "c", "d"])
            .init("cp /cvmfs/service.org/table.fits {{DATA_HUB}}/startup"),
        Plan::new("several", COPY, 2, &["a", "b"]),
        Plan::new("crash", "echo 'no \"photons\"' >&2; exit 3", 1, &["a", "b"]),
        Plan::new("timeout", "sleep 600", 1, &["a", "b"]).set("EWMS_PILOT_TASK_TIMEOUT", json!(1)),
        Plan::new("init", COPY, 1, &["a"])
            .init("echo 'curl: (22) The requested URL returned error: 404' >&2; exit 22"),
        Plan::new("wrong", COPY, 1, &["a"]).set("EWMS_PILOT_PREFETCH", json!("many")),
        Plan::new("no-image", COPY, 1, &["a"])
            .set("EWMS_PILOT_TASK_IMAGE", json!("/cvmfs/service.org/none")),
    ]
}

/// Runs them all, once: where that fails it is not tried again by the next test.
fn ended(name: &str) -> &'static Ended {
    static ENDED: LazyLock<BTreeMap<&'static str, Ended>> = LazyLock::new(run_all);
    &ENDED[name]
}

fn run_all() -> BTreeMap<&'static str, Ended> {
    // Twenty pilots start at once.
    let deadline = 2 * BY_THEN;
    let repository = Repository::publish();
    let service = Service::new(&Repository::image());
    let plans = plans();
    let submitted: BTreeMap<&str, Taskforce> = plans
        .iter()
        .map(|plan| (plan.name, service.submit(plan.name, &plan.environment)))
        .collect();
    let tasking = Awaited::Status("Tasking");
    let stopped = Awaited::Status("PendingRemainingTasks");
    let [evicted, busy, idle] = ["evicted", "busy", "idle"].map(|name| &submitted[name]);
    let idles = Awaited::Status("AwaitingFirstMessage");
    service.wait_for(
        &[(evicted, tasking), (busy, tasking), (idle, idles)],
        deadline,
    );
    busy.tell("condor_rm");
    idle.tell("condor_rm");
    evicted.tell("condor_vacate_job");
    service.wait_for(&[(evicted, Awaited::Eviction)], deadline);
    fs::write(repository.directory.path().join("go"), "").expect("writable");
    let ends = submitted
        .values()
        .map(|taskforce| (taskforce, Awaited::End));
    let ends = ends.chain([(busy, stopped), (idle, stopped)]);
    let summary = service.wait_for(&ends.collect::<Vec<_>>(), deadline);
    let mut all = BTreeMap::new();
    for plan in plans {
        let consume = |queue: &Queue| queue.consume(queue.depth(), AT_ONCE);
        let mut results: Vec<String> = plan.outgoing.iter().flat_map(consume).collect();
        results.sort();
        // A result may arrive twice, but never with a difference.
        results.dedup();
        let ended = Ended {
            counts: summary.of(&submitted[plan.name]),
            results,
            events_left: plan.incoming.iter().map(Queue::depth).sum(),
            story: service.story(plan.name),
        };
        all.insert(plan.name, ended);
    }
    all
}

#[track_caller]
fn assert_seen(
    name: &str,
    status: &str,
    error: Option<&str>,
    events_left: usize,
) -> &'static [String] {
    let ended = ended(name);
    let counts = StatusCounts {
        statuses: BTreeMap::from([(status.to_owned(), 2)]),
        errors: error
            .map(|error| (error.to_owned(), 2))
            .into_iter()
            .collect(),
    };
    assert_eq!(ended.counts, counts, "{}", ended.story);
    assert_eq!(ended.events_left, events_left, "{}", ended.story);
    &ended.results
}

#[test]
fn tasks_see_cvmfs_and_nothing_of_the_jobs_scratch_and_every_pilot_is_done() {
    let results = assert_seen("normal", "Done", None, 0);
    let of = |event| format!("\"{event}0|splines|splines|/cvmfs/service.org/table.fits|0\\n\"");
    assert_eq!(
        results,
        ["a", "b", "c", "d"].map(of),
        "{}",
        ended("normal").story
    );
}

#[test]
fn a_task_force_with_several_queues_empties_them_all() {
    let results = assert_seen("several", "Done", None, 0);
    assert_eq!(results, ["\"a0\"", "\"a1\"", "\"b0\"", "\"b1\""]);
}

#[test]
fn an_evicted_task_force_returns_and_ends_as_if_nothing_had_been() {
    assert_eq!(
        assert_seen("evicted", "Done", None, 0),
        ["\"a0\"", "\"b0\""]
    );
}

#[test]
fn a_task_force_that_is_removed_has_no_error_busy_or_idle() {
    assert_seen("busy", "PendingRemainingTasks", None, 2);
    assert_seen("idle", "PendingRemainingTasks", None, 0);
}

#[test]
fn a_failure_of_every_pilot_is_one_error_counted_twice() {
    for (name, events, error) in [
        (
            "crash",
            2,
            "RuntimeError: 1 TASK(S) FAILED: ContainerRunError('task failed (exit code 3): no \"photons\"')",
        ),
        (
            "timeout",
            2,
            "RuntimeError: 1 TASK(S) FAILED: ContainerRunError('task failed: [Timeout-Error] timed out after 1s')",
        ),
        (
            "init",
            1,
            "init-container failed (exit code 22): curl: (22) The requested URL returned error: 404",
        ),
        (
            "wrong",
            1,
            "RuntimeError: `EWMS_PILOT_PREFETCH` is `many`: expected an integer from 1 to 65535",
        ),
        (
            "no-image",
            1,
            "ContainerSetupError: image `/cvmfs/service.org/none` does not exist here; check the path, \
             and that its file system is mounted",
        ),
    ] {
        let results = assert_seen(name, "FatalError", Some(error), events);
        assert!(results.is_empty(), "{results:?}");
    }
}
