//! Real children on the host: `sh` and `sleep`. Containers are tested through the pilot itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use tempfile::TempDir;

use tokio::sync::oneshot;

use super::*;
use crate::process::ShutdownSender;

const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(300);

struct Bench {
    dir: TempDir,
    shutdown: ShutdownSender,
    guard: GuardianHandle,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            shutdown: ShutdownSender::new(),
            guard: GuardianHandle::in_thread(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A shell script that starts in the bench's own directory.
    fn job(&self, script: &str) -> ChildSpec {
        ChildSpec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: Some(self.dir.path().into()),
            stdout: File::create(self.path("stdout")).expect("created"),
            stderr: File::create(self.path("stderr")).expect("created"),
        }
    }

    async fn run(&self, script: &str, limits: ChildLimits) -> ChildExit {
        supervise(
            &self.guard,
            self.job(script),
            limits,
            self.shutdown.subscribe(),
            oneshot::channel().0,
        )
        .await
        .expect("started")
    }

    fn stdout(&self) -> String {
        fs::read_to_string(self.path("stdout")).expect("read")
    }

    /// Waits for the pid that a script writes into a file.
    async fn pid(&self, name: &str) -> Pid {
        let path = self.path(name);
        until("a pid is written", || {
            fs::read_to_string(&path).is_ok_and(|content| content.ends_with('\n'))
        })
        .await;
        let content = fs::read_to_string(&path).expect("read");
        Pid::from_raw(content.trim().parse().expect("a number"))
    }
}

fn limits(timeout: Duration, grace: Duration) -> ChildLimits {
    ChildLimits {
        timeout: Some(timeout),
        grace,
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart() {
    let context = Bench::new();
    for code in [0, 1, 255] {
        let ended = context
            .run(&format!("exit {code}"), limits(LONG, SHORT))
            .await;
        assert_eq!(
            (ended.exit, ended.ended_by),
            (ExitStatus::Code(code), StopCause::Itself)
        );
        assert_eq!(
            (ended.hard_kill, ended.leftovers),
            (HardKill::NotNeeded, Leftovers::None)
        );
    }
    let ended = context.run("kill -SEGV $$", limits(LONG, SHORT)).await;
    assert_eq!(ended.exit, ExitStatus::Signal(libc::SIGSEGV));
}

#[tokio::test]
async fn two_hundred_children_that_end_at_once_are_all_noticed() {
    let context = Bench::new();
    let all = futures_util::future::join_all(
        (0..200).map(|_| context.run("exit 7", limits(LONG, SHORT))),
    );
    let ended = timeout(PATIENCE, all).await.expect("no end was missed");
    assert!(ended.iter().all(|ended| ended.exit == ExitStatus::Code(7)));
}

#[tokio::test]
async fn the_environment_starts_from_empty_and_stdin_is_empty() {
    let context = Bench::new();
    context.run("cat; exec env", limits(LONG, SHORT)).await;
    let stdout = context.stdout();
    let names: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    assert!(names.contains(&"PATH"), "{names:?}");
    // The shell adds PWD (and some shells add more).
    assert!(
        names
            .iter()
            .all(|name| ["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)),
        "{names:?}"
    );
}

#[tokio::test]
async fn no_descriptor_of_ours_is_inherited() {
    let context = Bench::new();
    // Without close-on-exec, as a careless parent of the pilot might leave it.
    let leaked = nix::unistd::dup(File::open("/dev/null").expect("opened")).expect("duplicated");
    context.run("ls /proc/self/fd", limits(LONG, SHORT)).await;
    drop(leaked);
    // 3 is the directory that ls itself reads.
    assert_eq!(
        context.stdout().split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
}

#[tokio::test]
async fn the_child_leads_a_session_of_its_own() {
    let context = Bench::new();
    context
        .run("cut -d' ' -f1,5,6 /proc/$$/stat", limits(LONG, SHORT))
        .await;
    let stdout = context.stdout();
    let numbers: Vec<&str> = stdout.split_whitespace().collect();
    assert!(
        numbers.len() == 3 && numbers.iter().all(|number| *number == numbers[0]),
        "{numbers:?}"
    );
}

#[tokio::test]
async fn cpu_time_and_memory_are_reported() {
    let context = Bench::new();
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let ended = context.run(script, limits(LONG, SHORT)).await;
    assert!(ended.usage.cpu_user > Duration::ZERO);
    assert!(ended.usage.max_rss_bytes > 100 * 1024);
    assert!(ended.wall > Duration::ZERO);
}

#[tokio::test]
async fn a_timeout_tells_with_sigterm() {
    let context = Bench::new();
    let script = "trap 'echo told; exit 0' TERM; while :; do sleep 0.05; done";
    let ended = context.run(script, limits(SHORT, LONG)).await;
    assert_eq!(
        (ended.ended_by, ended.hard_kill),
        (StopCause::Timeout, HardKill::NotNeeded)
    );
    assert_eq!(context.stdout(), "told\n");
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed_after_the_grace() {
    let context = Bench::new();
    let ended = context
        .run("trap '' TERM; sleep 1000", limits(SHORT, SHORT))
        .await;
    assert_eq!(ended.ended_by, StopCause::Timeout);
    assert_eq!(ended.exit, ExitStatus::Signal(libc::SIGKILL));
    assert_eq!(ended.hard_kill, HardKill::Session);
    assert!(
        ended.wall >= SHORT + SHORT && ended.wall < PATIENCE,
        "{:?}",
        ended.wall
    );
}

#[tokio::test]
async fn the_signal_is_repeated_until_it_is_heard() {
    let context = Bench::new();
    let script =
        "n=0; trap 'n=$((n+1)); [ $n -ge 3 ] && exit 9' TERM; while :; do sleep 0.05; done";
    let ended = context.run(script, limits(SHORT, LONG)).await;
    assert_eq!(
        (ended.exit, ended.hard_kill),
        (ExitStatus::Code(9), HardKill::NotNeeded)
    );
}

#[tokio::test]
async fn the_will_forwards_its_signal() {
    let context = Bench::new();
    let script = "trap 'echo hup; exit 4' HUP; echo $$ > pid; while :; do sleep 0.05; done";
    let (ended, _) = tokio::join!(context.run(script, limits(LONG, LONG)), async {
        context.pid("pid").await;
        context
            .shutdown
            .advance(ShutdownPhase::Terminate(libc::SIGHUP))
    });
    assert_eq!(
        (ended.exit, ended.ended_by),
        (ExitStatus::Code(4), StopCause::Shutdown)
    );
    assert_eq!(context.stdout(), "hup\n");
}

#[tokio::test]
async fn a_kill_during_the_grace_hastens_the_end() {
    let context = Bench::new();
    let script = "trap 'echo told > told' TERM; echo $$ > pid; while :; do sleep 0.05; done";
    let (ended, ()) = tokio::join!(context.run(script, limits(LONG, LONG)), async {
        context.pid("pid").await;
        context
            .shutdown
            .advance(ShutdownPhase::Terminate(libc::SIGTERM));
        until("the child was told", || context.path("told").exists()).await;
        context.shutdown.advance(ShutdownPhase::Kill);
    });
    assert_eq!(
        (ended.ended_by, ended.hard_kill),
        (StopCause::Shutdown, HardKill::Session)
    );
    assert!(ended.wall < PATIENCE);
}

#[tokio::test]
async fn a_kill_after_a_timeout_is_still_a_timeout() {
    let context = Bench::new();
    let script = "trap 'echo told > told' TERM; while :; do sleep 0.05; done";
    let (ended, ()) = tokio::join!(context.run(script, limits(SHORT, LONG)), async {
        until("the child was told", || context.path("told").exists()).await;
        context.shutdown.advance(ShutdownPhase::Kill);
    });
    assert_eq!(
        (ended.ended_by, ended.hard_kill),
        (StopCause::Timeout, HardKill::Session)
    );
}

#[tokio::test]
async fn nothing_is_started_once_the_end_is_wanted() {
    let context = Bench::new();
    context
        .shutdown
        .advance(ShutdownPhase::Terminate(libc::SIGTERM));
    let ended = context.run("echo started", limits(LONG, LONG)).await;
    assert_eq!(
        (ended.exit, ended.ended_by),
        (ExitStatus::Signal(libc::SIGTERM), StopCause::Shutdown)
    );
    assert_eq!(context.stdout(), "");
}

#[tokio::test]
async fn a_lost_sender_lets_the_child_run() {
    let context = Bench::new();
    let shutdown = ShutdownSender::new().subscribe();
    let job = context.job("sleep 0.2; exit 5");
    let ended = supervise(
        &context.guard,
        job,
        limits(LONG, LONG),
        shutdown,
        oneshot::channel().0,
    )
    .await
    .expect("started");
    assert_eq!(
        (ended.exit, ended.ended_by),
        (ExitStatus::Code(5), StopCause::Itself)
    );
}

#[tokio::test]
async fn what_a_successful_child_leaves_running_is_swept() {
    let context = Bench::new();
    // As squashfuse_ll does: a new process group in the same session.
    let script = "set -m; sleep 1000 & echo $! > pid; trap '' HUP; exit 0";
    let ended = context.run(script, limits(LONG, LONG)).await;
    assert_eq!(
        (ended.exit, ended.leftovers),
        (ExitStatus::Code(0), Leftovers::Swept)
    );
    assert!(!runs(context.pid("pid").await));
}

/// In its own process, because other tests leave orphans that would have to be looked for.
#[test]
fn a_child_that_leaves_nothing_behind_costs_no_look_at_all_processes() {
    let own = "process::supervise::tests::sweeps_without_and_with_orphans";
    let output = std::process::Command::new(std::env::current_exe().expect("it has a path"))
        .args(["--exact", own, "--ignored", "--nocapture"])
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn sweeps_without_and_with_orphans() {
    let looks = || crate::process::procfs::looks_at_all_processes();
    let bench = Bench::new();
    let before = looks();
    let ended = bench.run("exit 0", limits(LONG, SHORT)).await;
    assert_eq!(ended.leftovers, Leftovers::None);
    assert_eq!(looks(), before);
    let script = "set -m; sleep 1000 & trap '' HUP; exit 0";
    let ended = bench.run(script, limits(LONG, LONG)).await;
    assert_eq!(ended.leftovers, Leftovers::Swept);
    assert!(looks() > before);
}

#[tokio::test]
async fn grandchildren_that_ignore_the_signal_die_with_the_child() {
    let context = Bench::new();
    let script = "sh -c \"trap '' TERM HUP; echo \\$\\$ > pid; sleep 1000\" & wait";
    let ended = context
        .run(script, limits(Duration::from_secs(1), SHORT))
        .await;
    assert_eq!(ended.leftovers, Leftovers::Swept);
    assert!(!runs(context.pid("pid").await));
}

#[tokio::test]
async fn a_dropped_supervisor_kills_and_reaps_its_child() {
    let context = Bench::new();
    let script =
        "trap '' TERM; (trap '' HUP; sleep 1000) & echo $! > other; echo $$ > pid; sleep 1000";
    let (pid, other) = tokio::select! {
        ended = context.run(script, limits(LONG, LONG)) => panic!("it ended: {ended:?}"),
        pids = async { (context.pid("pid").await, context.pid("other").await) } => pids,
    };
    until("the leader is reaped", || !exists(pid)).await;
    until("its session is gone", || !runs(other)).await;
}

#[tokio::test]
async fn no_zombie_is_left_and_no_other_child_is_reaped() {
    let context = Bench::new();
    let mut other = std::process::Command::new("/bin/true")
        .spawn()
        .expect("started");
    context.run("echo $$ > pid", limits(LONG, LONG)).await;
    assert!(!exists(context.pid("pid").await));
    assert!(other.wait().expect("still ours to wait for").success());
}

#[tokio::test]
async fn failures_to_start_are_told_apart() {
    let context = Bench::new();
    let start = |job| {
        supervise(
            &context.guard,
            job,
            limits(LONG, LONG),
            context.shutdown.subscribe(),
            oneshot::channel().0,
        )
    };
    let missing = start(ChildSpec {
        program: "/nonexistent/x".into(),
        ..context.job("")
    })
    .await;
    assert!(
        matches!(missing, Err(SpawnError::Program { .. })),
        "{missing:?}"
    );
    let nowhere = start(ChildSpec {
        cwd: Some("/nonexistent".into()),
        ..context.job("")
    })
    .await;
    assert!(
        matches!(nowhere, Err(SpawnError::Directory { .. })),
        "{nowhere:?}"
    );
    let long = start(ChildSpec {
        args: vec!["x".repeat(200_000).into()],
        ..context.job("")
    })
    .await;
    assert!(
        matches!(long, Err(SpawnError::TooLong { bytes, .. }) if bytes > 200_000),
        "{long:?}"
    );
}
