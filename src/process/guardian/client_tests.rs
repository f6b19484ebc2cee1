//! The handle, with a guardian on a thread. The real guardian process is tested through the pilot.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::*;

fn job(script: &str) -> ChildSpec {
    let nothing = || {
        File::options()
            .write(true)
            .open("/dev/null")
            .expect("opened")
    };
    ChildSpec {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: None,
        stdout: nothing(),
        stderr: nothing(),
    }
}

fn start(guard: &GuardianHandle, spec: &ChildSpec) -> Result<ChildId, StartError> {
    guard.spawn(spec, &Arc::default())
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_left_when_the_guard_is_gone_is_killed() {
    let guard = GuardianHandle::in_thread();
    let children: Vec<ChildId> = (0..3)
        .map(|_| {
            start(
                &guard,
                &job("trap '' TERM HUP INT; set -m; sleep 1000 & sleep 1000"),
            )
            .expect("started")
        })
        .collect();
    let done = start(&guard, &job("exit 3")).expect("started");
    signal::await_end(done.leader.0).expect("a child");
    assert_eq!(guard.reap(done).expect("a child").0, ExitStatus::Code(3));
    until("the last one has its own child", || {
        children
            .iter()
            .all(|child| procfs::process_tree(child.leader).len() == 3)
    });
    drop(guard);
    for child in children {
        until("it is dead", || {
            signal::has_ended(child.leader.0) == Ok(true)
        });
        until("so is its session", || {
            procfs::members(child.leader).is_empty()
        });
        signal::reap(child.leader.0).expect("a child");
    }
}

#[test]
fn a_suspended_family_stands_still_until_it_is_resumed() {
    let guard = GuardianHandle::in_thread();
    let child = start(&guard, &job("setsid sleep 1000 & exec sleep 1001")).expect("started");
    until("both run", || procfs::process_tree(child.leader).len() == 2);
    let states = || -> Vec<char> {
        procfs::process_tree(child.leader)
            .into_iter()
            .filter_map(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                stat.rsplit_once(") ")?.1.chars().next()
            })
            .collect()
    };
    guard.suspend();
    until("all stand still", || states() == ['T', 'T']);
    guard.resume();
    until("all go on", || states() == ['S', 'S']);
    let other = procfs::process_tree(child.leader)[1];
    signal::send(other, libc::SIGKILL);
    signal::send(child.leader.0, libc::SIGKILL);
    guard.reap(child).expect("a child");
}

#[test]
fn a_guardian_that_hears_no_more_is_replaced_at_the_next_start() {
    let guard = GuardianHandle::with(|_reader| Ok(None)).expect("a pipe");
    // The reading end of this guardian's pipe, and of its successor's, is closed at once.
    assert!(matches!(
        start(&guard, &job("true")),
        Err(StartError::Unguarded(error)) if error.kind() == io::ErrorKind::BrokenPipe
    ));
    guard.lock().start = |pipe| {
        std::thread::spawn(|| crate::process::guard_until_end(pipe));
        Ok(None)
    };
    let child = start(&guard, &job("true")).expect("guarded now");
    assert_eq!(guard.reap(child).expect("a child").0, ExitStatus::Code(0));
}

#[test]
fn a_guardian_that_reads_no_more_stays_until_there_is_another() {
    let guard = GuardianHandle::with(|reader| {
        // The reading end stays open and is never read.
        std::mem::forget(reader);
        Ok(None)
    })
    .expect("a pipe");
    let first = Arc::clone(&guard.lock().guardian.pipe);
    while (&*first).write(&[0; 16]).is_ok() {}
    guard.lock().start = |_reader| Err(Errno::EAGAIN.into());
    assert!(matches!(
        start(&guard, &job("true")),
        Err(StartError::Unguarded(error)) if error.kind() == io::ErrorKind::WouldBlock
    ));
    let kept = Arc::clone(&guard.lock().guardian.pipe);
    assert!(Arc::ptr_eq(&first, &kept));
}

#[test]
fn a_child_that_cannot_start_says_nothing_about_the_guardian() {
    let guard = GuardianHandle::in_thread();
    let first = Arc::clone(&guard.lock().guardian.pipe);
    let missing = ChildSpec {
        program: "/bin/nothing-there".into(),
        ..job("true")
    };
    assert!(matches!(
        start(&guard, &missing),
        Err(StartError::Child(error)) if error.kind() == io::ErrorKind::NotFound
    ));
    let kept = Arc::clone(&guard.lock().guardian.pipe);
    assert!(Arc::ptr_eq(&first, &kept));
}
