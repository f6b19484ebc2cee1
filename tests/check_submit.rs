//! `ewms-pilot check --submit`, on a machine that has neither Apptainer nor the image, before a pilot is submitted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::support::rabbitmq::{ADDRESS, Queue};
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, eventually};

/// The settings of a submission, in an env file; no image, which is a macro of the template.
fn submission(incoming: &Queue, outgoing: &Queue, more: &[(&str, &str)]) -> Scene {
    let scene = Scene::new()
        .arg("check")
        .arg("--submit")
        .arg("--env-file")
        .arg("my.env")
        .set("EWMS_PILOT_APPTAINER", "/nowhere/apptainer");
    let mut variables = Vec::new();
    for (direction, queue) in [("INCOMING", incoming), ("OUTGOING", outgoing)] {
        let name = format!("EWMS_PILOT_QUEUE_{direction}");
        variables.push((format!("{name}_BROKER_TYPE"), "rabbitmq"));
        variables.push((format!("{name}_BROKER_ADDRESS"), ADDRESS));
        variables.push((name, queue.name()));
    }
    let more = more.iter();
    variables.extend(more.map(|(name, value)| ((*name).to_owned(), *value)));
    let lines: Vec<String> = variables
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", shell_words::quote(value)))
        .collect();
    let lines = lines.concat();
    let file = scene.dir().join("my.env");
    fs::write(&file, lines).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its owner may");
    scene
}

fn with_events(count: usize) -> (Queue, Queue) {
    let (incoming, outgoing) = (Queue::unique("submit-in"), Queue::unique("submit-out"));
    incoming.produce(vec!["1"; count]);
    assert!(eventually(SOON, || incoming.depth() == count));
    assert_eq!(outgoing.depth(), 0);
    (incoming, outgoing)
}

/// The lines of a check.
fn of<'a>(outcome: &'a Outcome, check: &str) -> Vec<&'a str> {
    let lines = outcome.stdout.lines();
    lines
        .filter(|line| line.split_whitespace().nth(1) == Some(check))
        .collect()
}

#[test]
fn a_submission_is_checked_without_apptainer_and_without_an_image() {
    let (incoming, outgoing) = with_events(3);
    let scene = submission(&incoming, &outgoing, &[("EWMS_PILOT_TASK_ARGS", "true")]);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    let file = scene.dir().join("my.env");
    let expected = format!(
        "ok    env-file              `{}` sets 7 variables",
        file.display()
    );
    assert_eq!(of(&outcome, "env-file"), [expected]);
    let [image] = of(&outcome, "configuration")[..] else {
        panic!("{}", outcome.stdout)
    };
    assert!(
        image.starts_with("NOTE ") && image.contains("`task_image=…`"),
        "{image}"
    );
    let [queue] = of(&outcome, "broker-incoming")[..] else {
        panic!("{}", outcome.stdout)
    };
    let depth = format!(
        "queue `{}` exists: 3 events wait, 0 consumers",
        incoming.name()
    );
    assert!(
        queue.starts_with("ok ") && queue.ends_with(&depth),
        "{queue}"
    );
    assert_eq!(of(&outcome, "broker-outgoing").len(), 1);
    assert_eq!(outcome.stdout.lines().count(), 4, "{}", outcome.stdout);

    let outcome = scene.arg("--json").run(SOON);
    let findings: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(findings[2]["check"], "broker-incoming");
    assert_eq!(findings[2]["waiting_events"], 3);
    assert_eq!(findings[2]["queue"], incoming.name());
    assert_eq!(incoming.delivery_counts(), [0, 0, 0]);
}

#[test]
fn every_problem_of_a_submission_is_a_line_of_its_own() {
    let (incoming, outgoing) = with_events(0);
    let wrong = [
        ("EWMS_PILOT_PREFETCH", "many"),
        ("EWMS_PILOT_TASK_TIMEOUT", "0"),
        ("EWMS_PILOT_TASK_IMGE", "x"),
    ];
    let outcome = submission(&incoming, &outgoing, &wrong).run(SOON);
    outcome.assert_code(2);
    let lines = of(&outcome, "configuration");
    let failed: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert_eq!(failed.len(), 2, "{lines:#?}");
    assert!(
        failed
            .iter()
            .any(|line| line.contains("`EWMS_PILOT_PREFETCH` is `many`: "))
    );
    assert!(
        failed
            .iter()
            .any(|line| line.contains("`EWMS_PILOT_TASK_TIMEOUT` is `0`: "))
    );
    let unknown = "`EWMS_PILOT_TASK_IMGE` is no variable of this pilot";
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("NOTE") && line.contains(unknown)),
        "{lines:#?}"
    );

    let none = Scene::new().arg("check").arg("--submit").run(SOON);
    none.assert_code(2);
    let [missing] = of(&none, "env-file")[..] else {
        panic!("{}", none.stdout)
    };
    assert!(
        missing.starts_with("FAIL") && missing.contains("--env-file FILE"),
        "{missing}"
    );
    let other = Scene::new()
        .arg("check")
        .arg("--submit")
        .arg("--env-file")
        .arg("no.env")
        .run(SOON);
    other.assert_code(2);
    assert!(
        of(&other, "configuration")
            .iter()
            .any(|line| line.contains("`no.env`: there is no such file")),
        "{}",
        other.stdout
    );
}

#[test]
fn the_end_of_each_token_is_told_and_no_token() {
    let (incoming, outgoing) = with_events(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let token = |end: u64| {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let claims = format!(r#"{{"exp":{end}}}"#);
        format!(
            "{}.{}.{}",
            part(r#"{"alg":"RS256"}"#),
            part(&claims),
            part("s3cret")
        )
    };
    let (ended, soon) = (token(now - 150 * 60), token(now + 210 * 60));
    let tokens = [
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", &*ended),
        ("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN", &*soon),
    ];
    let scene = submission(&incoming, &outgoing, &tokens);
    fs::set_permissions(
        scene.dir().join("my.env"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("its owner may");
    let outcome = scene.run(SOON);
    outcome.assert_code(4);
    let lines = of(&outcome, "token");
    assert_eq!(lines.len(), 2, "{}", outcome.stdout);
    let past = format!("the token of queue `{}` ended 2 h 3", incoming.name());
    assert!(
        lines[0].starts_with("FAIL") && lines[0].contains(&past),
        "{lines:#?}"
    );
    let left = format!("the token of queue `{}` ends in 3 h ", outgoing.name());
    assert!(
        lines[1].starts_with("NOTE") && lines[1].contains(&left),
        "{lines:#?}"
    );
    let file = of(&outcome, "env-file");
    assert!(
        file[1].starts_with("NOTE") && file[1].contains("; chmod 600 "),
        "{file:#?}"
    );
    for secret in [&ended, &soon] {
        assert!(!outcome.stdout.contains(secret) && !outcome.stderr.contains(secret));
    }
}
