//! The places where an Apptainer may be, in the order in which they are tried. Pure: nothing is looked at,
//! because a place may be on a file system that hangs.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::config::NamedApptainer;

/// OSG's Apptainer below the directory where CVMFS is mounted; it needs user namespaces.
const OF_OSG: &str = "oasis.opensciencegrid.org/mis/apptainer/current/bin/apptainer";
/// The Apptainer of HTCondor's tarball, below its root.
const OF_CONDOR: &str = "usr/libexec/apptainer";

/// Who says that an Apptainer is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApptainerPlace {
    /// `EWMS_PILOT_APPTAINER`
    Setting,
    Path,
    /// A variable or an attribute of the machine ad, by this name.
    Named(&'static str),
    Condor,
    Cvmfs,
}

impl fmt::Display for ApptainerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setting => "EWMS_PILOT_APPTAINER",
            Self::Path => "PATH",
            Self::Named(name) => name,
            Self::Condor => "HTCondor's own",
            Self::Cvmfs => "CVMFS",
        })
    }
}

/// A path where an Apptainer may be. It may be relative, if somebody named it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApptainerCandidate {
    pub program: PathBuf,
    pub place: ApptainerPlace,
}

/// What is known about the Apptainers of this machine.
#[derive(Debug, Clone, Default)]
pub struct ApptainerPlaces {
    /// The user's choice; nothing else is tried then.
    pub setting: Option<PathBuf>,
    pub path: OsString,
    pub named: Vec<NamedApptainer>,
    pub condor_root: Option<PathBuf>,
    /// The directories where CVMFS may be mounted.
    pub cvmfs: Vec<PathBuf>,
}

impl ApptainerPlaces {
    /// The places in their order, each path once.
    #[must_use]
    pub fn candidates(&self) -> Vec<ApptainerCandidate> {
        if let Some(setting) = &self.setting {
            return vec![ApptainerCandidate {
                program: setting.clone(),
                place: ApptainerPlace::Setting,
            }];
        }
        let mut candidates: Vec<ApptainerCandidate> = Vec::new();
        let mut add = |program: PathBuf, place| {
            if candidates.iter().all(|known| known.program != program) {
                candidates.push(ApptainerCandidate { program, place });
            }
        };
        for directory in std::env::split_paths(&self.path) {
            // A relative directory would mean another one for a child with another working directory.
            if directory.is_absolute() {
                add(directory.join("apptainer"), ApptainerPlace::Path);
            }
        }
        for NamedApptainer { by, program } in &self.named {
            add(program.clone(), ApptainerPlace::Named(by));
        }
        if let Some(root) = &self.condor_root {
            add(root.join(OF_CONDOR), ApptainerPlace::Condor);
        }
        for mounted in &self.cvmfs {
            add(mounted.join(OF_OSG), ApptainerPlace::Cvmfs);
        }
        candidates
    }

    /// The remedy where no Apptainer is found.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self.setting {
            Some(_) => "correct EWMS_PILOT_APPTAINER, or unset it so that Apptainer is looked for",
            None => {
                "install Apptainer, mount CVMFS, correct PATH, or name Apptainer's program in EWMS_PILOT_APPTAINER"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(places: &ApptainerPlaces) -> Vec<String> {
        let candidates = places.candidates();
        let lines = candidates
            .iter()
            .map(|candidate| format!("{} {}", candidate.place, candidate.program.display()));
        lines.collect()
    }

    #[test]
    fn places_are_tried_in_the_order_in_which_sites_mean_them() {
        let mut places = ApptainerPlaces {
            setting: None,
            path: "/usr/bin:.:bin:/site/bin:/usr/bin".into(),
            named: vec![
                NamedApptainer {
                    by: "GWMS_SINGULARITY_PATH",
                    program: "/usr/bin/apptainer".into(),
                },
                NamedApptainer {
                    by: "SINGULARITY_PATH",
                    program: "/site/singularity".into(),
                },
            ],
            condor_root: Some("/glidein/condor".into()),
            cvmfs: vec!["/glidein/cvmfs".into(), "/cvmfs".into()],
        };
        assert_eq!(
            shown(&places),
            [
                "PATH /usr/bin/apptainer",
                "PATH /site/bin/apptainer",
                "SINGULARITY_PATH /site/singularity",
                "HTCondor's own /glidein/condor/usr/libexec/apptainer",
                "CVMFS /glidein/cvmfs/oasis.opensciencegrid.org/mis/apptainer/current/bin/apptainer",
                "CVMFS /cvmfs/oasis.opensciencegrid.org/mis/apptainer/current/bin/apptainer",
            ]
        );
        places.setting = Some("/mine/apptainer".into());
        assert_eq!(shown(&places), ["EWMS_PILOT_APPTAINER /mine/apptainer"]);
    }
}
