//! Jobs with GPUs, which HTCondor's discovery simulates and whose driver is made up: see `gpus.rs` above.

use super::container::pilot_images;
use super::{fill, pilots, sh};
use crate::gpus::{LONG, MODEL, SHORT, make_up};
use crate::support::images;

/// Tasks that show their GPUs, once `count` of them run.
fn look(count: usize) -> String {
    sh(&format!(
        "touch {{{{DATA_HUB}}}}/$(basename {{{{INFILE}}}}); i=0
         until [ $(ls {{{{DATA_HUB}}}} | wc -l) = {count} ] || [ $i = 300 ]; do sleep 0.1; i=$((i + 1)); done
         echo \"$CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES $(ls /dev/nvidiactl /.singularity.d/libs/libcuda.so.1)\" >{{{{OUTFILE}}}}"
    ))
}

/// What one of these tasks says of each GPU.
fn sights() -> Vec<String> {
    let seen = "/.singularity.d/libs/libcuda.so.1\n/dev/nvidiactl\n";
    let gpus = SHORT.iter().zip(LONG);
    gpus.map(|(short, long)| format!("{short} {long} {seen}"))
        .collect()
}

#[test]
fn the_gpus_of_a_job_are_shared_out_among_its_tasks() {
    make_up();
    let (submission, incoming, outgoing) = pilots(&images::busybox(), &look(2));
    fill(&incoming, 2);
    let jobs = submission
        .set("gpus", "2")
        .set("cpus", "8")
        .set("pilot_env", "EWMS_PILOT_MAX_CONCURRENT_TASKS=auto")
        .submit();
    jobs.wait_for_ends(1);
    let results = outgoing.consume(3, super::AT_ONCE);
    let of_sights = |result: &String| sights().iter().any(|sight| texts_equal(result, sight));
    assert!(
        results.iter().all(of_sights),
        "{results:#?}\n{}",
        jobs.story()
    );
    assert_eq!(results.len(), 2, "{}", jobs.story());
    assert_ne!(results[0], results[1], "one GPU was given twice");
    let log = jobs.file(0, "err");
    assert!(
        log.contains(&format!("2 × {MODEL}, visible in a container")),
        "{log}"
    );
    let ad = &jobs.history(1)[0];
    assert_eq!(ad["ExitCode"], 0);
    assert_eq!(ad["RequestGPUs"], 2);
}

#[test]
fn a_pilot_in_an_image_finds_the_driver_there_and_shows_it_to_its_tasks() {
    make_up();
    let (submission, incoming, outgoing) = pilots(&images::busybox(), &look(1));
    fill(&incoming, 1);
    let image = pilot_images().join("pilot").display().to_string();
    let jobs = submission
        .set("pilot_image", &image)
        .set("gpus", "1")
        .append("transfer_container = false")
        .submit();
    jobs.wait_for_ends(1);
    let results = outgoing.consume(2, super::AT_ONCE);
    assert_eq!(results.len(), 1, "{}", jobs.story());
    let is_seen = sights().iter().any(|sight| texts_equal(&results[0], sight));
    assert!(is_seen, "{results:#?}\n{}", jobs.story());
    assert_eq!(jobs.history(1)[0]["ExitCode"], 0);
}

/// A result is a JSON string.
fn texts_equal(result: &str, text: &str) -> bool {
    serde_json::from_str::<String>(result).is_ok_and(|result| result == text)
}
