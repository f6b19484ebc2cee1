//! A broker with RabbitMQ's plugin for `OAuth2`, which verifies tokens itself and accepts them until they
//! expire.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::support::broker::Broker;
use crate::support::faults::close_all_connections;
use crate::support::oauth::{EVERYTHING, Issuer};
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Pilot, Scene};
use crate::support::{SOON, eventually, images};

/// A task that says that it was started, and copies its event when there is the file `release`.
const HELD: &str = r#"sh -c "
    echo >> {{DATA_HUB}}/starts
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done
    cp {{INFILE}} {{OUTFILE}}""#;

const EVENT: &str = r#""pixel""#;

/// The longest pause between two tries to connect is 30 s.
const LONG: Duration = Duration::from_mins(2);

/// Of the first token, where it is to end while the task runs.
const SHORT_LIFE: Duration = Duration::from_secs(20);

/// A broker that believes an issuer, two queues with an event, and a file for a token.
struct Stage {
    incoming: Queue,
    outgoing: Queue,
    issuer: Issuer,
    directory: tempfile::TempDir,
    // Last: the queues are deleted on it when they are dropped.
    broker: Broker,
}

impl Stage {
    fn new() -> Self {
        let issuer = Issuer::new();
        let broker = issuer.start_broker();
        let address = broker.address();
        let incoming = Queue::unique_at("token-in", &address);
        let outgoing = Queue::unique_at("token-out", &address);
        incoming.produce([EVENT]);
        Self {
            incoming,
            outgoing,
            issuer,
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            broker,
        }
    }

    /// A token for everything that ends after `life`, and its end.
    fn token(&self, life: Duration) -> (String, SystemTime) {
        let end = SystemTime::now() + life;
        (self.issuer.token(EVERYTHING, end), end)
    }

    /// A token that lives long and permits what `scope` says.
    fn token_for(&self, scope: &str) -> String {
        let end = SystemTime::now() + Duration::from_hours(1);
        self.issuer.token(scope, end)
    }

    /// Puts a token into the file, as a whole.
    fn renew(&self, token: &str) -> PathBuf {
        let path = self.directory.path().join("token");
        let new = path.with_extension("new");
        fs::write(&new, token).expect("the directory is writable");
        fs::rename(new, &path).expect("the directory is writable");
        path
    }

    /// A pilot that shows no user, and as its token the variable `suffix` with `value`.
    fn scene(&self, task: &str, suffix: &str, value: impl AsRef<Path>) -> Scene {
        let mut scene =
            Scene::task(images::busybox(), task).rabbitmq(&self.incoming, &self.outgoing);
        for direction in ["INCOMING", "OUTGOING"] {
            let name = format!("EWMS_PILOT_QUEUE_{direction}_{suffix}");
            scene = scene.set(&name, value.as_ref());
        }
        scene
    }

    /// One that runs a task which ends later than the token in the file does.
    fn held(&self) -> Held {
        self.held_with(LONG)
    }

    /// The same, bearing a lost broker for `reconnect_within`.
    #[track_caller]
    fn held_with(&self, reconnect_within: Duration) -> Held {
        let (token, end) = self.token(SHORT_LIFE);
        let path = self.renew(&token);
        let scene = self.scene(HELD, "AUTH_TOKEN_FILE", path).set(
            "EWMS_PILOT_BROKER_RECONNECT_TIMEOUT",
            reconnect_within.as_secs().to_string(),
        );
        let pilot = scene.start();
        let held = Held { scene, pilot, end };
        let starts = eventually(SOON, || held.starts() == 1);
        assert!(starts, "{}", held.pilot.stderr());
        held
    }

    /// The result is there, once, and the event is not any more.
    #[track_caller]
    fn assert_done(&self, stderr: &str) {
        let results = self.outgoing.consume(2, Duration::from_secs(1));
        assert_eq!(results, [EVENT], "{stderr}");
        assert_eq!(self.incoming.depth(), 0, "{stderr}");
    }
}

/// A pilot whose task runs until it is released, and the end of its first token.
struct Held {
    scene: Scene,
    pilot: Pilot,
    end: SystemTime,
}

impl Held {
    fn starts(&self) -> usize {
        let starts = fs::read_to_string(self.scene.hub("starts")).unwrap_or_default();
        starts.lines().count()
    }

    /// The first token has ended, for the broker too, which counts whole seconds.
    #[track_caller]
    fn await_end_of_token(&self) {
        let end = self.end + Duration::from_secs(1);
        assert!(eventually(LONG, || SystemTime::now() > end));
    }

    fn release(&self) {
        fs::write(self.scene.hub("release"), "").expect("the hub is writable");
    }

    /// Waits for a good end with one start of the task.
    #[track_caller]
    fn finish(self) -> Outcome {
        let Self { scene, pilot, .. } = self;
        let outcome = pilot.wait(LONG);
        outcome.assert_code(0);
        let starts = fs::read_to_string(scene.hub("starts")).unwrap_or_default();
        assert_eq!(starts.lines().count(), 1, "{}", outcome.stderr);
        outcome
    }
}

/// How many results are kept that could not be sent.
fn kept(scene: &Scene) -> usize {
    fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count)
}

#[track_caller]
fn assert_hidden(tokens: &[&str], outcome: &Outcome) {
    for output in [&outcome.stderr, &outcome.stdout] {
        for part in tokens.iter().flat_map(|token| token.split('.').skip(1)) {
            assert!(!output.contains(part), "{output}");
        }
    }
}

#[test]
fn a_token_that_the_broker_verifies_is_all_that_a_pilot_needs_and_is_never_shown() {
    let stage = Stage::new();
    let (token, _) = stage.token(Duration::from_hours(1));
    let outcome = stage
        .scene("cp {{INFILE}} {{OUTFILE}}", "AUTH_TOKEN", &token)
        .set("EWMS_PILOT_CL_LOG", "DEBUG")
        .set("EWMS_PILOT_CL_LOG_THIRD_PARTY", "DEBUG")
        .run(LONG);
    outcome.assert_code(0);
    assert_hidden(&[&token], &outcome);
    assert_eq!(stage.outgoing.consume(2, Duration::from_secs(1)), [EVENT]);
    assert_eq!(stage.incoming.depth(), 0);
}

#[test]
fn a_token_that_has_ended_is_named_within_five_seconds_and_the_event_stays() {
    let stage = Stage::new();
    let token = stage
        .issuer
        .token(EVERYTHING, SystemTime::now() - Duration::from_mins(1));
    let scene = stage.scene("true", "AUTH_TOKEN", &token);
    let mut pilot = scene.start();
    pilot.wait_for_line("is past its end: the broker will refuse it", SOON);
    let began = Instant::now();
    let outcome = pilot.wait(SOON);
    let took = began.elapsed();
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("did not accept the credentials"), "{last}");
    assert!(
        last.contains("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN"),
        "{last}"
    );
    assert!(last.contains("this token ended `6"), "{last}");
    assert!(took < Duration::from_secs(5), "{took:?}: {last}");
    assert_hidden(&[&token], &outcome);
    assert_eq!(stage.incoming.depth(), 1);
}

#[test]
fn a_token_renewed_in_its_file_outlives_the_first_on_the_same_connections() {
    let stage = Stage::new();
    let mut held = stage.held();
    let (newer, _) = stage.token(Duration::from_hours(1));
    stage.renew(&newer);
    let sent = "the broker was sent a newer token";
    held.pilot.wait_for_line(sent, LONG);
    held.await_end_of_token();
    let both = eventually(SOON, || held.pilot.stderr().matches(sent).count() == 2);
    assert!(both, "{}", held.pilot.stderr());
    held.release();
    let outcome = held.finish();
    assert!(!outcome.stderr.contains("is lost"), "{}", outcome.stderr);
    assert_hidden(&[&newer], &outcome);
    stage.assert_done(&outcome.stderr);
}

#[test]
fn a_result_waits_when_its_token_has_ended_until_the_file_holds_a_newer_one() {
    let stage = Stage::new();
    let mut held = stage.held();
    held.await_end_of_token();
    held.release();
    let line = held
        .pilot
        .wait_for_line("the outgoing queue can't be reached yet", LONG);
    assert!(line.contains("did not accept the credentials"), "{line}");
    let (newer, _) = stage.token(Duration::from_hours(1));
    stage.renew(&newer);
    let outcome = held.finish();
    assert_hidden(&[&newer], &outcome);
    stage.assert_done(&outcome.stderr);
}

#[test]
fn connections_lost_after_their_token_ended_come_back_with_a_newer_one() {
    let stage = Stage::new();
    let mut held = stage.held();
    held.await_end_of_token();
    close_all_connections(&stage.broker);
    for queue in ["incoming", "outgoing"] {
        let line = format!("the {queue} queue can't be reached yet");
        held.pilot.wait_for_line(&line, LONG);
    }
    let (newer, _) = stage.token(Duration::from_hours(1));
    stage.renew(&newer);
    held.pilot
        .wait_for_line("was delivered again: it is not started again", LONG);
    held.release();
    let outcome = held.finish();
    stage.assert_done(&outcome.stderr);
}

#[test]
fn a_result_whose_token_is_not_renewed_is_kept_when_the_time_to_reconnect_is_over() {
    let stage = Stage::new();
    let held = stage.held_with(Duration::from_secs(8));
    held.await_end_of_token();
    held.release();
    let Held { scene, pilot, .. } = held;
    let outcome = pilot.wait(LONG);
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("did not accept the credentials"), "{last}");
    assert!(
        last.contains("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT"),
        "{last}"
    );
    assert!(
        outcome.stderr.contains("can't be reached yet"),
        "{}",
        outcome.stderr
    );
    assert_eq!(kept(&scene), 1, "{}", outcome.stderr);
    assert!(eventually(SOON, || stage.incoming.depth() == 1));
}

#[test]
fn a_token_that_may_not_declare_a_queue_is_told_from_one_that_is_not_accepted() {
    let stage = Stage::new();
    let token = stage.token_for("rabbitmq.write:*/* rabbitmq.read:*/*");
    let outcome = stage.scene("true", "AUTH_TOKEN", &token).run(LONG);
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("denies access"), "{last}");
    assert!(last.contains("configure access to queue"), "{last}");
    assert!(
        last.contains("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN"),
        "{last}"
    );
    assert_eq!(stage.incoming.depth(), 1);
}

#[test]
fn a_token_that_may_not_send_results_is_named_before_any_event_is_taken() {
    let stage = Stage::new();
    let token = stage.token_for("rabbitmq.configure:*/* rabbitmq.read:*/*");
    let scene = stage.scene("cp {{INFILE}} {{OUTFILE}}", "AUTH_TOKEN", &token);
    let outcome = scene.run(LONG);
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("denies access"), "{last}");
    assert!(last.contains("write access to exchange"), "{last}");
    assert!(
        last.contains("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN"),
        "{last}"
    );
    assert!(
        !outcome.stderr.contains("task started"),
        "{}",
        outcome.stderr
    );
    assert_eq!(kept(&scene), 0);
    assert_eq!(stage.incoming.delivery_counts(), [0]);
}
