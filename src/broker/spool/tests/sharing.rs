//! Several pilots on one queue, some of them dead.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::time::timeout;

use super::super::claim::{self, ClaimTable};
use super::super::lease::{Lease, LeaseScope};
use super::*;
use crate::broker::{SettleError, Verdict};
use crate::ids::Generation;

#[tokio::test]
async fn a_dead_pilots_claims_are_back_at_once_on_the_same_machine() {
    let spool = Spool::new();
    spool.put("x", "x");
    let paths = spool.paths();
    let dead = Arc::new(ClaimTable::open(paths.clone(), Generation(1)).unwrap());
    let claim = dead.claim("x".as_ref(), claim::FileState::Found).unwrap();
    assert!(
        matches!(claim, claim::ClaimOutcome::Claimed(_)),
        "{claim:?}"
    );
    let mut source = spool.source(1).await;
    nothing(&mut source).await;
    source.close().await;
    // Frees the lock, as for a process that is killed.
    drop((claim, dead));
    let mut source = spool.source(1).await;
    let delivery = next(&mut source).await;
    assert_eq!(
        (text(&delivery), delivery.earlier_deliveries),
        ("x", Some(0))
    );
    delivery.receipt.settle(Verdict::Done).await.unwrap();
}

#[test]
fn a_pilot_of_another_machine_is_dead_only_when_its_lease_is_old() {
    let spool = Spool::new();
    let paths = spool.paths();
    let me = Lease::create(&paths, Generation(1)).unwrap();
    let other = Lease::create(&paths, Generation(1)).unwrap();
    fs::write(
        other.directory.join(".lease"),
        "boot=another\ndevice=1\nlock=flock\n",
    )
    .unwrap();
    fs::write(other.directory.join("x"), "x").unwrap();
    assert_eq!(me.take_back(&paths, LeaseScope::Everyone).unwrap(), 0);
    bury(&other);
    assert_eq!(me.take_back(&paths, LeaseScope::ThisMachine).unwrap(), 0);
    assert_eq!(me.take_back(&paths, LeaseScope::Everyone).unwrap(), 1);
    assert_eq!(spool.names(""), set(["x"]));
    assert_eq!(
        other.refresh().unwrap_err().error.kind(),
        io::ErrorKind::NotFound
    );
}

#[test]
fn claims_that_a_dead_pilot_had_taken_from_another_dead_one_come_back_too() {
    let spool = Spool::new();
    let paths = spool.paths();
    let first = Lease::create(&paths, Generation(1)).unwrap();
    let second = Lease::create(&paths, Generation(1)).unwrap();
    fs::write(first.directory.join("a"), "a").unwrap();
    fs::write(second.directory.join("b"), "b").unwrap();
    // As if it died between taking the directory and putting the events back.
    fs::rename(&first.directory, second.directory.join("taken-x")).unwrap();
    drop((first, second));
    let me = Lease::create(&paths, Generation(1)).unwrap();
    assert_eq!(me.take_back(&paths, LeaseScope::ThisMachine).unwrap(), 2);
    assert_eq!(spool.names(""), set(["a", "b"]));
    assert_eq!(fs::read_dir(&paths.claimed).unwrap().count(), 1);
}

#[test]
fn of_many_who_take_back_at_once_each_event_is_taken_once() {
    let spool = Spool::new();
    let paths = spool.paths();
    for round in 0..10 {
        for number in 0..5 {
            let dead = Lease::create(&paths, Generation(1)).unwrap();
            fs::write(dead.directory.join(format!("{round}-{number}")), "x").unwrap();
            // Some are dead by their lock, some by their lease.
            if number % 2 == 0 {
                bury(&dead);
            }
        }
        let taken: usize = thread::scope(|scope| {
            let takers: Vec<_> = (0..6)
                .map(|_| {
                    scope.spawn(|| {
                        let me = Lease::create(&paths, Generation(1)).unwrap();
                        let taken = me.take_back(&paths, LeaseScope::Everyone).unwrap();
                        me.retire(&paths).unwrap();
                        taken
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!(taken, 5, "round {round}");
    }
    assert_eq!(spool.names("").len(), 50);
    assert_eq!(fs::read_dir(&paths.claimed).unwrap().count(), 0);
}

#[tokio::test]
async fn a_pilot_that_was_taken_for_dead_learns_it_and_goes_on() {
    let spool = Spool::new();
    spool.put("a", "a");
    let mut source = spool.source(2).await;
    let held = next(&mut source).await;
    assert_eq!(held.receipt.generation(), Some(Generation(1)));
    bury(&source.desk.own_lease);
    let paths = spool.paths();
    let other = Lease::create(&paths, Generation(1)).unwrap();
    assert_eq!(other.take_back(&paths, LeaseScope::Everyone).unwrap(), 1);
    let again = next(&mut source).await;
    assert_eq!(
        (text(&again), again.receipt.generation()),
        ("a", Some(Generation(2)))
    );
    let late = held.receipt.settle(Verdict::Done).await;
    assert_eq!(late, Err(SettleError::SessionLost));
    again.receipt.settle(Verdict::Done).await.unwrap();
    assert_eq!(spool.names("done"), set(["a"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_pilots_on_one_queue_work_through_each_event_once() {
    let spool = Spool::new();
    let all: BTreeSet<String> = (0..400).map(|number| format!("{number:03}.json")).collect();
    for name in &all {
        spool.put(name, name);
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut pilots = Vec::new();
    for _ in 0..4 {
        let (mut source, seen) = (spool.source(3).await, Arc::clone(&seen));
        pilots.push(tokio::spawn(async move {
            while let Ok(delivery) = timeout(Duration::from_secs(1), source.recv()).await {
                let delivery = delivery.unwrap();
                seen.lock().unwrap().push(text(&delivery).to_owned());
                delivery.receipt.settle(Verdict::Done).await.unwrap();
            }
            source.close().await;
        }));
    }
    for pilot in pilots {
        pilot.await.unwrap();
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 400);
    assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), all);
    assert_eq!(spool.names("done"), all);
}
