//! Reports to HTCondor: which attributes are set, in how many lines, and what counts as an error.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::{fs, path::Path};

use nix::sys::signal::Signal;

use crate::support::chirp::{ChirpServer, Report, values};
use crate::support::scene::{Pilot, Scene};
use crate::support::{SOON, eventually, images};

/// Where pilots may chirp to.
const DESTINATIONS: [&str; 2] = ["JOB_ATTR", "JOB_EVENT_LOG"];

/// What services read in the event log; nothing else may be there.
const IN_EVENT_LOG: [&str; 8] = [
    "StartedTimestamp",
    "Status",
    "TasksTotal",
    "TasksFailed",
    "TasksSuccess",
    "Error",
    "ErrorTraceback",
    "LastUpdatedTimestamp",
];

/// The lines that the Python pilot writes when it does one task.
const PYTHONS_LINES: usize = 13;

fn reports(server: &ChirpServer, destination: &str) -> Vec<Report> {
    match destination {
        "JOB_ATTR" => server.attributes(),
        _ => server.log_lines(),
    }
}

/// What a pilot may be doing when it is told to stop.
struct Activity {
    name: &'static str,
    /// Makes the pilot do it.
    set: fn(Scene) -> Scene,
    /// Waits until it does.
    reach: fn(&Scene, &mut Pilot),
    /// The statuses that were chirped by then.
    statuses: &'static [&'static str],
}

const ACTIVITIES: [Activity; 6] = [
    Activity {
        name: "start-up checks",
        set: |scene| {
            let path = scene.dir().join("bin");
            hanging_apptainer(&path);
            scene.set("PATH", path)
        },
        reach: |scene, pilot| wait_for_file(&scene.dir().join("bin/began"), pilot),
        statuses: &["Started"],
    },
    Activity {
        name: "init container",
        set: |scene| {
            scene
                .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
                .set("EWMS_PILOT_INIT_ARGS", wait_in_task("init"))
        },
        reach: |scene, pilot| wait_for_file(&scene.hub("init"), pilot),
        statuses: &["Started", "RunningInitCommand"],
    },
    Activity {
        name: "connecting",
        set: |scene| {
            // It takes connections and never says a word.
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("it is bound").to_string();
            std::mem::forget(listener);
            ["INCOMING", "OUTGOING"].iter().fold(scene, |scene, way| {
                let name = format!("EWMS_PILOT_QUEUE_{way}_BROKER");
                scene
                    .set(&format!("{name}_TYPE"), "rabbitmq")
                    .set(&format!("{name}_ADDRESS"), &address)
            })
        },
        reach: |_, pilot| drop(pilot.wait_for_line("check=\"container\"", SOON)),
        statuses: &["Started"],
    },
    Activity {
        name: "waiting for its first event",
        set: |scene| scene.set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "600"),
        reach: |_, pilot| drop(pilot.wait_for_line("status=\"AwaitingFirstMessage\"", SOON)),
        statuses: &["Started", "AwaitingFirstMessage"],
    },
    Activity {
        name: "a task",
        set: |scene| scene.set("EWMS_PILOT_TASK_ARGS", wait_in_task("task")),
        reach: |scene, pilot| wait_for_file(&scene.hub("task"), pilot),
        statuses: &["Started", "AwaitingFirstMessage", "Tasking"],
    },
    Activity {
        name: "a task after one that failed",
        set: |scene| {
            let script =
                "case $(cat {{INFILE}}) in a) exit 3;; esac; touch {{DATA_HUB}}/second; sleep 600";
            scene
                .set(
                    "EWMS_PILOT_TASK_ARGS",
                    format!("sh -c {}", shell_words::quote(script)),
                )
                .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        },
        reach: |scene, pilot| {
            wait_for_file(&scene.hub("second"), pilot);
            pilot.wait_for_line("task failed (exit code 3)", SOON);
        },
        statuses: &["Started", "AwaitingFirstMessage", "Tasking"],
    },
];

/// Arguments of a container that says where it is and then waits.
fn wait_in_task(name: &str) -> String {
    format!("sh -c 'touch {{{{DATA_HUB}}}}/{name}; sleep 600'")
}

/// An `apptainer` that says that it began, and never ends by itself.
fn hanging_apptainer(directory: &Path) {
    fs::create_dir(directory).expect("it is not there yet");
    let began = directory.join("began");
    let script = format!("#!/bin/sh\n: >{}\nexec /bin/sleep 600\n", began.display());
    let program = directory.join("apptainer");
    fs::write(&program, script).expect("it can be written");
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&program, executable).expect("it is ours");
}

#[track_caller]
fn wait_for_file(path: &Path, pilot: &mut Pilot) {
    let found = eventually(SOON, || path.exists() || pilot.has_ended());
    assert!(
        found && path.exists(),
        "{}: {}",
        path.display(),
        pilot.stderr()
    );
}

#[test]
fn being_told_to_stop_is_no_error_whatever_the_pilot_does() {
    for activity in ACTIVITIES {
        for destination in DESTINATIONS {
            let server = ChirpServer::start();
            let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
            if activity.statuses.contains(&"Tasking") {
                incoming.put("a", "a");
                incoming.put("b", "b");
            }
            let scene = (activity.set)(server.told_by(scene, destination))
                .set("EWMS_PILOT_KILL_GRACE", "0");
            let mut pilot = scene.start();
            (activity.reach)(&scene, &mut pilot);
            pilot.signal(Signal::SIGTERM);
            let outcome = pilot.wait(SOON);
            let about = format!("{}, {destination}: {}", activity.name, outcome.stderr);
            assert_eq!(outcome.code, Some(143), "{about}");
            assert!(outcome.last_line().starts_with("RuntimeError: "), "{about}");

            let said = reports(&server, destination);
            let mut statuses = activity.statuses.to_vec();
            statuses.push("PendingRemainingTasks");
            assert_eq!(values(&said, "Status"), statuses, "{about}");
            let cleared: &[&str] = if destination == "JOB_ATTR" {
                &["UNDEFINED"]
            } else {
                &[]
            };
            for attribute in ["Error", "ErrorTraceback"] {
                assert_eq!(values(&said, attribute), cleared, "{about}");
            }
        }
    }
}

#[test]
fn one_task_takes_no_more_lines_of_the_event_log_than_the_python_pilot_writes() {
    // Longer than the interval of the counters, too: then the counts are due before the pilot is idle.
    for (interval, seconds) in [("60", "0.1"), ("1", "3")] {
        let server = ChirpServer::start();
        let arguments = format!("sh -c 'sleep {seconds}; cp {{{{INFILE}}}} {{{{OUTFILE}}}}'");
        let (scene, incoming, _) = Scene::task(images::busybox(), arguments).spool();
        incoming.put("a", "event");
        let scene = server
            .told_by(scene, "JOB_EVENT_LOG")
            .set("EWMS_PILOT_HTCHIRP_RATELIMIT_INTERVAL", interval)
            .set("GLIDEIN_Site", "DESY");
        scene.run(SOON).assert_code(0);
        let said = server.log_lines();
        assert!(said.len() <= PYTHONS_LINES, "{}: {said:?}", said.len());
        for (name, _) in &said {
            assert!(IN_EVENT_LOG.contains(&name.as_str()), "{name}");
        }
        let statuses = [
            "Started",
            "AwaitingFirstMessage",
            "Tasking",
            "PendingRemainingTasks",
            "Done",
        ];
        assert_eq!(values(&said, "Status"), statuses);
        assert_eq!(values(&said, "TasksTotal"), ["1"]);
        assert_eq!(values(&said, "TasksSuccess"), ["1"]);
        assert_eq!(server.attributes(), []);
    }
}

#[test]
fn a_failing_pilot_adds_nothing_to_the_event_log_but_its_error() {
    let server = ChirpServer::start();
    let (scene, incoming, _) =
        Scene::task(images::busybox(), "sh -c 'echo no >&2; exit 3'").spool();
    incoming.put("a", "event");
    let scene = server.told_by(scene, "JOB_EVENT_LOG");
    scene.run(SOON).assert_code(1);
    let said = server.log_lines();
    for (name, _) in &said {
        assert!(IN_EVENT_LOG.contains(&name.as_str()), "{name}");
    }
    let error =
        "RuntimeError: 1 TASK(S) FAILED: ContainerRunError('task failed (exit code 3): no')";
    assert_eq!(values(&said, "Error"), [error]);
    assert_eq!(
        values(&said, "Status").last().map(String::as_str),
        Some("FatalError")
    );
    assert_eq!(values(&said, "TasksFailed"), ["1"]);
}

#[test]
fn the_error_of_an_init_container_is_the_python_pilots_to_the_letter() {
    let timeout = ("EWMS_PILOT_INIT_TIMEOUT", "1");
    let none = ("EWMS_PILOT_INIT_TIMEOUT", "600");
    for (script, (name, value), error) in [
        (
            "echo noise; echo 'curl: (22) The requested URL returned error: 404' >&2; exit 22",
            none,
            "init-container failed (exit code 22): curl: (22) The requested URL returned error: 404",
        ),
        (
            "exit 1",
            none,
            "init-container failed (exit code 1): <no stderr logs>",
        ),
        (
            "sleep 600",
            timeout,
            "init-container failed: [Timeout-Error] timed out after 1s",
        ),
    ] {
        for destination in DESTINATIONS {
            let server = ChirpServer::start();
            let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
            let scene = server
                .told_by(scene, destination)
                .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
                .set(
                    "EWMS_PILOT_INIT_ARGS",
                    format!("sh -c {}", shell_words::quote(script)),
                )
                .set(name, value);
            let outcome = scene.run(SOON);
            outcome.assert_code(5);
            assert_eq!(outcome.last_line(), format!("ContainerRunError: {error}"));
            let said = reports(&server, destination);
            assert_eq!(
                values(&said, "Error").last().map(String::as_str),
                Some(error)
            );
            let statuses = ["Started", "RunningInitCommand", "FatalError"];
            assert_eq!(values(&said, "Status"), statuses);
        }
    }
}

/// A pilot with wrong settings: what it chirps, to the ad and to the event log.
fn refused(server: &ChirpServer, scene: &Scene) -> (Vec<Report>, Vec<Report>) {
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    (server.attributes(), server.log_lines())
}

#[track_caller]
fn assert_fatal(said: &[Report], error: &str) {
    assert_eq!(values(said, "Error"), [error]);
    assert_eq!(values(said, "Status"), ["FatalError"]);
    let traceback = values(said, "ErrorTraceback");
    assert_eq!(traceback.len(), 1, "{said:?}");
    let last = said.last().map(|(name, _)| name.as_str());
    assert_eq!(last, Some("LastUpdatedTimestamp"));
}

#[test]
fn a_wrong_configuration_is_chirped_with_the_variables_that_are_wrong() {
    let error = "RuntimeError: 2 configuration problems; \
                 `EWMS_PILOT_PREFETCH` is `many`: expected an integer from 1 to 65535; \
                 `EWMS_PILOT_KILL_GRACE` is `soon`: expected seconds, 0 or more, fractions allowed";
    let wrong = |destination: &str| {
        let server = ChirpServer::start();
        let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
        let scene = server
            .told_by(scene, destination)
            .set("EWMS_PILOT_PREFETCH", "many")
            .set("EWMS_PILOT_KILL_GRACE", "soon");
        refused(&server, &scene)
    };
    let (ad, log) = wrong("JOB_ATTR");
    assert_fatal(&ad, error);
    assert_eq!(log, []);

    let (ad, log) = wrong("JOB_EVENT_LOG");
    assert_fatal(&log, error);
    // What holds a job reads the ad.
    assert_eq!(values(&ad, "Error"), [error]);

    // Nobody knows where this one is read.
    let (ad, log) = wrong("JOB_LOG");
    for said in [ad, log] {
        let [text] = &values(&said, "Error")[..] else {
            panic!("{said:?}");
        };
        assert!(
            text.starts_with("RuntimeError: 3 configuration problems; "),
            "{text}"
        );
        assert!(
            text.contains("`EWMS_PILOT_HTCHIRP_DEST` is `JOB_LOG`: "),
            "{text}"
        );
        assert_eq!(values(&said, "Status"), ["FatalError"]);
    }
}

#[test]
fn what_is_missing_is_chirped_as_the_python_pilot_says_it() {
    for (missing, error) in [
        (
            "EWMS_PILOT_TASK_IMAGE",
            "RuntimeError: Task image was not provided.",
        ),
        (
            "EWMS_PILOT_QUEUE_OUTGOING",
            "RuntimeError: Incoming and/or outgoing queues were not provided.",
        ),
    ] {
        let server = ChirpServer::start();
        let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
        let scene = server.told_by(scene, "JOB_EVENT_LOG").set(missing, "");
        let (_, log) = refused(&server, &scene);
        assert_fatal(&log, error);
    }
}

#[test]
fn an_env_file_that_cannot_be_read_is_chirped_wherever_it_may_be_read() {
    let server = ChirpServer::start();
    let scratch = tempfile::tempdir().expect("a temporary directory can be made");
    let file = scratch.path().join("ewms_htcondor_envfile.sh");
    fs::write(
        file,
        "set -x\nexport EWMS_PILOT_HTCHIRP=True\nexport X=`id`\nset +x\n",
    )
    .expect("it can be written");
    let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
    let scene = scene
        .set("_CONDOR_SCRATCH_DIR", scratch.path())
        .set("_CONDOR_CHIRP_CONFIG", server.file());
    let (ad, log) = refused(&server, &scene);
    for said in [ad, log] {
        let [error] = &values(&said, "Error")[..] else {
            panic!("{said:?}");
        };
        // The same for all jobs, whose scratch directories differ.
        let start = "RuntimeError: `ewms_htcondor_envfile.sh`, line 3: ";
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn a_wrong_configuration_is_not_chirped_where_that_is_off() {
    for value in [None, Some("False")] {
        let server = ChirpServer::start();
        let (scene, _, _) = Scene::task(images::busybox(), "true").spool();
        let scene = scene
            .set("_CONDOR_CHIRP_CONFIG", server.file())
            .set("EWMS_PILOT_PREFETCH", "many");
        let scene = match value {
            Some(value) => scene.set("EWMS_PILOT_HTCHIRP", value),
            None => scene,
        };
        assert_eq!(refused(&server, &scene), (vec![], vec![]));
    }
}
