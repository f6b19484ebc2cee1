//! GPUs in containers: each sees those that are its own, with their driver's libraries, and no other. The
//! machine's devices, programs and libraries are made up; a real one was tried by hand (README.md here).

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::faults_site::Site;
use crate::preflight::assert_takes_none;
use crate::support::condor::run;
use crate::support::scene::Scene;
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images, pilot_binary, source_dir};

/// The machine's GPUs, as HTCondor names them.
pub(crate) const SHORT: [&str; 3] = ["GPU-a0223334", "GPU-b1223334", "GPU-c2223334"];
pub(crate) const LONG: [&str; 3] = [
    "GPU-a0223334-4445-5667-899a-abbccddeeff0",
    "GPU-b1223334-4445-5667-899a-abbccddeeff0",
    "GPU-c2223334-4445-5667-899a-abbccddeeff0",
];
pub(crate) const MODEL: &str = "NVIDIA Made-Up";

/// Makes this a machine with GPUs, once. Nothing else looks at them.
pub(crate) fn make_up() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        run(Command::new("sudo").arg(source_dir().join("tests/support/gpus.bash")));
    });
}

fn sh(script: &str) -> String {
    format!("sh -c {}", shell_words::quote(script))
}

/// A scene whose job was given the first two GPUs.
fn with_gpus(scene: Scene) -> Scene {
    make_up();
    scene
        .set("_CONDOR_AssignedGPUs", SHORT[..2].join(","))
        .set("CUDA_VISIBLE_DEVICES", SHORT[..2].join(","))
        .set("NVIDIA_VISIBLE_DEVICES", LONG[..2].join(","))
}

/// A scene with one event, whose task writes what `script` says.
fn one_event(script: &str) -> (Scene, SpoolQueue, SpoolQueue) {
    let script = sh(&format!(
        "{{ {script}; }} >{{{{OUTFILE}}}} 2>/dev/null; true"
    ));
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), script).spool();
    incoming.put("event.txt", "1");
    (scene, incoming, outgoing)
}

fn results(outgoing: &SpoolQueue) -> Vec<String> {
    let results = outgoing.files().into_values();
    results
        .map(|result| String::from_utf8(result).expect("UTF-8"))
        .collect()
}

/// Runs the pilot's binary with arguments where the scene is.
fn ask(scene: &Scene, arguments: &[&str]) -> String {
    run(Command::new(pilot_binary())
        .args(arguments)
        .current_dir(scene.dir()))
}

/// What a container shows of its GPUs.
const LOOK: &str = "echo \"$CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES\"; ls -d /dev/nvidia*; \
    ls /.singularity.d/libs/libcuda.so.1; nvidia-smi -L | wc -l";

#[test]
fn each_task_sees_its_own_gpus_and_no_other_and_the_init_container_all() {
    // An image without scripts of Apptainer's: it learns from ours where libraries are.
    let task = format!(
        "touch {{{{DATA_HUB}}}}/$(cat {{{{INFILE}}}}); i=0
         until [ -e {{{{DATA_HUB}}}}/go ] || [ $i = 600 ]; do sleep 0.1; i=$((i + 1)); done
         {{ {LOOK}; python3 -c 'import ctypes; ctypes.CDLL(\"libcuda.so.1\")' && echo loaded
         }} >{{{{OUTFILE}}}} 2>&1"
    );
    let (scene, incoming, outgoing) = with_gpus(Scene::task(images::python(), sh(&task)))
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "auto")
        .set("OMP_NUM_THREADS", "8")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "3")
        // No task gets more by asking for it.
        .set(
            "EWMS_PILOT_TASK_ENV_JSON",
            "{\"CUDA_VISIBLE_DEVICES\": \"0,1\"}",
        )
        .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
        .set(
            "EWMS_PILOT_INIT_ARGS",
            sh(&format!("{{ {LOOK}; }} >{{{{DATA_HUB}}}}/init")),
        )
        .spool();
    for event in ["1", "2", "3"] {
        incoming.put(&format!("{event}.txt"), event);
    }
    let mut pilot = scene.start();
    let begun = eventually(SOON, || {
        scene.hub("1").exists() && scene.hub("2").exists() || pilot.has_ended()
    });
    assert!(begun, "{}", pilot.stderr());
    // The file is written at most once a second.
    let mut status = Value::Null;
    let shown = eventually(SOON, || {
        let said = ask(&scene, &["status", "--json"]);
        status = serde_json::from_str(&said).expect("JSON");
        let tasks = status[0]["tasks"].as_array().expect("a list").iter();
        let mut shown: Vec<&Value> = tasks.map(|task| &task["gpus"][0]).collect();
        shown.sort_by_key(ToString::to_string);
        shown == SHORT[..2]
    });
    assert!(shown, "{status:#}");
    assert_eq!(status[0]["gpus"], format!("2 × {MODEL}"));
    assert_eq!(status[0]["slots"], 2, "as many as GPUs");
    fs::write(scene.hub("go"), "").expect("written");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);

    let devices = "/dev/nvidia0\n/dev/nvidia1\n/dev/nvidia2\n/dev/nvidiactl\n/.singularity.d/libs/libcuda.so.1\n3\n";
    let seen = |index: usize| format!("{} {}\n{devices}loaded\n", SHORT[index], LONG[index]);
    let results = results(&outgoing);
    assert_eq!(results.len(), 3);
    for result in &results {
        assert!([seen(0), seen(1)].contains(result), "{results:#?}");
    }
    assert!(
        results.contains(&seen(0)) && results.contains(&seen(1)),
        "{results:#?}"
    );
    let init = fs::read_to_string(scene.hub("init")).expect("written");
    assert_eq!(
        init,
        format!(
            "{} {}\n{devices}",
            SHORT[..2].join(","),
            LONG[..2].join(",")
        )
    );
    assert_recorded(&scene);
    let check = scene.arg("check").run(SOON).stdout;
    let line = format!("ok    gpu                   2 × {MODEL}, visible in a container");
    assert!(check.lines().any(|said| said == line), "{check}");
}

/// The records name each task's GPU, and the report counts tasks by model.
#[track_caller]
fn assert_recorded(scene: &Scene) {
    let file = scene.dir().join("ewms-pilot-tasks.jsonl");
    let records = fs::read_to_string(&file).expect("written");
    let tasks = records
        .lines()
        .filter(|line| line.contains("\"kind\":\"task\""));
    let mut tasks: Vec<Value> = tasks
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    tasks.sort_by_key(|task| task["received_unix_secs"].as_f64().map(f64::to_bits));
    for task in &tasks {
        assert_eq!(task["gpu_model"], MODEL);
        assert!(
            SHORT
                .iter()
                .any(|id| task["gpus"] == serde_json::json!([id])),
            "{task}"
        );
    }
    assert_ne!(tasks[0]["gpus"], tasks[1]["gpus"]);
    let report = ask(scene, &["report", "ewms-pilot-tasks.jsonl"]);
    let row = report.lines().find(|line| line.contains(MODEL));
    let row: Vec<&str> = row.expect(&report).split_whitespace().collect();
    assert_eq!(row[..5], ["NVIDIA", "Made-Up", "3", "3", "0"], "{report}");
}

#[test]
fn a_task_without_gpus_sees_none_whatever_the_site_and_the_environment_say() {
    make_up();
    let look = "echo \"[${CUDA_VISIBLE_DEVICES-unset}]\"; ls -d /dev/nvidia* || echo none; ls /usr/bin/nvidia-smi || echo none";
    let (without, _, first) = one_event(look);
    let (hidden, _, second) = one_event(look);
    let hidden = with_gpus(hidden).set("EWMS_PILOT_TASK_GPUS", "none");
    for (scene, outgoing, variable) in [(without, first, "unset"), (hidden, second, "")] {
        let scene = scene.set("APPTAINER_NV", "1").set("SINGULARITY_NV", "1");
        let scene = Site::Configured("always use nv = yes").of(scene);
        let outcome = scene.run(SOON);
        outcome.assert_code(0);
        assert_eq!(results(&outgoing), [format!("[{variable}]\nnone\nnone\n")]);
        assert!(
            !outcome.stderr.contains("check=\"gpu\""),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn tasks_see_amds_gpus_by_rocms_variable() {
    make_up();
    let look =
        "echo \"$ROCR_VISIBLE_DEVICES ${HIP_VISIBLE_DEVICES-unset} ${CUDA_VISIBLE_DEVICES-unset}\"
        ls -d /dev/kfd /dev/nvidia*; ls /.singularity.d/libs/libnuma.so.1";
    let (scene, _, outgoing) = one_event(look);
    let scene = scene.set("HIP_VISIBLE_DEVICES", "1");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(
        results(&outgoing),
        ["1 unset unset\n/dev/kfd\n/.singularity.d/libs/libnuma.so.1\n"]
    );
    let seen = "1 × AMD Made-Up, visible in a container";
    assert!(outcome.stderr.contains(seen), "{}", outcome.stderr);
}

/// Shell that shows this file as the machine's `nvidia-smi`.
fn nvidia_smi(scene: &Scene, text: &str) -> String {
    let file = scene.dir().join(".nvidia-smi");
    fs::write(&file, text).expect("written");
    let file = file.display();
    format!("chmod 755 {file}; mount --bind {file} /usr/bin/nvidia-smi")
}

#[test]
fn a_machine_whose_gpus_fail_in_a_container_gets_no_event() {
    let listed_one = format!("#!/bin/sh\necho 'GPU 0: {MODEL} (UUID: {})'\n", LONG[0]);
    let broken =
        "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n";
    for (program, said) in [
        (broken, "Driver/library version mismatch"),
        (&*listed_one, "does not see GPU `GPU-b1223334`"),
    ] {
        let scene = with_gpus(Scene::task(images::busybox(), "true"));
        let site = nvidia_smi(&scene, program);
        let outcome = assert_takes_none(Site::Prepared(&site), scene, 3, "gpu");
        let last = outcome.last_line();
        assert!(last.contains(said), "{last}");
    }
}

#[test]
fn an_image_that_can_not_run_the_drivers_program_is_no_fault_of_the_machine() {
    let (scene, _, outgoing) = one_event("echo \"$CUDA_VISIBLE_DEVICES\"");
    let scene = with_gpus(scene);
    let site = nvidia_smi(&scene, "#!/lib64/no-loader-here\n");
    let scene = Site::Prepared(&site).of(scene);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    assert_eq!(results(&outgoing), [SHORT[..2].join(",") + "\n"]);
    let note = "whether a container sees them was not tried";
    assert!(outcome.stderr.contains(note), "{}", outcome.stderr);
}

#[test]
fn a_number_of_gpus_that_the_job_was_not_given_is_a_wrong_configuration() {
    let (scene, incoming, _) = one_event("true");
    let scene = with_gpus(scene).set("EWMS_PILOT_TASK_GPUS", "3");
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    let mut lines = outcome.stderr.lines();
    let line = lines.find(|line| line.contains("`EWMS_PILOT_TASK_GPUS` is `3`"));
    let line = line.expect(&outcome.stderr);
    assert!(
        line.contains("the job was given 2; request more (`request_gpus`)"),
        "{line}"
    );
    assert_eq!(incoming.files().len(), 1);
}
