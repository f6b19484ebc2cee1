//! Directories of the machine that a workflow may show to its containers. The pilot checks them before it
//! takes an event.

use std::fs;
use std::path::Path;

use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, images};

/// Runs a pilot with these external directories, below a directory in which `file` is a file and
/// `data` is a directory. `DIR` stands for that directory.
fn run(directories: &str) -> (Outcome, bool) {
    let scene = Scene::task(images::busybox(), "cp /etc/debian_version {{OUTFILE}}");
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event", "");
    fs::create_dir(scene.dir().join("data")).expect("made");
    fs::write(scene.dir().join("file"), "").expect("written");
    let here = scene.dir().to_str().expect("it is UTF-8");
    let directories = directories.replace("DIR", here);
    let scene = scene.set("EWMS_PILOT_EXTERNAL_DIRECTORIES", directories);
    let outcome = scene.run(SOON);
    let untouched = !incoming.directory().join("claimed").exists() && incoming.files().len() == 1;
    if outcome.code == Some(0) {
        let version = fs::read("/etc/debian_version").expect("the machine is a Debian");
        assert_eq!(
            outgoing.files().into_values().collect::<Vec<_>>(),
            [version]
        );
    }
    (outcome, untouched)
}

#[test]
fn a_forbidden_directory_is_one_error_before_the_first_event() {
    for (directories, why) in [
        ("/proc", "below `/proc`, which no container may see"),
        ("/proc/sys/kernel", "below `/proc`"),
        ("/sys", "below `/sys`"),
        ("/dev", "below `/dev`"),
        ("/run", "below `/run`"),
        // Where a path leads counts, not how it is written.
        ("/tmp/../proc", "below `/proc`"),
        ("/etc,/boot", "below `/boot`"),
        ("DIR/missing", "No such file or directory"),
        ("DIR/file", "is no directory"),
        ("DIR/data,DIR/data", "two directories are bound to"),
        ("DIR/data,DIR/./data/", "two directories are bound to"),
    ] {
        if directories.ends_with("/boot") && !Path::new("/boot").exists() {
            continue;
        }
        let (outcome, untouched) = run(directories);
        outcome.assert_code(3);
        assert!(untouched, "{directories}");
        let last = outcome.last_line();
        assert!(last.starts_with("InvalidBindMountError: "), "{last}");
        assert!(last.contains(why), "{directories}: {last}");
        let told = outcome.stderr.matches("InvalidBindMountError").count();
        assert_eq!(told, 1, "{}", outcome.stderr);
    }
}

#[test]
fn a_relative_directory_is_a_configuration_problem() {
    let (outcome, untouched) = run("DIR/data,relative");
    outcome.assert_code(2);
    assert!(untouched);
    assert!(
        outcome
            .stderr
            .contains("expected absolute directories with commas between them"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_system_directory_may_be_read() {
    let (outcome, _) = run("/etc");
    outcome.assert_code(0);
}
