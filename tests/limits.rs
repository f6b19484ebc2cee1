//! Limits that the batch system sets or that other jobs use up: on processes, on the size of files, on core
//! files. Also that other processes can't read the pilot's memory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::faults_site::Site;
use crate::support::broker::Broker;
use crate::support::faults::close_all_connections;
use crate::support::rabbitmq::Queue;
use crate::support::scene::{Outcome, Pilot, Scene};
use crate::support::{SOON, eventually, images, pilot_binary, processes};

/// Says that it runs, ends when it is told, with a result.
const UNTIL_TOLD: &str = "sh -c \": >{{DATA_HUB}}/up; until [ -e {{DATA_HUB}}/go ]; do sleep 0.1; done; \
                          echo result >{{OUTFILE}}\"";

/// A scene whose pilot gets these limits from its parent, a shell.
fn with_limits(scene: Scene, limits: &str) -> Scene {
    let script = format!("{limits}; exec {}", pilot_binary().display());
    scene.program("/bin/sh").arg("-c").arg(script)
}

/// As if neighbours had used up all processes: the kernel makes no further one, and no thread, for it.
fn use_up_processes(pilot: &Pilot) {
    limit_processes(pilot, "--nproc=1:");
}

fn limit_processes(pilot: &Pilot, limit: &str) {
    let status = Command::new("prlimit")
        .args(["--pid", &pilot.pid().to_string(), limit])
        .status();
    assert!(status.expect("util-linux is there").success());
}

/// Waits until only those threads are left that the pilot keeps when there is nothing to do.
#[track_caller]
fn await_idle_threads(pilot: &Pilot) {
    let comings = || {
        let threads = fs::read_dir(format!("/proc/{}/task", pilot.pid())).expect("it runs");
        let names = threads
            .flatten()
            .map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
        let (tokios, ours): (Vec<_>, Vec<_>) = names
            .filter(|name| name.starts_with("tokio") || name.starts_with("blocking"))
            .partition(|name| name.starts_with("tokio"));
        (tokios.len(), ours.len())
    };
    assert!(
        eventually(SOON, || matches!(comings(), (0, 0..=4))),
        "{:?}",
        comings()
    );
}

/// Its task runs, nothing else is done, and then there is no thread left.
#[track_caller]
fn run_until_no_thread_is_left(scene: &Scene) -> Pilot {
    let pilot = start_until_no_thread_is_left(scene);
    fs::write(scene.hub("go"), "").expect("written");
    pilot
}

/// The same, and its task goes on.
#[track_caller]
fn start_until_no_thread_is_left(scene: &Scene) -> Pilot {
    let pilot = scene.start();
    assert!(
        eventually(SOON, || scene.hub("up").exists()),
        "{}",
        pilot.stderr()
    );
    await_idle_threads(&pilot);
    use_up_processes(&pilot);
    pilot
}

#[test]
fn a_result_arrives_in_a_spool_though_no_thread_is_left_when_its_task_ends() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), UNTIL_TOLD).spool();
    // Another container, which can't be made, would tell that the machine is broken.
    let scene = scene.set("EWMS_PILOT_WARM_START", "False");
    incoming.put("a.txt", "x");
    let pilot = run_until_no_thread_is_left(&scene);
    pilot.wait(SOON).assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    assert_eq!(results, [b"result\n"]);
    assert!(incoming.files().is_empty());
}

#[test]
fn a_result_arrives_at_rabbitmq_though_no_thread_is_left_when_its_task_ends() {
    let (incoming, outgoing) = (Queue::unique("threads-in"), Queue::unique("threads-out"));
    let scene = Scene::task(images::busybox(), UNTIL_TOLD)
        .set("EWMS_PILOT_INFILE_EXT", ".json")
        .set("EWMS_PILOT_WARM_START", "False")
        .rabbitmq(&incoming, &outgoing);
    incoming.produce(["1"]);
    let pilot = run_until_no_thread_is_left(&scene);
    pilot.wait(SOON).assert_code(0);
    assert!(eventually(SOON, || outgoing.depth() == 1));
    assert_eq!(incoming.depth(), 0);
}

#[test]
fn a_connection_that_is_lost_while_no_thread_is_left_is_made_again() {
    let broker = Broker::start();
    let address = broker.address();
    let incoming = Queue::unique_at("threads-in", &address);
    let outgoing = Queue::unique_at("threads-out", &address);
    let scene = Scene::task(images::busybox(), UNTIL_TOLD)
        .set("EWMS_PILOT_INFILE_EXT", ".json")
        .rabbitmq(&incoming, &outgoing);
    incoming.produce(["1"]);
    let mut pilot = start_until_no_thread_is_left(&scene);
    close_all_connections(&broker);
    // Each direction has a thread that outlives its connections.
    pilot.wait_for_line("the outgoing queue is back", SOON);
    pilot.wait_for_line("the incoming queue is back", SOON);
    fs::write(scene.hub("go"), "").expect("written");
    limit_processes(&pilot, "--nproc=4096:");
    pilot.wait(SOON * 4).assert_code(0);
    assert!(eventually(SOON, || outgoing.depth() == 1));
    assert_eq!(incoming.depth(), 0);
}

#[test]
fn a_broken_machine_without_processes_is_told_so_and_its_guardian_stays() {
    // The first outlives the pilot's own end, unless somebody kills it; the second asks for a probe.
    let script = "sh -c \"read kind <{{INFILE}}; : >{{DATA_HUB}}/$kind; [ $kind = short ] || sleep 4718.25; \
                  until [ -e {{DATA_HUB}}/go ]; do sleep 0.1; done; exit 255\"";
    let (scene, incoming, _) = Scene::task(images::busybox(), script).spool();
    let scene = scene.set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    incoming.put("1.txt", "long\n");
    incoming.put("2.txt", "short\n");
    let mut pilot = scene.start();
    let up = || scene.hub("long").exists() && scene.hub("short").exists();
    assert!(eventually(SOON, up), "{}", pilot.stderr());
    let guardian = guardian_of(&pilot);
    use_up_processes(&pilot);
    fs::write(scene.hub("go"), "").expect("written");
    let line = pilot.wait_for_line("task failed", SOON);
    assert!(line.contains("(limits): "), "{line}");
    assert_eq!(guardian_of(&pilot), guardian);
    let is_back = || incoming.files().contains_key("2.txt");
    assert!(eventually(SOON, is_back), "{}", pilot.stderr());
    pilot.signal(Signal::SIGKILL);
    pilot.wait(SOON);
    processes::assert_nothing_runs("sleep 4718.25", Duration::from_secs(10));
}

#[test]
fn a_task_that_no_process_can_be_made_for_is_not_to_blame() {
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), UNTIL_TOLD).spool();
    let scene = scene
        .set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2")
        .set("EWMS_PILOT_WARM_START", "False")
        .set("EWMS_PILOT_TIMEOUT_QUEUE_INCOMING", "60");
    incoming.put("1.txt", "x");
    let mut pilot = scene.start();
    assert!(
        eventually(SOON, || scene.hub("up").exists()),
        "{}",
        pilot.stderr()
    );
    use_up_processes(&pilot);
    incoming.put("2.txt", "x");
    let line = pilot.wait_for_line("task failed", SOON);
    assert!(line.contains("(limits): "), "{line}");
    fs::write(scene.hub("go"), "").expect("written");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(3);
    assert_eq!(outgoing.files().len(), 1, "{}", outcome.stderr);
    let left: Vec<_> = incoming.files().into_keys().collect();
    assert_eq!(left, ["2.txt"]);
    assert_uncounted(&scene, "2.txt");
}

/// The event has not failed so far.
#[track_caller]
fn assert_uncounted(scene: &Scene, name: &str) {
    let tries = scene.dir().join("spool/events/.tries").join(name);
    assert!(!tries.exists(), "{:?}", fs::read_to_string(tries));
}

#[track_caller]
fn guardian_of(pilot: &Pilot) -> i32 {
    let mut found = processes::matching("ewms-guardian");
    found.retain(|process| process.parent == pilot.pid());
    found.first().expect("there is one").pid
}

/// Runs one event in a task that is `script`, the pilot having these limits.
fn run_limited(script: &str, limits: &str, set: &[(&str, &str)]) -> (Scene, Outcome, usize) {
    let args = format!("sh -c {}", shell_words::quote(script));
    let (mut scene, incoming, outgoing) = Scene::task(images::busybox(), args).spool();
    for (name, value) in set {
        scene = scene.set(name, value);
    }
    incoming.put("a.txt", "x");
    let scene = with_limits(scene, limits);
    let outcome = scene.run(SOON);
    (scene, outcome, outgoing.files().len())
}

/// The shell counts the size of files in these.
const BLOCKS_OF_A_MIB: usize = 2048;

#[test]
fn an_output_beyond_the_limit_on_files_ends_no_pilot() {
    let script = "dd if=/dev/zero bs=1000000 count=20 2>/dev/null; echo well >$EWMS_TASK_OUTFILE";
    let limits = format!("ulimit -f {}", 8 * BLOCKS_OF_A_MIB);
    let (_, outcome, results) = run_limited(script, &limits, &[]);
    outcome.assert_code(0);
    assert_eq!(results, 1, "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .contains("a container's output is incomplete"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_log_beyond_the_limit_on_files_ends_no_pilot() {
    // Task after task, until the log, and the records, are at the limit.
    let script =
        "dd if=/dev/zero bs=1000000 count=7 2>/dev/null | tr '\\0' x >&2; echo >$EWMS_TASK_OUTFILE";
    let args = format!("sh -c {}", shell_words::quote(script));
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), args).spool();
    for number in 0..3 {
        incoming.put(&format!("{number}.txt"), "x");
    }
    let scene = with_limits(
        scene.set("EWMS_PILOT_DUMP_TASK_OUTPUT", "True"),
        &format!("ulimit -f {}", 8 * BLOCKS_OF_A_MIB),
    );
    let outcome = scene.run(SOON);
    assert_eq!((outcome.code, outcome.signal), (Some(0), None));
    assert_eq!(outgoing.files().len(), 3);
}

#[test]
fn a_limit_on_files_that_leaves_no_room_is_found_before_the_first_event() {
    for (preflight, part) in [("True", "no file can be written"), ("False", "task failed")] {
        let (_, outcome, results) = run_limited(
            "exit 1",
            &format!("ulimit -f {}", BLOCKS_OF_A_MIB / 2),
            &[("EWMS_PILOT_PREFLIGHT", preflight)],
        );
        outcome.assert_code(3);
        let line = outcome.last_line();
        assert!(line.contains(part) && line.contains("(limits)"), "{line}");
        assert_eq!(results, 0);
    }
}

#[test]
fn a_task_keeps_the_limits_that_the_job_had_and_their_effect() {
    let script = "ulimit -c >$EWMS_TASK_OUTFILE; ulimit -f >>$EWMS_TASK_OUTFILE; \
                  sh -c 'dd if=/dev/zero of=/tmp/big bs=1000000 count=9 2>/dev/null'; echo $? >>$EWMS_TASK_OUTFILE";
    let limits = format!("ulimit -c 0; ulimit -f {}", 8 * BLOCKS_OF_A_MIB);
    let args = format!("sh -c {}", shell_words::quote(script));
    let (scene, incoming, outgoing) = Scene::task(images::busybox(), args).spool();
    incoming.put("a.txt", "x");
    let scene = with_limits(scene, &limits);
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    let results: Vec<_> = outgoing.files().into_values().collect();
    let told = String::from_utf8(results.concat()).expect("it is text");
    // 128 + SIGXFSZ: the signal has its default effect.
    let told: Vec<_> = told.lines().collect();
    assert_eq!(told, ["0", "16384", "153"], "{}", outcome.stderr);
}

#[test]
fn no_other_process_reads_the_pilots_memory_and_no_core_file_holds_it() {
    let limits = "ulimit -c unlimited 2>/dev/null || ulimit -c $(ulimit -H -c)";
    let (scene, incoming, _) = Scene::task(images::busybox(), UNTIL_TOLD).spool();
    incoming.put("a.txt", "x");
    let scene = with_limits(
        scene.set("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "s3cret"),
        limits,
    );
    let pilot = scene.start();
    assert!(
        eventually(SOON, || scene.hub("up").exists()),
        "{}",
        pilot.stderr()
    );
    for name in ["mem", "environ", "maps", "auxv"] {
        let opened = fs::read(Path::new("/proc").join(pilot.pid().to_string()).join(name));
        let error = opened.expect_err(name);
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{name}");
    }
    // What people see of it doesn't suffer.
    let status = || {
        let mut status = Command::new(pilot_binary());
        let shown = status.arg("status").current_dir(scene.dir()).output();
        String::from_utf8_lossy(&shown.expect("it runs").stdout).into_owned()
    };
    assert!(
        eventually(SOON, || status().contains("running, Tasking")),
        "{}",
        status()
    );
    pilot.signal(Signal::SIGABRT);
    let outcome = pilot.wait(SOON);
    assert_eq!(outcome.signal, Some(Signal::SIGABRT as i32));
    assert!(!outcome.dumped_core, "{}", outcome.stderr);
}

/// Lines of shell that make a control group of 300 MiB for the pilot, of which nothing is left when its
/// last process has ended.
fn small_memory(scene: &Scene) -> String {
    let mount = scene.dir().join("cgroup");
    format!(
        "mkdir {mount}
         mount -t cgroup -o memory memory {mount} 2>/dev/null || mount -t cgroup2 memory {mount}
         group={mount}$(sed -n 's/^[0-9]*:memory://p; s/^0:://p' /proc/self/cgroup | head -n 1)/ewms-test-$$
         mkdir $group
         if [ -e $group/memory.max ]; then echo 314572800 > $group/memory.max
         else echo 314572800 > $group/memory.limit_in_bytes; fi
         (while kill -0 $$ 2>/dev/null || ! rmdir $group; do sleep 0.2; done) >/dev/null 2>&1 &
         echo $$ > $group/cgroup.procs",
        mount = mount.display()
    )
}

/// What a task says that takes memory until it is killed, or whose child does.
const GREEDY: &str = "b = bytearray(1 << 30)";
const GREEDY_CHILD: &str = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'b = bytearray(1 << 30)']) != 0)";

#[test]
fn a_task_that_the_kernel_kills_for_memory_is_told_what_the_job_has() {
    for (source, code, okay) in [
        (GREEDY, 1, ""),
        (GREEDY_CHILD, 1, ""),
        // Named so, it stops nobody.
        (GREEDY, 1, "MemoryError"),
    ] {
        let args = format!("python3 -c {}", shell_words::quote(source));
        let (scene, incoming, _) = Scene::task(images::python(), args)
            .set("EWMS_PILOT_OKAY_ERRORS", okay)
            .spool();
        incoming.put("a.txt", "x");
        let site = small_memory(&scene);
        let scene = Site::Prepared(&site).of(scene);
        let outcome = scene.run(SOON * 2);
        outcome.assert_code(code);
        let line = outcome.last_line();
        assert!(
            line.contains(
                "task failed: [Memory-Error] the kernel killed it for memory: all of the job's `314572800` \
                 bytes were used; let it take less, or use request_memory = 512"
            ),
            "{line}\n{}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.contains("largest_process_bytes="),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn a_task_that_fails_beside_a_kill_for_memory_has_its_own_reason() {
    let source = "import os, sys, time\n\
                  kind = open(os.environ['EWMS_TASK_INFILE']).read().strip()\n\
                  hub = os.environ['EWMS_TASK_DATA_HUB_DIR']\n\
                  open(hub + '/' + kind, 'w').close()\n\
                  while len(os.listdir(hub)) < 2: time.sleep(0.1)\n\
                  if kind == 'greedy': b = bytearray(1 << 30)\n\
                  time.sleep(3)\n\
                  sys.exit('my own reason')\n";
    let args = format!("python3 -c {}", shell_words::quote(source));
    let (scene, incoming, _) = Scene::task(images::python(), args).spool();
    incoming.put("1.txt", "greedy");
    incoming.put("2.txt", "modest");
    let scene = scene.set("EWMS_PILOT_MAX_CONCURRENT_TASKS", "2");
    let site = small_memory(&scene);
    let scene = Site::Prepared(&site).of(scene);
    let outcome = scene.run(SOON * 2);
    outcome.assert_code(1);
    let line = outcome.last_line();
    assert!(
        line.contains("[Memory-Error]") && line.contains("(exit code 1): my own reason"),
        "{line}"
    );
}

#[test]
fn processes_that_a_neighbour_uses_up_are_never_the_tasks_fault() {
    let mut ends = Vec::new();
    for processes in (10..=60).step_by(2) {
        let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}");
        let (scene, incoming, outgoing) = scene.set("EWMS_PILOT_PREFLIGHT", "False").spool();
        incoming.put("a.txt", "x");
        let scene = Site::FewProcesses(processes).of(scene);
        let outcome = scene.run(SOON);
        let done = outgoing.files().len();
        ends.push((processes, outcome.code, done));
        if outcome.code == Some(0) {
            assert_eq!(done, 1);
        } else {
            assert_eq!(outcome.code, Some(3), "{processes}: {}", outcome.stderr);
            let left: Vec<_> = incoming.files().into_keys().collect();
            assert_eq!(left, ["a.txt"]);
            assert_uncounted(&scene, "a.txt");
        }
    }
    let codes: Vec<_> = ends.iter().map(|(_, code, _)| *code).collect();
    assert!(
        codes.contains(&Some(0)) && codes.contains(&Some(3)),
        "{ends:?}"
    );
}
