//! Sound execution points of unusual kinds: a task runs on each as it does on the usual one.

use crate::faults_site::Site;
use crate::pool::{pilot_images, sh};
use crate::support::scene::Scene;
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, images, pilot_binary};

/// A pilot with one event, whose task and init container say what they see.
fn scene(image: impl AsRef<std::ffi::OsStr>) -> (Scene, SpoolQueue) {
    let task = "{ cat {{INFILE}} {{DATA_HUB}}/init; grep CapEff /proc/self/status; } >{{OUTFILE}}";
    let scene = Scene::task(image, sh(task))
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set("EWMS_PILOT_INIT_ARGS", sh("echo init >{{DATA_HUB}}/init"));
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("a.txt", "event\n");
    (scene, outgoing)
}

/// Runs the pilot, and asserts that the task ran and could do nothing as root.
#[track_caller]
fn assert_runs(scene: &Scene, outgoing: &SpoolQueue) {
    let outcome = scene.run(SOON * 2);
    outcome.assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    let seen = String::from_utf8_lossy(&results.concat()).into_owned();
    let expected = "event\ninit\nCapEff:\t0000000000000000\n";
    assert_eq!(seen, expected, "{}", outcome.stderr);
}

#[test]
fn as_root_with_all_capabilities_tasks_run_and_have_none() {
    let (scene, outgoing) = scene(images::busybox());
    assert_runs(&Site::Root("").of(scene), &outgoing);
}

/// The capabilities of root in a container that Docker made.
const DOCKERS: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
                       +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

#[test]
fn as_root_with_dockers_capabilities_tasks_run() {
    let (scene, outgoing) = scene(images::busybox());
    let options = format!("--bounding-set {DOCKERS} --inh-caps -all");
    assert_runs(&Site::Root(&options).of(scene), &outgoing);
}

/// The kernel lets root make a user namespace only if it has `CAP_SETFCAP`.
#[test]
fn as_root_without_any_capability_no_event_is_taken_and_the_machine_is_named() {
    let (scene, outgoing) = scene(images::busybox());
    let none = Site::Root("--bounding-set -all --inh-caps -all");
    let outcome = none.of(scene).run(SOON * 2);
    outcome.assert_code(3);
    let last = outcome.last_line();
    assert!(last.contains("Failed to write to UID map"), "{last}");
    assert!(outgoing.files().is_empty());
}

#[test]
fn nested_in_two_containers_tasks_run() {
    let (scene, outgoing) = scene(images::busybox());
    let outer = pilot_images().join("pilot");
    let mut scene = scene.program("/usr/bin/apptainer");
    for words in [&["--quiet", "exec"][..], &["apptainer", "--quiet", "exec"]] {
        for word in words
            .iter()
            .chain(&["--bind", "/images", "--bind", "/test", "--pwd"])
        {
            scene = scene.arg(word);
        }
        let directory = scene.dir().to_owned();
        scene = scene.arg(directory).arg(&outer);
    }
    assert_runs(&scene.arg(pilot_binary()), &outgoing);
}

/// Shell that gives a site devices of its own: all but /dev/fuse.
const NO_FUSE: &str = "mount -t tmpfs -o mode=755 dev /mnt
    for device in null zero full random urandom tty; do
        touch /mnt/$device
        mount --bind /dev/$device /mnt/$device
    done
    for place in pts shm mqueue; do
        mkdir /mnt/$place
        mount --rbind /dev/$place /mnt/$place
    done
    cp -P /dev/ptmx /dev/fd /dev/stdin /dev/stdout /dev/stderr /mnt/
    mount --rbind /mnt /dev
    ! test -e /dev/fuse";

#[test]
fn without_dev_fuse_directories_run_and_files_are_converted_and_run() {
    let (directory, outgoing) = scene(images::busybox());
    assert_runs(&Site::Prepared(NO_FUSE).of(directory), &outgoing);
    let (file, outgoing) = scene(images::busybox_sif());
    let store = file.dir().join("store");
    std::fs::create_dir(&store).expect("the scene is writable");
    let file = file
        .set(
            "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
            "False",
        )
        .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", store);
    assert_runs(&Site::Prepared(NO_FUSE).of(file), &outgoing);
}

#[test]
fn without_overlay_tasks_run() {
    let (scene, outgoing) = scene(images::busybox());
    assert_runs(
        &Site::Configured("enable overlay = no").of(scene),
        &outgoing,
    );
}
