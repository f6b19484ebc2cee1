//! The spool against a real directory, several pilots at once.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

use super::claim::TRIES_MAX;
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct Spool {
    root: TempDir,
}

impl Spool {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("q")).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("q").join(name)
    }

    /// As a careful producer does it.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(".new"), text).unwrap();
        let old = SystemTime::now() - Duration::from_secs(10);
        File::options()
            .write(true)
            .open(self.path(".new"))
            .unwrap()
            .set_modified(old)
            .unwrap();
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }

    async fn source(&self, window: u32) -> Source {
        Source::open("q", self.root.path(), NonZeroU32::new(window).unwrap())
            .await
            .unwrap()
    }

    fn layout(&self) -> Layout {
        let layout = Layout::new(Direction::Incoming, "q", self.root.path()).unwrap();
        layout.create().unwrap();
        layout
    }

    fn names(&self, directory: &str) -> BTreeSet<String> {
        fs::read_dir(self.path(directory))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

async fn next(source: &mut Source) -> Delivery {
    timeout(DEADLINE, source.recv())
        .await
        .expect("an event within the deadline")
        .unwrap()
}

fn text(delivery: &Delivery) -> &str {
    match &delivery.content {
        Content::File(_, bytes) => std::str::from_utf8(bytes).unwrap(),
        Content::Frame(_) => panic!("a frame from a spool"),
    }
}

/// Neither here nor after a moment in which everything else runs.
async fn nothing(source: &mut Source) {
    let received = timeout(Duration::from_millis(600), source.recv()).await;
    assert!(received.is_err(), "{received:?}");
}

/// Makes a holder look as if its pilot, on another machine, had died long ago.
fn bury(holder: &Holder) {
    let lease = holder.directory.join(".lease");
    let long_ago = SystemTime::now() - Duration::from_mins(10);
    fs::write(&lease, "boot=another\ndevice=1\nlock=flock\n").unwrap();
    File::options()
        .write(true)
        .open(&lease)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
}

#[tokio::test]
async fn events_come_in_the_order_of_their_names_with_the_format_of_their_suffix() {
    let spool = Spool::new();
    spool.put("b.txt", "two");
    spool.put("a.json", "1");
    spool.put("c.json.tmp", "not yet");
    let mut source = spool.source(5).await;
    let first = next(&mut source).await;
    assert_eq!(
        first.content,
        Content::File(FileFormat::Json, b"1".to_vec())
    );
    assert_eq!(first.earlier_deliveries, Some(0));
    let second = next(&mut source).await;
    assert_eq!(
        second.content,
        Content::File(FileFormat::Text, b"two".to_vec())
    );
    first.receipt.settle(Verdict::Done).await.unwrap();
    second.receipt.settle(Verdict::Done).await.unwrap();
    nothing(&mut source).await;
    assert_eq!(spool.names("done"), set(["a.json", "b.txt"]));
    source.close().await;
    assert_eq!(fs::read_dir(spool.path("claimed")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_that_comes_later_is_noticed() {
    let spool = Spool::new();
    let mut source = spool.source(1).await;
    nothing(&mut source).await;
    let started = Instant::now();
    spool.put("late", "x");
    let delivery = next(&mut source).await;
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    delivery.receipt.settle(Verdict::Done).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_still_written_is_left_alone_until_it_is_closed() {
    let spool = Spool::new();
    let mut source = spool.source(1).await;
    let mut file = File::create(spool.path("slow")).unwrap();
    for part in 0..4 {
        write!(file, "{part}").unwrap();
        assert!(
            timeout(Duration::from_millis(150), source.recv())
                .await
                .is_err()
        );
    }
    drop(file);
    let delivery = next(&mut source).await;
    assert_eq!(text(&delivery), "0123");
    delivery.receipt.settle(Verdict::Done).await.unwrap();
}

#[tokio::test]
async fn no_more_than_the_window_is_held() {
    let spool = Spool::new();
    for name in ["a", "b", "c"] {
        spool.put(name, name);
    }
    let mut source = spool.source(2).await;
    let first = next(&mut source).await;
    let second = next(&mut source).await;
    nothing(&mut source).await;
    assert!(spool.path("c").exists());
    first.receipt.settle(Verdict::Done).await.unwrap();
    let third = next(&mut source).await;
    assert_eq!(text(&third), "c");
    third.receipt.settle(Verdict::Done).await.unwrap();
    second.receipt.settle(Verdict::Done).await.unwrap();
}

#[tokio::test]
async fn a_receive_that_is_cancelled_loses_no_event() {
    let spool = Spool::new();
    for number in 0..50 {
        spool.put(&format!("{number:02}"), "x");
    }
    let mut source = spool.source(100).await;
    let mut receipts = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    let mut patience = 0;
    while receipts.len() < 50 {
        assert!(Instant::now() < deadline, "{} of 50", receipts.len());
        patience = (patience + 37) % 400;
        let received = timeout(Duration::from_micros(patience), source.recv()).await;
        if let Ok(delivery) = received {
            receipts.push(delivery.unwrap().receipt);
        }
    }
    for receipt in receipts {
        receipt.settle(Verdict::Done).await.unwrap();
    }
    assert_eq!(spool.names("done").len(), 50);
}

#[tokio::test]
async fn a_failed_event_comes_back_and_is_given_up_with_its_error_after_three_tries() {
    let spool = Spool::new();
    spool.put("bad.json", "{}");
    let mut source = spool.source(1).await;
    for earlier in 0..TRIES_MAX {
        // Each try by another pilot: the count must survive.
        if earlier == 1 {
            source.close().await;
            source = spool.source(1).await;
        }
        let delivery = next(&mut source).await;
        assert_eq!(delivery.earlier_deliveries, Some(earlier));
        let reason = format!("boom {earlier}");
        delivery
            .receipt
            .settle(Verdict::Failed { reason })
            .await
            .unwrap();
    }
    nothing(&mut source).await;
    assert_eq!(
        spool.names("failed"),
        set(["bad.json", "bad.json.error.txt"])
    );
    let error = fs::read_to_string(spool.path("failed/bad.json.error.txt")).unwrap();
    assert_eq!(error, "failed 3 times; the last time:\nboom 2\n");
    assert_eq!(spool.names(".tries"), set([]));
}

#[tokio::test]
async fn a_released_event_comes_back_uncounted() {
    let spool = Spool::new();
    spool.put("x", "x");
    let mut source = spool.source(1).await;
    for _ in 0..TRIES_MAX + 2 {
        let delivery = next(&mut source).await;
        assert_eq!(delivery.earlier_deliveries, Some(0));
        delivery.receipt.settle(Verdict::Released).await.unwrap();
    }
    assert_eq!(spool.names(""), set(["x"]));
}

#[tokio::test]
async fn failures_of_an_earlier_event_of_the_same_name_are_not_counted() {
    let spool = Spool::new();
    spool.put("x", "first");
    let mut source = spool.source(1).await;
    let delivery = next(&mut source).await;
    delivery
        .receipt
        .settle(Verdict::Failed {
            reason: "boom".into(),
        })
        .await
        .unwrap();
    source.close().await;
    spool.put("x", "second");
    let mut source = spool.source(1).await;
    let delivery = next(&mut source).await;
    assert_eq!(
        (text(&delivery), delivery.earlier_deliveries),
        ("second", Some(0))
    );
    delivery.receipt.settle(Verdict::Done).await.unwrap();
}

#[tokio::test]
async fn events_of_the_same_name_never_replace_each_other() {
    let spool = Spool::new();
    spool.put("x.json", "1");
    let mut source = spool.source(3).await;
    let first = next(&mut source).await;
    spool.put("x.json", "2");
    nothing(&mut source).await;
    first.receipt.settle(Verdict::Released).await.unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let delivery = next(&mut source).await;
        seen.insert(text(&delivery).to_owned());
        delivery.receipt.settle(Verdict::Done).await.unwrap();
    }
    assert_eq!(seen, set(["1", "2"]));
    assert_eq!(spool.names("done").len(), 2);
}

#[tokio::test]
async fn stopping_gives_back_what_was_not_handed_out_and_leaves_receipts_usable() {
    let spool = Spool::new();
    spool.put("a", "a");
    spool.put("b", "b");
    let mut source = spool.source(5).await;
    let held = next(&mut source).await;
    // A receive that was cancelled while it claimed the second.
    let desk = Arc::clone(&source.desk);
    let mut backlog = Backlog::new();
    source.work = Some(spawn_blocking(move || {
        let taken = take(&mut backlog, &desk);
        (backlog, taken)
    }));
    source.stop().await.unwrap();
    source.stop().await.unwrap();
    assert!(spool.path("b").exists());
    nothing(&mut source).await;
    held.receipt.settle(Verdict::Done).await.unwrap();
    source.close().await;
    assert_eq!(spool.names("done"), set(["a"]));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_given_up_without_ending_the_pilot() {
    let spool = Spool::new();
    let huge = File::create(spool.path("huge")).unwrap();
    huge.set_len(600 * 1024 * 1024).unwrap();
    huge.set_modified(SystemTime::now() - Duration::from_secs(10))
        .unwrap();
    spool.put("small", "x");
    let mut source = spool.source(1).await;
    let delivery = next(&mut source).await;
    assert_eq!(text(&delivery), "x");
    delivery.receipt.settle(Verdict::Done).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !spool.path("failed/huge.error.txt").exists() {
        assert!(Instant::now() < deadline);
        let _tries = timeout(Duration::from_millis(100), source.recv()).await;
    }
}

#[tokio::test]
async fn a_dead_pilots_claims_are_back_at_once_on_the_same_machine() {
    let spool = Spool::new();
    spool.put("x", "x");
    let layout = spool.layout();
    let dead = Arc::new(Desk::open(layout.clone(), Generation(1)).unwrap());
    let claim = dead.claim("x".as_ref(), claim::Sighting::Found).unwrap();
    assert!(matches!(claim, claim::Outcome::Claimed(_)), "{claim:?}");
    let mut source = spool.source(1).await;
    nothing(&mut source).await;
    source.close().await;
    // Its lock goes with it, as with a process that is killed.
    drop((claim, dead));
    let mut source = spool.source(1).await;
    let delivery = next(&mut source).await;
    assert_eq!(
        (text(&delivery), delivery.earlier_deliveries),
        ("x", Some(0))
    );
    delivery.receipt.settle(Verdict::Done).await.unwrap();
}

#[test]
fn a_pilot_of_another_machine_is_dead_only_when_its_lease_is_old() {
    let spool = Spool::new();
    let layout = spool.layout();
    let me = Holder::create(&layout, Generation(1)).unwrap();
    let other = Holder::create(&layout, Generation(1)).unwrap();
    fs::write(
        other.directory.join(".lease"),
        "boot=another\ndevice=1\nlock=flock\n",
    )
    .unwrap();
    fs::write(other.directory.join("x"), "x").unwrap();
    assert_eq!(me.take_back(&layout, Whose::Everyone).unwrap(), 0);
    bury(&other);
    assert_eq!(me.take_back(&layout, Whose::ThisMachine).unwrap(), 0);
    assert_eq!(me.take_back(&layout, Whose::Everyone).unwrap(), 1);
    assert_eq!(spool.names(""), set(["x"]));
    assert_eq!(
        other.refresh().unwrap_err().error.kind(),
        io::ErrorKind::NotFound
    );
}

#[test]
fn claims_that_a_dead_pilot_had_taken_from_another_dead_one_come_back_too() {
    let spool = Spool::new();
    let layout = spool.layout();
    let first = Holder::create(&layout, Generation(1)).unwrap();
    let second = Holder::create(&layout, Generation(1)).unwrap();
    fs::write(first.directory.join("a"), "a").unwrap();
    fs::write(second.directory.join("b"), "b").unwrap();
    // It died between taking the directory and putting its events back.
    fs::rename(&first.directory, second.directory.join("taken-x")).unwrap();
    drop((first, second));
    let me = Holder::create(&layout, Generation(1)).unwrap();
    assert_eq!(me.take_back(&layout, Whose::ThisMachine).unwrap(), 2);
    assert_eq!(spool.names(""), set(["a", "b"]));
    assert_eq!(fs::read_dir(&layout.claimed).unwrap().count(), 1);
}

#[test]
fn of_many_who_take_back_at_once_each_event_is_taken_once() {
    let spool = Spool::new();
    let layout = spool.layout();
    for round in 0..10 {
        for number in 0..5 {
            let dead = Holder::create(&layout, Generation(1)).unwrap();
            fs::write(dead.directory.join(format!("{round}-{number}")), "x").unwrap();
            // Some by their lock, some by their lease.
            if number % 2 == 0 {
                bury(&dead);
            }
        }
        let taken: usize = thread::scope(|scope| {
            let takers: Vec<_> = (0..6)
                .map(|_| {
                    scope.spawn(|| {
                        let me = Holder::create(&layout, Generation(1)).unwrap();
                        let taken = me.take_back(&layout, Whose::Everyone).unwrap();
                        me.retire(&layout).unwrap();
                        taken
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(taken, 5, "round {round}");
    }
    assert_eq!(spool.names("").len(), 50);
    assert_eq!(fs::read_dir(&layout.claimed).unwrap().count(), 0);
}

#[tokio::test]
async fn a_pilot_that_was_taken_for_dead_learns_it_and_goes_on() {
    let spool = Spool::new();
    spool.put("a", "a");
    let mut source = spool.source(2).await;
    let held = next(&mut source).await;
    assert_eq!(held.receipt.generation(), Some(Generation(1)));
    bury(&source.desk.holder);
    let layout = spool.layout();
    let other = Holder::create(&layout, Generation(1)).unwrap();
    assert_eq!(other.take_back(&layout, Whose::Everyone).unwrap(), 1);
    let again = next(&mut source).await;
    assert_eq!(
        (text(&again), again.receipt.generation()),
        ("a", Some(Generation(2)))
    );
    let late = held.receipt.settle(Verdict::Done).await;
    assert_eq!(late, Err(SettleError::SessionLost));
    again.receipt.settle(Verdict::Done).await.unwrap();
    assert_eq!(spool.names("done"), set(["a"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_pilots_on_one_queue_work_through_each_event_once() {
    let spool = Spool::new();
    let all: BTreeSet<String> = (0..400).map(|number| format!("{number:03}.json")).collect();
    for name in &all {
        spool.put(name, name);
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut pilots = Vec::new();
    for _ in 0..4 {
        let (mut source, seen) = (spool.source(3).await, Arc::clone(&seen));
        pilots.push(tokio::spawn(async move {
            while let Ok(delivery) = timeout(Duration::from_secs(1), source.recv()).await {
                let delivery = delivery.unwrap();
                seen.lock().unwrap().push(text(&delivery).to_owned());
                delivery.receipt.settle(Verdict::Done).await.unwrap();
            }
            source.close().await;
        }));
    }
    for pilot in pilots {
        pilot.await.unwrap();
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 400);
    assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), all);
    assert_eq!(spool.names("done"), all);
}

#[tokio::test]
async fn results_get_names_of_their_own_in_the_order_of_time_and_can_be_the_next_events() {
    let spool = Spool::new();
    let sink = Sink::open("q", spool.root.path()).await.unwrap();
    for number in 0..20 {
        let content = Content::File(FileFormat::Json, number.to_string().into_bytes());
        sink.publish(content).await.unwrap();
    }
    sink.publish(Content::File(FileFormat::Text, b"end".to_vec()))
        .await
        .unwrap();
    let names = spool.names("");
    assert_eq!(names.len(), 21);
    let values: Vec<_> = names
        .iter()
        .map(|name| fs::read_to_string(spool.path(name)).unwrap())
        .collect();
    let expected: Vec<_> = (0..20)
        .map(|n| n.to_string())
        .chain(["end".to_owned()])
        .collect();
    assert_eq!(values, expected);
    assert_eq!(
        Path::new(names.last().unwrap()).extension(),
        Some("txt".as_ref())
    );
    let frame = sink.publish(Content::Frame(Vec::new())).await;
    assert_eq!(frame, Err(PublishError::WrongEncoding));
}

#[tokio::test]
async fn a_result_that_cannot_be_written_leaves_nothing_and_says_where() {
    let spool = Spool::new();
    let sink = Sink::open("out", spool.root.path()).await.unwrap();
    fs::remove_dir(spool.root.path().join("out")).unwrap();
    let error = sink
        .publish(Content::File(FileFormat::Json, b"1".to_vec()))
        .await
        .unwrap_err();
    assert!(matches!(&error, PublishError::Spool { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS"),
        "{error}"
    );
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_an_error_that_names_the_variable() {
    let spool = Spool::new();
    fs::write(spool.path("file"), "").unwrap();
    let opened = Source::open("x", &spool.path("file"), NonZeroU32::MIN).await;
    let Err(error) = opened else { panic!("opened") };
    let text = error.to_string();
    assert!(
        text.contains("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS"),
        "{text}"
    );
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_receipt_dropped_unsettled_is_logged_as_an_error_and_a_settled_one_is_not() {
    let spool = Spool::new();
    spool.put("good", "x");
    spool.put("lost", "x");
    let mut source = spool.source(2).await;
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let delivery = next(&mut source).await;
    delivery.receipt.settle(Verdict::Done).await.unwrap();
    let read = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(read(), "");
    drop(next(&mut source).await);
    let text = read();
    assert!(
        text.contains("ERROR") && text.contains("dropped unsettled"),
        "{text}"
    );
    assert!(text.contains("lost"), "{text}");
    source.close().await;
    assert!(spool.path("lost").exists(), "closing gives it back");
}
