//! Files that came with the job. Tasks see them, but not those that are the pilot's own, even under another
//! name.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, images};

/// Stands in everything that is the pilot's own.
const SECRET: &str = "s3cret-w0rd";

/// Names all that a task sees, behind links too, and the secret wherever it is.
const LIST: &str = "cd \"$EWMS_TASK_INPUT_FILES_DIR\" || exit 9; \
    (find -L . -type f; grep -rl s3cret . | sed 's/^/SECRET /') | sort >{{OUTFILE}}";

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("it has one")).expect("made");
    fs::write(path, text).expect("written");
}

/// A pilot in a job's scratch directory in which everything of its own lies, and the names of all that.
fn job(transfer_input: &str) -> (Scene, Vec<String>, SpoolQueue, Queue) {
    let task = format!("sh -c {}", shell_words::quote(LIST));
    let (scene, incoming, _) = Scene::task(images::busybox(), task).spool();
    let outgoing = Queue::unique("inputs-out");
    let home = scene.dir().to_owned();
    let at = |name: &str| home.join(name);
    let mut own = Vec::new();
    let mut secret = |name: &str| {
        write(&at(name), &format!("{SECRET} {name}"));
        own.push(name.to_owned());
        at(name)
    };
    let proxy = secret("x509up");
    let bearer = secret("bearer");
    for name in [
        "proxy-of-the-ad",
        "unsent/a",
        "rejected/b",
        ".condor_creds/c",
        "creds/d",
        "spool/e",
        "ewms-pilot-data/data-hub/f",
        "ewms-pilot-scratch/g",
        ".machine.ad",
        ".chirp.config",
        ".update.ad",
        "_condor_stdout",
        "tasks-of-old.jsonl",
        "ewms-pilot-status-0.json",
    ] {
        secret(name);
    }
    // That a hub is full of secrets is no reason to hide the events that wait in the spool from the pilot.
    fs::write(at("token"), "guest").expect("written");
    for name in ["ewms_htcondor_envfile.sh", "my.env"] {
        write(&at(name), &format!("export A_SECRET={SECRET}\n"));
    }
    for (number, name) in ["x509up", "bearer", "ewms_htcondor_envfile.sh", "my.env"]
        .iter()
        .enumerate()
    {
        fs::hard_link(at(name), at(&format!("second-name-{number}"))).expect("linked");
        own.push(format!("second-name-{number}"));
    }
    fs::hard_link(at("token"), at("token-too")).expect("linked");
    symlink("x509up", at("a-link")).expect("linked");
    fs::create_dir(at("data")).expect("made");
    fs::hard_link(at("bearer"), at("data/hard")).expect("linked");
    symlink("../x509up", at("data/soft")).expect("linked");
    symlink("../unsent", at("data/soft-directory")).expect("linked");
    symlink("/etc", at("data/out")).expect("linked");
    symlink("..", at("data/up")).expect("linked");
    mkfifo(&at("data/fifo"), Mode::S_IRWXU).expect("made");
    drop(UnixListener::bind(at("data/socket")).expect("bound"));
    write(&at("data/deep/b.txt"), "b");
    write(&at("a.txt"), "a");
    symlink("../a.txt", at("data/to-a")).expect("linked");

    let tops = own.iter().filter_map(|name| name.split('/').next());
    let mut names: Vec<String> = tops.map(str::to_owned).collect();
    names.extend(["my.env", "token", "token-too", "a-link", "data", "a.txt"].map(str::to_owned));
    names.dedup();
    let list = transfer_input.replace("ALL", &names.join(","));
    let ad = at(".job.ad");
    write(
        &ad,
        &format!(
            "TransferInput = \"{list}\"\nx509userproxy = \"/home/u/proxy-of-the-ad\"\nS = \"{SECRET}\"\n"
        ),
    );
    let scene = scene
        .set("_CONDOR_SCRATCH_DIR", &home)
        .set("_CONDOR_JOB_AD", &ad)
        .set("_CONDOR_MACHINE_AD", at(".machine.ad"))
        .set("_CONDOR_CREDS", at("creds"))
        .set("X509_USER_PROXY", proxy)
        .set("BEARER_TOKEN_FILE", bearer)
        .set("EWMS_PILOT_ENV_FILE", "my.env")
        .set("EWMS_PILOT_TASK_LOG", "tasks-of-old.jsonl")
        .set("EWMS_PILOT_QUEUE_OUTGOING", outgoing.name())
        .set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "rabbitmq")
        .set(
            "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
            "guest@localhost",
        )
        .set("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE", at("token"));
    (scene, names, incoming, outgoing)
}

fn seen_of(transfer_input: &str) -> Vec<String> {
    let (scene, _, incoming, outgoing) = job(transfer_input);
    incoming.put("event.txt", "");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(!outcome.stderr.contains(SECRET), "{}", outcome.stderr);
    let results = outgoing.consume(1, SOON);
    let text: String = serde_json::from_str(&results[0]).expect("a string");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn nothing_of_the_pilots_own_is_among_the_input_files_though_the_job_lists_it() {
    let seen = seen_of("ALL");
    let expected = [
        "./a.txt",
        "./data/deep/b.txt",
        "./data/to-a",
        "./data/up/a.txt",
        "./data/up/data/deep/b.txt",
        "./data/up/data/to-a",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn nothing_of_the_pilots_own_is_among_the_content_of_a_directory() {
    let seen = seen_of("everything/");
    let mut wrong = seen.iter().filter(|line| line.starts_with("SECRET"));
    assert_eq!(wrong.next(), None, "{seen:?}");
    assert!(seen.contains(&"./a.txt".to_owned()), "{seen:?}");
    assert!(!seen.iter().any(|line| line.contains("token")), "{seen:?}");
}

#[test]
fn a_job_whose_only_input_is_the_pilots_own_has_no_input_files() {
    let task = "sh -c 'echo \"[${EWMS_TASK_INPUT_FILES_DIR-none}]\" >{{OUTFILE}}'";
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), task).spool();
    let home = scene.dir().to_owned();
    fs::write(home.join("x509up"), SECRET).expect("written");
    fs::write(home.join(".job.ad"), "TransferInput = \"x509up\"\n").expect("written");
    let scene = scene
        .set("_CONDOR_SCRATCH_DIR", &home)
        .set("_CONDOR_JOB_AD", home.join(".job.ad"))
        .set("X509_USER_PROXY", home.join("x509up"));
    incoming.put("event.txt", "");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome.stderr.contains("is not shown to tasks"),
        "{}",
        outcome.stderr
    );
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results.concat(), b"[none]\n");
}
