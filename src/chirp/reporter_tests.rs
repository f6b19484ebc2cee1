//! Tests of the reporter against the fake server.

use super::super::fake_server::{Answer, FakeServer, OBEY};
use super::*;
use Urgency::{AtOnce, WithinInterval};

const MINUTE: Duration = Duration::from_mins(1);

/// Short enough for a test to see several attempts.
const HASTY: RetryPace = RetryPace {
    patience: Duration::from_millis(500),
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(40),
};

fn text(text: &str) -> ChirpValue {
    ChirpValue::Text(text.to_owned())
}

/// `lines` without the digits of timestamps.
fn timeless(lines: &[String]) -> Vec<String> {
    let timeless = |line: &String| match line.find(LAST_UPDATED) {
        None => line.clone(),
        Some(start) => {
            let (name, time) = line.split_at(start + LAST_UPDATED.len());
            let digits: String = time.chars().filter(char::is_ascii_digit).collect();
            let seconds: i64 = digits.parse().unwrap();
            assert!((unix_time() - seconds).abs() < 60, "{line}");
            name.to_owned() + &time.replace(&digits, "NOW")
        }
    };
    lines.iter().map(timeless).collect()
}

#[tokio::test]
async fn job_attributes_are_set_and_the_timestamp_is_last() {
    let server = FakeServer::start(OBEY).await;
    let reporter = ChirpReporter::start(server.settings(Destination::JobAttr, MINUTE));
    reporter.set("TasksTotal", ChirpValue::Count(3), WithinInterval);
    reporter.set("Status", text("Tasking"), AtOnce);
    reporter.set("TasksFailed", ChirpValue::Count(0), WithinInterval);
    reporter.flush(MINUTE).await;
    assert_eq!(
        timeless(&server.seen()),
        [
            "set_job_attr HTChirpEWMSPilotStatus \"Tasking\"",
            "set_job_attr HTChirpEWMSPilotTasksTotal 3",
            "set_job_attr HTChirpEWMSPilotLastUpdatedTimestamp NOW",
        ]
    );
}

#[tokio::test]
async fn the_event_log_gets_quoted_text_whatever_the_value() {
    let server = FakeServer::start(OBEY).await;
    let reporter = ChirpReporter::start(server.settings(Destination::JobEventLog, MINUTE));
    reporter.set("Error", text("é: \"no\"\nphotons"), AtOnce);
    reporter.set("TasksTotal", ChirpValue::Count(3), WithinInterval);
    reporter.flush(MINUTE).await;
    assert_eq!(
        timeless(&server.seen()),
        [
            r#"ulog HTChirpEWMSPilotError: "\303\251: \"no\"\nphotons""#,
            r#"ulog HTChirpEWMSPilotTasksTotal: "3""#,
            r#"ulog HTChirpEWMSPilotLastUpdatedTimestamp: "NOW""#,
        ]
    );
}

#[tokio::test]
async fn a_status_is_sent_without_anybody_waiting_and_counts_are_held_back() {
    let server = FakeServer::start(OBEY).await;
    let reporter = ChirpReporter::start(server.settings(Destination::JobAttr, MINUTE));
    reporter.set("TasksTotal", ChirpValue::Count(1), WithinInterval);
    reporter.set("Status", text("Tasking"), AtOnce);
    server.wait_for(|lines| lines.len() >= 3).await;
    for number in 2..100 {
        reporter.set("TasksTotal", ChirpValue::Count(number), WithinInterval);
    }
    reporter.set("Status", text("PendingRemainingTasks"), AtOnce);
    reporter.set("Status", text("Done"), AtOnce);
    let lines = server.wait_for(|lines| lines.len() >= 6).await;
    assert_eq!(
        lines[3],
        "set_job_attr HTChirpEWMSPilotStatus \"PendingRemainingTasks\""
    );
    assert_eq!(lines[4], "set_job_attr HTChirpEWMSPilotStatus \"Done\"");
    reporter.flush(MINUTE).await;
    let lines = server.seen();
    assert_eq!(lines[6], "set_job_attr HTChirpEWMSPilotTasksTotal 99");
    assert_eq!(lines.len(), 8, "{lines:?}");
}

#[tokio::test]
async fn the_event_log_gets_nothing_that_services_do_not_read_there() {
    for (destination, expected) in [(Destination::JobAttr, 6), (Destination::JobEventLog, 2)] {
        let server = FakeServer::start(OBEY).await;
        let reporter = ChirpReporter::start(server.settings(destination, MINUTE));
        for attribute in ["Site", "ErrorClass", "TasksRunning"] {
            reporter.set(attribute, text("x"), AtOnce);
        }
        reporter.set("Error", ChirpValue::Undefined, AtOnce);
        reporter.set("Status", text("Started"), AtOnce);
        reporter.flush(MINUTE).await;
        let lines = server.seen();
        assert_eq!(lines.len(), expected, "{lines:?}");
        let undone = "set_job_attr HTChirpEWMSPilotError UNDEFINED";
        let is_undone = lines.iter().any(|line| line == undone);
        assert_eq!(is_undone, destination == Destination::JobAttr, "{lines:?}");
    }
}

#[tokio::test]
async fn nothing_new_means_nothing_sent() {
    let server = FakeServer::start(OBEY).await;
    let reporter = ChirpReporter::start(server.settings(Destination::JobAttr, Duration::ZERO));
    for _ in 0..3 {
        reporter.set("Status", text("Tasking"), AtOnce);
        reporter.set("TasksTotal", ChirpValue::Count(0), WithinInterval);
        reporter.flush(MINUTE).await;
    }
    assert_eq!(server.seen().len(), 2, "{:?}", server.seen());
}

#[tokio::test]
async fn without_a_configuration_file_it_is_off() {
    let directory = tempfile::tempdir().unwrap();
    let reporter = ChirpReporter::start(ChirpSettings {
        destination: Destination::JobAttr,
        interval: MINUTE,
        config_file: directory.path().join(".chirp.config"),
    });
    assert!(reporter.0.is_none());
    reporter.set("Status", text("Started"), AtOnce);
    reporter.flush(MINUTE).await;
}

#[tokio::test]
async fn values_set_while_nobody_listened_arrive_once_somebody_does() {
    let server = FakeServer::start(OBEY).await;
    let reporter = ChirpReporter::start_at(server.settings_of_the_dead(), HASTY);
    reporter.set("Status", text("Started"), AtOnce);
    reporter.flush(MINUTE).await;
    reporter.set("Status", text("Tasking"), AtOnce);
    server.come_to_life();
    let lines = server.wait_for(|lines| lines.len() >= 3).await;
    assert_eq!(
        timeless(&lines),
        [
            "set_job_attr HTChirpEWMSPilotStatus \"Started\"",
            "set_job_attr HTChirpEWMSPilotStatus \"Tasking\"",
            "set_job_attr HTChirpEWMSPilotLastUpdatedTimestamp NOW",
        ]
    );
}

#[tokio::test]
async fn a_broken_conversation_is_taken_up_on_a_new_connection() {
    for broken in [
        Answer::HangUp,
        Answer::Nothing,
        Answer::Reply("what?\n"),
        Answer::Reply("0"),
    ] {
        for at in ["cookie", "Status", LAST_UPDATED] {
            let server = FakeServer::start(move |connection, command| {
                if connection == 1 && command.contains(at) {
                    broken
                } else {
                    Answer::Reply("0\n")
                }
            })
            .await;
            let settings = server.settings(Destination::JobAttr, MINUTE);
            let reporter = ChirpReporter::start_at(settings, HASTY);
            reporter.set("Status", text("Done"), AtOnce);
            let expected = if at == "cookie" { 2 } else { 3 };
            let lines = server.wait_for(|lines| lines.len() >= expected).await;
            assert!(
                lines[expected - 1].contains(LAST_UPDATED),
                "{broken:?} {at} {lines:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_refused_value_is_given_up_and_stops_no_other() {
    let server = FakeServer::start(|_, command| {
        Answer::Reply(if command.contains("Error") {
            "-8\n"
        } else {
            "0\n"
        })
    })
    .await;
    let reporter = ChirpReporter::start_at(server.settings(Destination::JobAttr, MINUTE), HASTY);
    reporter.set("Error", text("odd"), AtOnce);
    reporter.set("Status", text("Done"), AtOnce);
    let errors = |lines: &[String]| lines.iter().filter(|line| line.contains("Error")).count();
    let lines = server.wait_for(|lines| errors(lines) >= 3).await;
    assert!(
        lines.iter().any(|line| line.contains("\"Done\"")),
        "{lines:?}"
    );
    reporter.set("Status", text("Gone"), AtOnce);
    server
        .wait_for(|lines| lines.iter().any(|line| line.contains("\"Gone\"")))
        .await;
    reporter.flush(MINUTE).await;
    assert_eq!(errors(&server.seen()), 3, "{:?}", server.seen());
}

#[tokio::test]
async fn a_server_that_refuses_the_cookie_gets_no_value() {
    let server = FakeServer::start(|_, _| Answer::Reply("-1\n")).await;
    let reporter = ChirpReporter::start_at(server.settings(Destination::JobAttr, MINUTE), HASTY);
    reporter.set("Status", text("Done"), AtOnce);
    reporter.flush(MINUTE).await;
    assert_eq!(server.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_never_answers_holds_nobody_up() {
    let server = FakeServer::start(|_, _| Answer::Nothing).await;
    let reporter = ChirpReporter::start(server.settings(Destination::JobEventLog, Duration::ZERO));
    let start = std::time::Instant::now();
    for number in 0..300 {
        reporter.set("TasksTotal", ChirpValue::Count(number), WithinInterval);
        reporter.set("Error", text(&"x".repeat(2_000)), AtOnce);
    }
    reporter.flush(Duration::from_millis(50)).await;
    // Far below PACE's patience, far above what a busy machine needs.
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn the_actor_ends_with_the_last_handle() {
    let server = FakeServer::start(OBEY).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let reporter = ChirpReporter::start(server.settings(Destination::JobAttr, MINUTE));
    assert!(metrics.num_alive_tasks() > before);
    drop(reporter);
    let gone = async {
        while metrics.num_alive_tasks() > before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(MINUTE, gone).await.unwrap();
}

#[test]
fn pauses_double_up_to_a_minute() {
    let pauses: Vec<_> = [1, 2, 3, 6, 7, 8, u32::MAX]
        .map(|n| PACE.pause(n).as_secs())
        .into();
    assert_eq!(pauses, [1, 2, 4, 32, 60, 60, 60]);
}
