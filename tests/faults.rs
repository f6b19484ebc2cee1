//! Whose fault a failed container is: real faults provoked on the real Apptainer, with their effect on the
//! event and on the pilot's end. The preflight is off, so that every fault meets a task.

use crate::faults_site::{Damage, Site, image_through_fuse};
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, eventually, images};

/// A pilot without preflight, whose tasks run this.
fn scene(image: impl AsRef<std::ffi::OsStr>, arguments: &str) -> Scene {
    Scene::task(image, arguments)
        .set("EWMS_PILOT_PREFLIGHT", "False")
        .set("EWMS_PILOT_INFILE_EXT", ".json")
        .set("EWMS_PILOT_OUTFILE_EXT", ".json")
}

/// Runs one event there, and gives how the pilot ended and how often the event was delivered.
#[track_caller]
fn run(site: Site<'_>, scene: Scene) -> (Outcome, Vec<u32>) {
    let (incoming, outgoing) = (Queue::unique("faults-in"), Queue::unique("faults-out"));
    incoming.produce(["1"]);
    assert!(eventually(SOON, || incoming.depth() == 1));
    let scene = site.of(scene.rabbitmq(&incoming, &outgoing));
    let outcome = scene.run(SOON * 2);
    assert!(
        eventually(SOON, || incoming.depth() == 1),
        "the event is lost: {}",
        outcome.stderr
    );
    (outcome, incoming.delivery_counts())
}

/// The event was given back uncounted, nothing more was taken, and the last line names the cause.
#[track_caller]
fn assert_not_the_tasks(site: Site<'_>, scene: Scene, code: i32, cause: &str) {
    let (outcome, counts) = run(site, scene);
    outcome.assert_code(code);
    let line = outcome.last_line();
    assert!(
        line.contains(&format!("({cause}): ")),
        "{line}\n{}",
        outcome.stderr
    );
    assert!(
        line.starts_with("RuntimeError: 1 TASK(S) FAILED: "),
        "{line}"
    );
    // This version of the broker counts one that is given back like one that is rejected.
    assert_eq!(counts, [1], "it was delivered again and again");
}

#[test]
fn what_a_task_does_itself_is_its_own_fault_and_counted() {
    for (arguments, reason) in [
        (
            r#"sh -c "printf 'FATAL:   container creation failed: I lie\n' >&2; exit 255""#,
            "task failed (exit code 255): [Apptainer-Error] container creation failed: I lie')",
        ),
        (
            r#"sh -c "echo 'WARNING: Ignoring /x bind mount: user bind control disabled by system administrator' >&2; exit 3""#,
            "task failed (exit code 3): [Apptainer-Error] Ignoring /x bind mount: user bind control disabled by system administrator')",
        ),
        (
            r#"sh -c "exit 255""#,
            "task failed (exit code 255): <no stderr logs>')",
        ),
        (
            r#"sh -c "echo 'FATAL:   No runscript and no /bin/sh executable found' >&2; exit 1""#,
            "task failed (exit code 1): [Apptainer-Error] No runscript and no /bin/sh executable found')",
        ),
        (
            r#"sh -c "echo 'ERROR:   No runscript and no /bin/sh executable found in container, aborting' >&2; exit 1""#,
            "task failed (exit code 1): [Apptainer-Error] No runscript and no /bin/sh executable found in container, aborting')",
        ),
        (r#"sh -c "kill -BUS $$""#, "task failed (exit code 135): "),
        (r#"sh -c "kill -KILL $$""#, "task failed (exit code 137): "),
    ] {
        let (outcome, counts) = run(Site::Sound, scene(images::busybox(), arguments));
        outcome.assert_code(1);
        let line = outcome.last_line();
        assert!(line.contains(reason), "{line}");
        assert!(!line.contains("fault"), "{line}");
        assert_eq!(counts, [1], "{arguments}");
    }
}

#[test]
fn a_command_that_cannot_be_run_is_the_tasks_fault() {
    for command in ["/no/such", "no-such", "/etc", "/.singularity.d/labels.json"] {
        let (outcome, counts) = run(Site::Sound, scene(images::busybox(), command));
        outcome.assert_code(1);
        let line = outcome.last_line();
        assert!(line.contains("task failed (exit code "), "{line}");
        assert!(!line.contains("fault"), "{line}");
        assert_eq!(counts, [1], "{command}");
    }
}

#[test]
fn forbidden_binds_are_the_sites_fault_though_the_task_succeeds() {
    let site = Site::Configured("user bind control = no");
    assert_not_the_tasks(site, scene(images::busybox(), "true"), 3, "binds-forbidden");
}

#[test]
fn forbidden_binds_are_the_sites_fault_when_the_task_misses_its_infile() {
    let site = Site::Configured("user bind control = no");
    let scene = scene(images::busybox(), "cat {{INFILE}}").set("EWMS_PILOT_CONTAINER_DEBUG", "yes");
    assert_not_the_tasks(site, scene, 3, "binds-forbidden");
}

#[test]
fn a_container_without_a_pid_namespace_is_refused() {
    let site = Site::Configured("allow pid ns = no");
    assert_not_the_tasks(site, scene(images::busybox(), "true"), 3, "pid-namespace");
}

#[test]
fn without_user_namespaces_the_machine_is_to_blame() {
    assert_not_the_tasks(
        Site::NoNamespaces,
        scene(images::busybox(), "true"),
        3,
        "namespaces",
    );
}

#[test]
fn a_masked_proc_is_the_machines_fault() {
    assert_not_the_tasks(
        Site::MaskedProc,
        scene(images::busybox(), "true"),
        3,
        "masked-proc",
    );
}

/// No Apptainer answers there, so the event isn't taken though the pilot makes no checks.
#[test]
fn a_user_without_an_account_is_the_machines_fault() {
    let (outcome, counts) = run(Site::NoAccount, scene(images::busybox(), "true"));
    outcome.assert_code(3);
    let line = outcome.last_line();
    assert!(line.contains("(account)"), "{line}");
    assert_eq!(counts, [0]);
}

#[test]
fn too_little_address_space_is_the_machines_fault() {
    // Apptainer wants more; the pilot itself, with a stack for each broker, does not.
    let site = Site::Prepared("ulimit -v 1000000");
    let (outcome, counts) = run(site, scene(images::busybox(), "true"));
    outcome.assert_code(3);
    let line = outcome.last_line();
    assert!(line.contains("(limits)"), "{line}");
    // It depends on the machine whether Apptainer can still say its version.
    assert!(matches!(counts[..], [0 | 1]), "{counts:?}");
}

#[test]
fn a_full_disk_is_the_machines_fault_though_it_looks_like_the_tasks_crash() {
    let task = r#"sh -c "touch {{DATA_HUB}}/up; n=0; while dd if=/dev/zero of=/tmp/$n bs=1k count=1 2>/dev/null; do n=$((n+1)); sleep 0.1; done; exit 1""#;
    let neighbour = "(until [ -e ewms-pilot-data/data-hub/up ]; do sleep 0.1; done
         while dd if=/dev/zero bs=256k count=1 oflag=append conv=notrunc of=fill || kill -0 $$; do sleep 0.05; done) 2>/dev/null &";
    assert_not_the_tasks(
        Site::SmallDisk(neighbour),
        scene(images::busybox(), task),
        3,
        "disk-full",
    );
}

#[test]
fn a_disk_that_a_task_filled_by_itself_is_its_own_fault() {
    for place in ["/tmp/x", "/var/tmp/x", "$HOME/x", "{{OUTFILE}}"] {
        let fill = format!(r#"sh -c "cat /dev/zero > {place} 2>/dev/null; exit 1""#);
        let (outcome, counts) = run(Site::SmallDisk(""), scene(images::busybox(), &fill));
        outcome.assert_code(1);
        let line = outcome.last_line();
        assert!(line.contains("task failed (exit code 1): "), "{line}");
        assert!(!line.contains("fault"), "{line}");
        assert_eq!(counts, [1], "{place}");
    }
}

#[test]
fn an_image_that_cannot_be_read_to_its_end_is_to_blame_for_a_silent_crash() {
    let scene = scene("image", "cat {{INFILE}}");
    let directory = scene.dir().display().to_string();
    let damaged = image_through_fuse(&directory, Damage::Pages);
    assert_not_the_tasks(Site::Prepared(&damaged), scene, 6, "image-damaged");
}

#[test]
fn a_file_system_that_dies_under_a_task_is_the_machines_fault() {
    let task = r#"sh -c "touch {{DATA_HUB}}/up; while /bin/true; do /bin/sleep 0.1; done; exit 1""#;
    let scene = scene("image", task);
    let directory = scene.dir().display().to_string();
    let dying = format!(
        "{}
         (until [ -e ewms-pilot-data/data-hub/up ]; do sleep 0.1; done; kill -KILL $fuse) &",
        image_through_fuse(&directory, Damage::None)
    );
    assert_not_the_tasks(Site::Prepared(&dying), scene, 3, "storage");
}

#[test]
fn a_bound_directory_that_vanishes_is_the_machines_fault() {
    let (incoming, outgoing) = (Queue::unique("faults-in"), Queue::unique("faults-out"));
    let scene = scene(images::busybox(), "true");
    let external = scene.dir().join("external");
    std::fs::create_dir(&external).expect("made");
    let scene = scene
        .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", &external)
        .set("EWMS_PILOT_TIMEOUT_QUEUE_WAIT_FOR_FIRST_MESSAGE", "60")
        .rabbitmq(&incoming, &outgoing);
    let mut pilot = scene.start();
    pilot.wait_for_line("AwaitingFirstMessage", SOON);
    std::fs::remove_dir(&external).expect("removed");
    incoming.produce(["1"]);
    let outcome = pilot.wait(SOON);
    outcome.assert_code(3);
    assert!(
        outcome.last_line().contains("(bind-source): "),
        "{}",
        outcome.last_line()
    );
    assert!(eventually(SOON, || incoming.depth() == 1));
    assert_eq!(incoming.delivery_counts(), [1]);
}

#[test]
fn an_image_without_a_shell_is_the_images_fault() {
    let scene = scene("bare", "");
    let bare = scene.dir().join("bare");
    for directory in [
        "dev", "proc", "sys", "tmp", "etc", "root", "home", "var/tmp",
    ] {
        std::fs::create_dir_all(bare.join(directory)).expect("made");
    }
    assert_not_the_tasks(Site::Sound, scene, 6, "image-incomplete");
}

#[test]
fn a_damaged_sif_is_found_when_it_is_converted() {
    let scene = scene("broken.sif", "true").set(
        "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
        "False",
    );
    let image = std::fs::read(images::busybox_sif()).expect("it is there");
    std::fs::write(scene.dir().join("broken.sif"), &image[..image.len() / 2]).expect("written");
    let store = scene.dir().to_owned();
    let (incoming, outgoing) = (Queue::unique("faults-in"), Queue::unique("faults-out"));
    incoming.produce(["1"]);
    let scene = scene
        .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", store)
        .rabbitmq(&incoming, &outgoing);
    let outcome = scene.run(SOON);
    outcome.assert_code(6);
    assert!(
        outcome
            .last_line()
            .starts_with("ContainerSetupError: image "),
        "{}",
        outcome.last_line()
    );
    assert!(eventually(SOON, || incoming.depth() == 1));
    assert_eq!(incoming.delivery_counts(), [0]);
}

#[test]
fn okay_errors_and_going_on_keep_no_broken_machine_taking_events() {
    let scene =
        scene(images::busybox(), "true").set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False");
    let (scene, incoming, _) = scene.spool();
    for number in 0..5 {
        incoming.put(&format!("{number}.json"), "1");
    }
    let scene = Site::NoNamespaces.of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    assert_eq!(incoming.files().len(), 5);
    assert!(
        outcome.stderr.contains("RuntimeError: 1 TASK(S) FAILED"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_init_container_that_fails_for_the_machine_ends_the_pilot_as_the_machines() {
    let scene = scene(images::busybox(), "true")
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set("EWMS_PILOT_INIT_ARGS", "true");
    let (incoming, outgoing) = (Queue::unique("faults-in"), Queue::unique("faults-out"));
    let scene = Site::NoNamespaces.of(scene.rabbitmq(&incoming, &outgoing));
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    assert!(
        outcome.last_line().contains("(namespaces): "),
        "{}",
        outcome.last_line()
    );
}
