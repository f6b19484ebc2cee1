//! How many cores HTCondor allotted to this job. Reads the machine's ad, which HTCondor puts beside
//! the job; apart because it is the one setting that is found and not told.

use std::ffi::OsStr;
use std::num::NonZeroU32;

use super::classad::ClassAd;
use super::load::Environment;

/// The cores of the slot: from the machine ad (`Cpus = 4`), else what HTCondor told `OpenMP`, else
/// what the system lets this process use, which may be more than the slot has.
pub(super) fn allotted(environment: &Environment) -> NonZeroU32 {
    let openmp = environment
        .get(OsStr::new("OMP_NUM_THREADS"))
        .and_then(|value| value.to_str());
    ClassAd::of_machine(environment, &mut Vec::new())
        .integer("Cpus")
        .and_then(|cpus| u32::try_from(cpus).ok())
        .and_then(NonZeroU32::new)
        .or_else(|| openmp.and_then(|value| value.split(',').next()?.trim().parse().ok()))
        .or_else(|| {
            u32::try_from(std::thread::available_parallelism().ok()?.get())
                .ok()?
                .try_into()
                .ok()
        })
        .unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_ad_counts_before_openmp() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(
            file.path(),
            "TotalCpus = 64\nDetectedCpus = 64\ncpus = 4\nName = \"slot1\"\n",
        )
        .expect("written");
        let mut environment = Environment::new();
        environment.insert("OMP_NUM_THREADS".into(), "3,2".into());
        assert_eq!(allotted(&environment).get(), 3);
        environment.insert("_CONDOR_MACHINE_AD".into(), file.path().into());
        assert_eq!(allotted(&environment).get(), 4);
    }

    #[test]
    fn nonsense_is_passed_over() {
        let mut environment = Environment::new();
        let alone = allotted(&environment);
        environment.insert("OMP_NUM_THREADS".into(), "0".into());
        environment.insert("_CONDOR_MACHINE_AD".into(), "/nowhere/at/all".into());
        assert_eq!(allotted(&environment), alone);
    }
}
