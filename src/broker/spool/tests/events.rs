//! One pilot and its events.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};
use tracing_subscriber::fmt::MakeWriter;

use super::super::backlog::Backlog;
use super::super::claim::TRIES_MAX;
use super::super::source::take;
use super::*;
use crate::broker::{Content, FileFormat, Verdict};

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
        Content::File(FileFormat::Json, b"1".to_vec().into())
    );
    assert_eq!(first.earlier_deliveries, Some(0));
    let second = next(&mut source).await;
    assert_eq!(
        second.content,
        Content::File(FileFormat::Text, b"two".to_vec().into())
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
        // Another pilot makes the next try: the count must survive that.
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
    // As left by a receive that was cancelled while it claimed the second event.
    let desk = Arc::clone(&source.desk);
    let mut backlog = Backlog::new();
    source.work = Some(crate::blocking::start(move || {
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
