//! `/cvmfs` in containers: the view of tasks and init containers, and that no fault of it is the machine's.
//! Each site has a mount namespace of its own, in which these tests mount something on `/cvmfs`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::faults_site::Site;
use crate::support::scene::{Outcome, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, images, source_dir};

/// Shell that mounts something at `/cvmfs` and in it one file system that can be written and one that can't.
const MOUNTED: &str = "
    mount -t tmpfs -o mode=777 cvmfs /cvmfs; echo top >/cvmfs/here
    for name in writable.org read-only.org; do
        mkdir /cvmfs/$name; mount -t tmpfs -o mode=777 $name /cvmfs/$name; echo $name >/cvmfs/$name/here
    done
    mount -o remount,ro /cvmfs/read-only.org";

/// What tasks do there: they show what is here, and try to write.
const LOOK: &str = "for place in /cvmfs /cvmfs/writable.org /cvmfs/read-only.org; do \
    cat $place/here; touch $place/new && echo WRITTEN; done 2>/dev/null";

/// What they then say.
const SEEN: &str = "top\nwritable.org\nread-only.org\n";

/// A hung file system below or at a place: the server takes no request.
pub(crate) fn hung(place: &str, flags: &str) -> String {
    format!(
        "python3 -c 'import ctypes, os, sys, time
fuse = os.open(\"/dev/fuse\", os.O_RDWR)
options = f\"fd={{fuse}},rootmode=40000,user_id=0,group_id=0,allow_other\".encode()
if ctypes.CDLL(None).mount(b\"hung\", b\"{place}\", b\"fuse\", {flags}, options): sys.exit(1)
while os.path.exists(f\"/proc/{{sys.argv[1]}}\"): time.sleep(0.2)' $$ </dev/null >/dev/null 2>&1 &
         until grep -q ' {place} ' /proc/self/mountinfo; do sleep 0.05; done"
    )
}

fn sh(script: &str) -> String {
    format!("sh -c {}", shell_words::quote(script))
}

/// A scene with one event, on such a site; its task does `script`.
fn one_event(script: &str) -> (Scene, SpoolQueue, SpoolQueue) {
    let script = format!("{{ {script}; }} >{{{{OUTFILE}}}}; true");
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), sh(&script)).spool();
    incoming.put("event.txt", "");
    (scene, incoming, outgoing)
}

fn results(outgoing: &SpoolQueue) -> String {
    let results: Vec<_> = outgoing.files().into_values().collect();
    String::from_utf8(results.concat()).expect("UTF-8")
}

/// What the check says of it in the log.
#[track_caller]
fn note(outcome: &Outcome) -> &str {
    let mut lines = outcome.stderr.lines();
    lines
        .find(|line| line.contains("check=\"cvmfs\"") || line.contains("check=cvmfs"))
        .unwrap_or_else(|| panic!("{}", outcome.stderr))
}

#[test]
fn tasks_and_init_containers_see_cvmfs_and_what_is_mounted_below_read_only() {
    for image in [images::busybox(), images::busybox_sif()] {
        let script = format!("{LOOK}; cat {{{{DATA_HUB}}}}/init");
        let (scene, _, outgoing) = one_event(&script);
        let scene = scene
            .set("EWMS_PILOT_TASK_IMAGE", &image)
            .set("EWMS_PILOT_INIT_IMAGE", &image)
            .set(
                "EWMS_PILOT_INIT_ARGS",
                sh(&format!("{{ {LOOK}; }} >{{{{DATA_HUB}}}}/init; true")),
            )
            .set(
                "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
                "no",
            );
        let work = scene.dir().to_owned();
        let scene = scene.set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", &work);
        let scene = Site::Prepared(MOUNTED).of(scene);
        let outcome = scene.run(SOON);
        outcome.assert_code(0);
        assert_eq!(results(&outgoing), SEEN.repeat(2), "{}", outcome.stderr);
    }
}

#[test]
fn the_setting_leaves_cvmfs_out() {
    let (scene, _, outgoing) = one_event("ls -d /cvmfs || echo none");
    let scene = scene.set("EWMS_PILOT_CVMFS", "False");
    let scene = Site::Prepared(MOUNTED).of(scene);
    scene.run(SOON).assert_code(0);
    assert_eq!(results(&outgoing), "none\n");
}

#[test]
fn external_directories_at_cvmfs_and_below_share_no_target_with_it() {
    for list in [
        "/cvmfs",
        "/cvmfs/",
        "/cvmfs/writable.org",
        "/cvmfs/writable.org,/cvmfs",
        "/cvmfs/read-only.org,/cvmfs/writable.org",
    ] {
        let (scene, _, outgoing) = one_event(LOOK);
        let scene = scene
            .set("EWMS_PILOT_EXTERNAL_DIRECTORIES", list)
            .set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True");
        let scene = Site::Prepared(MOUNTED).of(scene);
        let outcome = scene.run(SOON);
        outcome.assert_code(0);
        assert_eq!(results(&outgoing), SEEN, "{list}: {}", outcome.stderr);
        let complaint = outcome.stderr.lines().find(|line| {
            line.contains("WARNING") && line.contains("/cvmfs")
                || line.contains("destination is already in the mount point list")
        });
        assert_eq!(complaint, None, "{list}");
    }
}

#[test]
fn a_repository_that_is_mounted_on_demand_is_seen_where_the_machines_mounts_arrive() {
    let automounter = source_dir().join("tests/support/automounter.py");
    let automounter = format!("python3 {} /cvmfs $$", automounter.display());
    // Real machines' mounts are shared: systemd makes them so.
    let arriving = format!("mount --make-rshared /\n{automounter}");
    let script = "cat /cvmfs/first.org/here /cvmfs/second.org/here; touch /cvmfs/first.org/new && echo WRITTEN";
    let (of_machine, _, outgoing) =
        one_event(&format!("{script}; ls /cvmfs/nonsense || echo none"));
    let scene = Site::Prepared(&arriving).of(of_machine);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), "first.org\nsecond.org\nnone\n");
    assert!(note(&outcome).contains("INFO"), "{}", note(&outcome));

    let cut_off = format!(
        "mount --make-rprivate /\n{automounter}\nmount --make-private /cvmfs\nls /cvmfs/first.org"
    );
    let (scene, _, outgoing) = one_event(script);
    let scene = Site::Prepared(&cut_off).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), "first.org\n", "{}", outcome.stderr);
    let note = note(&outcome);
    assert!(note.contains("WARN") && note.contains("rslave"), "{note}");
}

#[test]
fn what_is_mounted_below_cvmfs_while_a_task_runs_is_seen_by_it() {
    // Root mounts it once the task waits for it.
    let (scene, _, outgoing) = one_event(
        "touch {{DATA_HUB}}/waits; i=0; until [ -e /cvmfs/late.org/here ] || [ $i = 200 ]; do \
         sleep 0.1; i=$((i + 1)); done; cat /cvmfs/late.org/here; touch /cvmfs/late.org/new && echo WRITTEN",
    );
    let waits = scene.hub("waits").display().to_string();
    let late = format!(
        "mount --make-rshared /
         {MOUNTED}
         mkdir /cvmfs/late.org
         (until [ -e {waits} ] || ! kill -0 $$; do sleep 0.05; done
         mount -t tmpfs late /run; echo late >/run/here; mount -o remount,ro /run
         mount --bind /run /cvmfs/late.org) >/dev/null 2>&1 &"
    );
    let scene = Site::Prepared(&late).of(scene);
    let outcome = scene.run(SOON * 2);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), "late\n", "{}", outcome.stderr);
}

#[test]
fn a_hung_cvmfs_is_left_out_unless_the_image_or_an_external_directory_is_in_it() {
    let hung = hung("/cvmfs", "0");
    let site = Site::Prepared(&hung);
    let seen = "ls -d /cvmfs || echo none";
    let (checked, _, first) = one_event(seen);
    let (unchecked, _, second) = one_event(seen);
    let (of_image, image_event, _) = one_event(seen);
    let (of_external, external_event, _) = one_event(seen);
    let checked = site.of(checked);
    let unchecked = site.of(unchecked.set("EWMS_PILOT_PREFLIGHT", "False"));
    let of_image = site.of(of_image.set("EWMS_PILOT_TASK_IMAGE", "/cvmfs/image"));
    let of_external =
        site.of(of_external.set("EWMS_PILOT_EXTERNAL_DIRECTORIES", "/cvmfs/repository"));
    // Each takes as long as a look at what hangs, so all at once.
    let deadline = Duration::from_mins(2);
    let began = Instant::now();
    let pilots = [&checked, &unchecked, &of_image, &of_external].map(Scene::start);
    let [checked, unchecked, of_image, of_external] = pilots.map(|pilot| pilot.wait(deadline));
    for (outcome, outgoing) in [(&checked, &first), (&unchecked, &second)] {
        outcome.assert_code(0);
        assert_eq!(results(outgoing), "none\n", "{}", outcome.stderr);
        let note = note(outcome);
        assert!(note.contains("WARN"), "{note}");
        assert!(
            note.contains("`/cvmfs` gave no answer within 30 s"),
            "{note}"
        );
    }
    for (outcome, event, named) in [
        (&of_image, &image_event, "`/cvmfs/image`"),
        (&of_external, &external_event, "`/cvmfs/repository`"),
    ] {
        outcome.assert_code(3);
        let last = outcome.last_line();
        assert!(last.contains("(hanging); "), "{last}");
        assert!(last.contains(named), "{last}");
        assert!(event.files().contains_key("event.txt"));
    }
    assert!(
        began.elapsed() < Duration::from_secs(70),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_repository_that_hangs_takes_no_other_away() {
    // As CVMFS is mounted: MS_RDONLY.
    let dead = format!(
        "{MOUNTED}\nmkdir /cvmfs/dead.org\n{}",
        hung("/cvmfs/dead.org", "1")
    );
    let (scene, _, outgoing) = one_event(LOOK);
    let began = Instant::now();
    let scene = Site::Prepared(&dead).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), SEEN, "{}", outcome.stderr);
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_file_system_below_cvmfs_that_hangs_and_may_be_writable_takes_cvmfs_away_and_no_more() {
    let dead = format!(
        "{MOUNTED}\nmkdir /cvmfs/dead.org\n{}",
        hung("/cvmfs/dead.org", "0")
    );
    let (scene, _, outgoing) = one_event("ls -d /cvmfs || echo none");
    let scene = Site::Prepared(&dead).of(scene);
    let outcome = scene.run(SOON * 3);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), "none\n");
    let note = note(&outcome);
    assert!(note.contains("`/cvmfs/dead.org` gave no answer"), "{note}");
}

/// Shell that makes the scene's image, with what is said, on a site without overlay and underlay.
fn bare_site(directory: &Path, more: &str) -> String {
    format!(
        "{MOUNTED}
         cd {}
         cp -a /images/busybox image
         mkdir -p image/ewms-pilot-data/data-hub image/ewms-pilot-data/task-io {more}
         sed 's/^enable overlay *=.*/enable overlay = no/; s/^enable underlay *=.*/enable underlay = no/' \
           /etc/apptainer/apptainer.conf > .site.conf
         mount --bind .site.conf /etc/apptainer/apptainer.conf",
        directory.display()
    )
}

#[test]
fn a_site_where_no_mount_point_can_be_made_is_at_no_fault_for_cvmfs() {
    for (more, expected) in [("", "none\n"), ("image/cvmfs", SEEN)] {
        let script = format!("[ -d /cvmfs ] || echo none; {LOOK}");
        let (scene, _, outgoing) = one_event(&script);
        let scene = scene
            .set("EWMS_PILOT_TASK_IMAGE", "image")
            .set("EWMS_PILOT_INIT_IMAGE", "image")
            .set("EWMS_PILOT_INIT_ARGS", "true");
        let bare = bare_site(scene.dir(), more);
        let scene = Site::Prepared(&bare).of(scene);
        let outcome = scene.run(SOON);
        outcome.assert_code(0);
        assert_eq!(results(&outgoing), expected, "{}", outcome.stderr);
        let is_said = outcome.stderr.contains("but only without /cvmfs");
        assert_eq!(is_said, more.is_empty(), "{}", outcome.stderr);
    }
}

#[test]
fn an_init_container_without_a_mount_point_for_cvmfs_goes_without_it() {
    let (scene, _, outgoing) = one_event(LOOK);
    let scene = scene
        .set("EWMS_PILOT_TASK_IMAGE", "image")
        .set("EWMS_PILOT_INIT_IMAGE", "other")
        .set("EWMS_PILOT_INIT_ARGS", "test ! -d /cvmfs");
    let bare = bare_site(scene.dir(), "&& cp -a image other && mkdir image/cvmfs");
    let scene = Site::Prepared(&bare).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), SEEN, "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("but only without /cvmfs"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_image_on_cvmfs_is_run_and_sees_it() {
    let (scene, _, outgoing) = one_event(LOOK);
    let scene = scene.set("EWMS_PILOT_TASK_IMAGE", "/cvmfs/read-only.org/image");
    let site = format!(
        "{MOUNTED}
         mount -o remount,rw /cvmfs/read-only.org
         cp -a /images/busybox /cvmfs/read-only.org/image
         mount -o remount,ro /cvmfs/read-only.org"
    );
    let scene = Site::Prepared(&site).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), SEEN, "{}", outcome.stderr);
}

#[test]
fn where_a_glidein_mounted_it_is_seen_as_cvmfs() {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let (scene, _, outgoing) = one_event(&format!("{LOOK}; ls {}", elsewhere.path().display()));
    let scene = scene.set("CVMFS_MOUNT_DIR", elsewhere.path());
    let site = format!(
        "{MOUNTED}\nmount --move /cvmfs {}",
        elsewhere.path().display()
    );
    let scene = Site::Prepared(&site).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), SEEN, "{}", outcome.stderr);
}

#[test]
fn a_place_of_cvmfs_that_would_show_the_pilots_own_is_left_out() {
    let (scene, _, outgoing) = one_event("ls /cvmfs");
    let home = scene.dir().to_owned();
    let scene = scene.set("CVMFS_MOUNT_DIR", &home);
    fs::write(home.join("secret"), "").expect("written");
    let scene = Site::Sound.of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), "");
    let note = note(&outcome);
    assert!(note.contains("the pilot's working directory"), "{note}");
}

#[test]
fn the_check_says_what_containers_see_of_cvmfs() {
    for (site, settings, line) in [
        (
            MOUNTED,
            &[][..],
            "ok    cvmfs                 containers see `/cvmfs` as `/cvmfs`, read-only",
        ),
        (
            MOUNTED,
            &[("EWMS_PILOT_CVMFS", "no")],
            "ok    cvmfs                 left out, as `EWMS_PILOT_CVMFS` says",
        ),
        (
            MOUNTED,
            &[("EWMS_PILOT_EXTERNAL_DIRECTORIES", "/cvmfs")],
            "ok    cvmfs                 `/cvmfs` is an external directory",
        ),
        (
            "mount -t tmpfs -o mode=700 private /cvmfs",
            &[],
            "NOTE  cvmfs                 `/cvmfs` can't be read: Permission denied (os error 13); no container \
             sees `/cvmfs`; avoid this machine if tasks need it, or have it mounted again",
        ),
    ] {
        let (scene, _, _) = one_event("true");
        let scene = settings
            .iter()
            .fold(scene, |scene, (name, value)| scene.set(name, value));
        let outcome = Site::Prepared(site)
            .with_arguments(scene, "check")
            .run(SOON);
        outcome.assert_code(0);
        assert!(
            outcome.stdout.lines().any(|said| said == line),
            "{}",
            outcome.stdout
        );
    }
}
