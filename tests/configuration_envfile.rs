//! The file of settings that the submitting service ships with a job. It is read as data, never run.

use std::fs;
use std::process::Command;

use crate::support::SOON;
use crate::support::scene::Scene;
use crate::support::spool::SpoolQueue;

const NAME: &str = "ewms_htcondor_envfile.sh";

/// What a shell, Python, JSON or Apptainer may stumble over.
const HOSTILE: &str = "it's \"$HOME\" `id` $(touch made) \\ a,b=c;d\n\n  line ü !! # ${X} %s \\n";

/// Writes the file as the service does: sorted, quoted by Python, between `set -x` and `set +x`.
fn write(scene: &Scene, variables: &[(&str, &str)]) {
    let script = "import shlex, sys\n\
        words = iter(sys.argv[1:])\n\
        lines = sorted(f'export {k}={shlex.quote(v)}' for k, v in zip(words, words))\n\
        print('\\n'.join(['set -x', *lines, 'set +x']))";
    let arguments = variables.iter().flat_map(|(name, value)| [name, value]);
    let output = Command::new("python3")
        .args(["-c", script])
        .args(arguments)
        .output()
        .expect("there is a python3");
    assert!(output.status.success(), "{output:?}");
    fs::write(scene.dir().join(NAME), output.stdout).expect("written");
}

/// A scene whose environment says nothing, its spool and the settings for it.
fn silent() -> (
    Scene,
    SpoolQueue,
    SpoolQueue,
    Vec<(&'static str, &'static str)>,
) {
    let scene = Scene::new();
    let spool = scene.dir().join("spool");
    let incoming = SpoolQueue::create(&spool, "in");
    let outgoing = SpoolQueue::create(&spool, "out");
    let variables = vec![
        ("EWMS_PILOT_TASK_IMAGE", "/images/busybox"),
        ("EWMS_PILOT_QUEUE_INCOMING", "in"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "spool"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "spool"),
        ("EWMS_PILOT_QUEUE_OUTGOING", "out"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "spool"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", "spool"),
    ];
    (scene, incoming, outgoing, variables)
}

fn only(queue: &SpoolQueue) -> Vec<u8> {
    let files: Vec<_> = queue.files().into_values().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.concat()
}

#[test]
fn a_job_is_configured_by_the_file_that_came_with_it() {
    let (scene, incoming, outgoing, mut variables) = silent();
    incoming.put("a", "event");
    variables.extend([
        ("EWMS_PILOT_TASK_ARGS", "cp {{INFILE}} {{OUTFILE}}"),
        // The service sets these unless told otherwise; there is no HTCondor to tell here.
        ("EWMS_PILOT_HTCHIRP", "True"),
        ("EWMS_PILOT_HTCHIRP_DEST", "JOB_EVENT_LOG"),
    ]);
    write(&scene, &variables);
    scene.run(SOON).assert_code(0);
    assert_eq!(only(&outgoing), b"event");
}

#[test]
fn an_env_file_or_ad_that_is_no_file_is_told_and_not_waited_for() {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::os::unix::fs::symlink;
    type Make = fn(&std::path::Path);
    let kinds: [(&str, Make); 4] = [
        ("a FIFO", |path| mkfifo(path, Mode::S_IRWXU).expect("made")),
        ("a directory", |path| fs::create_dir(path).expect("made")),
        ("a device", |path| {
            symlink("/dev/zero", path).expect("linked");
        }),
        ("a socket", |path| {
            drop(std::os::unix::net::UnixListener::bind(path).expect("bound"));
        }),
    ];
    for (what, make) in kinds {
        let (scene, _, _) = Scene::task("/images/busybox", "true").spool();
        make(&scene.dir().join(NAME));
        let outcome = scene.run(SOON);
        outcome.assert_code(2);
        let said = format!("{NAME}` can't be read: it is {what}, and a regular file is expected");
        assert!(outcome.stderr.contains(&said), "{}", outcome.stderr);

        let (scene, incoming, _) = Scene::task("/images/busybox", "true").spool();
        incoming.put("a", "event");
        let ad = scene.dir().join("ad");
        make(&ad);
        let scene = [
            "_CONDOR_JOB_AD",
            "_CONDOR_MACHINE_AD",
            "_CONDOR_CHIRP_CONFIG",
        ]
        .iter()
        .fold(scene, |scene, name| scene.set(name, &ad))
        .set("EWMS_PILOT_HTCHIRP", "True");
        let outcome = scene.run(SOON);
        outcome.assert_code(0);
        for name in ["_CONDOR_JOB_AD", "_CONDOR_MACHINE_AD"] {
            let warned =
                |line: &&str| line.contains("WARN") && line.contains(&format!("`{name}` is "));
            let lines: Vec<&str> = outcome.stderr.lines().filter(warned).collect();
            assert_eq!(lines.len(), 1, "{}", outcome.stderr);
            assert!(lines[0].contains(what), "{lines:?}");
        }
        assert_eq!(incoming.done().len(), 1);
    }
    // The same of what the settings name.
    for (variable, kind) in [
        ("EWMS_PILOT_BROKER_CA_FILE", "spool"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN_FILE", "rabbitmq"),
    ] {
        let (scene, _, _) = Scene::task("/images/busybox", "true").spool();
        let fifo = scene.dir().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).expect("made");
        let scene = scene
            .set(variable, &fifo)
            .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", kind);
        let outcome = scene
            .set("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "localhost")
            .run(SOON);
        outcome.assert_code(2);
        let line = outcome.stderr.lines().find(|line| line.contains(variable));
        assert!(
            line.is_some_and(|line| line.contains("a FIFO")),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn hostile_values_arrive_in_the_task_and_meet_no_shell_on_the_way() {
    let (scene, incoming, outgoing, mut variables) = silent();
    incoming.put("a", "");
    let json = serde_json::json!({ "HOSTILE": HOSTILE }).to_string();
    variables.extend([
        (
            "EWMS_PILOT_TASK_ARGS",
            "sh -c 'printf %s \"$HOSTILE\" > {{OUTFILE}}'",
        ),
        ("EWMS_PILOT_TASK_ENV_JSON", &json),
    ]);
    write(&scene, &variables);
    scene.run(SOON).assert_code(0);
    assert_eq!(String::from_utf8_lossy(&only(&outgoing)), HOSTILE);
    assert!(!scene.dir().join("made").exists());
}

#[test]
fn a_variable_that_is_set_wins_over_the_file() {
    let (scene, incoming, outgoing, mut variables) = silent();
    incoming.put("a", "");
    variables.push(("EWMS_PILOT_TASK_ARGS", "sh -c 'printf file > {{OUTFILE}}'"));
    write(&scene, &variables);
    let scene = scene.set(
        "EWMS_PILOT_TASK_ARGS",
        "sh -c 'printf environment > {{OUTFILE}}'",
    );
    scene.run(SOON).assert_code(0);
    assert_eq!(only(&outgoing), b"environment");
}

#[test]
fn a_command_in_the_file_is_a_problem_and_is_not_run() {
    for (number, line) in [
        "export EWMS_PILOT_TASK_ARGS=\"$(touch made)\"",
        "export EWMS_PILOT_TASK_ARGS=`touch made`",
        "touch made",
        "export A=1; touch made",
        "export A=1 && touch made",
        "export A=$HOME",
    ]
    .into_iter()
    .enumerate()
    {
        let (scene, incoming, _, variables) = silent();
        incoming.put("a", "");
        write(&scene, &variables);
        let file = scene.dir().join(NAME);
        let text = fs::read_to_string(&file).expect("it was written");
        fs::write(&file, format!("{text}{line}\n")).expect("written");
        let outcome = scene.run(SOON);
        outcome.assert_code(2);
        let problem = format!("{NAME}`, line {}: ", text.lines().count() + 1);
        assert!(
            outcome.stderr.contains(&problem),
            "{number}: {}",
            outcome.stderr
        );
        assert!(!scene.dir().join("made").exists(), "{line}");
        assert_eq!(incoming.files().len(), 1, "{line}");
    }
}

#[test]
fn a_token_in_the_file_is_not_shown_by_its_problems() {
    let (scene, ..) = silent();
    let text = "export EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN=Xyzzy1977 extra\n\
        export EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN='Xyzzy1977\n";
    fs::write(scene.dir().join(NAME), text).expect("written");
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    assert!(outcome.stderr.contains("line 1"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("Xyzzy1977"), "{}", outcome.stderr);
}
