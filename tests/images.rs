//! Names that are accepted as an image, and the errors for others. Conversions, undisturbed and disturbed
//! ones, are in `images_conversion`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::scene::{Outcome, Scene};
use crate::support::{SOON, images};

/// The policy under which an image is converted.
const CONVERT: (&str, &str) = (
    "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
    "False",
);

/// Runs a pilot whose image is `image` of the scene's directory, as `make` made it there. Asserts that
/// an image that can't be used costs no event.
#[track_caller]
fn refused(image: &str, converting: bool, make: impl FnOnce(&Path)) -> Outcome {
    let (scene, incoming, _) = Scene::task(image, "true").spool();
    incoming.put("a", "event");
    make(&scene.dir().join(image));
    let store = scene.dir().join("build");
    fs::create_dir(&store).expect("made");
    let mut scene = scene.set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", &store);
    if converting {
        scene = scene.set(CONVERT.0, CONVERT.1);
    }
    let outcome = scene.run(SOON);
    outcome.assert_code(6);
    assert_eq!(incoming.files().len(), 1);
    assert!(!incoming.directory().join("claimed").exists());
    let line = outcome.last_line();
    assert!(line.starts_with("ContainerSetupError: image `"), "{line}");
    assert!(line.contains(image), "{line}");
    let left = sandboxes(&store);
    assert!(left.is_empty(), "{left:?}");
    outcome
}

/// Directories below a store: what was or is being converted.
fn sandboxes(store: &Path) -> Vec<PathBuf> {
    let list = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).expect("it is a directory");
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| path.is_dir()).collect()
    };
    list(store).iter().flat_map(|user| list(user)).collect()
}

fn truncated_sif(path: &Path) {
    fs::copy(images::busybox_sif(), path).expect("copied");
    let file = File::options().write(true).open(path).expect("it is ours");
    let length = file.metadata().expect("it is there").len();
    file.set_len(length / 2).expect("cut");
}

#[test]
fn a_sandbox_directory_is_used_as_it_is() {
    let (scene, incoming, outgoing) = Scene::task("image", "cp /planted {{OUTFILE}}").spool();
    incoming.put("a", "");
    let image = scene.dir().join("image");
    let copied = Command::new("cp")
        .arg("-a")
        .args([images::busybox(), image.clone()])
        .status();
    assert!(copied.expect("there is cp").success());
    fs::write(image.join("planted"), "before").expect("it is ours");
    let store = scene.dir().join("build");
    let scene = scene
        .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", &store)
        .set(CONVERT.0, CONVERT.1);
    scene.run(SOON).assert_code(0);
    // Not a copy: what is changed in it is seen by the next pilot.
    fs::write(image.join("planted"), "later").expect("it is ours");
    incoming.put("b", "");
    scene.run(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"before".to_vec(), b"later".to_vec()]);
    assert!(!store.exists());
}

#[test]
fn anything_but_a_directory_is_refused_unless_converting_is_allowed() {
    let outcome = refused("image.sif", false, |path| {
        fs::copy(images::busybox_sif(), path).expect("copied");
    });
    let line = outcome.last_line();
    assert!(line.contains("is no sandbox directory"), "{line}");
    assert!(line.contains(CONVERT.0), "the way out is named: {line}");
    for image in ["docker://busybox", "busybox"] {
        refused(image, false, |_| {});
    }
}

#[test]
fn a_missing_image_is_called_missing() {
    for converting in [false, true] {
        for image in ["missing.sif", "./missing", "docker-archive:missing.tar"] {
            let outcome = refused(image, converting, |_| {});
            let line = outcome.last_line();
            assert!(line.contains("does not exist here"), "{line}");
        }
    }
}

#[test]
fn an_empty_directory_is_no_image() {
    for converting in [false, true] {
        let outcome = refused("empty", converting, |path| {
            fs::create_dir(path).expect("made");
        });
        let line = outcome.last_line();
        assert!(line.contains("is an empty directory"), "{line}");
    }
}

#[test]
fn a_damaged_image_is_called_damaged_with_its_flaw_and_a_remedy() {
    let cut = refused("damaged.sif", true, truncated_sif);
    let size = fs::metadata(images::busybox_sif())
        .expect("it is there")
        .len();
    let flaw = format!(
        "image `damaged.sif` is damaged: it has {} bytes, and by its header it needs {size}; copy it again, or build it anew",
        size / 2
    );
    assert!(cut.last_line().ends_with(&flaw), "{}", cut.last_line());

    let corrupt = refused("damaged.sif", true, |path| {
        fs::copy(images::busybox_sif(), path).expect("copied");
        let file = File::options().write(true).open(path).expect("it is ours");
        file.write_all_at(&[7; 8192], size - 12_288)
            .expect("written");
    });
    let line = corrupt.last_line();
    assert!(
        line.contains("image `damaged.sif` is damaged: its file system is corrupt; "),
        "{line}"
    );

    let archive = refused("docker-archive:damaged.tar", true, |path| {
        let whole = path.with_file_name("whole.tar");
        let script = include_str!("images_archive.py");
        let made = Command::new("python3")
            .args(["-c", script])
            .args([images::busybox(), whole.clone()])
            .status();
        assert!(made.expect("there is python3").success());
        let bytes = fs::read(&whole).expect("it is there");
        fs::write(
            path.with_file_name("damaged.tar"),
            &bytes[..bytes.len() / 2],
        )
        .expect("written");
    });
    let line = archive.last_line();
    assert!(
        line.contains("image `docker-archive:damaged.tar` is damaged: it ends too early; "),
        "{line}"
    );
}

#[test]
fn what_is_no_image_is_never_given_to_apptainer() {
    let text = "this is no image\n".repeat(1000).into_bytes();
    let noise: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
    for content in [text, noise, Vec::new()] {
        let outcome = refused("no-image.sif", true, |path| {
            fs::write(path, content).expect("written");
        });
        let line = outcome.last_line();
        assert!(line.contains("is no image"), "{line}");
    }
}

#[test]
fn a_definition_runs_nothing_here_whatever_it_is_called() {
    let witness = tempfile::tempdir().expect("a directory");
    let ran = witness.path().join("ran");
    for (name, front) in [
        ("image.sif", ""),
        ("image.def", "# hsqs\n\n"),
        ("image", "#!/usr/bin/env run-singularity\n# SIF_MAGIC\n"),
    ] {
        for converting in [true, false] {
            let outcome = refused(name, converting, |path| {
                let sections = ["pre", "setup"]
                    .map(|section| format!("%{section}\n touch {}\n", ran.display()));
                let text = format!(
                    "{front}Bootstrap: localimage\nFrom: {}\n{}",
                    images::busybox().display(),
                    sections.concat()
                );
                fs::write(path, text).expect("written");
            });
            let line = outcome.last_line();
            let words = if converting {
                "is no image"
            } else {
                "is no sandbox directory"
            };
            assert!(line.contains(words), "{line}");
            assert!(!ran.exists(), "{name}");
        }
    }
}

#[test]
fn a_pipe_is_no_image_and_is_not_waited_for() {
    let outcome = refused("pipe", true, |path| {
        let made = Command::new("mkfifo").arg(path).status();
        assert!(made.expect("there is mkfifo").success());
    });
    assert!(outcome.last_line().contains("is no image"));
}

#[test]
fn equal_failures_of_two_pilots_read_the_same() {
    let (scene, _, _) = Scene::task("text.sif", "true").spool();
    fs::write(scene.dir().join("text.sif"), "no image").expect("written");
    let store = scene.dir().join("build");
    fs::create_dir(&store).expect("made");
    let scene = scene
        .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", &store)
        .set(CONVERT.0, CONVERT.1);
    let [one, two] = [scene.run(SOON), scene.run(SOON)];
    assert_eq!(one.last_line(), two.last_line());
}

#[test]
fn a_store_that_is_missing_is_named_with_its_variable() {
    let (scene, incoming, _) = Scene::task(images::busybox_sif(), "true").spool();
    incoming.put("a", "event");
    let scene = scene
        .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", "/nowhere/at/all")
        .set(CONVERT.0, CONVERT.1);
    let outcome = scene.run(SOON);
    outcome.assert_code(6);
    let line = outcome.last_line();
    assert!(
        line.contains("/nowhere/at/all") && line.contains("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR"),
        "{line}"
    );
    assert_eq!(incoming.files().len(), 1);
}

#[test]
fn the_image_of_the_init_container_is_held_to_the_same_rules() {
    let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
    incoming.put("a", "event");
    let scene = scene.set("EWMS_PILOT_INIT_IMAGE", images::busybox_sif());
    let outcome = scene.run(SOON);
    outcome.assert_code(6);
    assert!(outcome.last_line().contains("is no sandbox directory"));

    truncated_sif(&scene.dir().join("init.sif"));
    let scene = scene
        .set("EWMS_PILOT_INIT_IMAGE", "init.sif")
        .set(CONVERT.0, CONVERT.1);
    let run = scene.run(SOON);
    let scene = scene.arg("check");
    for outcome in [run, scene.run(SOON)] {
        let said = format!("{}{}", outcome.assert_code(6).stdout, outcome.stderr);
        assert!(
            said.contains("image `init.sif` is damaged: it has "),
            "{said}"
        );
    }
    assert_eq!(incoming.files().len(), 1);
}
