//! External directories: tasks can't write to mounts below them, and none shows a task the pilot's own files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::mounts::Mounted;
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, eventually, images};

/// A scene whose tasks and init container try to write into each of these places, and say what they found
/// in them and which they could write.
fn trying(places: &[&Path]) -> Scene {
    let quoted = places.iter().map(|place| place.to_str().expect("UTF-8"));
    let quoted = shell_words::join(quoted);
    let script = |into: &str| {
        format!(
            "for place in {quoted}; do \
             cat \"$place/here\" 2>/dev/null || cat \"$place\"; \
             if [ -d \"$place\" ]; then touch \"$place/new\"; else echo x >>\"$place\"; fi 2>/dev/null \
             && echo \"WRITTEN $place\"; done >>{into}; true"
        )
    };
    let task = script("{{OUTFILE}}") + "; cat {{DATA_HUB}}/init >>{{OUTFILE}}";
    let sh = |script: &str| format!("sh -c {}", shell_words::quote(script));
    Scene::task(images::busybox(), sh(&task))
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set("EWMS_PILOT_INIT_ARGS", sh(&script("{{DATA_HUB}}/init")))
}

fn put(directory: &Path, text: &str) {
    fs::create_dir_all(directory).expect("made");
    fs::write(directory.join("here"), format!("{text}\n")).expect("written");
}

#[test]
fn file_systems_mounted_below_an_external_directory_are_seen_and_cannot_be_written() {
    let top = tempfile::tempdir().expect("a directory");
    let external = top.path().join("external");
    put(&external, "itself");
    let names = ["plain", "deep/plain", "with blank, comma: \"quote\" \\ end"];
    let points = names.map(|name| external.join(name));
    let mut mounted = Vec::new();
    for point in &points {
        fs::create_dir_all(point).expect("made");
        mounted.push(Mounted::tmpfs(point));
        put(point, "below");
    }
    let nested = points[0].join("nested");
    fs::create_dir(&nested).expect("made");
    mounted.push(Mounted::tmpfs(&nested));
    put(&nested, "nested");
    let (outside, file) = (top.path().join("outside"), external.join("file"));
    for file in [&outside, &file] {
        fs::write(file, "a file\n").expect("written");
    }
    mounted.push(Mounted::bind(&outside, &file));
    // One that is covered by another, and one that this user can't come to.
    let covered = external.join("cover/covered");
    fs::create_dir_all(&covered).expect("made");
    mounted.push(Mounted::tmpfs(&covered));
    mounted.push(Mounted::tmpfs(&external.join("cover")));
    let private = external.join("private");
    fs::create_dir_all(private.join("point")).expect("made");
    mounted.push(Mounted::tmpfs(&private.join("point")));
    fs::set_permissions(
        &private,
        std::os::unix::fs::PermissionsExt::from_mode(0o000),
    )
    .expect("set");

    // By a link to it too, which is then where tasks see it, and in an order that covers what is below.
    let link = top.path().join("link");
    symlink(&external, &link).expect("linked");
    let mut places: Vec<&Path> = vec![&external, &nested, &file];
    places.extend(points.iter().map(PathBuf::as_path));
    let by_link = link.join("plain/nested");
    places.push(&by_link);
    let list = format!(
        "{},{},{}",
        points[0].display(),
        external.display(),
        link.display()
    );
    let scene = trying(&places).set("EWMS_PILOT_EXTERNAL_DIRECTORIES", list);
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "");
    scene.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    let seen = String::from_utf8(results.concat()).expect("UTF-8");
    let once = "itself\nnested\na file\nbelow\nbelow\nbelow\nnested\n";
    assert_eq!(seen, once.repeat(2));
    assert!(!nested.join("new").exists());
    fs::set_permissions(
        &private,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .expect("set");
    while mounted.pop().is_some() {}
}

#[test]
fn a_file_system_that_is_mounted_between_two_tasks_cannot_be_written_either() {
    let top = tempfile::tempdir().expect("a directory");
    put(top.path(), "itself");
    let point = top.path().join("late");
    fs::create_dir(&point).expect("made");
    let task = "[ -e $P/late/here ] && echo mounted >{{OUTFILE}}; \
                touch $P/late/new && echo WRITTEN >>{{OUTFILE}}; true";
    let task = task.replace("$P", top.path().to_str().expect("UTF-8"));
    let scene = Scene::task(
        images::busybox(),
        format!("sh -c {}", shell_words::quote(&task)),
    )
    .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", top.path())
    .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
    let (scene, incoming, outgoing) = scene.spool();
    let mut pilot = scene.start();
    incoming.put("1.txt", "");
    assert!(
        eventually(SOON, || incoming.done().len() == 1),
        "{}",
        pilot.stderr()
    );
    assert!(outgoing.files().is_empty());
    let _mounted = Mounted::tmpfs(&point);
    put(&point, "late");
    incoming.put("2.txt", "");
    assert!(
        eventually(SOON, || incoming.done().len() == 2),
        "{}",
        pilot.stderr()
    );
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results.concat(), b"mounted\n");
    pilot.signal(nix::sys::signal::Signal::SIGTERM);
    pilot.wait_for_line("signal received", SOON);
    pilot.wait(SOON);
}

#[test]
fn a_file_system_below_an_external_directory_that_hangs_does_not_hang_the_pilot() {
    let top = tempfile::tempdir().expect("a directory");
    // Too deep and too many for a glance at the directory itself.
    let point = top.path().join("deep/er/mute");
    for name in 0..70 {
        fs::create_dir(top.path().join(format!("deep-{name}"))).expect("made");
    }
    fs::create_dir_all(&point).expect("made");
    let _mounted = Mounted::mute(&point);
    // Without its checks the pilot has to look all the same.
    for preflight in ["True", "False"] {
        let scene = Scene::task(images::busybox(), "true")
            .set("EWMS_PILOT_PREFLIGHT", preflight)
            .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", top.path());
        let (scene, incoming, _) = scene.spool();
        incoming.put("event.txt", "");
        let outcome = scene.run(Duration::from_mins(1));
        outcome.assert_code(3);
        assert!(incoming.files().contains_key("event.txt"));
        let last = outcome.last_line();
        let named = last.contains(&format!("`{}`", point.display()));
        assert!(named || last.contains("hanging"), "{last}");
        assert!(last.contains("gave no answer within"), "{last}");
    }
}

#[test]
fn too_many_file_systems_below_an_external_directory_are_refused() {
    let top = tempfile::tempdir().expect("a directory");
    let mut mounted = Vec::new();
    for number in 0..=256 {
        let point = top.path().join(number.to_string());
        fs::create_dir(&point).expect("made");
        mounted.push(Mounted::bind(top.path(), &point));
    }
    let scene =
        Scene::task(images::busybox(), "true").set("EWMS_PILOT_EXTERNAL_DIRECTORIES", top.path());
    let (scene, incoming, _) = scene.spool();
    incoming.put("event.txt", "");
    let outcome = scene.run(SOON);
    outcome.assert_code(3);
    let last = outcome.last_line();
    assert!(last.contains("257 file systems are mounted"), "{last}");
    // From the last to the first: those that were bound later are in those before.
    while mounted.pop().is_some() {}
}

/// A pilot of which something is in `DIR`, with this external directory, must say what and take no event.
#[track_caller]
fn assert_refused(scene: Scene, external: &Path, what: &str) {
    let scene = scene.set("EWMS_PILOT_EXTERNAL_DIRECTORIES", external);
    let (scene, incoming, _) = scene.spool();
    incoming.put("event.txt", "");
    let outcome: Outcome = scene.run(SOON);
    outcome.assert_code(2);
    assert!(incoming.files().contains_key("event.txt"));
    let last = outcome.last_line();
    let shown = external.display();
    let start = format!("RuntimeError: `EWMS_PILOT_EXTERNAL_DIRECTORIES` is `{shown}`: ");
    assert!(last.starts_with(&start), "{last}");
    assert!(last.contains(what), "{last}");
}

#[test]
fn an_external_directory_that_would_show_the_pilots_own_is_a_configuration_error() {
    let scene = || Scene::task(images::busybox(), "true");
    let home = |scene: &Scene| scene.dir().to_owned();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let elsewhere = elsewhere.path();

    let working = scene();
    let external = home(&working);
    assert_refused(working, &external, "the pilot's working directory");
    let (working, link) = (scene(), elsewhere.join("link"));
    symlink(working.dir(), &link).expect("linked");
    assert_refused(working, &link, "the pilot's working directory");

    for (name, what) in [
        ("spool", "a spool"),
        ("spool/results", "a spool"),
        ("ewms-pilot-data", "the pilot's data"),
        ("ewms-pilot-data/data-hub", "the pilot's data"),
        ("ewms-pilot-scratch", "the pilot's scratch"),
        ("unsent", "results to be sent"),
        ("rejected", "rejected events"),
    ] {
        let scene = scene();
        let external = home(&scene).join(name);
        fs::create_dir_all(&external).expect("made");
        assert_refused(scene, &external, what);
    }

    let data = elsewhere.join("data");
    fs::create_dir(&data).expect("made");
    let scene_of_data = scene().set("EWMS_PILOT_DATA_DIR_PARENT_PATH_ON_HOST", &data);
    assert_refused(scene_of_data, &data, "the pilot's data");

    let proxies = elsewhere.join("proxies");
    fs::create_dir(&proxies).expect("made");
    fs::write(proxies.join("x509up"), "secret").expect("written");
    let with_proxy = || scene().set("X509_USER_PROXY", proxies.join("x509up"));
    assert_refused(with_proxy(), &proxies, "a credential of the job");
    // The same directory, mounted a second time.
    let again = elsewhere.join("again");
    fs::create_dir(&again).expect("made");
    let _mounted = Mounted::bind(&proxies, &again);
    assert_refused(with_proxy(), &again, "a credential of the job");
}

#[test]
fn an_external_directory_with_a_token_file_is_a_configuration_error() {
    let (incoming, outgoing) = (Queue::unique("ext-in"), Queue::unique("ext-out"));
    let tokens = tempfile::tempdir().expect("a directory");
    let file = tokens.path().join("token");
    fs::write(&file, "guest").expect("written");
    let outcome = Scene::task(images::busybox(), "true")
        .rabbitmq(&incoming, &outgoing)
        .set(
            "EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS",
            "guest@localhost",
        )
        .set("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE", &file)
        .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", tokens.path())
        .run(SOON);
    outcome.assert_code(2);
    let last = outcome.last_line();
    assert!(last.contains("a queue's token file"), "{last}");
    assert!(last.contains(&format!("`{}`", file.display())), "{last}");
}

#[test]
fn directories_with_any_letters_in_their_paths_are_seen_and_cannot_be_written() {
    let top = tempfile::tempdir().expect("a directory");
    let names = [
        "a:b",
        "c,d",
        "q\"uo'te",
        "back\\slash",
        "end\\",
        "new\nline",
        "$HOME",
        "x=y:ro",
    ];
    let places = names.map(|name| top.path().join(name));
    for place in &places {
        put(place, "seen");
    }
    let list = serde_json::to_string(&places).expect("paths are texts");
    let all: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
    let scene = trying(&all).set("EWMS_PILOT_EXTERNAL_DIRECTORIES", list);
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("event.txt", "");
    scene.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    let seen = String::from_utf8(results.concat()).expect("UTF-8");
    assert_eq!(seen, "seen\n".repeat(2 * names.len()));
}
