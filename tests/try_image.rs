//! `ewms-pilot try`: files as events, in the containers of a pilot, without queues; what it says, and what it
//! leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::scene::Scene;
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images, processes};

/// Files of the scene, with this content.
fn files(scene: &Scene, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = scene.dir().join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        fs::write(path, content).expect("written");
    }
}

/// A scene that tries `image`, with a directory of its own for what must be gone at the end.
fn trial(image: PathBuf, more: &[&str]) -> Scene {
    let scene = Scene::new().arg("try").arg(image);
    let scene = more.iter().fold(scene, Scene::arg);
    let temporary = scene.dir().join("temporary");
    fs::create_dir(&temporary).expect("made");
    scene.set("TMPDIR", temporary)
}

#[track_caller]
fn assert_nothing_is_left(scene: &Scene) {
    let left: Vec<_> = fs::read_dir(scene.dir().join("temporary"))
        .expect("it is there")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!scene.dir().join("ewms-pilot-data").exists());
}

fn read(scene: &Scene, name: &str) -> String {
    fs::read_to_string(scene.dir().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Copies its event, fails on 3, and writes nothing on 7.
const TASK: &str = r#"sh -c 'case $(cat {{INFILE}}) in
    3) echo "it'\''s a bad pixel" >&2; exit 9;;
    7) ;;
    *) cp {{INFILE}} {{OUTFILE}};; esac'"#;

#[test]
fn each_input_has_a_line_and_a_result_or_its_stderr_and_pilots_can_be_submitted_with_the_settings()
{
    let inputs = ["in/p1.json", "in/p3.json", "in/p5.json", "in/p7.json"];
    let arguments = ["--args", TASK, "-j", "2", "--timeout", "5m"];
    let scene = trial(images::busybox(), &[&arguments[..], &inputs].concat());
    for name in inputs {
        files(&scene, &[(name, &name[4..5])]);
    }
    files(&scene, &[("results/p3.json.stderr", "of an earlier trial")]);
    let outcome = scene.run(SOON);
    let said = &outcome.assert_code(1).stdout;
    assert_eq!(outcome.stderr, "");

    let lines: BTreeMap<&str, &str> = said
        .lines()
        .filter_map(|line| line.split_once("   "))
        .collect();
    assert!(
        lines["p1.json"].starts_with("ok ") && lines["p1.json"].ends_with("   results/p1.json"),
        "{said}"
    );
    assert!(lines["p3.json"].starts_with("FAIL "), "{said}");
    assert!(
        lines["p3.json"].ends_with("   exit code 9: it's a bad pixel   (results/p3.json.stderr)"),
        "{said}"
    );
    assert!(lines["p7.json"].starts_with("NONE "), "{said}");
    let sums = "\n4 inputs: 2 ok, 1 failed, 1 wrote no result (p7.json: exit code 0, but nothing at {{OUTFILE}})\n";
    assert!(said.contains(sums), "{said}");
    assert_eq!(read(&scene, "results/p1.json"), "1");
    assert_eq!(read(&scene, "results/p3.json.stderr"), "it's a bad pixel\n");
    let results = fs::read_dir(scene.dir().join("results"))
        .expect("made")
        .count();
    assert_eq!(results, 3);
    assert_nothing_is_left(&scene);

    // The settings that it prints do the same, once the queues are filled in.
    let spool = scene.dir().join("spool");
    let (incoming, outgoing) = (
        SpoolQueue::create(&spool, "events"),
        SpoolQueue::create(&spool, "results"),
    );
    incoming.put("p5.json", "5");
    let settings = said.split_once("\n# To run the same").expect("settings").1;
    let (env_file, submit) = settings
        .split_once("# Put each input")
        .expect("a line to submit with");
    let env_file: Vec<String> = env_file
        .split_inclusive('\n')
        .skip(1)
        .map(|line| {
            let line = line
                .replace("rabbitmq", "spool")
                .replace("YOUR BROKER", &spool.to_string_lossy());
            let queue = if line.contains("INCOMING") {
                "events"
            } else {
                "results"
            };
            line.replace("YOUR QUEUE", queue).replace("YOUR TOKEN", "")
        })
        .collect();
    fs::write(
        scene.dir().join("ewms_htcondor_envfile.sh"),
        env_file.concat(),
    )
    .expect("written");
    let submit = submit.lines().nth(1).expect("it is the next");
    let image = format!("task_image={}", images::busybox().display());
    assert_eq!(
        submit,
        format!("condor_submit n_pilots=10 env_file=my.env {image} cpus=2 condor/ewms-pilot.sub")
    );
    let pilot = Scene::new()
        .program("/bin/sh")
        .arg("-c")
        .arg(format!(
            "cd '{}' && exec '{}'",
            scene.dir().display(),
            crate::support::pilot_binary().display()
        ))
        .set("EWMS_PILOT_TASK_IMAGE", images::busybox());
    pilot.run(SOON).assert_code(0);
    assert_eq!(outgoing.files()["p5.json"], b"5");
}

#[test]
fn ctrl_c_ends_it_at_once_and_says_what_is_done() {
    let task = r#"sh -c "[ $(cat {{INFILE}}) = 1 ] || { trap '' INT TERM; sleep 9377; }; cp {{INFILE}} {{OUTFILE}}""#;
    let inputs = ["1.txt", "2.txt", "3.txt", "4.txt"];
    let scene = trial(
        images::busybox(),
        &[&["--args", task, "-j2"][..], &inputs].concat(),
    );
    for name in inputs {
        files(&scene, &[(name, &name[..1])]);
    }
    let pilot = scene.start();
    processes::await_running("sleep 9377", SOON);
    assert!(eventually(SOON, || scene
        .dir()
        .join("results/1.txt")
        .exists()));
    assert!(eventually(SOON, || processes::matching("sleep 9377").len() > 1));
    pilot.signal(Signal::SIGINT);
    let outcome = pilot.wait(Duration::from_secs(8));
    let said = &outcome.assert_code(130).stdout;
    assert!(
        said.contains("\ninterrupted by SIGINT: 4 inputs: 1 ok, 3 not done\n"),
        "{said}"
    );
    assert!(!said.contains("export "), "{said}");
    processes::assert_nothing_runs("sleep 9377", SOON);
    assert_nothing_is_left(&scene);
}

#[test]
fn any_image_is_converted_once_into_the_users_cache_and_the_init_container_runs_before() {
    let arguments = [
        "--init-image",
        "/images/busybox.sif",
        "--init-args",
        "cp /proc/self/cmdline {{DATA_HUB}}/made",
        "--args",
        r#"sh -c "cat {{DATA_HUB}}/made {{INFILE}} > {{OUTFILE}}""#,
        "--out-ext=txt",
        "--overwrite",
    ];
    let inputs = ["a/same.dat", "b/same.dat"];
    let scene = trial(images::busybox_sif(), &[&arguments[..], &inputs].concat());
    files(&scene, &[("a/same.dat", "A"), ("b/same.dat", "B")]);
    let cache = scene.dir().join(".cache/ewms-pilot");
    let first = scene.run(2 * SOON);
    first.assert_code(0);
    let converting = "converting `/images/busybox.sif` to a directory, once; it is kept in ";
    assert!(
        first
            .stderr
            .contains(&format!("{converting}{}", cache.display())),
        "{}",
        first.stderr
    );
    assert!(read(&scene, "results/b/same.txt").ends_with('B'));

    let second = scene.run(SOON);
    second.assert_code(0);
    assert!(!second.stderr.contains("converting"), "{}", second.stderr);
    let used = format!("the image is used as {}/", cache.display());
    assert!(second.stderr.contains(&used), "{}", second.stderr);
    let converts = "export _EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT=False\n";
    assert!(second.stdout.contains(converts), "{}", second.stdout);
    let travels = " task_sif=/images/busybox.sif condor/ewms-pilot.sub\n";
    assert!(second.stdout.contains(travels), "{}", second.stdout);
    assert_nothing_is_left(&scene);
}

#[test]
fn what_is_wrong_is_said_before_anything_runs_in_the_words_of_the_command_line() {
    let refused = |image: &str, arguments: &[&str], code: i32, words: &[&str]| {
        let scene = trial(image.into(), arguments);
        files(
            &scene,
            &[("a.json", "1"), ("b.txt", "2"), ("old/a.json", "3")],
        );
        let outcome = scene.run(SOON);
        let stderr = &outcome.assert_code(code).stderr;
        for words in words {
            assert!(stderr.contains(words), "{arguments:?}: {stderr}");
        }
        assert!(!stderr.contains("EWMS_PILOT"), "{stderr}");
        assert_eq!(outcome.stdout, "");
        assert!(!scene.dir().join("results").exists());
        assert_nothing_is_left(&scene);
        stderr.lines().count()
    };
    let busybox = images::busybox();
    let busybox = busybox.to_str().expect("it is text");
    let missing = [
        "error: input `x.json`: there is no such file",
        "error: input `old`: it is a directory",
    ];
    assert_eq!(
        refused(busybox, &["a.json", "x.json", "old"], 2, &missing),
        2
    );
    let different = ["different extensions (`.json`: 1, `.txt`: 1)"];
    assert_eq!(refused(busybox, &["a.json", "b.txt"], 2, &different), 1);
    let existing = ["`old/a.json` exists already; add `--overwrite`"];
    assert_eq!(
        refused(busybox, &["--out", "old", "a.json"], 2, &existing),
        1
    );
    let own = ["`./a.json` is an input"];
    assert_eq!(
        refused(busybox, &["--out", ".", "--overwrite", "a.json"], 2, &own),
        1
    );
    let quote = ["error: `--args` is `cp '`: expected words, quoted as for a shell"];
    assert_eq!(
        refused(busybox, &["--args", "cp '", "a.json"], 2, &quote),
        1
    );
    let image = ["error: image `./x.sif` does not exist here; check the path"];
    assert_eq!(refused("./x.sif", &["a.json"], 6, &image), 1);
    let init = ["error: image `./y` does not exist here; check the path"];
    assert_eq!(
        refused(busybox, &["--init-image", "./y", "a.json"], 6, &init),
        1
    );
    refused(
        busybox,
        &["--timeout", "soon", "a.json"],
        2,
        &["90s, 5m or 2h"],
    );
}

#[test]
fn a_failing_init_container_leaves_its_stderr_and_no_input_runs() {
    let init = [
        "--init-image",
        "/images/busybox",
        "--init-args",
        "sh -c 'echo first; echo no map >&2; exit 4'",
    ];
    let scene = trial(
        images::busybox(),
        &[
            &init[..],
            &["--args", "cp {{INFILE}} {{OUTFILE}}", "a.json"],
        ]
        .concat(),
    );
    files(&scene, &[("a.json", "1")]);
    let outcome = scene.run(SOON);
    let stderr = &outcome.assert_code(5).stderr;
    assert!(
        stderr.contains("init-container failed (exit code 4): no map"),
        "{stderr}"
    );
    assert!(
        stderr.contains("the init container's stderr: results/init.stderr"),
        "{stderr}"
    );
    assert_eq!(read(&scene, "results/init.stderr"), "no map\n");
    assert!(!scene.dir().join("results/a.json").exists());
    assert_nothing_is_left(&scene);
    assert!(Path::new("/images/busybox").exists());
}
