//! A token set to a known word, looked for everywhere, while the broker really asks for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{await_file, hub, shell_task};
use crate::support::rabbitmq::{self, Queue, rabbitmqctl};
use crate::support::scene::Scene;
use crate::support::{SOON, processes};

/// A user of the broker with a password of its own. Deleted when dropped.
struct User {
    name: String,
    password: String,
}

impl User {
    fn unique() -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (name, password) = (format!("user-{id}"), format!("pAssw0rd-{id}"));
        rabbitmqctl(&["add_user", &name, &password]);
        rabbitmqctl(&["set_permissions", &name, ".*", ".*", ".*"]);
        Self { name, password }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            rabbitmqctl(&["delete_user", &self.name]);
        }
    }
}

fn addresses(scene: Scene, address: &str) -> Scene {
    ["INCOMING", "OUTGOING"].iter().fold(scene, |scene, way| {
        scene.set(&format!("EWMS_PILOT_QUEUE_{way}_BROKER_ADDRESS"), address)
    })
}

fn tokens(scene: Scene, token: &str) -> Scene {
    ["INCOMING", "OUTGOING"].iter().fold(scene, |scene, way| {
        scene.set(&format!("EWMS_PILOT_QUEUE_{way}_AUTH_TOKEN"), token)
    })
}

fn talkative(scene: Scene) -> Scene {
    scene
        .set("EWMS_PILOT_CL_LOG", "DEBUG")
        .set("EWMS_PILOT_CL_LOG_THIRD_PARTY", "DEBUG")
        .set("EWMS_PILOT_CONTAINER_DEBUG", "True")
        .set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True")
        .set("EWMS_PILOT_KEEP_ALL_TASK_FILES", "True")
}

/// Looks at all that it can see, and waits to be looked at.
const SPY: &str = r#"touch {{DATA_HUB}}/ready; until [ -e {{DATA_HUB}}/go ]; do sleep 0.02; done
    { env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /etc/passwd /etc/hosts /etc/resolv.conf
      find /ewms-pilot-data /tmp /var/tmp "$HOME" /dev/shm -type f ! -name 'outfile*' -exec cat {} +
    } 2>/dev/null | tr '\0' '\n' >{{OUTFILE}}"#;

/// Every file below `directory` that holds `word`, the pilot's own output included.
fn files_with(directory: &Path, word: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_with(&path, word)),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).expect("it can be read");
                if content.windows(word.len()).any(|window| window == word) {
                    found.push(path);
                }
            }
            _ => {}
        }
    }
    found
}

#[track_caller]
fn assert_secret(scene: &Scene, word: &str, incoming: &Queue, outgoing: &Queue) {
    incoming.produce([r#""the event""#]);
    let mut pilot = scene.start();
    await_file(&hub(scene).join("ready"));
    for process in processes::all() {
        assert!(!process.command_line.contains(word), "{process:?}");
        let environment = String::from_utf8_lossy(&process.environment);
        // Whoever started the pilot gave it to the pilot in its environment, where only the same user
        // and root can read it.
        assert!(
            process.pid == pilot.pid() || !environment.contains(word),
            "{process:?}"
        );
    }
    fs::write(hub(scene).join("go"), "").expect("written");
    pilot.wait_for_line("task succeeded", SOON);
    let results = outgoing.consume(1, Duration::from_secs(10));
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);
    assert_eq!(results.len(), 1);
    assert!(results[0].contains("EWMS_TASK_INFILE="), "the task looked");
    assert!(!results[0].contains(word), "in the container");
    assert!(outcome.stderr.contains("DEBUG"), "{}", outcome.stderr);
    let found = files_with(scene.dir(), word.as_bytes());
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_token_is_in_no_log_no_argv_no_file_and_no_container() {
    let (user, incoming, outgoing) = (
        User::unique(),
        Queue::unique("token"),
        Queue::unique("token-out"),
    );
    let scene = talkative(shell_task(SPY)).rabbitmq(&incoming, &outgoing);
    let scene = addresses(scene, &format!("{}@{}", user.name, rabbitmq::ADDRESS));
    let scene = tokens(scene, &user.password);
    assert_secret(&scene, &user.password, &incoming, &outgoing);
}

#[test]
fn an_addresss_password_is_in_no_log_no_argv_no_file_and_no_container() {
    let (user, incoming, outgoing) = (
        User::unique(),
        Queue::unique("pass"),
        Queue::unique("pass-out"),
    );
    let scene = talkative(shell_task(SPY)).rabbitmq(&incoming, &outgoing);
    let scene = addresses(
        scene,
        &format!("{}:{}@{}", user.name, user.password, rabbitmq::ADDRESS),
    );
    assert_secret(&scene, &user.password, &incoming, &outgoing);
}

#[test]
fn a_token_that_the_broker_refuses_is_not_shown() {
    let (incoming, outgoing) = (Queue::unique("refused"), Queue::unique("refused-out"));
    let scene = talkative(shell_task("true")).rabbitmq(&incoming, &outgoing);
    let scene = tokens(addresses(scene, "guest@localhost"), "wr0ng-W0rd-3141");
    let outcome = scene.run(SOON);
    outcome.assert_code(4);
    assert!(!outcome.stderr.contains("wr0ng"), "{}", outcome.stderr);
    assert!(
        outcome.last_line().contains("RuntimeError: "),
        "{}",
        outcome.last_line()
    );
}
