//! Pilots inside an Apptainer image, which start their tasks' containers within it: container universe.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::{assert_results, fill, on_the_ep, pilots, sh};
use crate::support::condor::{SECOND, Submission, run, start_pool};
use crate::support::mounts::Mounted;
use crate::support::rabbitmq::Queue;
use crate::support::{images, pilot_binary, source_dir};

/// Where pilots' images are, as a directory and as a file: made once.
pub(crate) fn pilot_images() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let directory = on_the_ep();
        let script = source_dir().join("tests/support/condor_image.bash");
        run(Command::new(script)
            .arg(directory.path())
            .arg(pilot_binary()));
        directory
    });
    made.path()
}

/// Pilots that say where they run: only their own image lacks grep. HTCondor binds /cvmfs into that, and what is
/// mounted there comes along into the tasks' containers.
fn nested() -> (Submission, Queue, Queue) {
    static MOUNTED: OnceLock<Mounted> = OnceLock::new();
    MOUNTED.get_or_init(|| {
        let point = Path::new("/cvmfs/nested.org");
        run(Command::new("sudo").args(["mkdir", "-p"]).arg(point));
        let mounted = Mounted::tmpfs(point);
        fs::write(point.join("here"), "nested").expect("everybody may write");
        mounted
    });
    let script = sh(
        "test -x /bin/grep && test \"$(cat /cvmfs/nested.org/here)\" = nested \
         && ! touch /cvmfs/nested.org/new && cp {{INFILE}} {{OUTFILE}}",
    );
    pilots(&images::busybox(), &script)
}

#[test]
fn a_pilot_in_an_image_directory_runs_its_tasks_nested() {
    let (submission, incoming, outgoing) = nested();
    let events = fill(&incoming, 3);
    let image = pilot_images().join("pilot").display().to_string();
    let jobs = submission
        .set("pilot_image", &image)
        .append("transfer_container = false")
        .submit();
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    let ads = jobs.history(1);
    assert_eq!(ads[0]["ExitCode"], 0);
    assert_eq!(ads[0]["ContainerImage"], image.as_str());
    assert_eq!(ads[0]["HTChirpEWMSPilotTasksSuccess"], 3);
    assert!(
        jobs.file(0, "out").contains("GLIDEIN_Site="),
        "{}",
        jobs.story()
    );
}

#[test]
fn a_pilot_in_an_image_file_that_came_with_the_job_runs_its_tasks_nested() {
    let (submission, incoming, outgoing) = nested();
    let events = fill(&incoming, 3);
    let image = pilot_images().join("ewms-pilot.sif").display().to_string();
    let jobs = submission.set("pilot_image", &image).submit();
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    assert_eq!(jobs.history(1)[0]["ExitCode"], 0);
}

/// Where the second machine has CVMFS, filled once: the pilot's image and the tasks', and OSG's Apptainer.
fn fill_cvmfs() {
    static FILLED: OnceLock<()> = OnceLock::new();
    FILLED.get_or_init(|| {
        start_pool();
        let script = source_dir().join("tests/support/condor_cvmfs.bash");
        let pilot = pilot_images().join("pilot");
        run(Command::new(script).arg("/srv/cvmfs").arg(pilot));
    });
}

#[test]
fn on_osg_the_pilots_image_the_tasks_image_and_apptainer_all_come_from_cvmfs() {
    fill_cvmfs();
    let script = sh(
        "test -d /cvmfs/tasks.org/busybox && ! touch /cvmfs/tasks.org/new && cp {{INFILE}} {{OUTFILE}}",
    );
    let image = Path::new("/cvmfs/tasks.org/busybox");
    let (submission, incoming, outgoing) = pilots(image, &script);
    let events = fill(&incoming, 3);
    let jobs = submission
        .set("pilot_image", "/cvmfs/pilots.org/pilot")
        .set("machines", &format!("TARGET.Machine == \"{SECOND}\""))
        .export("EWMS_PILOT_INIT_IMAGE", "/cvmfs/tasks.org/busybox")
        .export("EWMS_PILOT_INIT_ARGS", "true")
        .submit();
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    let ads = jobs.history(1);
    assert_eq!(ads[0]["ExitCode"], 0, "{}", jobs.story());
    assert_eq!(ads[0]["ContainerImage"], "/cvmfs/pilots.org/pilot");
    let log = jobs.file(0, "err");
    let found = "`/cvmfs/oasis.opensciencegrid.org/mis/apptainer/current/bin/apptainer` is `apptainer version";
    assert!(log.contains(found), "{log}");
}
