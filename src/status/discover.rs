//! Finds status files, and tells from `/proc` whether their pilots are alive.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::file::{self, ReadError};
use super::{ProcessId, Snapshot};
use crate::process;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Liveness {
    Running,
    /// On another machine, or invisible from here.
    Elsewhere,
    /// Killed: a pilot that ends in order removes its file.
    Dead,
}

/// A pilot's file and its content.
#[derive(Debug)]
pub(super) struct FoundPilot {
    pub(super) path: PathBuf,
    pub(super) snapshot: Snapshot,
    pub(super) state: Liveness,
}

#[derive(Debug)]
pub(super) struct Discovery {
    pub(super) pilots: Vec<FoundPilot>,
    pub(super) problems: Vec<StatusFileProblem>,
}

/// A place or file that could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatusFileProblem {
    #[error("can't look into `{}`: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(#[from] ReadError),
}

/// The message when nothing was found.
pub(super) fn nothing(places: &[PathBuf]) -> String {
    let places: Vec<String> = places
        .iter()
        .map(|place| format!("`{}`", place.display()))
        .collect();
    format!(
        "no pilot's status file in {}; name the directory that holds the pilot's `ewms-pilot-data`: \
         ewms-pilot status DIRECTORY",
        places.join(", ")
    )
}

/// The pilots whose files are in `places`, each once.
pub(super) fn pilots(places: &[PathBuf]) -> Discovery {
    let mut found = Discovery {
        pilots: Vec::new(),
        problems: Vec::new(),
    };
    let mut seen = HashSet::new();
    for place in places {
        let files = if place.is_file() {
            Ok(vec![place.clone()])
        } else {
            file::list(place)
        };
        match files {
            Ok(files) => {
                for path in files {
                    look(path, &mut seen, &mut found);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => found.problems.push(StatusFileProblem::Directory {
                path: place.clone(),
                source,
            }),
        }
    }
    found.pilots.sort_by(|a, b| {
        let key = |pilot: &FoundPilot| (pilot.state, pilot.path.clone());
        key(a).cmp(&key(b))
    });
    found
}

fn look(path: PathBuf, seen: &mut HashSet<String>, found: &mut Discovery) {
    let snapshot = match file::read(&path) {
        Ok(snapshot) => snapshot,
        // The pilot ended just now.
        Err(error) if error.is_absence() => return,
        Err(error) => {
            found.problems.push(error.into());
            return;
        }
    };
    let state = liveness(&snapshot.facts.process);
    if state == Liveness::Dead && !path.exists() {
        return;
    }
    if seen.insert(snapshot.facts.pilot_id.clone()) {
        found.pilots.push(FoundPilot {
            path,
            snapshot,
            state,
        });
    }
}

/// Whether the process of a pilot is alive.
pub(super) fn liveness(process: &ProcessId) -> Liveness {
    judge(process, &ProcessId::own(), process::start_ticks)
}

fn judge(
    process: &ProcessId,
    here: &ProcessId,
    start_ticks: impl FnOnce(i32) -> Option<u64>,
) -> Liveness {
    if process.boot_id != here.boot_id {
        // The machine was rebooted, or it is another one.
        return if process.host == here.host {
            Liveness::Dead
        } else {
            Liveness::Elsewhere
        };
    }
    if process.pid_namespace != here.pid_namespace {
        return Liveness::Elsewhere;
    }
    if start_ticks(process.pid) == Some(process.start_ticks) {
        Liveness::Running
    } else {
        Liveness::Dead
    }
}

/// The directory for the data of the pilot with the status file `path`.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_on_this_very_machine_is_the_pilot() {
        let here = ProcessId::own();
        let of = |change: fn(&mut ProcessId)| {
            let mut process = here.clone();
            change(&mut process);
            judge(&process, &here, process::start_ticks)
        };
        assert_eq!(of(|_| {}), Liveness::Running);
        assert_eq!(
            of(|it| it.start_ticks += 1),
            Liveness::Dead,
            "another's pid"
        );
        assert_eq!(of(|it| it.pid = i32::MAX), Liveness::Dead, "nobody's pid");
        assert_eq!(of(|it| it.boot_id.clear()), Liveness::Dead, "a new boot");
        let elsewhere = of(|it| {
            it.boot_id.clear();
            it.host.push('x');
        });
        assert_eq!(elsewhere, Liveness::Elsewhere, "another machine");
        let hidden = of(|it| it.pid_namespace.push('x'));
        assert_eq!(hidden, Liveness::Elsewhere, "another namespace");
    }

    #[test]
    fn a_pilot_is_found_once_by_directory_or_file_and_what_is_unreadable_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().to_owned();
        let mut snapshot = Snapshot::default();
        "p".clone_into(&mut snapshot.facts.pilot_id);
        snapshot.facts.process = ProcessId::own();
        let path = file::path(&place, "p");
        file::write(&path, snapshot).expect("written");
        std::fs::write(file::path(&place, "broken"), "{").expect("written");
        let found = pilots(&[place.join("none"), place.clone(), path, place]);
        assert_eq!(found.pilots.len(), 1);
        assert_eq!(found.pilots[0].state, Liveness::Running);
        assert_eq!(found.problems.len(), 2, "{:?}", found.problems);
    }
}
