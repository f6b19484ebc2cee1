//! Locks, names and leftovers of a conversion. Integration tests convert with the real Apptainer.

use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::container::ApptainerEnvironment;

const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    dir: TempDir,
    policy: ImagePolicy,
}

impl Bench {
    /// With an image file `x.sif`.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("x.sif"), "hsqs").expect("written");
        let workdir = dir.path().join("work");
        fs::create_dir(&workdir).expect("made");
        Self {
            policy: ImagePolicy::Convert { workdir },
            dir,
        }
    }

    fn conversion(&self) -> Conversion {
        match Resolution::of("x.sif", self.dir.path(), &self.policy).expect("can be converted") {
            Resolution::Convert(conversion) => conversion,
            Resolution::Ready(path) => panic!("{} is ready", path.display()),
        }
    }

    async fn ours(&self) -> ConversionLock {
        match self.conversion().turn(PATIENCE).await.expect("a turn") {
            LockOutcome::Ours(locked) => locked,
            LockOutcome::Done(path) => panic!("{} is done", path.display()),
        }
    }

    /// Does the work of Apptainer, and returns the target of its command.
    fn convert(&self, locked: &ConversionLock) -> PathBuf {
        let environment = ApptainerEnvironment {
            path: "/usr/bin".into(),
            scratch: "/s".into(),
            ..ApptainerEnvironment::default()
        };
        let apptainer = Apptainer::new("/usr/bin/apptainer".into(), environment);
        let invocation = locked
            .build(&apptainer, Verbosity::Normal, UserNamespace::AsInstalled)
            .expect("a command");
        let target = PathBuf::from(&invocation.args[5]);
        assert_eq!(invocation.args[6], self.dir.path().join("x.sif"));
        fs::create_dir(&target).expect("its parent is there and it isn't");
        fs::write(target.join("content"), "").expect("written");
        target
    }

    fn names_in_store(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.conversion().store).expect("listed");
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn refusal(image: &str, cwd: &Path, policy: &ImagePolicy) -> String {
    Resolution::of(image, cwd, policy)
        .expect_err("is refused")
        .to_string()
}

#[test]
fn a_directory_is_ready_whatever_the_policy() {
    let context = Bench::new();
    fs::create_dir_all(context.dir.path().join("image/bin")).expect("made");
    for policy in [&context.policy, &ImagePolicy::DirectoryOnly] {
        let plan = Resolution::of("image", context.dir.path(), policy).expect("can be used");
        assert_eq!(plan, Resolution::Ready(context.dir.path().join("image")));
    }
}

#[test]
fn what_cannot_be_used_is_said_before_anything_runs() {
    let context = Bench::new();
    fs::create_dir(context.dir.path().join("empty")).expect("made");
    let read = |image: &str, policy: &ImagePolicy| refusal(image, context.dir.path(), policy);
    for policy in [&context.policy, &ImagePolicy::DirectoryOnly] {
        assert!(read("empty", policy).contains("`empty` is an empty directory"));
        assert!(read("/missing/x.sif", policy).contains("`/missing/x.sif` does not exist"));
    }
    for image in ["x.sif", "docker://busybox", "busybox"] {
        assert!(
            read(image, &ImagePolicy::DirectoryOnly).contains("DIRECTORY_MUST_BE_PRESENT=False"),
            "{image}"
        );
    }
}

#[test]
fn another_content_is_another_target() {
    let context = Bench::new();
    let before = context.conversion();
    assert_eq!(before, context.conversion());
    assert!(before.target().to_string_lossy().contains("/x.sif-"));
    fs::write(context.dir.path().join("x.sif"), "hsqs, another").expect("written");
    assert_ne!(before.target(), context.conversion().target());
}

#[tokio::test]
async fn a_committed_image_is_found_by_the_next() {
    let context = Bench::new();
    let locked = context.ours().await;
    context.convert(&locked);
    let target = locked.commit().expect("is renamed");
    assert!(target.join("content").exists());
    assert!(
        matches!(context.conversion().turn(PATIENCE).await, Ok(LockOutcome::Done(path)) if path == target)
    );
    assert_eq!(context.names_in_store().len(), 2, "the lock and the image");
}

#[tokio::test]
async fn a_failed_conversion_leaves_nothing_and_quotes_apptainer() {
    let context = Bench::new();
    let locked = context.ours().await;
    let half_made = context.convert(&locked);
    let stderr = format!(
        "INFO:    Starting build...\nFATAL:   While extracting to {}: no space left on device\n",
        half_made.display()
    );
    let error = locked.failed(stderr.as_bytes()).to_string();
    drop(locked);
    assert!(
        error.ends_with(
            "can't be converted: While extracting to <scratch>/sandbox: no space left on device"
        ),
        "{error}"
    );
    assert_eq!(context.names_in_store().len(), 1, "the lock");
    context.ours().await;
}

#[tokio::test]
async fn what_unpacking_says_of_a_damaged_image_is_said_plainly() {
    let corrupt = b"FATAL:   While performing build: extract command failed:\nRead on filesystem failed because EOF\n\
                    FATAL ERROR: File system corruption detected\n";
    let short = b"FATAL:   While performing build: unpacking: unexpected EOF\n";
    let context = Bench::new();
    let locked = context.ours().await;
    for (stderr, flaw) in [
        (&corrupt[..], "is corrupt; copy it"),
        (short, "ends too early; copy it"),
    ] {
        let error = locked.failed(stderr);
        assert_eq!(error.class(), FaultClass::Image);
        assert!(!error.depends_on_apptainer());
        let text = error.to_string();
        assert!(
            text.contains("x.sif` is damaged: ") && text.contains(flaw),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_success_without_a_directory_is_a_failure() {
    let context = Bench::new();
    let error = context
        .ours()
        .await
        .commit()
        .expect_err("there is nothing to rename");
    assert!(matches!(error, ImageError::Build { .. }), "{error}");
}

#[tokio::test]
async fn what_a_dead_builder_left_is_removed_and_never_used() {
    let context = Bench::new();
    let locked = context.ours().await;
    let half_made = context.convert(&locked);
    // As after SIGKILL: the lock is released, the files stay.
    let ConversionLock { making, .. } = &locked;
    let kept = making.with_file_name(
        making
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .replace("making-", "making-x"),
    );
    fs::rename(making, &kept).expect("renamed");
    fs::set_permissions(kept.join("sandbox"), fs::Permissions::from_mode(0o000)).expect("closed");
    drop(locked);
    assert!(!half_made.exists() && kept.exists());

    let locked = context.ours().await;
    context.convert(&locked);
    assert!(!kept.exists());
    locked.commit().expect("is renamed");
}

#[tokio::test]
async fn the_second_pilot_waits_for_the_first_and_uses_its_result() {
    let context = Bench::new();
    let locked = context.ours().await;
    let second = tokio::spawn(context.conversion().turn(PATIENCE));
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    context.convert(&locked);
    let target = locked.commit().expect("is renamed");
    let turn = second.await.expect("no panic");
    assert!(matches!(turn, Ok(LockOutcome::Done(path)) if path == target));
}

#[tokio::test]
async fn the_second_pilots_patience_ends() {
    let context = Bench::new();
    let _locked = context.ours().await;
    let error = context
        .conversion()
        .turn(Duration::from_millis(1))
        .await
        .expect_err("is busy");
    assert!(matches!(error, ImageError::Busy { .. }), "{error}");
}

#[tokio::test]
async fn a_store_that_others_can_write_to_is_not_trusted() {
    let context = Bench::new();
    let store = context.conversion().store;
    fs::create_dir(&store).expect("made");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).expect("opened");
    let error = context
        .conversion()
        .turn(PATIENCE)
        .await
        .expect_err("is refused")
        .to_string();
    assert!(error.contains("other users can write"), "{error}");

    fs::remove_dir(&store).expect("removed");
    symlink("/tmp", &store).expect("linked");
    let error = context
        .conversion()
        .turn(PATIENCE)
        .await
        .expect_err("is refused")
        .to_string();
    assert!(error.contains("no directory"), "{error}");
}
