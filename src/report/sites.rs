//! Sites and hosts: how many tries were made there, how many failed, and whether that is more than elsewhere.

use std::collections::BTreeMap;

use serde::Serialize;

use super::aggregate::{Aggregate, HostSums, SiteName};
use super::failure_reasons::ReasonClass;
use super::significance::Sample;
use super::submit_settings::{self, ExcludedPlace};
use super::suspects::{self, FaultSample, Suspect};
use super::totals::OutcomeCounts;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Site {
    /// The site's name; absent if it isn't known.
    pub site: Option<String>,
    /// The part of the site; absent if it isn't known, and then the whole site is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The machine's name; absent for a site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub pilots: u64,
    /// Pilots that failed before any task.
    pub failed_before_any_task: u64,
    pub done: u64,
    pub failed: u64,
    /// Faults of the machine: tasks that were given back for it.
    pub ep_faults: u64,
    /// Tasks with a fault, by the class of the fault.
    pub faults_by_class: BTreeMap<&'static str, u64>,
    /// The share of failures among all tries. Pilots without a task are included, the events' own faults not.
    pub failure_rate: f64,
    /// The interval that holds it with a probability of 95 % (Wilson's interval).
    pub failure_rate_95_percent: (f64, f64),
    /// Set if it is significantly worse than the rest.
    pub bad: Option<Suspect>,
}

/// All sites and hosts, the bad ones marked, and what excludes the bad ones.
#[derive(Debug)]
pub(super) struct Judgement {
    pub(super) sites: Vec<Site>,
    pub(super) hosts: Vec<Site>,
    /// An expression for `requirements`.
    pub(super) requirements: Option<String>,
    /// Macros of the bundled template.
    pub(super) macros: Vec<String>,
}

pub(super) fn judge(aggregate: &Aggregate) -> Judgement {
    let mut at_site: Vec<Vec<usize>> = vec![Vec::new(); aggregate.sites.len()];
    for (index, host) in aggregate.hosts.iter().enumerate() {
        at_site[host.site as usize].push(index);
    }
    let tried = |index: &usize| aggregate.hosts[*index].counts.tried();
    let hosts_tried: Vec<Vec<FaultSample>> = at_site
        .iter()
        .map(|hosts| hosts.iter().map(tried).collect())
        .collect();
    let mut bad_sites = suspects::worst(&hosts_tried);
    // A site without a name can't be excluded; its hosts can.
    bad_sites.retain(|suspect| aggregate.sites[suspect.index].precise().is_some());

    let is_bad = |site: u32| {
        bad_sites
            .iter()
            .any(|suspect| suspect.index == site as usize)
    };
    let others: Vec<usize> = (0..aggregate.hosts.len())
        .filter(|&index| !is_bad(aggregate.hosts[index].site))
        .collect();
    let alone: Vec<Vec<FaultSample>> = others.iter().map(|index| vec![tried(index)]).collect();
    let mut bad_hosts = suspects::worst(&alone);
    for suspect in &mut bad_hosts {
        suspect.index = others[suspect.index];
    }

    let excluded_sites = bad_sites.iter().filter_map(|suspect| {
        let name = &aggregate.sites[suspect.index];
        let resource = name.resource.as_deref().map(ExcludedPlace::Resource);
        resource.or(name.site.as_deref().map(ExcludedPlace::Site))
    });
    let excluded_machines = bad_hosts
        .iter()
        .map(|suspect| ExcludedPlace::Machine(&aggregate.hosts[suspect.index].name));
    let excluded: Vec<ExcludedPlace<'_>> = excluded_sites.chain(excluded_machines).collect();
    let sites = at_site.iter().enumerate().map(|(index, hosts)| {
        let mut counts = OutcomeCounts::default();
        for &host in hosts {
            counts.add(&aggregate.hosts[host].counts);
        }
        place(
            &aggregate.sites[index],
            None,
            &counts,
            find(&bad_sites, index),
        )
    });
    let hosts =
        aggregate
            .hosts
            .iter()
            .enumerate()
            .map(|(index, HostSums { name, site, counts })| {
                place(
                    &aggregate.sites[*site as usize],
                    Some(name),
                    counts,
                    find(&bad_hosts, index),
                )
            });
    Judgement {
        sites: sorted(sites.collect()),
        hosts: sorted(hosts.collect()),
        requirements: submit_settings::requirements(excluded.iter().copied()),
        macros: submit_settings::macros(&excluded),
    }
}

fn find(suspects: &[Suspect], index: usize) -> Option<Suspect> {
    suspects
        .iter()
        .find(|suspect| suspect.index == index)
        .cloned()
}

fn place(
    name: &SiteName,
    host: Option<&str>,
    counts: &OutcomeCounts,
    bad: Option<Suspect>,
) -> Site {
    let any = counts.tried().any;
    Site {
        site: name.site.as_deref().map(str::to_owned),
        resource: name.resource.as_deref().map(str::to_owned),
        host: host.map(str::to_owned),
        pilots: counts.pilots,
        failed_before_any_task: counts.stillborn,
        done: counts.done,
        failed: counts.failed,
        ep_faults: counts.faults_of(ReasonClass::Ep),
        faults_by_class: by_name(|class| counts.faults_of(class)),
        failure_rate: any.rate(),
        failure_rate_95_percent: any.interval(),
        bad,
    }
}

/// The bad ones first, then by failures.
fn sorted(mut places: Vec<Site>) -> Vec<Site> {
    let faults =
        |place: &Site| place.faults_by_class.values().sum::<u64>() + place.failed_before_any_task;
    places.sort_by(|left, right| {
        let keys = |place: &Site| {
            (
                place.bad.is_none(),
                std::cmp::Reverse(faults(place)),
                std::cmp::Reverse(place.done),
            )
        };
        keys(left)
            .cmp(&keys(right))
            .then_with(|| left.names().cmp(&right.names()))
    });
    places
}

impl OutcomeCounts {
    /// The counts for the comparison with other places.
    fn tried(&self) -> FaultSample {
        let faults: u64 = self.faults.iter().sum();
        let own = self.faults_of(ReasonClass::Event);
        let failed = faults - own + self.stillborn;
        let trials = self.done + failed;
        FaultSample {
            machine: Sample {
                failed: self.faults_of(ReasonClass::Ep) + self.stillborn,
                trials,
            },
            any: Sample { failed, trials },
        }
    }
}

impl Site {
    /// The name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        self.host.as_deref().unwrap_or_else(|| self.site_name())
    }

    /// The name of the resource, else of the site.
    pub(super) fn site_name(&self) -> &str {
        self.resource
            .as_deref()
            .or(self.site.as_deref())
            .unwrap_or("(no site)")
    }

    fn names(&self) -> [Option<&str>; 3] {
        [&self.site, &self.resource, &self.host].map(Option::as_deref)
    }

    /// All tries, as the failure rate counts them.
    #[must_use]
    pub fn tried(&self) -> u64 {
        self.done + self.failures()
    }

    /// Failures, as the failure rate counts them.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let faults: u64 = self
            .faults_by_class
            .iter()
            .filter(|(class, _)| **class != "event")
            .map(|(_, count)| count)
            .sum();
        faults + self.failed_before_any_task
    }

    /// Failures by the events' own fault, which the failure rate leaves out.
    #[must_use]
    pub fn event_faults(&self) -> u64 {
        let faults = self.faults_by_class.get(ReasonClass::Event.name());
        faults.copied().unwrap_or(0)
    }

    /// The interval of the failure rate.
    pub(super) fn whiskers(&self) -> (f64, f64) {
        self.failure_rate_95_percent
    }
}

/// The classes that occur, with their names.
pub(super) fn by_name(count: impl Fn(ReasonClass) -> u64) -> BTreeMap<&'static str, u64> {
    let counts = ReasonClass::ALL.map(|class| (class.name(), count(class)));
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}
