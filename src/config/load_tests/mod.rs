//! Tests of the settings as a whole: what they share.

mod accepted;
mod refused;

use super::*;

const CWD: &str = "/job/scratch";

/// An environment with which a pilot runs, and what a test adds to it.
fn environment(more: &[(&str, &str)]) -> Environment {
    let enough = [
        ("EWMS_PILOT_TASK_IMAGE", "/images/task"),
        ("EWMS_PILOT_QUEUE_INCOMING", "in"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "rabbitmq"),
        ("EWMS_PILOT_QUEUE_OUTGOING", "out"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "rabbitmq"),
    ];
    enough
        .iter()
        .chain(more)
        .map(|&(name, value)| (name.into(), value.into()))
        .collect()
}

fn read(more: &[(&str, &str)]) -> Config {
    load(&environment(more), Path::new(CWD)).unwrap_or_else(|errors| panic!("{more:?}: {errors}"))
}

fn errors(environment: &Environment) -> String {
    match load(environment, Path::new(CWD)) {
        Ok(config) => panic!("was accepted: {config:?}"),
        Err(errors) => errors.to_string(),
    }
}

/// The only problem that the additions make.
fn problem(more: &[(&str, &str)]) -> String {
    let text = errors(&environment(more));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(
        lines[1],
        "RuntimeError: 1 configuration problem(s), see above."
    );
    lines[0].to_owned()
}
