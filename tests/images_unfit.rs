//! Images that can be read but can't run tasks properly: the pilot finds each before it takes an event, and
//! names the flaw. Also images with a flaw that the pilot repairs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, images};

const RUNSCRIPT: &str = ".singularity.d/runscript";
const ENVIRONMENT: &str = ".singularity.d/env/90-environment.sh";
/// What Apptainer gives images without a runscript.
const DEFAULT: &str =
    "#!/bin/sh\n# Copyright\n\necho \"There is no runscript defined for this container\\n\";\n";

/// A copy of the busybox image in the scene's directory.
fn copy(scene: &Scene, name: &str) -> PathBuf {
    let image = scene.dir().join(name);
    let copied = Command::new("cp")
        .arg("-a")
        .args([&images::busybox(), &image])
        .status();
    assert!(copied.expect("there is cp").success());
    image
}

fn task() -> Scene {
    Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}")
}

fn write(file: &str, text: &'static str) -> impl Fn(&Path) + use<> {
    let file = file.to_owned();
    move |image| fs::write(image.join(&file), text).expect("it is ours")
}

fn append(text: &'static str) -> impl Fn(&Path) {
    move |image| {
        let path = image.join(ENVIRONMENT);
        let before = fs::read_to_string(&path).expect("it is there");
        fs::write(&path, format!("{before}\n{text}")).expect("it is ours");
    }
}

/// An image that was changed so, the cause that is to be found, and what is to be named.
struct Unfit {
    change: Box<dyn Fn(&Path)>,
    cause: &'static str,
    name: &'static str,
}

fn unfit(change: impl Fn(&Path) + 'static, cause: &'static str, name: &'static str) -> Unfit {
    Unfit {
        change: Box::new(change),
        cause,
        name,
    }
}

fn runscripts() -> Vec<Unfit> {
    let of = |text, name| unfit(write(RUNSCRIPT, text), "image-runscript", name);
    let replaced = |make: fn(&Path), name| {
        let change = move |image: &Path| {
            let path = image.join(RUNSCRIPT);
            fs::remove_file(&path).expect("it is there");
            make(&path);
        };
        unfit(change, "image-runscript", name)
    };
    vec![
        of("#!/bin/sh\r\nexec \"$@\"\r\n", "CR LF"),
        of("#!/bin/nope\nexec \"$@\"\n", "`/bin/nope`"),
        of("#!/usr/bin/env nope\n", "`nope`"),
        of(DEFAULT, "default"),
        of("#!/bin/sh\n# nothing\n", "no command"),
        of("", "no command"),
        replaced(
            |path| {
                fs::write(path, "#!/bin/sh\nexec \"$@\"\n").expect("it is ours");
                fs::set_permissions(path, Permissions::from_mode(0o644)).expect("it is ours");
            },
            "no execute bit",
        ),
        replaced(|path| fs::create_dir(path).expect("made"), "is no file"),
        replaced(
            |path| symlink("/nowhere", path).expect("linked"),
            "leads nowhere",
        ),
    ]
}

fn environments() -> Vec<Unfit> {
    let of = |text| unfit(append(text), "image-environment", "/90-environment.sh`");
    vec![
        of("exit 3\n"),
        of("exit 0\n"),
        of("set -u\nexport X=$NOT_SET\n"),
        of("set -e\nfalse\n"),
    ]
}

fn layouts() -> Vec<Unfit> {
    let of = |path: &'static str, name| {
        let change = move |image: &Path| {
            fs::remove_dir(image.join(path)).expect("it is empty");
            fs::write(image.join(path), "").expect("it is ours");
        };
        unfit(change, "image-incomplete", name)
    };
    vec![
        of("tmp", "`/tmp`"),
        of("var/tmp", "`/var/tmp`"),
        of("proc", "`/proc`"),
    ]
}

/// It is the image's fault, no event is taken, and the last line says what is wrong.
#[track_caller]
fn assert_refused(scene: Scene, unfit: &Unfit) -> Outcome {
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("a", "1");
    let outcome = scene.run(SOON);
    outcome.assert_code(6);
    let line = outcome.last_line();
    assert!(line.contains(&format!("({}); ", unfit.cause)), "{line}");
    assert!(line.contains(unfit.name), "{}: {line}", unfit.name);
    assert_eq!(incoming.files().len(), 1, "{line}");
    assert!(!incoming.directory().join("claimed").exists(), "{line}");
    assert_eq!(outgoing.files().len(), 0, "{line}");
    outcome
}

#[test]
fn an_image_whose_runscript_runs_no_task_gets_no_event() {
    for unfit in runscripts() {
        let scene = task().set("EWMS_PILOT_TASK_IMAGE", "image");
        (unfit.change)(&copy(&scene, "image"));
        assert_refused(scene, &unfit);
    }
}

#[test]
fn an_image_whose_environment_ends_every_start_gets_no_event() {
    for unfit in environments() {
        let scene = task().set("EWMS_PILOT_TASK_IMAGE", "image");
        (unfit.change)(&copy(&scene, "image"));
        assert_refused(scene, &unfit);
    }
}

#[test]
fn an_image_with_a_file_where_a_directory_must_be_gets_no_event() {
    for unfit in layouts() {
        let scene = task().set("EWMS_PILOT_TASK_IMAGE", "image");
        (unfit.change)(&copy(&scene, "image"));
        assert_refused(scene, &unfit);
    }
}

#[test]
fn the_init_containers_image_is_looked_at_too() {
    let first = |unfits: Vec<Unfit>| unfits.into_iter().next();
    let all = [runscripts(), environments(), layouts()];
    for unfit in all.into_iter().filter_map(first) {
        let scene = task().set("EWMS_PILOT_INIT_IMAGE", "image");
        let scene = scene.set("EWMS_PILOT_INIT_ARGS", "touch {{DATA_HUB}}/ran");
        (unfit.change)(&copy(&scene, "image"));
        let ran = scene.hub("ran");
        let outcome = assert_refused(scene, &unfit);
        assert!(outcome.last_line().contains("init container"));
        assert!(!ran.exists());
    }
}

#[test]
fn a_runscript_that_cannot_start_is_the_images_fault_without_a_preflight_too() {
    let scene = task()
        .set("EWMS_PILOT_TASK_IMAGE", "image")
        .set("EWMS_PILOT_PREFLIGHT", "False");
    write(RUNSCRIPT, "#!/bin/nope\n")(&copy(&scene, "image"));
    let (scene, incoming, _) = scene.spool();
    incoming.put("a", "1");
    let outcome = scene.run(SOON);
    outcome.assert_code(6);
    assert!(
        outcome.last_line().contains("(image-runscript): "),
        "{}",
        outcome.last_line()
    );
    assert_eq!(incoming.files().len(), 1);
}

#[test]
fn images_that_can_start_are_used_whatever_starts_them() {
    type Change = fn(&Path);
    let script: [(&str, Change); 4] = [
        ("sh", |_| {}),
        ("env", |image| {
            write(RUNSCRIPT, "#!/usr/bin/env sh\nexec \"$@\"\n")(image);
        }),
        ("no interpreter named", |image| {
            write(RUNSCRIPT, "exec \"$@\"\n")(image);
        }),
        ("strict", |image| append("set -eu\n")(image)),
    ];
    for (name, change) in script {
        let scene = task().set("EWMS_PILOT_TASK_IMAGE", "image");
        change(&copy(&scene, "image"));
        let (scene, incoming, outgoing) = scene.spool();
        incoming.put("a", "1");
        scene.run(SOON).assert_code(0);
        assert_eq!(outgoing.files().len(), 1, "{name}");
    }
}

#[test]
fn an_image_without_its_base_script_gets_its_variables() {
    let tell =
        r#"sh -c "cat $EWMS_TASK_INFILE - >$EWMS_TASK_OUTFILE; echo $MINE >>$EWMS_TASK_OUTFILE""#;
    let scene = task()
        .set("EWMS_PILOT_TASK_IMAGE", "image")
        .set("EWMS_PILOT_TASK_ARGS", tell)
        .set("EWMS_PILOT_TASK_ENV_JSON", r#"{"MINE": "a value"}"#);
    let image = copy(&scene, "image");
    fs::remove_file(image.join(".singularity.d/env/99-base.sh")).expect("it is there");
    let scene = scene
        .set("EWMS_PILOT_INIT_IMAGE", "image")
        .set(
            "EWMS_PILOT_INIT_ARGS",
            r#"sh -c "echo $INITS >$EWMS_TASK_DATA_HUB_DIR/told""#,
        )
        .set("EWMS_PILOT_INIT_ENV_JSON", r#"{"INITS": "theirs"}"#);
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("a", "event\n");
    scene.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"event\na value\n".to_vec()]);
    let told = fs::read_to_string(scene.hub("told")).expect("the init container wrote it");
    assert_eq!(told, "theirs\n");
    assert!(!image.join(".singularity.d/env/99-base.sh").exists());
}

#[test]
fn an_environment_that_apptainer_cannot_read_is_said_to_be_lost() {
    let scene = task().set("EWMS_PILOT_TASK_IMAGE", "image");
    let image = copy(&scene, "image");
    let broken = "export A=\"x`y\"\n";
    fs::write(
        image.join(".singularity.d/env/10-docker2singularity.sh"),
        broken,
    )
    .expect("it is ours");
    let (scene, incoming, outgoing) = scene.spool();
    incoming.put("a", "1");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert!(
        outcome
            .stderr
            .contains("can't read the image's environment: "),
        "{}",
        outcome.stderr
    );
    assert_eq!(outgoing.files().len(), 1);
}

#[test]
fn a_pilot_whose_tasks_wrote_no_outfile_says_so_aloud() {
    for (arguments, is_told) in [
        ("true {{OUTFILE}}", true),
        ("sh -c \": $EWMS_TASK_OUTFILE\"", true),
        ("true", false),
    ] {
        let scene = task()
            .set("EWMS_PILOT_TASK_ARGS", arguments)
            .set("EWMS_PILOT_TASK_LOG", "tasks.jsonl");
        let (scene, incoming, _) = scene.spool();
        for name in ["a", "b"] {
            incoming.put(name, "1");
        }
        let outcome = scene.run(SOON);
        outcome.assert_code(0);
        let told = outcome
            .stderr
            .lines()
            .find(|line| line.contains("no task wrote an outfile"));
        assert_eq!(told.is_some(), is_told, "{arguments}: {}", outcome.stderr);
        assert!(told.is_none_or(|line| line.contains("ERROR")), "{told:?}");
        let report = Scene::new()
            .arg("report")
            .arg(scene.dir().join("tasks.jsonl"))
            .run(SOON);
        assert_eq!(
            report.assert_code(0).stdout.contains("wrote no outfile"),
            is_told,
            "{arguments}: {}",
            report.stdout
        );
    }
}
