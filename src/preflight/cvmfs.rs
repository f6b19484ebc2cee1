//! The check `cvmfs`: whether containers see `/cvmfs`. Never fails, because a machine without it, or with one
//! that hangs, still runs tasks.

use super::CheckNote;
use crate::task::cvmfs::{Automounts, CVMFS, Cvmfs, CvmfsSearch};

/// The result of the search, for containers and for the report.
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

/// No `/cvmfs` for containers, for this good reason.
#[must_use]
pub fn none(reason: String) -> (Cvmfs, CheckNote) {
    (Cvmfs::default(), CheckNote::Fine(reason))
}
