//! The guard with a guardian on a thread. The real guardian, a process, is tested through the pilot.

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
    let child_ids: Vec<ChildId> = (0..3)
        .map(|_| {
            guard
                .spawn(&job(
                    "trap '' TERM HUP INT; set -m; sleep 1000 & sleep 1000",
                ))
                .expect("started")
        })
        .collect();
    let done = guard.spawn(&job("exit 3")).expect("started");
    spawn::await_end(done.leader.0).expect("a child");
    assert_eq!(guard.reap(done).expect("a child").0, ExitStatus::Code(3));
    until("the last one has its own child", || {
        child_ids
            .iter()
            .all(|child_id| procfs::process_tree(child_id.leader).len() == 3)
    });
    drop(guard);
    for child_id in child_ids {
        until("it is dead", || {
            spawn::has_ended(child_id.leader.0) == Ok(true)
        });
        until("so is its session", || {
            procfs::members(child_id.leader).is_empty()
        });
        spawn::reap(child_id.leader.0).expect("a child");
    }
}

#[test]
fn a_suspended_family_stands_still_until_it_is_resumed() {
    let guard = GuardianHandle::in_thread();
    let child_id = guard
        .spawn(&job("setsid sleep 1000 & exec sleep 1001"))
        .expect("started");
    until("both run", || {
        procfs::process_tree(child_id.leader).len() == 2
    });
    let states = || -> Vec<char> {
        procfs::process_tree(child_id.leader)
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
    let other = procfs::process_tree(child_id.leader)[1];
    spawn::send(other, libc::SIGKILL);
    spawn::send(child_id.leader.0, libc::SIGKILL);
    guard.reap(child_id).expect("a child");
}

#[test]
fn a_guardian_that_hears_no_more_is_replaced_at_the_next_start() {
    let guard = GuardianHandle::with(|_reader| Ok(None)).expect("a pipe");
    // Its reading end is closed at once, and so is that of its successor.
    assert!(matches!(
        guard.spawn(&job("true")),
        Err(StartError::Unguarded(error)) if error.kind() == io::ErrorKind::BrokenPipe
    ));
    guard.lock().start_guardian = |pipe| {
        std::thread::spawn(|| crate::process::guard_until_end(pipe));
        Ok(None)
    };
    let child_id = guard.spawn(&job("true")).expect("guarded now");
    assert_eq!(
        guard.reap(child_id).expect("a child").0,
        ExitStatus::Code(0)
    );
}

#[test]
fn a_guardian_that_reads_no_more_stays_until_there_is_another() {
    let guard = GuardianHandle::with(|reader| {
        // Open, and never read.
        std::mem::forget(reader);
        Ok(None)
    })
    .expect("a pipe");
    let first = Arc::clone(&guard.lock().guardian.as_ref().expect("hired").pipe);
    while (&*first).write(&[0; 16]).is_ok() {}
    guard.lock().start_guardian = |_reader| Err(Errno::EAGAIN.into());
    assert!(matches!(
        guard.spawn(&job("true")),
        Err(StartError::Unguarded(error)) if error.kind() == io::ErrorKind::WouldBlock
    ));
    let kept = Arc::clone(&guard.lock().guardian.as_ref().expect("not dismissed").pipe);
    assert!(Arc::ptr_eq(&first, &kept));
}

#[test]
fn a_child_that_cannot_start_says_nothing_about_the_guardian() {
    let guard = GuardianHandle::in_thread();
    let first = Arc::clone(&guard.lock().guardian.as_ref().expect("hired").pipe);
    let missing = ChildSpec {
        program: "/bin/nothing-there".into(),
        ..job("true")
    };
    assert!(matches!(
        guard.spawn(&missing),
        Err(StartError::Child(error)) if error.kind() == io::ErrorKind::NotFound
    ));
    let kept = Arc::clone(&guard.lock().guardian.as_ref().expect("there").pipe);
    assert!(Arc::ptr_eq(&first, &kept));
}
