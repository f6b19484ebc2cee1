//! Selects the next file. Remembers a bounded number of names from the last look into the directory, so that
//! a queue of many thousands is neither searched for every event nor kept in memory. Blocks.
//!
//! The order: by name for the files that a look found, then the announced ones as they came.

use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType};
use std::sync::Arc;

use super::claim::{Claim, ClaimOutcome, ClaimTable, FileState};
use super::paths::{SpoolError, is_event_name};
use crate::regular_file::kind_of;

/// Names kept, about 1.5 MB. A queue of 100,000 events is searched seven times.
const NAMES_MAX: usize = 16 * 1024;

/// The most things that are remembered because they were warned of.
const WARNED_MAX: usize = 1024;

/// The outcome of looking for an event.
#[derive(Debug)]
pub(super) enum NextName {
    Claimed(Box<Claim>),
    Empty,
    /// There are files that can't be taken just now.
    NotYet,
}

/// Names of files that may be waiting.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    found: VecDeque<OsString>,
    announced: VecDeque<OsString>,
    /// The directory has, or may have, more files than are remembered.
    more: bool,
    /// Things that are no files, and were warned of.
    warned: HashSet<OsString>,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self {
            more: true,
            ..Self::default()
        }
    }

    /// Adds a file that the kernel reported as complete.
    pub(super) fn announce(&mut self, name: OsString) {
        if !is_event_name(&name) {
            return;
        }
        if self.announced.len() < NAMES_MAX {
            self.announced.push_back(name);
        } else {
            self.more = true;
        }
    }

    /// Makes the next claim search the directory: it may hold files that were not announced.
    pub(super) fn look_again(&mut self) {
        self.more = true;
    }

    /// Whether there is a name to try without searching the directory.
    pub(super) fn has_names(&self) -> bool {
        !self.found.is_empty() || !self.announced.is_empty()
    }

    pub(super) fn claim_next(&mut self, desk: &Arc<ClaimTable>) -> Result<NextName, SpoolError> {
        let mut not_yet = false;
        loop {
            let (name, sighting) = if let Some(name) = self.found.pop_front() {
                (name, FileState::Found)
            } else if let Some(name) = self.announced.pop_front() {
                (name, FileState::Announced)
            } else if self.more && !not_yet {
                self.look(desk)?;
                continue;
            } else {
                self.more = not_yet;
                return Ok(if not_yet {
                    NextName::NotYet
                } else {
                    NextName::Empty
                });
            };
            match desk.claim(&name, sighting)? {
                ClaimOutcome::Claimed(claim) => return Ok(NextName::Claimed(claim)),
                ClaimOutcome::Gone => {}
                ClaimOutcome::NoFile(kind) => self.warn(desk, &name, kind),
                ClaimOutcome::NotYet => not_yet = true,
            }
        }
    }

    /// Warns once of a thing that is no file.
    fn warn(&mut self, desk: &ClaimTable, name: &OsStr, kind: FileType) {
        if self.warned.len() >= WARNED_MAX || !self.warned.insert(name.to_owned()) {
            return;
        }
        tracing::warn!(
            path = %desk.paths.waiting.join(name).display(),
            "this is {}, no file, and is not taken for an event; put files here", kind_of(kind)
        );
    }

    /// Remembers the first names in the directory.
    fn look(&mut self, desk: &ClaimTable) -> Result<(), SpoolError> {
        let waiting = &desk.paths.waiting;
        let mut first = BinaryHeap::new();
        self.more = false;
        for entry in fs::read_dir(waiting).map_err(SpoolError::on("read directory", waiting))? {
            let entry = entry.map_err(SpoolError::on("read directory", waiting))?;
            let name = entry.file_name();
            if !is_event_name(&name) || desk.paths.is_own(&name) {
                continue;
            }
            // A file whose type can't be read is gone.
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if !kind.is_file() {
                self.warn(desk, &name, kind);
                continue;
            }
            first.push(name);
            if first.len() > NAMES_MAX {
                first.pop();
                self.more = true;
            }
        }
        self.found = first.into_sorted_vec().into();
        Ok(())
    }
}
