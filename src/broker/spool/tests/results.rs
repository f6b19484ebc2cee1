//! Results written into a queue, and results that can't be written.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;

use super::super::{SpoolSink, SpoolSource};
use super::*;
use crate::broker::{Content, FileFormat, OutagePolicy, PublishError};

#[tokio::test]
async fn results_get_names_of_their_own_in_the_order_of_time_and_can_be_the_next_events() {
    let spool = Spool::new();
    let sink = SpoolSink::open("q", spool.root.path(), &OutagePolicy::none())
        .await
        .unwrap();
    for number in 0..20 {
        let content = Content::File(FileFormat::Json, number.to_string().into_bytes().into());
        sink.publish(content, None).await.unwrap();
    }
    sink.publish(
        Content::File(FileFormat::Text, b"end".to_vec().into()),
        None,
    )
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
    let frame = sink.publish(Content::Frame(Vec::new().into()), None).await;
    assert_eq!(frame, Err(PublishError::WrongEncoding));
}

#[tokio::test]
async fn pilots_that_share_a_spool_never_write_over_each_others_results() {
    let spool = Spool::new();
    let mut sinks = Vec::new();
    for _ in 0..4 {
        sinks.push(
            SpoolSink::open("q", spool.root.path(), &OutagePolicy::none())
                .await
                .unwrap(),
        );
    }
    let all = (0..200).map(|number: usize| {
        let content = Content::File(FileFormat::Json, number.to_string().into_bytes().into());
        sinks[number % sinks.len()].publish(content, Some("p1.json".into()))
    });
    for published in futures_util::future::join_all(all).await {
        published.unwrap();
    }
    let names = spool.names("");
    let mut numbers: Vec<usize> = names
        .iter()
        .map(|name| {
            fs::read_to_string(spool.path(name))
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    for name in ["p1.json", "p1.2.json", "p1.100.json"] {
        assert!(
            names
                .iter()
                .any(|there| Path::new(there) == Path::new(name)),
            "{names:?}"
        );
    }
}

#[tokio::test]
async fn a_result_that_cannot_be_written_leaves_nothing_and_says_where() {
    let spool = Spool::new();
    let sink = SpoolSink::open("out", spool.root.path(), &OutagePolicy::none())
        .await
        .unwrap();
    fs::remove_dir(spool.root.path().join("out")).unwrap();
    let error = sink
        .publish(Content::File(FileFormat::Json, b"1".to_vec().into()), None)
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
    let opened = SpoolSource::open("x", &spool.path("file"), NonZeroU32::MIN).await;
    let Err(error) = opened else { panic!("opened") };
    let text = error.to_string();
    assert!(
        text.contains("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS"),
        "{text}"
    );
}
