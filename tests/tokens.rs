//! Tokens that expire: they are renewed from a file, or else the pilot ends before they do. RabbitMQ's own
//! users have passwords, which may look like tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::support::broker::Broker;
use crate::support::faults::{OutOfMemory, close_all_connections};
use crate::support::mounts::Mounted;
use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images, processes};

/// A task that says that it runs, and ends when there is the file `release`.
const HELD: &str = r#"sh -c "
    touch {{DATA_HUB}}/running
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.05; done
    cp {{INFILE}} {{OUTFILE}}""#;

const EVENT: &str = r#""pixel""#;

const LONG: Duration = Duration::from_mins(2);

/// What looks like a token that ends after `life`.
fn token(life: Duration) -> String {
    let end = SystemTime::now() + life;
    let end = end.duration_since(UNIX_EPOCH).expect("it is later");
    let claims = format!(r#"{{"exp":{}}}"#, end.as_secs());
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"alg":"none"}"#);
    format!(
        "{header}.{}.{}",
        part(&claims),
        uuid::Uuid::new_v4().simple()
    )
}

/// A broker, a user who may do anything there with a password, and two queues with an event.
struct Stage {
    incoming: Queue,
    outgoing: Queue,
    // Last: the queues are deleted on it when they are dropped.
    broker: Broker,
}

impl Stage {
    fn with(password: &str) -> Self {
        let broker = Broker::start();
        broker.control(&["add_user", "physicist", password]);
        broker.control(&["set_permissions", "physicist", ".*", ".*", ".*"]);
        let address = broker.address();
        let incoming = Queue::unique_at("token-in", &address);
        let outgoing = Queue::unique_at("token-out", &address);
        incoming.produce([EVENT]);
        Self {
            incoming,
            outgoing,
            broker,
        }
    }

    fn scene(&self, task: &str, suffix: &str, value: impl AsRef<Path>) -> Scene {
        let mut scene =
            Scene::task(images::busybox(), task).rabbitmq(&self.incoming, &self.outgoing);
        for direction in ["INCOMING", "OUTGOING"] {
            let name = format!("EWMS_PILOT_QUEUE_{direction}");
            let address = format!("physicist@{}", self.broker.address());
            scene = scene
                .set(&format!("{name}_BROKER_ADDRESS"), address)
                .set(&format!("{name}_{suffix}"), value.as_ref());
        }
        scene
    }
}

fn file(directory: &tempfile::TempDir, token: &str) -> PathBuf {
    let path = directory.path().join("token");
    fs::write(&path, token).expect("it is writable");
    path
}

#[test]
fn a_pilot_connects_again_with_the_token_that_the_file_holds_then() {
    let stage = Stage::with("first-secret");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = file(&directory, "first-secret\n");
    let scene = stage.scene(HELD, "AUTH_TOKEN_FILE", &path);
    let pilot = scene.start();
    assert!(eventually(SOON, || scene.hub("running").exists()));

    let control = ["change_password", "physicist", "second-secret"];
    stage.broker.control(&control);
    file(&directory, "second-secret\n");
    close_all_connections(&stage.broker);
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    let outcome = pilot.wait(LONG);
    outcome.assert_code(0);
    assert!(!outcome.stderr.contains("-secret"), "{}", outcome.stderr);
    assert_eq!(stage.outgoing.consume(2, Duration::from_secs(1)), [EVENT]);
    assert_eq!(stage.incoming.depth(), 0);
}

#[test]
fn a_pilot_connects_again_with_the_last_token_while_the_files_disk_hangs() {
    let stage = Stage::with("only-secret");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = file(&directory, "only-secret");
    // As many tasks as the pilot has threads for files: some were started by one of those that hang now, and
    // their ends must be noticed too.
    stage.incoming.produce([EVENT; 3]);
    let scene = stage.scene(HELD, "AUTH_TOKEN_FILE", &path);
    let scene = scene.set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "4");
    let mut pilot = scene.start();
    assert!(eventually(SOON, || {
        pilot.stderr().matches("task started").count() == 4
    }));

    let hung = Mounted::mute(directory.path());
    close_all_connections(&stage.broker);
    for queue in ["incoming", "outgoing"] {
        pilot.wait_for_line(&format!("the {queue} queue is back"), LONG);
    }
    assert!(
        pilot.stderr().contains("no newer token can be read"),
        "{}",
        pilot.stderr()
    );
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    pilot.wait(LONG).assert_code(0);
    drop(hung);
    assert_eq!(
        stage.outgoing.consume(5, Duration::from_secs(1)),
        [EVENT; 4]
    );
    assert_eq!(stage.incoming.depth(), 0);
}

#[test]
fn a_live_connection_is_sent_the_newer_token_before_the_old_one_ends() {
    let old = token(Duration::from_secs(15));
    let stage = Stage::with(&old);
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = file(&directory, &old);
    let scene = stage.scene(HELD, "AUTH_TOKEN_FILE", &path);
    let mut pilot = scene.start();
    assert!(eventually(SOON, || scene.hub("running").exists()));
    let new = token(Duration::from_hours(1));
    file(&directory, &new);
    pilot.wait_for_line("the broker was sent a newer token", SOON);
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);
    for token in [&old, &new] {
        assert!(!outcome.stderr.contains(token), "{}", outcome.stderr);
    }
    assert_eq!(stage.outgoing.consume(2, Duration::from_secs(1)), [EVENT]);
}

#[test]
fn a_broker_that_has_no_memory_for_a_newer_token_takes_it_later_on_the_same_connection() {
    let old = token(Duration::from_secs(20));
    let stage = Stage::with(&old);
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = file(&directory, &old);
    let scene = stage.scene(HELD, "AUTH_TOKEN_FILE", &path);
    let mut pilot = scene.start();
    assert!(eventually(SOON, || scene.hub("running").exists()));
    let alarm = OutOfMemory::new(&stage.broker);
    file(&directory, &token(Duration::from_hours(1)));
    // From now on the broker reads nothing more from this connection.
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    pilot.wait_for_line("the broker did not answer to a newer token", LONG);
    drop(alarm);
    let outcome = pilot.wait(LONG);
    outcome.assert_code(0);
    assert!(!outcome.stderr.contains("is lost"), "{}", outcome.stderr);
    assert_eq!(stage.outgoing.consume(2, Duration::from_secs(1)), [EVENT]);
    assert_eq!(stage.incoming.depth(), 0);
}

#[test]
fn a_pilot_whose_token_can_not_be_renewed_is_gone_before_it_ends() {
    let life = Duration::from_secs(30);
    let token = token(life);
    let end = SystemTime::now() + life;
    let stage = Stage::with(&token);
    let scene = stage
        .scene("sleep 83.75", "AUTH_TOKEN", &token)
        .set("EWMS_PILOT_KILL_GRACE", "1")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "600");
    let outcome = scene.run(LONG);
    outcome.assert_code(0);
    assert!(SystemTime::now() < end, "{}", outcome.stderr);
    let warned = "ends in `";
    assert!(outcome.stderr.contains(warned), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains(&token), "{}", outcome.stderr);
    assert_eq!((stage.incoming.depth(), stage.outgoing.depth()), (1, 0));
    processes::assert_nothing_runs("sleep 83.75", SOON);
}
