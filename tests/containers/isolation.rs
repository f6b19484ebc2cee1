//! What tasks can't see: each other, and the execution point.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{hub, names, result_of, sh, shell_task};
use crate::support::scene::Scene;
use crate::support::{SOON, images};

/// Both tasks have put their traces before either looks, and both have looked before either ends.
const MEET: &str = r#"
    me=$(cat "$EWMS_TASK_INFILE"); hub="$EWMS_TASK_DATA_HUB_DIR"
    for place in /tmp /var/tmp "$HOME" /ewms-pilot-data/task-io /dev/shm; do touch "$place/trace-$me"; done
    sleep "78.25$me" &
    meet() {
        touch "$hub/$1-$me"
        until [ -e "$hub/$1-1" ] && [ -e "$hub/$1-2" ]; do sleep 0.02; done
    }
    meet ready
    { ls -A /tmp /var/tmp "$HOME" /ewms-pilot-data/task-io /ewms-pilot-data /dev/shm; ps; } >"$EWMS_TASK_OUTFILE"
    kill $!
    meet looked
"#;

#[test]
fn two_tasks_at_once_share_the_hub_but_see_neither_files_nor_processes_of_each_other() {
    let scene = shell_task(MEET).set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("first.txt", "1");
    incoming.put("second.txt", "2");
    scene.run(SOON).assert_code(0);
    let results = outgoing.files();
    assert_eq!(results.len(), 2);
    for seen in results.values() {
        let seen = String::from_utf8(seen.clone()).expect("UTF-8");
        let traces = |task: &str| seen.matches(&format!("trace-{task}")).count();
        let sleeps = |task: &str| seen.matches(&format!("sleep 78.25{task}")).count();
        let (one, two) = ((traces("1"), sleeps("1")), (traces("2"), sleeps("2")));
        assert!(
            [((5, 1), (0, 0)), ((0, 0), (5, 1))].contains(&(one, two)),
            "{seen}"
        );
        assert_eq!(seen.matches("infile-").count(), 1, "{seen}");
    }
    assert_eq!(names(&hub(&scene)).len(), 4);
}

#[test]
fn what_a_task_leaves_in_the_hub_outlives_it() {
    let scene = shell_task("cat {{INFILE}} >>{{DATA_HUB}}/all; cp {{DATA_HUB}}/all {{OUTFILE}}");
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("1.txt", "one ");
    incoming.put("2.txt", "two ");
    scene.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert!(results.contains(&b"one two ".to_vec()), "{results:?}");
    assert_eq!(
        fs::read(hub(&scene).join("all")).expect("it stays"),
        b"one two "
    );
}

/// Every way to write that an ordinary user's program could try.
const ATTACK: &str = r#"{
    echo spoiled >"$1/file"; touch "$1/new"; mkdir "$1/sub"; rm -f "$1/file"; chmod 777 "$1"
    mount -o remount,rw,bind "$1" && echo spoiled >"$1/file"
    unshare -r -m sh -c 'mount -o remount,rw,bind "$0"; echo spoiled >"$0/file"; umount "$0"' "$1"
} 2>/dev/null; shift"#;

#[test]
fn external_directories_are_at_their_own_paths_in_every_container_and_cannot_be_written() {
    let place = |parent: &Path| {
        let parent = tempfile::tempdir_in(parent).expect("a directory");
        let directory = parent.path().join("external $name 'x'");
        fs::create_dir(&directory).expect("made");
        fs::write(directory.join("file"), "content ").expect("written");
        let name = directory.to_str().expect("UTF-8").to_owned();
        (parent, name)
    };
    // Below directories that are scratch in the container, which is the harder case.
    let home = std::env::var_os("HOME").expect("the tests have a home");
    let (tmp, home) = (place(Path::new("/tmp")), place(Path::new(&home)));
    let all = [tmp.1.as_str(), home.1.as_str()];

    let script = |into: &str| {
        let script = format!(
            r#"set -- "$1" "$2" "$1" "$2"; {ATTACK}; {ATTACK}; cat "$1/file" "$2/file" >>{into}"#
        );
        format!("{} x {}", sh(&script), shell_words::join(all))
    };
    let scene = Scene::task(images::busybox(), script("{{OUTFILE}}"))
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set("EWMS_PILOT_INIT_ARGS", script("{{DATA_HUB}}/init"))
        .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", all.join(","));
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "");
    scene.run(SOON).assert_code(0);
    let seen = fs::read_to_string(hub(&scene).join("init")).expect("the init container looked");
    assert_eq!(seen, "content content ");
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"content content "]);
    for directory in all.map(Path::new) {
        assert_eq!(names(directory), BTreeSet::from(["file".to_owned()]));
        assert_eq!(
            fs::read(directory.join("file")).expect("it is there"),
            b"content "
        );
    }
}

#[test]
fn nothing_is_mounted_but_scratch_the_hub_cvmfs_and_what_apptainer_needs() {
    let seen = result_of(shell_task(
        r#"{ echo "$HOME"; cut -d ' ' -f 5 /proc/self/mountinfo; } >"$EWMS_TASK_OUTFILE""#,
    ));
    let (home, mounts) = seen.split_once('\n').expect("lines");
    // Other tests mount repositories of CVMFS.
    let of_every_container = ["/dev/", "/proc/", "/sys/", "/cvmfs/"];
    let mounts: BTreeSet<&str> = mounts
        .lines()
        .filter(|mount| {
            let below = format!("{mount}/");
            !of_every_container
                .iter()
                .any(|root| below.starts_with(root))
        })
        .collect();
    let expected = BTreeSet::from([
        "/",
        // The gate at which a container waits for its event.
        "/.singularity.d/env/!ewms-pilot-gate.sh",
        "/etc/group",
        "/etc/hosts",
        "/etc/localtime",
        "/etc/passwd",
        "/etc/resolv.conf",
        "/ewms-pilot-data/data-hub",
        "/ewms-pilot-data/task-io",
        "/tmp",
        "/var/tmp",
        home,
    ]);
    assert_eq!(mounts, expected);
}

#[test]
fn files_that_lie_about_on_the_execution_point_are_not_visible() {
    let home = std::env::var("HOME").expect("the tests have a home");
    let places = ["/tmp", "/var/tmp", "/dev/shm", &home];
    let name = format!("lies-about-{}", uuid::Uuid::new_v4().simple());
    let _files = places.map(|place| {
        let named = tempfile::Builder::new().prefix(&name).tempfile_in(place);
        named.expect("a file can be made")
    });
    let seen = result_of(shell_task(&format!(
        r#"find / -name proc -prune -o -name '{name}*' -print -o -name 'infile-*' -print >"$EWMS_TASK_OUTFILE" 2>/dev/null; true"#,
    )));
    assert!(
        seen.contains("/task-io/infile-"),
        "the search works: {seen}"
    );
    assert_eq!(seen.lines().count(), 1, "{seen}");
}

#[test]
fn a_task_sees_its_own_processes_only() {
    let seen = result_of(shell_task(r#"ps -o comm >"$EWMS_TASK_OUTFILE"; true"#));
    let seen: BTreeSet<&str> = seen.lines().skip(1).collect();
    // Apptainer's own first process takes its name a moment after it started the task.
    let runtime = BTreeSet::from(["appinit", "starter"]);
    let tasks: BTreeSet<&str> = seen.difference(&runtime).copied().collect();
    assert_eq!(tasks, BTreeSet::from(["ps", "sh"]));
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn a_task_is_the_pilots_user_on_the_pilots_machine() {
    let seen = result_of(shell_task(r#"{ id -u; hostname; } >"$EWMS_TASK_OUTFILE""#));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("it is there");
    assert_eq!(seen, format!("{}\n{host}", nix::unistd::getuid()));
}
