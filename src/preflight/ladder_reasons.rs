//! Why a machine has no Apptainer that makes containers: the reasons against all rungs of the ladder, as one
//! text for logs and services.

use std::path::PathBuf;

use super::CheckProblem;
use crate::fault::{Cause, Diagnosis, FaultClass};

/// Why an Apptainer makes no containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LadderReason {
    /// `None` if the text names it.
    pub(super) program: Option<PathBuf>,
    /// The workarounds with which that was so; an empty text stands for none.
    pub(super) ways: Vec<String>,
    /// `None` if it is no Apptainer.
    pub(super) cause: Option<Cause>,
    pub(super) said: String,
}

impl LadderReason {
    /// The reason without the program.
    pub(super) fn short(&self) -> String {
        let said = match self.cause {
            Some(cause) => format!("{} ({cause})", self.said),
            None => self.said.clone(),
        };
        match &self.ways[..] {
            [] => said,
            [only] if only.is_empty() => said,
            [first, more @ ..] if first.is_empty() => {
                format!("{said}, also {}", more.join(" or "))
            }
            ways => format!("{}: {said}", ways.join(" or ")),
        }
    }

    fn whole(&self) -> String {
        match &self.program {
            Some(program) => format!("`{}`: {}", program.display(), self.short()),
            None => self.short(),
        }
    }
}

pub(super) fn joined(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join("; ")
}

/// The advice against all reasons, each once.
pub(super) fn remedies<'a>(reasons: impl Iterator<Item = &'a LadderReason>) -> String {
    let mut remedies: Vec<&str> = Vec::new();
    for remedy in reasons.filter_map(|reason| Some(reason.cause?.remedy())) {
        if !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    remedies.join("; ")
}

/// The problem of a machine where these are the reasons against every rung. Where all are the same, as with a
/// single Apptainer, the text doesn't say which one was tried: services count equal texts.
pub(super) fn problem_of(reasons: &[LadderReason]) -> CheckProblem {
    let causes: Vec<Cause> = reasons.iter().filter_map(|reason| reason.cause).collect();
    let [first, others @ ..] = reasons else {
        return CheckProblem::of(Cause::Unknown, "no Apptainer was tried");
    };
    let is_same = |other: &LadderReason| (other.cause, &other.said) == (first.cause, &first.said);
    if let Some(cause) = first.cause
        && others.iter().all(is_same)
    {
        return CheckProblem::of(cause, &first.said);
    }
    let is_one = others.iter().all(|other| other.program == first.program);
    let seen = if is_one {
        joined(reasons.iter().map(LadderReason::short))
    } else {
        let all = joined(reasons.iter().map(LadderReason::whole));
        format!("no Apptainer here makes containers: {all}")
    };
    // An image that no Apptainer takes is at fault itself.
    let class = match causes.iter().map(|cause| cause.class()).next() {
        Some(class) if causes.iter().all(|cause| cause.class() == class) => class,
        _ => FaultClass::Ep,
    };
    CheckProblem {
        class,
        diagnosis: Diagnosis::new(seen, remedies(reasons.iter())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(program: &str, ways: &[&str], cause: Cause, said: &str) -> LadderReason {
        LadderReason {
            program: Some(program.into()),
            ways: ways.iter().map(ToString::to_string).collect(),
            cause: Some(cause),
            said: said.to_owned(),
        }
    }

    #[test]
    fn one_reason_reads_the_same_wherever_it_was_met() {
        let one = [reason(
            "/a",
            &["", "with `--userns`"],
            Cause::Namespaces,
            "none",
        )];
        let two = [
            reason("/a", &[""], Cause::Namespaces, "none"),
            reason("/b", &["", "with `--userns`"], Cause::Namespaces, "none"),
        ];
        let expected = CheckProblem::of(Cause::Namespaces, "none");
        assert_eq!(problem_of(&one), expected);
        assert_eq!(problem_of(&two), expected);
    }

    #[test]
    fn different_reasons_are_all_told_with_their_remedies() {
        let told = problem_of(&[
            LadderReason {
                program: None,
                ways: Vec::new(),
                cause: None,
                said: "`/s` says `singularity-ce version 4.1.0`, so it is no Apptainer".to_owned(),
            },
            reason("/a", &[""], Cause::Unknown, "no luck"),
            reason("/a", &["with `--userns`"], Cause::Namespaces, "none"),
            reason("/b", &["", "with `--userns`"], Cause::Namespaces, "none"),
        ]);
        assert_eq!(told.class, FaultClass::Ep);
        assert_eq!(
            told.diagnosis.seen,
            "no Apptainer here makes containers: \
             `/s` says `singularity-ce version 4.1.0`, so it is no Apptainer; \
             `/a`: no luck (unknown); `/a`: with `--userns`: none (namespaces); \
             `/b`: none (namespaces), also with `--userns`"
        );
        let (unknown, namespaces) = (Cause::Unknown.remedy(), Cause::Namespaces.remedy());
        assert_eq!(told.diagnosis.fix, Some(format!("{unknown}; {namespaces}")));
    }

    #[test]
    fn an_image_that_no_apptainer_takes_is_at_fault_itself() {
        let told = problem_of(&[
            reason("/a", &[""], Cause::ImageIncomplete, "no /dev"),
            reason("/b", &[""], Cause::ImageIncomplete, "no /proc"),
        ]);
        assert_eq!(told.class, FaultClass::Image);
        let mixed = problem_of(&[
            reason("/a", &[""], Cause::ImageIncomplete, "no /dev"),
            reason("/b", &[""], Cause::Namespaces, "none"),
        ]);
        assert_eq!(mixed.class, FaultClass::Ep);
    }
}
