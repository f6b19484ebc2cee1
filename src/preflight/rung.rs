//! A rung of the ladder: an Apptainer and the workarounds that it is tried with. And the reason why one does
//! not hold.

use std::path::Path;

use crate::container::{Apptainer, ProcMount, UserNamespace};
use crate::fault::Cause;
use crate::task::cvmfs::CVMFS;
use crate::task::{ContainerSpec, CvmfsBind, TaskContext};

/// A change that makes containers possible on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Workaround {
    UserNamespace,
    NoProc,
    NoCvmfs,
}

impl Workaround {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::NoProc => "with `--no-mount proc`, so tasks have no /proc",
            Self::NoCvmfs => "without /cvmfs",
            Self::UserNamespace => "with `--userns`",
        }
    }

    /// The words in a list of what was tried.
    fn flag(self) -> &'static str {
        match self {
            Self::NoProc => "with `--no-mount proc`",
            Self::NoCvmfs | Self::UserNamespace => self.words(),
        }
    }

    /// The advice for getting what tasks miss with the workaround; `None` if they miss nothing.
    pub(super) fn fix(self) -> Option<&'static str> {
        match self {
            Self::UserNamespace => None,
            Self::NoProc => Some(Cause::MaskedProc.remedy()),
            Self::NoCvmfs => Some(
                "give the image a directory /cvmfs, or ask the site for `enable overlay` or `enable underlay` = yes \
                 in apptainer.conf",
            ),
        }
    }
}

/// An Apptainer, and the workarounds that it is tried with, each with the failure that asks for it.
#[derive(Debug, Clone)]
pub(super) struct Rung {
    pub(super) apptainer: Apptainer,
    pub(super) taken: Vec<(Workaround, String)>,
}

impl Rung {
    /// Without any workaround.
    pub(super) fn plain(apptainer: Apptainer) -> Self {
        Self {
            apptainer,
            taken: Vec::new(),
        }
    }

    pub(super) fn has(&self, workaround: Workaround) -> bool {
        self.taken.iter().any(|(taken, _)| *taken == workaround)
    }

    /// The same with one more workaround, since this one failed.
    pub(super) fn and(&self, workaround: Workaround, failure: &str) -> Self {
        let mut more = self.clone();
        more.taken.push((workaround, failure.to_owned()));
        more
    }

    /// Makes the containers of `plan`, and all others of the pilot, in this way.
    pub(super) fn apply(&self, context: &mut TaskContext, plan: &mut ContainerSpec) {
        context.apptainer = self.apptainer.clone();
        context.user_namespace = if self.has(Workaround::UserNamespace) {
            UserNamespace::Always
        } else {
            UserNamespace::AsInstalled
        };
        context.proc = if self.has(Workaround::NoProc) {
            ProcMount::None
        } else {
            ProcMount::Own
        };
        plan.cvmfs = if self.has(Workaround::NoCvmfs) {
            CvmfsBind::LeftOut
        } else {
            CvmfsBind::Wanted
        };
    }

    /// The workarounds, as words for a list of what was tried; empty without any.
    pub(super) fn flags(&self) -> String {
        let flags: Vec<&str> = self
            .taken
            .iter()
            .map(|(workaround, _)| workaround.flag())
            .collect();
        flags.join(" and ")
    }

    /// The workaround that answers a failure, unless it is taken already. The last resorts of a task that
    /// misses something come first: only they help then.
    pub(super) fn answer_to(&self, cause: Cause, said: &str) -> Option<Workaround> {
        let answer = if cause == Cause::MaskedProc {
            Workaround::NoProc
        } else if is_about_cvmfs(&self.apptainer, said) && !self.has(Workaround::NoCvmfs) {
            Workaround::NoCvmfs
        } else if cause.depends_on_apptainer() && cause != Cause::Hanging {
            Workaround::UserNamespace
        } else {
            return None;
        };
        (!self.has(answer)).then_some(answer)
    }
}

/// Whether `/cvmfs` is what this Apptainer could not bind. That is no machine's fault.
pub(super) fn is_about_cvmfs(apptainer: &Apptainer, said: &str) -> bool {
    // An Apptainer of CVMFS names its own files: it is in `bin` of one version, beside which others are.
    let of_itself = apptainer.program().ancestors().nth(3);
    match of_itself.filter(|place| place.starts_with(CVMFS) && *place != Path::new(CVMFS)) {
        Some(place) => said.replace(&*place.to_string_lossy(), "").contains(CVMFS),
        None => said.contains(CVMFS),
    }
}

/// A rung that does not hold, and why.
#[derive(Debug, Clone)]
pub(super) struct FailedRung {
    pub(super) rung: Rung,
    pub(super) cause: Cause,
    pub(super) said: String,
}
