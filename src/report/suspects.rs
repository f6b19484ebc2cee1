//! Finds the sites and hosts that are worse than the rest by more than chance.
//!
//! # Method
//!
//! A place is tested twice: its share of faults that are the machine's, and its share of failures of any
//! kind that isn't the event's own (undecodable events fail everywhere). Each is compared with all other
//! places together, by Fisher's exact test, one-sided. Holm's correction counts two comparisons for every
//! place that was seen, so that the chance of naming any good place is at most [`ALPHA`] in each list. A
//! place that is found is taken out of the rest, and the others are tested again, until none is found.
//! So a very bad place doesn't hide a bad one.
//!
//! A place is named only if it is also worth avoiding: [`FEWEST`] failures or more, and at least [`FACTOR`]
//! times the rate of the rest. With a million events even a hundredth of a percent is significant.
//!
//! Sites come first. A site of several hosts counts as bad only if it is bad even without its worst host;
//! otherwise that host is to blame. Then hosts at the other sites are tested.
//!
//! # Limits
//!
//! The test assumes that tasks are independent of one another. They aren't: one poisonous event that is
//! tried again and again at the same place, or a pilot that fails a whole queue in a minute, makes many
//! failures out of one cause, so look at the reasons before excluding a site for good. With few events only
//! gross differences show. If most sites are bad, none stands out. A site without a name can't be named.

use serde::Serialize;

use super::significance::{Sample, fisher, holm};

/// The chance, for each list, that it names any place that is as good as the rest.
const ALPHA: f64 = 0.01;
/// The least ratio to the rate of the rest.
const FACTOR: f64 = 2.0;
/// The fewest failures: one alone may be bad luck.
const FEWEST: u64 = 3;

/// How often something was tried at a place, and how often it failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FaultSample {
    /// Faults of the machine among all tries.
    pub(super) machine: Sample,
    /// Failures of any kind but the event's own.
    pub(super) any: Sample,
}

impl FaultSample {
    fn with(self, other: Self) -> Self {
        Self {
            machine: self.machine.with(other.machine),
            any: self.any.with(other.any),
        }
    }

    fn without(self, part: Self) -> Self {
        Self {
            machine: self.machine.without(part.machine),
            any: self.any.without(part.any),
        }
    }
}

/// A place that is significantly worse than the rest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Suspect {
    /// The index of the place among those given.
    #[serde(skip)]
    pub(super) index: usize,
    /// The kind of failure that is too frequent.
    pub because: SuspectReason,
    /// How many of the tries failed for that reason.
    pub failed: u64,
    pub tried: u64,
    /// Their share elsewhere.
    pub rate_elsewhere: f64,
    /// The probability of so many by chance, corrected for the number of places.
    pub p_value: f64,
}

/// The kind of failure that is too frequent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SuspectReason {
    EpFaults,
    Failures,
}

/// A comparison of one place with the rest.
#[derive(Debug, Clone, Copy)]
struct SuspectTest {
    because: SuspectReason,
    here: Sample,
    rest: Sample,
}

impl SuspectTest {
    fn both(here: FaultSample, rest: FaultSample) -> [Self; 2] {
        [
            Self {
                because: SuspectReason::EpFaults,
                here: here.machine,
                rest: rest.machine,
            },
            Self {
                because: SuspectReason::Failures,
                here: here.any,
                rest: rest.any,
            },
        ]
    }

    fn p_value(self) -> f64 {
        let worth_avoiding =
            self.here.failed >= FEWEST && self.here.rate() >= FACTOR * self.rest.rate();
        if worth_avoiding {
            fisher(self.here, self.rest)
        } else {
            1.0
        }
    }
}

/// The places that are worse than the rest, worst first. Each is given by its parts: a site by its hosts.
pub(super) fn worst(places: &[Vec<FaultSample>]) -> Vec<Suspect> {
    let sum = |parts: &[FaultSample]| {
        parts
            .iter()
            .fold(FaultSample::default(), |sum, part| sum.with(*part))
    };
    let mut tried: Vec<FaultSample> = places.iter().map(|parts| sum(parts)).collect();
    let mut all = sum(&tried);
    let mut found: Vec<Suspect> = Vec::new();
    let mut left: Vec<usize> = (0..places.len()).collect();
    loop {
        let tests: Vec<(usize, SuspectTest)> = left
            .iter()
            .flat_map(|&index| {
                SuspectTest::both(tried[index], all.without(tried[index])).map(|test| (index, test))
            })
            .collect();
        let p_values: Vec<f64> = tests.iter().map(|(_, test)| test.p_value()).collect();
        let mut named: Vec<(usize, SuspectTest, f64)> = tests
            .into_iter()
            .zip(holm(&p_values, 2 * places.len()))
            .map(|((index, test), p_value)| (index, test, p_value))
            .filter(|(_, _, p_value)| *p_value <= ALPHA)
            .collect();
        if named.is_empty() {
            found.sort_by(|left, right| left.p_value.total_cmp(&right.p_value));
            return found;
        }
        // The stronger of a place's two reasons counts; the machine's fault if they are equal.
        named.sort_by(|left, right| left.2.total_cmp(&right.2));
        for (index, test, p_value) in named {
            if !left.contains(&index) {
                continue;
            }
            left.retain(|&other| other != index);
            if let Some(culprit) = culprit(&places[index], test) {
                // Without that part the place is like others, and stays among the rest.
                tried[index] = tried[index].without(culprit);
                all = all.without(culprit);
                continue;
            }
            all = all.without(tried[index]);
            found.push(Suspect {
                index,
                because: test.because,
                failed: test.here.failed,
                tried: test.here.trials,
                rate_elsewhere: test.rest.rate(),
                p_value,
            });
        }
    }
}

/// The part without which the place would not stand out.
fn culprit(parts: &[FaultSample], test: SuspectTest) -> Option<FaultSample> {
    let sample = |part: &FaultSample| match test.because {
        SuspectReason::EpFaults => part.machine,
        SuspectReason::Failures => part.any,
    };
    let worst = parts.iter().max_by_key(|part| sample(part).failed)?;
    let others = SuspectTest {
        here: test.here.without(sample(worst)),
        ..test
    };
    (parts.len() > 1 && others.p_value() > ALPHA).then_some(*worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample whose failures are all the machine's fault.
    fn machine(failed: u64, trials: u64) -> FaultSample {
        let sample = Sample { failed, trials };
        FaultSample {
            machine: sample,
            any: sample,
        }
    }

    /// A sample without a failure that is the machine's fault.
    fn task(failed: u64, trials: u64) -> FaultSample {
        FaultSample {
            machine: Sample { failed: 0, trials },
            any: Sample { failed, trials },
        }
    }

    fn alone(places: &[FaultSample]) -> Vec<Vec<FaultSample>> {
        places.iter().map(|place| vec![*place]).collect()
    }

    fn names(places: &[Vec<FaultSample>]) -> Vec<(usize, SuspectReason)> {
        worst(places)
            .iter()
            .map(|suspect| (suspect.index, suspect.because))
            .collect()
    }

    #[test]
    fn the_one_bad_place_among_good_ones_is_named_with_its_reason() {
        let mut places = vec![machine(1, 100); 20];
        places[7] = machine(40, 100);
        assert_eq!(names(&alone(&places)), [(7, SuspectReason::EpFaults)]);
        let mut places = vec![task(2, 100); 20];
        places[3] = task(60, 100);
        let found = worst(&alone(&places));
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].index, found[0].because),
            (3, SuspectReason::Failures)
        );
        assert_eq!((found[0].failed, found[0].tried), (60, 100));
        assert!((found[0].rate_elsewhere - 0.02).abs() < 1e-12 && found[0].p_value < 1e-20);
    }

    #[test]
    fn places_that_are_alike_are_not_named_however_bad_all_are() {
        assert_eq!(names(&alone(&[machine(50, 100); 10])), []);
        let random = [3, 0, 1, 2, 5, 1, 0, 2, 4, 1, 2, 0].map(|failed| machine(failed, 100));
        assert_eq!(names(&alone(&random)), []);
        assert_eq!(names(&[]), []);
        assert_eq!(names(&[vec![], vec![machine(1, 1)]]), []);
    }

    #[test]
    fn one_or_two_failures_are_bad_luck_even_against_a_million_successes() {
        let rest = machine(0, 1_000_000);
        assert_eq!(names(&alone(&[machine(2, 2), rest])), []);
        assert_eq!(
            names(&alone(&[machine(3, 3), rest])),
            [(0, SuspectReason::EpFaults)]
        );
    }

    #[test]
    fn a_significant_but_small_difference_is_not_worth_a_site() {
        let places = [task(15_000, 1_000_000), task(10_000, 1_000_000)];
        assert_eq!(names(&alone(&places)), []);
    }

    #[test]
    fn the_worst_place_does_not_hide_the_bad_ones() {
        let mut places = vec![machine(2, 1000); 10];
        places[0] = machine(20_000, 20_000);
        places[1] = machine(200, 1000);
        assert_eq!(
            names(&alone(&places)),
            [(0, SuspectReason::EpFaults), (1, SuspectReason::EpFaults)]
        );
    }

    #[test]
    fn one_bad_host_does_not_condemn_its_site() {
        let mut sites = vec![vec![machine(0, 100); 5]; 8];
        sites[2][4] = machine(90, 100);
        assert_eq!(names(&sites), []);
        let hosts: Vec<FaultSample> = sites.iter().flatten().copied().collect();
        assert_eq!(names(&alone(&hosts)), [(14, SuspectReason::EpFaults)]);
        sites[2][1] = machine(80, 100);
        assert_eq!(names(&sites), [(2, SuspectReason::EpFaults)]);
    }
}
