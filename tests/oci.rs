//! The pilot's OCI image, built from `condor/Dockerfile` by a builder that needs no daemon. It runs as with
//! `docker run --privileged`, and as a copy unpacked by CVMFS.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::pool::{assert_results, fill, on_the_ep, pilots, sh};
use crate::support::condor::run;
use crate::support::scene::Scene;
use crate::support::{SOON, images, pilot_binary, source_dir};

/// The image: `rootfs`, `unpacked` and `entrypoint`, made once.
fn image() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let directory = on_the_ep();
        let script = source_dir().join("tests/support/oci_image.bash");
        let mut command = Command::new("sudo");
        run(command
            .arg(script)
            .arg(directory.path())
            .arg(pilot_binary()));
        directory
    });
    made.path()
}

#[test]
fn the_oci_image_runs_pilots_as_root_in_a_privileged_container() {
    let entry_point = fs::read_to_string(image().join("entrypoint")).expect("it was written");
    assert_eq!(entry_point.trim(), "ewms-pilot-wrapper");
    let script = "id -u >{{OUTFILE}}; cat {{INFILE}} >>{{OUTFILE}}; ls -d /cvmfs >>{{OUTFILE}}";
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), sh(script)).spool();
    incoming.put("event.txt", "an event\n");
    let privileged = source_dir().join("tests/support/privileged.bash");
    let job = scene.dir().to_owned();
    let scene = scene
        .program("/usr/bin/sudo")
        .arg("--preserve-env")
        .arg(privileged)
        .arg(image().join("rootfs"))
        .arg(job)
        .arg(entry_point.trim());
    let outcome = scene.run(SOON * 2);
    outcome.assert_code(0);
    assert!(
        outcome.stdout.contains("GLIDEIN_Site="),
        "{}",
        outcome.stdout
    );
    let results: Vec<_> = outgoing.files().into_values().collect();
    let seen = String::from_utf8(results.concat()).expect("UTF-8");
    assert_eq!(seen, "0\nan event\n/cvmfs\n", "{}", outcome.stderr);
}

#[test]
fn a_copy_of_the_oci_image_that_cvmfs_has_unpacked_runs_pilots_in_the_container_universe() {
    // Only the pilot's own image lacks grep.
    let script = sh("test -x /bin/grep && cp {{INFILE}} {{OUTFILE}}");
    let (submission, incoming, outgoing) = pilots(&images::busybox(), &script);
    let events = fill(&incoming, 2);
    let unpacked = image().join("unpacked").display().to_string();
    let jobs = submission
        .set("pilot_image", &unpacked)
        .set("pilot_binary", "")
        .append("transfer_container = false")
        .submit();
    jobs.wait_for_ends(1);
    assert_results(&outgoing, &events);
    let ads = jobs.history(1);
    assert_eq!(ads[0]["ExitCode"], 0, "{}", jobs.story());
    assert_eq!(ads[0]["ContainerImage"], unpacked.as_str());
}
