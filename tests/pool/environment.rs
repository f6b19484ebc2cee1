//! The env file: every value arrives as it was, and what is secret is seen by the pilot alone.

use std::process::Command;

use uuid::Uuid;

use super::{AT_ONCE, fill, pilots};
use crate::support::condor::{Happened, run};
use crate::support::{images, rabbitmq};

/// What quoting, splitting, expanding and JSON could each get wrong.
const HOSTILE: [&str; 16] = [
    "",
    " two  spaces ",
    "it's",
    "say \"hi\"",
    "'\"'\"'",
    "$HOME ${HOME} $(touch /tmp/x) `id`",
    "back\\slash \\n \\\\ \\\"",
    "a,b;c|d&e>f<g*h?i[j]k{l}m~n!o#p%q^r(s)t",
    "line\nbreak\n",
    "tab\tend",
    "a=b==c",
    "-e --flag",
    "{\"json\": [1, null]}",
    "ünïcödé 漢 🦀",
    "$(ClusterId) $ENV(HOME) $$(Memory)",
    "# no comment",
];

#[test]
fn every_value_of_the_env_file_arrives_and_its_tokens_are_in_no_ad_and_no_log() {
    let source = "import json, os, sys\n\
                  seen = {k: v for k, v in os.environ.items() if k.startswith('H_')}\n\
                  everything = ' '.join(f'{k}={v}' for k, v in os.environ.items())\n\
                  json.dump([seen, sys.argv[1:], everything], open(os.environ['EWMS_TASK_OUTFILE'], 'w'))";
    let words = [&["python3", "-c", source][..], &HOSTILE].concat();
    let (submission, incoming, outgoing) = pilots(&images::python(), &shell_words::join(words));
    let values: serde_json::Map<String, serde_json::Value> = HOSTILE
        .iter()
        .enumerate()
        .map(|(number, value)| (format!("H_{number}"), (*value).into()))
        .collect();

    let secret = Uuid::new_v4().simple().to_string();
    let token = format!("it's \"a\" $(token) `id` \\ #;&|*~%ü {secret}");
    let user = format!("user-{secret}", secret = &secret[..8]);
    add_broker_user(&user, &token);
    let address = format!("{user}@{}", rabbitmq::ADDRESS);

    fill(&incoming, 1);
    let jobs = submission
        .export(
            "EWMS_PILOT_TASK_ENV_JSON",
            &serde_json::Value::from(values.clone()).to_string(),
        )
        .export("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", &address)
        .export("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", &token)
        .export("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", &address)
        .export("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN", &token)
        .export("EWMS_PILOT_CL_LOG", "DEBUG")
        .export("EWMS_PILOT_OUTFILE_EXT", ".json")
        .submit();
    jobs.wait_for(Happened::Executing, 1);
    let in_queue = run(Command::new("condor_q").args([jobs.cluster(), "-long"]));
    jobs.wait_for_ends(1);

    let results = outgoing.consume(2, AT_ONCE);
    assert_eq!(results.len(), 1, "{}", jobs.story());
    let result: serde_json::Value = serde_json::from_str(&results[0]).expect("JSON");
    assert_eq!(result[0], serde_json::Value::from(values));
    assert_eq!(result[1], serde_json::Value::from(HOSTILE.to_vec()));
    assert!(!results[0].contains(&secret), "the task saw the token");

    jobs.history(1);
    let in_history = run(Command::new("condor_history").args([jobs.cluster(), "-long"]));
    let name = "EWMSTaskforceUUID";
    assert!(in_history.contains(name), "{in_history}");
    for text in [in_queue, in_history, jobs.story()] {
        assert!(!text.contains(&secret), "{text}");
    }
    let daemons = Command::new("sudo")
        .args([
            "grep",
            "-rlF",
            &secret,
            "/var/log/condor",
            "/var/spool/condor",
        ])
        .output()
        .expect("there is grep");
    assert_eq!(String::from_utf8_lossy(&daemons.stdout), "");
    assert_eq!(daemons.status.code(), Some(1), "{daemons:?}");
}

/// Not with the command that is on the PATH, a shell script that expands its arguments once more.
#[track_caller]
fn add_broker_user(name: &str, password: &str) {
    for arguments in [
        &["add_user", name, password][..],
        &["set_permissions", name, ".*", ".*", ".*"],
    ] {
        let mut command = Command::new("sudo");
        let program = "/usr/lib/rabbitmq/bin/rabbitmqctl";
        let command = command.args(["-H", "-u", "rabbitmq", program, "--quiet"]);
        run(command.args(arguments).current_dir("/"));
    }
}
