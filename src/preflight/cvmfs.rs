//! The check `cvmfs`: what containers see of `/cvmfs`. Never fails: a machine without it, or with one that
//! hangs, runs tasks all the same.

use super::CheckNote;
use crate::task::cvmfs::{Automounts, CVMFS, Cvmfs, CvmfsSearch};

/// What was found, as containers get it and as people read it.
#[must_use]
pub fn cvmfs(search: CvmfsSearch) -> (Cvmfs, CheckNote) {
    match search {
        CvmfsSearch::Nothing => none(format!("there is no `{CVMFS}` here")),
        CvmfsSearch::LeftOut(reason) => (
            Cvmfs::default(),
            CheckNote::WorkedAround(
                format!("{reason}; no container sees `{CVMFS}`"),
                "avoid this machine if tasks need it, or have it mounted again".to_owned(),
            ),
        ),
        CvmfsSearch::Bound {
            cvmfs,
            place,
            automounts,
        } => {
            let seen = format!(
                "containers see `{}` as `{CVMFS}`, read-only",
                place.display()
            );
            let note = match automounts {
                Automounts::Arrive => CheckNote::Fine(seen),
                Automounts::CutOff => CheckNote::WorkedAround(
                    format!("{seen}, but of repositories only those that are mounted before"),
                    "if the pilot is in a container of its own, bind it there with propagation (`rslave`)"
                        .to_owned(),
                ),
            };
            (cvmfs, note)
        }
    }
}

/// Containers see none, as is right for this reason.
#[must_use]
pub fn none(reason: String) -> (Cvmfs, CheckNote) {
    (Cvmfs::default(), CheckNote::Fine(reason))
}
