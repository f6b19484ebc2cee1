//! Conversion of images by the real `apptainer build`: once for all pilots of a machine, and never half-done.
//! For tests that need a conversion to last, a script in front of Apptainer holds it at its start.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::scene::Scene;
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images, processes};

/// A pilot that converts a SIF file into a store of its own, and its queues.
struct Workshop {
    scene: Scene,
    incoming: SpoolQueue,
    outgoing: SpoolQueue,
}

impl Workshop {
    fn new(image: impl AsRef<OsStr>) -> Self {
        let scene = Scene::task(image, "cp {{INFILE}} {{OUTFILE}}");
        let (scene, incoming, outgoing) = scene.spool();
        let store = scene.dir().join("build");
        fs::create_dir(&store).expect("made");
        let scene = scene
            .set("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", &store)
            .set(
                "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
                "False",
            );
        Self {
            scene,
            incoming,
            outgoing,
        }
    }

    /// Puts a script in front of Apptainer that, asked to build, first does what `before` says. There,
    /// `$DIR` is the scene's directory and `$TARGET` what is to be built.
    fn with_apptainer(mut self, before: &str) -> Self {
        let bin = self.scene.dir().join("bin");
        fs::create_dir(&bin).expect("made");
        let script = format!(
            "#!/bin/bash\nDIR={}\nif [[ $1 = build || $2 = build || $3 = build ]]; then\n\
             TARGET=${{@: -2:1}}\necho \"$TARGET\" >> $DIR/builds\n{before}\nfi\n\
             exec /usr/bin/apptainer \"$@\"\n",
            self.scene.dir().display()
        );
        let path = bin.join("apptainer");
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it is ours");
        self.scene = self.scene.set("EWMS_PILOT_APPTAINER", path);
        self
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scene.dir().join(name)
    }

    /// How often Apptainer was asked to build.
    fn builds(&self) -> usize {
        let text = fs::read_to_string(self.file("builds")).unwrap_or_default();
        text.lines().count()
    }

    /// What is in the store of this user: names, sorted, locks left out.
    fn store(&self) -> Vec<String> {
        let users = entries(&self.file("build"));
        let found = users.iter().flat_map(|user| entries(user));
        let mut names: Vec<_> = found
            .filter(|path| path.extension() != Some(OsStr::new("lock")))
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    #[track_caller]
    fn assert_one_sandbox(&self) {
        let store = self.store();
        assert!(store.len() == 1 && is_sandbox(&store[0]), "{store:?}");
    }
}

fn is_sandbox(name: &str) -> bool {
    Path::new(name).extension() == Some(OsStr::new("sandbox"))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("it is a directory");
    entries.flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_sif_file_is_converted_once_and_used_ever_after() {
    let shop = Workshop::new(images::busybox_sif()).with_apptainer("");
    for name in ["a", "b"] {
        shop.incoming.put(name, name);
        shop.scene.run(SOON).assert_code(0);
        shop.assert_one_sandbox();
    }
    assert_eq!(shop.builds(), 1);
    assert_eq!(shop.outgoing.files().len(), 2);
}

#[test]
fn a_changed_file_is_another_image() {
    let shop = Workshop::new("image.sif").with_apptainer("");
    let image = shop.file("image.sif");
    for changes in ["first", "second"] {
        fs::copy(images::busybox_sif(), &image).expect("copied");
        let time = if changes == "first" { "@1" } else { "@2" };
        let touched = Command::new("touch")
            .args(["-d", time])
            .arg(&image)
            .status();
        assert!(touched.expect("there is touch").success());
        shop.scene.run(SOON).assert_code(0);
    }
    assert_eq!(shop.builds(), 2);
}

#[test]
fn two_pilots_at_once_share_one_conversion() {
    let shop = Workshop::new(images::busybox_sif())
        .with_apptainer("until [[ -e $DIR/go ]]; do sleep 0.05; done");
    for name in ["a", "b", "c"] {
        shop.incoming.put(name, name);
    }
    let first = shop.scene.start();
    assert!(eventually(SOON, || shop.builds() == 1));
    let mut second = shop.scene.start();
    second.wait_for_line("another pilot converts the image", SOON);
    fs::write(shop.file("go"), "").expect("written");
    first.wait(SOON).assert_code(0);
    second.wait(SOON).assert_code(0);
    assert_eq!(shop.builds(), 1);
    shop.assert_one_sandbox();
    assert_eq!(shop.outgoing.files().len(), 3);
}

#[test]
fn a_pilot_killed_while_converting_leaves_nothing_that_is_used() {
    // What looks like an image to whoever believes that a directory is one.
    let half = "mkdir -p $TARGET/bin; echo half > $TARGET/bin/cp; chmod +x $TARGET/bin/cp\n\
        touch $DIR/half; [[ -e $DIR/go ]] || exec sleep 9141; rm -rf $TARGET";
    let shop = Workshop::new(images::busybox_sif()).with_apptainer(half);
    shop.incoming.put("a", "event");
    let pilot = shop.scene.start();
    processes::await_running("sleep 9141", SOON);
    pilot.signal(Signal::SIGKILL);
    assert_eq!(pilot.wait(SOON).signal, Some(9));
    assert!(
        shop.store().iter().any(|name| !is_sandbox(name)),
        "it is half made: {:?}",
        shop.store()
    );
    fs::write(shop.file("go"), "").expect("written");
    shop.scene.run(SOON).assert_code(0);
    shop.assert_one_sandbox();
    assert_eq!(shop.outgoing.files().len(), 1);
    for orphan in processes::matching("sleep 9141") {
        // It may end by itself meanwhile.
        let _ = kill(Pid::from_raw(orphan.pid), Signal::SIGKILL);
    }
}

#[test]
fn a_builder_killed_while_converting_leaves_nothing_that_is_used() {
    let half = "mkdir -p $TARGET/bin; [[ -e $DIR/go ]] || kill -KILL $$; rm -rf $TARGET";
    let shop = Workshop::new(images::busybox_sif()).with_apptainer(half);
    shop.incoming.put("a", "event");
    let outcome = shop.scene.run(SOON);
    outcome.assert_code(6);
    assert_eq!(shop.store(), [""; 0]);
    assert_eq!(shop.incoming.files().len(), 1);
    fs::write(shop.file("go"), "").expect("written");
    shop.scene.run(SOON).assert_code(0);
    shop.assert_one_sandbox();
}

#[test]
fn sigterm_ends_a_conversion_and_takes_what_was_made_along() {
    let half = "mkdir -p $TARGET/bin; exec sleep 9142";
    let shop = Workshop::new(images::busybox_sif()).with_apptainer(half);
    shop.incoming.put("a", "event");
    let pilot = shop.scene.start();
    processes::await_running("sleep 9142", SOON);
    pilot.signal(Signal::SIGTERM);
    pilot.wait(SOON).assert_code(143);
    processes::assert_nothing_runs("sleep 9142", SOON);
    assert_eq!(shop.store(), [""; 0]);
    assert_eq!(shop.incoming.files().len(), 1);
}

#[test]
fn an_archive_of_docker_is_converted() {
    let shop = Workshop::new("docker-archive:image.tar");
    let script = include_str!("images_archive.py");
    let made = Command::new("python3")
        .args(["-c", script])
        .args([images::busybox(), shop.file("image.tar")])
        .output()
        .expect("there is python3");
    assert!(made.status.success(), "{made:?}");
    shop.incoming.put("a", "event");
    shop.scene.run(2 * SOON).assert_code(0);
    shop.assert_one_sandbox();
    let results: Vec<_> = shop.outgoing.files().into_values().collect();
    assert_eq!(results, [b"event".to_vec()]);
}

/// Apptainer 1.3.4 and 1.3.5 give every image that they make of another one this runscript.
const LOSE_RUNSCRIPT: &str = r#"/usr/bin/apptainer "$@" || exit
printf '#!/bin/sh\necho "There is no runscript defined for this container\\n";\n' > "$TARGET/.singularity.d/runscript"
exit"#;

#[test]
fn a_converted_image_has_the_runscript_of_its_source() {
    let shop = Workshop::new(images::busybox_sif()).with_apptainer(LOSE_RUNSCRIPT);
    shop.incoming.put("a", "event");
    shop.scene.run(2 * SOON).assert_code(0);
    shop.assert_one_sandbox();
    let results: Vec<_> = shop.outgoing.files().into_values().collect();
    assert_eq!(results, [b"event".to_vec()]);
    let store = entries(&shop.file("build"));
    let image = store[0].join(&shop.store()[0]);
    let of = |image: &Path| fs::read(image.join(".singularity.d/runscript")).expect("it is there");
    assert_eq!(of(&image), of(&images::busybox()));
}

#[test]
fn a_converted_image_whose_source_has_no_runscript_gets_no_event() {
    let shop = Workshop::new("image.sif");
    let sandbox = shop.file("sandbox");
    let copied = Command::new("cp")
        .arg("-a")
        .args([images::busybox(), sandbox.clone()])
        .status();
    assert!(copied.expect("there is cp").success());
    let text = "#!/bin/sh\necho \"There is no runscript defined for this container\\n\";\n";
    fs::write(sandbox.join(".singularity.d/runscript"), text).expect("it is ours");
    let built = Command::new("apptainer")
        .args(["--quiet", "build"])
        .args([shop.file("image.sif"), sandbox])
        .status();
    assert!(built.expect("there is apptainer").success());
    shop.incoming.put("a", "event");
    let outcome = shop.scene.run(2 * SOON);
    outcome.assert_code(6);
    let line = outcome.last_line();
    assert!(line.contains("(image-runscript); "), "{line}");
    assert_eq!(shop.incoming.files().len(), 1);
}
