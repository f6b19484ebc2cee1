//! Results that a broker does not take: too large for it ever, no room for now, no right to send them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::records::of_kind;
use crate::support::broker::Broker;
use crate::support::faults::close_all_connections;
use crate::support::rabbitmq::Queue;
use crate::support::scene::Scene;
use crate::support::{SOON, eventually, images};

/// What can't be compressed: as large as the event says, in bytes, in hexadecimal digits of random.
const RANDOM: &str = r#"sh -c "
    echo >> {{DATA_HUB}}/starts
    head -c $(cat {{INFILE}}) /dev/urandom | od -An -v -tx1 | tr -d ' \n' > {{OUTFILE}}""#;

const LIMIT: &str = "EWMS_PILOT_BROKER_MAX_MESSAGE_SIZE";

fn starts(scene: &Scene) -> usize {
    fs::read(scene.hub("starts")).map_or(0, |starts| starts.len())
}

/// The files below `rejected/` with this ending.
fn rejected(scene: &Scene, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(scene.dir().join("rejected")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect()
}

#[test]
fn a_result_that_is_too_large_has_its_event_put_away_if_that_was_asked_for_and_its_files_are_kept()
{
    let (incoming, outgoing) = (Queue::unique("large"), Queue::unique("large-out"));
    incoming.produce(["\"200000\"", "\"1\""]);
    let scene = Scene::task(images::busybox(), RANDOM)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "3")
        .set("EWMS_PILOT_MAX_DELIVERIES", "9")
        .set(LIMIT, "100K");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    let last = outcome.last_line();
    assert!(
        last.contains("PublishError('the result is too large for the broker: `2"),
        "{last}"
    );
    assert!(
        last.contains("the limit is `102400`") && last.contains(LIMIT),
        "{last}"
    );
    assert_eq!(
        (starts(&scene), incoming.total()),
        (2, 0),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)).len(), 1);

    let failed = &of_kind(&scene, "task")[0];
    assert_eq!(
        (&failed["outcome"], &failed["fault_class"]),
        (&"rejected".into(), &"task".into())
    );
    assert_eq!(rejected(&scene, ".json.zst").len(), 1);
    let reason = fs::read_to_string(&rejected(&scene, ".error.txt")[0]).expect("it says why");
    assert!(reason.contains("too large"), "{reason}");
    let id = failed["task_id"].as_str().expect("an id");
    let io = scene.dir().join("ewms-pilot-data").join(id).join("task-io");
    let outfile = fs::metadata(io.join(format!("outfile-{id}.out"))).expect("the work is kept");
    assert_eq!(outfile.len(), 400_000);
}

#[test]
fn a_large_event_whose_result_is_too_large_is_in_the_dead_letter_queue_as_it_came() {
    let (incoming, outgoing) = (Queue::unique("heavy"), Queue::unique("heavy-out"));
    let dead = Queue::unique("heavy-dead");
    let large: String = (0..20_000)
        .map(|_| uuid::Uuid::new_v4().simple().to_string())
        .collect();
    let event = format!("\"{large}\"");
    incoming.produce([&event]);
    // The task changes its infile; the event is another matter.
    let scene = Scene::task(
        images::busybox(),
        r#"sh -c "cp {{INFILE}} {{OUTFILE}} && echo > {{INFILE}}""#,
    )
    .rabbitmq(&incoming, &outgoing)
    .set("EWMS_PILOT_MAX_DELIVERIES", "9")
    .set("EWMS_PILOT_QUEUE_DEAD_LETTER", dead.name())
    .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "3")
    .set(LIMIT, "100K");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert_eq!(
        (incoming.total(), outgoing.depth()),
        (0, 0),
        "{}",
        outcome.stderr
    );
    assert_eq!(dead.headers()[0]["x-ewms-deliveries"], "1");
    assert!(eventually(SOON, || dead.depth() == 1));
    assert_eq!(dead.consume(1, SOON), [event]);
}

#[test]
fn a_brokers_own_limit_is_learned_from_its_first_refusal() {
    let broker = Broker::start_with("max_message_size = 65536");
    let address = broker.address();
    let (incoming, outgoing) = (
        Queue::unique_at("less", &address),
        Queue::unique_at("less-out", &address),
    );
    incoming.produce(["\"200000\"", "\"200000\"", "\"1\""]);
    let scene = Scene::task(images::busybox(), RANDOM)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_MAX_DELIVERIES", "9")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "5");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert_eq!(starts(&scene), 3, "{}", outcome.stderr);
    assert_eq!(incoming.depth(), 0);
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)).len(), 1);
    assert_eq!(rejected(&scene, ".json.zst").len(), 2);
    let said = outcome
        .stderr
        .matches("takes no larger messages than this")
        .count();
    assert_eq!(said, 1, "{}", outcome.stderr);
}

#[test]
fn no_event_leaves_its_queue_unasked_though_its_result_is_too_large() {
    let (incoming, outgoing) = (Queue::unique("stays"), Queue::unique("stays-out"));
    incoming.produce(["\"200000\""]);
    let scene = Scene::task(images::busybox(), RANDOM)
        .rabbitmq(&incoming, &outgoing)
        .set(LIMIT, "100K");
    let outcome = scene.run(SOON);
    outcome.assert_code(1);
    assert!(
        outcome.last_line().contains("too large for the broker"),
        "{}",
        outcome.last_line()
    );
    let counts = (starts(&scene), incoming.total());
    assert_eq!(counts, (1, 1), "{}", outcome.stderr);
    assert_eq!(of_kind(&scene, "task")[0]["outcome"], "failed");
    assert!(!scene.dir().join("rejected").exists());
}

#[test]
fn a_result_that_the_broker_takes_is_delivered_however_large_it_is() {
    // The default of every RabbitMQ before 4.0.
    let broker = Broker::start_with("max_message_size = 134217728");
    let address = broker.address();
    let (incoming, outgoing) = (
        Queue::unique_at("huge", &address),
        Queue::unique_at("huge-out", &address),
    );
    // Of each hexadecimal digit half a byte is left.
    incoming.produce(["\"20000000\""]);
    let scene = Scene::task(images::busybox(), RANDOM).rabbitmq(&incoming, &outgoing);
    let outcome = scene.run(Duration::from_mins(2));
    outcome.assert_code(0);
    let results = outgoing.consume(2, Duration::from_secs(1));
    let sizes: Vec<usize> = results.iter().map(String::len).collect();
    assert_eq!(sizes, [40_000_002], "{}", outcome.stderr);
    assert_eq!(incoming.depth(), 0);
}

/// A broker whose outgoing queue is full.
struct Full {
    incoming: Queue,
    outgoing: Queue,
    // Last: the queues are deleted on it when they are dropped.
    broker: Broker,
}

/// Waits for the file `release` in the hub, unless it is there.
const HELD: &str = r#"sh -c "
    echo >> {{DATA_HUB}}/starts
    until [ -e {{DATA_HUB}}/release ]; do sleep 0.1; done
    cp {{INFILE}} {{OUTFILE}}""#;

const COPY: &str = r#"sh -c "
    echo >> {{DATA_HUB}}/starts
    cp {{INFILE}} {{OUTFILE}}""#;

const FILLERS: [&str; 2] = ["\"filler 0\"", "\"filler 1\""];

impl Full {
    fn new() -> Self {
        let broker = Broker::start();
        let address = broker.address();
        let incoming = Queue::unique_at("room", &address);
        let outgoing = Queue::unique_at("room-out", &address);
        assert_eq!(incoming.depth(), 0);
        let full = Self {
            incoming,
            outgoing,
            broker,
        };
        full.fill(&full.outgoing);
        full
    }

    /// From now on it refuses what is sent to it.
    fn fill(&self, queue: &Queue) {
        queue.produce(FILLERS);
        let pattern = format!("^{}$", queue.name());
        let full = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
        let arguments = ["set_policy", "full", &pattern, full, "--apply-to", "queues"];
        self.broker.control(&arguments);
    }

    fn make_room(&self) {
        self.broker.control(&["clear_policy", "full"]);
    }

    fn scene(&self, task: &str) -> Scene {
        Scene::task(images::busybox(), task)
            .rabbitmq(&self.incoming, &self.outgoing)
            .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "4")
    }
}

/// What is in a queue but the fillers, sorted.
fn results(queue: &Queue) -> Vec<String> {
    let mut results = queue.consume(20, Duration::from_secs(1));
    results.retain(|result| !FILLERS.contains(&result.as_str()));
    results.sort();
    results
}

/// Waits until a result was refused so often.
#[track_caller]
fn await_refusals(pilot: &mut crate::support::scene::Pilot, count: usize) {
    let refused = eventually(Duration::from_mins(1), || {
        pilot
            .stderr()
            .matches("the broker refused a result")
            .count()
            >= count
    });
    assert!(refused, "{}", pilot.stderr());
}

#[test]
fn a_result_for_which_there_is_no_room_is_sent_again_and_no_event_is_taken_meanwhile() {
    let full = Full::new();
    full.incoming.produce(["\"0\""]);
    let scene = full
        .scene(COPY)
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "3")
        // Not even a failed task would be a reason to stop.
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False");
    let mut pilot = scene.start();
    pilot.wait_for_line("no further event is taken", SOON);
    full.incoming.produce(["\"1\"", "\"2\"", "\"3\"", "\"4\""]);
    // Its pauses grow: by now the idle time is over, too.
    await_refusals(&mut pilot, 5);
    assert_eq!(starts(&scene), 1, "{}", pilot.stderr());
    full.make_room();
    let outcome = pilot.wait(Duration::from_mins(2));
    outcome.assert_code(0);
    assert_eq!(starts(&scene), 5, "{}", outcome.stderr);
    let events = ["\"0\"", "\"1\"", "\"2\"", "\"3\"", "\"4\""];
    assert_eq!(results(&full.outgoing), events);
    assert_eq!(full.incoming.depth(), 0);
    let end = &of_kind(&scene, "pilot_end")[0];
    assert_eq!((&end["failed"], &end["duplicates"]), (&0.into(), &0.into()));
}

#[test]
fn a_result_that_is_refused_for_too_long_is_kept_and_its_event_goes_back_uncounted() {
    let full = Full::new();
    full.incoming.produce(["\"pixel\"", "\"other\""]);
    let scene = full
        .scene(COPY)
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "5");
    let outcome = scene.run(Duration::from_mins(1));
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("did not accept the result"), "{last}");
    assert!(last.contains(full.outgoing.name()), "{last}");
    assert_eq!(starts(&scene), 1, "{}", outcome.stderr);
    assert_eq!(of_kind(&scene, "task")[0]["outcome"], "given_back");
    let kept = || fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count);
    assert_eq!(kept(), 1, "{}", outcome.stderr);
    assert!(eventually(SOON, || full.incoming.depth() == 2));

    // The next one sends it first, and runs both, for this event is not acknowledged.
    full.make_room();
    scene.run(Duration::from_mins(1)).assert_code(0);
    assert_eq!((starts(&scene), kept()), (3, 0));
    let events = ["\"other\"", "\"pixel\"", "\"pixel\""];
    assert_eq!(results(&full.outgoing), events);
}

#[test]
fn a_kept_result_is_not_sent_to_a_queue_of_the_same_name_in_another_virtual_host() {
    let full = Full::new();
    full.incoming.produce(["\"pixel\""]);
    let scene = full
        .scene(COPY)
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "5");
    scene.run(Duration::from_mins(1)).assert_code(4);
    let kept = |scene: &Scene| fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count);
    assert_eq!(kept(&scene), 1);

    let vhost = format!("vhost-{}", uuid::Uuid::new_v4().simple());
    full.broker.control(&["add_vhost", &vhost]);
    let all = ".*";
    full.broker
        .control(&["set_permissions", "-p", &vhost, "guest", all, all, all]);
    let address = format!("{}/{vhost}", full.outgoing.address());
    let scene = scene.set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", address);
    scene.run(Duration::from_mins(1)).assert_code(0);
    assert_eq!(kept(&scene), 1);
    // It has the result of its own pilot alone.
    let one = format!("{}\t1", full.outgoing.name());
    let counted = eventually(SOON, || {
        let listed = full
            .broker
            .control(&["list_queues", "-p", &vhost, "name", "messages"]);
        listed.lines().any(|line| line == one)
    });
    assert!(counted);
}

#[test]
fn a_pilot_that_is_told_to_end_does_not_wait_for_room() {
    let full = Full::new();
    full.incoming.produce(["\"pixel\""]);
    let scene = full.scene(COPY);
    let mut pilot = scene.start();
    await_refusals(&mut pilot, 1);
    pilot.signal(nix::sys::signal::Signal::SIGTERM);
    let outcome = pilot.wait(Duration::from_mins(1));
    outcome.assert_code(128 + 15);
    let kept = fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count);
    assert_eq!(kept, 1, "{}", outcome.stderr);
    assert!(eventually(SOON, || full.incoming.depth() == 1));
}

#[test]
fn of_several_outgoing_queues_only_the_full_one_is_sent_a_result_again() {
    let full = Full::new();
    let other = Queue::unique_at("room-other", full.incoming.address());
    full.incoming.produce(["\"pixel\""]);
    let both = |first: &str| format!("{first};{first}");
    let variable = |suffix: &str| format!("EWMS_PILOT_QUEUE_OUTGOING{suffix}");
    let names = format!("{};{}", other.name(), full.outgoing.name());
    let scene = full
        .scene(COPY)
        .set(&variable(""), names)
        .set(&variable("_BROKER_TYPE"), both("rabbitmq"))
        .set(&variable("_BROKER_ADDRESS"), both(other.address()));
    let mut pilot = scene.start();
    await_refusals(&mut pilot, 3);
    full.make_room();
    pilot.wait(Duration::from_mins(2)).assert_code(0);
    assert_eq!(starts(&scene), 1);
    for queue in [&full.outgoing, &other] {
        assert_eq!(results(queue), ["\"pixel\""]);
    }
}

#[test]
fn an_event_that_the_dead_letter_queue_refuses_waits_and_is_not_run_again() {
    let full = Full::new();
    full.incoming.produce(["\"poison\""]);
    let scene = full
        .scene(r#"sh -c "echo >> {{DATA_HUB}}/starts; exit 1""#)
        .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "5")
        .set("EWMS_PILOT_MAX_DELIVERIES", "1")
        .set("EWMS_PILOT_QUEUE_DEAD_LETTER", full.outgoing.name())
        .set(
            "EWMS_PILOT_QUEUE_OUTGOING",
            format!("{}-2", full.outgoing.name()),
        );
    let outcome = scene.run(Duration::from_mins(1));
    outcome.assert_code(4);
    assert_eq!(starts(&scene), 1, "{}", outcome.stderr);
    assert_eq!(of_kind(&scene, "task")[0]["outcome"], "given_back");
    assert!(eventually(SOON, || full.incoming.depth() == 1));

    let scene = scene.set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "600");
    let mut pilot = scene.start();
    await_refusals(&mut pilot, 2);
    full.make_room();
    pilot.wait(Duration::from_mins(2)).assert_code(1);
    assert_eq!(starts(&scene), 2);
    assert_eq!(
        (full.incoming.depth(), results(&full.outgoing)),
        (0, vec!["\"poison\"".to_owned()])
    );
}

#[test]
fn a_result_whose_queue_was_deleted_is_sent_again_into_one_that_is_declared_again() {
    let broker = Broker::start();
    let address = broker.address();
    let (incoming, outgoing) = (
        Queue::unique_at("gone", &address),
        Queue::unique_at("gone-out", &address),
    );
    incoming.produce(["\"pixel\""]);
    let scene = Scene::task(images::busybox(), HELD)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "5");
    let pilot = scene.start();
    assert!(eventually(SOON, || starts(&scene) == 1));
    outgoing.delete();
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    let outcome = pilot.wait(Duration::from_mins(2));
    outcome.assert_code(0);
    assert!(outcome.stderr.contains("unroutable"), "{}", outcome.stderr);
    assert_eq!(
        (starts(&scene), incoming.depth()),
        (1, 0),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.consume(2, Duration::from_secs(1)), ["\"pixel\""]);
    assert_eq!(of_kind(&scene, "pilot_end")[0]["duplicates"], 0);
}

/// A broker with an event, and the address of a user who may send only where `write` says.
fn with_reader(write: &str) -> (Broker, Queue, Queue, String) {
    let broker = Broker::start();
    let address = broker.address();
    let incoming = Queue::unique_at("right", &address);
    let outgoing = Queue::unique_at("right-out", &address);
    assert_eq!(outgoing.depth(), 0);
    incoming.produce(["\"pixel\""]);
    assert!(eventually(SOON, || incoming.depth() == 1));
    broker.control(&["add_user", "reader", "hush"]);
    broker.control(&["set_permissions", "reader", ".*", write, ".*"]);
    (broker, incoming, outgoing, format!("reader:hush@{address}"))
}

const OUTGOING_ADDRESS: &str = "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS";

#[test]
fn a_user_who_may_not_send_results_is_named_before_any_event_is_taken_and_by_check() {
    let (_broker, incoming, outgoing, address) = with_reader("^$");
    let scene = Scene::task(images::busybox(), COPY)
        .rabbitmq(&incoming, &outgoing)
        .set(OUTGOING_ADDRESS, address);
    let outcome = scene.run(SOON);
    outcome.assert_code(4);
    let last = outcome.last_line();
    for words in [
        "denies access",
        "write access",
        "EWMS_PILOT_QUEUE_OUTGOING",
        outgoing.name(),
    ] {
        assert!(last.contains(words), "{last}");
    }
    assert!(
        !outcome.stderr.contains("can't be reached yet"),
        "{}",
        outcome.stderr
    );
    assert_eq!(starts(&scene), 0);

    let check = scene.arg("check").run(SOON);
    check.assert_code(4);
    let mut lines = check.stdout.lines();
    let line = lines.find(|line| line.starts_with("FAIL  broker-outgoing "));
    assert!(
        line.is_some_and(|line| line.contains("write access")),
        "{}",
        check.stdout
    );
    assert_eq!(incoming.delivery_counts(), [0]);
}

#[test]
fn an_event_that_the_user_may_not_put_away_stays_in_its_queue_and_is_not_run_again() {
    let (_broker, incoming, outgoing, address) = with_reader("^$");
    let dead = format!("{}-dead", incoming.name());
    let scene = Scene::task(
        images::busybox(),
        r#"sh -c "echo >> {{DATA_HUB}}/starts; exit 1""#,
    )
    .rabbitmq(&incoming, &outgoing)
    .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", address)
    .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
    .set("EWMS_PILOT_MAX_DELIVERIES", "1")
    .set("EWMS_PILOT_QUEUE_DEAD_LETTER", dead);
    let outcome = scene.run(Duration::from_mins(1));
    outcome.assert_code(1);
    let mut lines = outcome.stderr.lines();
    let said = lines.find(|line| line.contains("could not be put away"));
    let said = said.unwrap_or_else(|| panic!("{}", outcome.stderr));
    for words in ["write access", "EWMS_PILOT_QUEUE_DEAD_LETTER"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(starts(&scene), 1, "{}", outcome.stderr);
    assert!(eventually(SOON, || incoming.depth() == 1));
}

#[test]
fn a_user_who_may_not_send_any_more_is_told_and_no_result_counts_as_sent_again() {
    let (broker, incoming, outgoing, address) = with_reader(".*");
    let scene = Scene::task(images::busybox(), HELD)
        .rabbitmq(&incoming, &outgoing)
        .set("EWMS_PILOT_BROKER_RECONNECT_TIMEOUT", "5")
        .set(OUTGOING_ADDRESS, address);
    let mut pilot = scene.start();
    assert!(eventually(SOON, || starts(&scene) == 1));
    broker.control(&["set_permissions", "reader", ".*", "^$", ".*"]);
    close_all_connections(&broker);
    pilot.wait_for_line("write access", SOON);
    fs::write(scene.hub("release"), "").expect("the hub is writable");
    let outcome = pilot.wait(Duration::from_mins(2));
    outcome.assert_code(4);
    let last = outcome.last_line();
    assert!(last.contains("denies access"), "{last}");
    assert!(
        outcome.stderr.contains("published_again=0"),
        "{}",
        outcome.stderr
    );
    let kept = fs::read_dir(scene.dir().join("unsent")).map_or(0, Iterator::count);
    assert_eq!(kept, 1, "{}", outcome.stderr);
    assert!(eventually(SOON, || incoming.depth() == 1));
}
