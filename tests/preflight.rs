//! A pilot on a broken execution point ends before it takes an event. Also `ewms-pilot check`, which reports
//! the same to a person.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::faults_site::{Damage, Site, image_through_fuse};
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, eventually, images};

fn scene() -> Scene {
    Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
        .set("EWMS_PILOT_INFILE_EXT", ".json")
        .set("EWMS_PILOT_OUTFILE_EXT", ".json")
}

/// A pilot ends there with `code`, its last line names the cause, and its event was never delivered.
#[track_caller]
pub(crate) fn assert_takes_none(site: Site<'_>, scene: Scene, code: i32, cause: &str) -> Outcome {
    let (incoming, outgoing) = (
        Queue::unique("preflight-in"),
        Queue::unique("preflight-out"),
    );
    incoming.produce(["1"]);
    assert!(eventually(SOON, || incoming.depth() == 1));
    let scene = scene
        .set("GLIDEIN_Site", "BrokenSite")
        .rabbitmq(&incoming, &outgoing);
    let scene = site.of(scene);
    let outcome = scene.run(SOON * 3);
    outcome.assert_code(code);
    assert!(
        outcome.last_line().contains(&format!("({cause}); ")),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains("GLIDEIN_Site=\"BrokenSite\""),
        "{}",
        outcome.stderr
    );
    assert_eq!(incoming.depth(), 1);
    assert_eq!(incoming.delivery_counts(), [0]);
    outcome
}

#[test]
fn a_site_that_forbids_binds_gets_no_event() {
    assert_takes_none(
        Site::Configured("user bind control = no"),
        scene(),
        3,
        "binds-forbidden",
    );
}

#[test]
fn a_site_without_pid_namespaces_gets_no_event() {
    assert_takes_none(
        Site::Configured("allow pid ns = no"),
        scene(),
        3,
        "pid-namespace",
    );
}

#[test]
fn a_site_that_gives_tasks_no_place_to_write_gets_no_event() {
    for (line, place) in [
        ("mount tmp = no", "`/tmp`, `/var/tmp`"),
        ("mount home = no", "`$HOME`"),
        ("mount dev = no", "`/dev/null`, `/dev/shm`"),
        ("mount proc = no", "`/proc`"),
    ] {
        let outcome = assert_takes_none(Site::Configured(line), scene(), 3, "mounts-off");
        let said = outcome.last_line();
        assert!(said.contains(place), "{line}: {said}");
    }
}

#[test]
fn a_site_where_nothing_can_be_shown_in_a_container_is_no_obstacle() {
    let (scene, incoming, outgoing) = scene().set("EWMS_PILOT_TASK_IMAGE", "image").spool();
    incoming.put("a.json", "1");
    let directory = scene.dir().display().to_string();
    let bare = format!(
        "cd {directory}
         cp -a /images/busybox image
         mkdir -p image/ewms-pilot-data/data-hub image/ewms-pilot-data/task-io
         sed 's/^enable overlay *=.*/enable overlay = no/; s/^enable underlay *=.*/enable underlay = no/' \
           /etc/apptainer/apptainer.conf > .site.conf
         mount --bind .site.conf /etc/apptainer/apptainer.conf"
    );
    let scene = Site::Prepared(&bare).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome
            .stderr
            .contains("whether it can write was not tried"),
        "{}",
        outcome.stderr
    );
    let line = "no container can wait for its event: no script can be shown in them";
    assert!(outcome.stderr.contains(line), "{}", outcome.stderr);
    assert_eq!(outgoing.files().len(), 1);
}

#[test]
fn a_site_without_user_namespaces_gets_no_event() {
    assert_takes_none(Site::NoNamespaces, scene(), 3, "namespaces");
}

#[test]
fn a_user_without_an_account_gets_no_event() {
    assert_takes_none(Site::NoAccount, scene(), 3, "account");
}

#[test]
fn a_full_disk_gets_no_event() {
    let full = Site::SmallDisk("dd if=/dev/zero of=fill bs=64k 2>/dev/null || true");
    assert_takes_none(full, scene(), 3, "disk-full");
}

#[test]
fn an_apptainer_that_is_too_old_gets_no_event() {
    let scene = scene();
    let bin = scene.dir().join("bin");
    std::fs::create_dir(&bin).expect("made");
    let old = "#!/bin/sh\necho apptainer version 1.0.3-1.el8\n";
    std::fs::write(bin.join("apptainer"), old).expect("written");
    let preparation = format!("chmod +x {}/apptainer", bin.display());
    let scene = scene.set("EWMS_PILOT_APPTAINER", bin.join("apptainer"));
    assert_takes_none(Site::Prepared(&preparation), scene, 3, "apptainer-too-old");
}

#[test]
fn an_image_whose_file_system_died_gets_no_event() {
    let scene = scene().set("EWMS_PILOT_TASK_IMAGE", "image");
    let directory = scene.dir().display().to_string();
    let dead = format!(
        "{}\nkill -KILL $fuse; wait $fuse || true",
        image_through_fuse(&directory, Damage::None)
    );
    let outcome = assert_takes_none(Site::Prepared(&dead), scene, 3, "storage");
    // One more try is made.
    assert!(
        outcome.stderr.contains("will look again"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_file_system_that_hangs_does_not_hang_the_pilot() {
    let scene = scene();
    let directory = scene.dir().display().to_string();
    let scene = scene.set(
        "EWMS_PILOT_EXTERNAL_DIRECTORIES",
        format!("{directory}/image"),
    );
    let hung = format!(
        "{}\nkill -STOP $fuse",
        image_through_fuse(&directory, Damage::None)
    );
    assert_takes_none(Site::Prepared(&hung), scene, 3, "hanging");
}

#[test]
fn a_signal_ends_a_preflight_that_waits_for_a_hanging_file_system() {
    let (scene, _, _) = scene().set("EWMS_PILOT_TASK_IMAGE", "image").spool();
    let directory = scene.dir().display().to_string();
    let hung = format!(
        "{}\nkill -STOP $fuse; echo $$ > pid",
        image_through_fuse(&directory, Damage::None)
    );
    let scene = Site::Prepared(&hung).of(scene);
    let mut pilot = scene.start();
    pilot.wait_for_line("Started", SOON);
    let pid = std::fs::read_to_string(format!("{directory}/pid")).expect("it was written");
    let began = Instant::now();
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    pilot.wait(SOON).assert_code(143);
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_masked_proc_is_worked_around_and_said_so() {
    let (scene, incoming, outgoing) = scene().spool();
    incoming.put("a.json", "1");
    let scene = Site::MaskedProc.of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome.stderr.contains("--no-mount proc"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.files().len(), 1);
}

#[test]
fn root_without_all_capabilities_runs_tasks_and_they_have_none() {
    let external = tempfile::tempdir().expect("a directory");
    let place = external.path().display();
    let script = format!(
        "{{ id -u; grep CapEff /proc/self/status; cat {{{{DATA_HUB}}}}/init; touch {place}/new && echo WRITTEN
         mount -o remount,rw,bind {place} && touch {place}/new && echo WRITTEN; }} 2>/dev/null >{{{{OUTFILE}}}}; true"
    );
    let sh = |script: &str| format!("sh -c {}", shell_words::quote(script));
    let scene = Scene::task(images::busybox(), sh(&script))
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set("EWMS_PILOT_INIT_ARGS", sh("echo init >{{DATA_HUB}}/init"))
        .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", external.path());
    let world = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(external.path(), world).expect("set");
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("a.txt", "");
    let scene = Site::LesserRoot.of(scene);
    scene.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    let seen = String::from_utf8(results.concat()).expect("UTF-8");
    assert_eq!(seen, "0\nCapEff:\t0000000000000000\ninit\n");
}

#[test]
fn where_apptainer_can_make_containers_with_a_user_namespace_only_all_are_made_so() {
    // Apptainer, as root who lacks a capability.
    let lesser = r#"#!/bin/sh
case " $* " in
  *" --version "* | *" --userns "*) exec /usr/bin/apptainer "$@" ;;
esac
printf '\033[91mERROR  : Requesting capability set 0x1ff while permitted capability set is 0x0ff\n\033[0m' >&2
exit 1
"#;
    let scene = || {
        let scene = Scene::task(images::busybox(), "cp {{DATA_HUB}}/init {{OUTFILE}}");
        let bin = scene.dir().join("bin");
        std::fs::create_dir(&bin).expect("made");
        std::fs::write(bin.join("apptainer"), lesser).expect("written");
        let preparation = format!("chmod +x {}/apptainer", bin.display());
        let scene = scene.set("EWMS_PILOT_APPTAINER", bin.join("apptainer"));
        let scene = scene.set("EWMS_PILOT_INIT_IMAGE", images::python()).set(
            "EWMS_PILOT_INIT_ARGS",
            "sh -c 'echo init >{{DATA_HUB}}/init'",
        );
        (preparation, scene.spool())
    };
    let (preparation, (run, incoming, outgoing)) = scene();
    incoming.put("a.txt", "");
    let run = Site::Prepared(&preparation).of(run);
    run.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results.concat(), b"init\n");

    let (preparation, (checked, _, _)) = scene();
    let checked = Site::Prepared(&preparation).with_arguments(checked, "check");
    let outcome = checked.run(SOON);
    outcome.assert_code(0);
    let mut lines = outcome.stdout.lines();
    let line = lines.find(|line| line.contains("  container "));
    let line = line.unwrap_or_else(|| panic!("{}", outcome.stdout));
    assert!(line.starts_with("ok    container "), "{line}");
    assert!(
        line.contains("but only with `--userns`: Requesting capability set"),
        "{line}"
    );

    // Without the check that finds it out, the advice is to make it.
    let (preparation, (unchecked, incoming, _)) = scene();
    incoming.put("a.txt", "");
    let unchecked = unchecked
        .set("EWMS_PILOT_PREFLIGHT", "False")
        .set("EWMS_PILOT_INIT_IMAGE", "");
    let unchecked = Site::Prepared(&preparation).of(unchecked);
    let outcome = unchecked.run(SOON);
    outcome.assert_code(3);
    assert!(
        outcome.stderr.contains("`--userns` is tried"),
        "{}",
        outcome.stderr
    );
    assert!(
        !outcome.stderr.contains("ask the site for unprivileged"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_data_directory_where_nothing_can_be_started_is_no_obstacle() {
    let (scene, incoming, outgoing) = scene().spool();
    incoming.put("a.json", "1");
    let directory = scene.dir().display().to_string();
    let noexec = format!(
        "mount --bind {directory} {directory}; mount -o remount,bind,noexec {directory}; cd {directory}"
    );
    let scene = Site::Prepared(&noexec).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome.stderr.contains("one was started and wrote a file"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.files().len(), 1);
}

#[test]
fn a_sound_machine_is_told_so_a_line_each_and_nothing_is_taken() {
    let (incoming, outgoing) = (Queue::unique("check-in"), Queue::unique("check-out"));
    incoming.produce(["1"]);
    assert!(eventually(SOON, || incoming.depth() == 1));
    assert_eq!(outgoing.depth(), 0, "it is there");
    let outcome = scene()
        .rabbitmq(&incoming, &outgoing)
        .arg("check")
        .run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome
            .stdout
            .contains("exists: 1 events wait, 0 consumers"),
        "{}",
        outcome.stdout
    );
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let checks = [
        "scratch",
        "apptainer",
        "user-namespaces",
        "external-directories",
        "cvmfs",
        "image",
        "fuse",
        "container",
        "broker-incoming",
        "broker-outgoing",
    ];
    assert_eq!(lines.len(), checks.len(), "{}", outcome.stdout);
    for (line, check) in lines.iter().zip(checks) {
        assert!(line.starts_with(&format!("ok    {check} ")), "{line}");
    }
    assert!(
        outcome
            .stdout
            .contains("one was started and wrote a file in "),
        "{}",
        outcome.stdout
    );
    assert_eq!(incoming.depth(), 1);
    assert_eq!(incoming.delivery_counts(), [0]);
}

#[test]
fn a_broken_machine_is_told_to_another_machine_as_json() {
    let (scene, _, _) = scene().spool();
    let scene = Site::NoNamespaces.with_arguments(scene, "check --json");
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    let findings: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("it is JSON");
    let of = |check: &str| {
        findings
            .as_array()
            .expect("an array")
            .iter()
            .find(|finding| finding["check"] == check)
            .unwrap_or_else(|| panic!("no {check} in {findings}"))
            .clone()
    };
    assert_eq!(of("scratch")["verdict"], "ok");
    assert_eq!(of("user-namespaces")["verdict"], "worked-around");
    assert_eq!(of("container")["verdict"], "failed");
    assert!(
        of("container")["fix"]
            .as_str()
            .expect("text")
            .contains("max_user_namespaces")
    );
    assert_eq!(of("broker-incoming")["verdict"], "ok");
}

#[test]
fn words_of_apptainer_are_never_taken_for_advice() {
    let (scene, _, _) = scene().spool();
    let bin = scene.dir().join("bin");
    std::fs::create_dir(&bin).expect("made");
    let failing = r#"#!/bin/sh
case "$*" in
  *--version*) echo apptainer version 1.4.5 ;;
  *) printf 'ERROR:   no luck; try again\nFATAL:   no container today\n' >&2; exit 255 ;;
esac
"#;
    std::fs::write(bin.join("apptainer"), failing).expect("written");
    let preparation = format!("chmod +x {}/apptainer", bin.display());
    let scene = scene.set("EWMS_PILOT_APPTAINER", bin.join("apptainer"));
    let scene = Site::Prepared(&preparation).with_arguments(scene, "check --json");
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    let findings: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("it is JSON");
    let container = findings
        .as_array()
        .expect("an array")
        .iter()
        .find(|finding| finding["check"] == "container")
        .expect("it was checked");
    let said = (&container["seen"], &container["fix"]);
    assert_eq!(
        said,
        (
            &"no luck; try again; no container today (unknown)".into(),
            &"exclude this machine, and show its operators this message".into()
        )
    );
}

#[test]
fn brokers_troubles_are_told_apart() {
    let queue = Queue::unique("check-broker");
    for (address, words) in [
        ("no-such-host.invalid", "unknown host"),
        ("localhost:1", "refused the connection"),
        ("amqps://localhost:5672", "no TLS connection"),
        ("nobody:wrong@localhost", "did not accept the credentials"),
    ] {
        let scene = scene()
            .rabbitmq(&queue, &queue)
            .set("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", address);
        let outcome = scene.arg("check").run(SOON);
        outcome.assert_code(4);
        let line = outcome
            .stdout
            .lines()
            .find(|line| line.starts_with("FAIL  broker-outgoing "))
            .unwrap_or_else(|| panic!("{}", outcome.stdout));
        assert!(line.contains(words), "{line}");
        assert!(
            line.contains("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS"),
            "{line}"
        );
    }
}

#[test]
fn an_outgoing_queue_that_cannot_be_opened_costs_no_event_a_delivery() {
    let (incoming, outgoing) = (
        Queue::unique("preflight-in"),
        Queue::unique("preflight-out"),
    );
    incoming.produce(["1"]);
    assert!(eventually(SOON, || incoming.depth() == 1));
    let scene = scene().rabbitmq(&incoming, &outgoing).set(
        "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
        "no-such-host.invalid",
    );
    scene.run(SOON).assert_code(4);
    assert_eq!(incoming.depth(), 1);
    assert_eq!(incoming.delivery_counts(), [0]);
}

#[test]
fn wrong_settings_are_told_by_check_too() {
    let outcome = Scene::new().arg("check").run(SOON);
    outcome.assert_code(2);
    assert!(
        outcome.stdout.starts_with("FAIL  configuration "),
        "{}",
        outcome.stdout
    );
    // A line for each of them: image, names and kinds of two queues.
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert!(
        lines.iter().all(|line| line.contains("is not set: ")),
        "{lines:#?}"
    );
}
