//! The rows of the timeline: a slot, a host or a site each, as fine as they can be drawn. Those with the most faults
//! come first.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::aggregate::Aggregate;
use super::timeline_data::{TaskFate, TimelineBar};
use crate::human::{count, counted};

/// The most slots, or hosts, that are drawn one by one.
const MOST_LANES: usize = 60;
/// The most sites; the others share a row.
const MOST_SITES: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaneKind {
    Slot,
    Host,
    Site,
}

/// What stands at the left of a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LaneLabel {
    /// Empty if it is that of the row above.
    pub(super) short: String,
    pub(super) long: String,
}

pub(super) struct Lanes {
    pub(super) kind: LaneKind,
    pub(super) labels: Vec<LaneLabel>,
    rows: HashMap<LaneKey, usize>,
}

/// Site, host, pilot, slot; 0 where the kind of lane leaves it out.
type LaneKey = (u32, u32, u32, u16);

impl Lanes {
    pub(super) fn of(aggregate: &Aggregate) -> Self {
        let kinds = [LaneKind::Slot, LaneKind::Host];
        let kind = kinds
            .into_iter()
            .find(|kind| !are_too_many(*kind, aggregate));
        let kind = kind.unwrap_or(LaneKind::Site);
        let order = order(kind, aggregate);
        let most = match kind {
            LaneKind::Site => MOST_SITES,
            LaneKind::Slot | LaneKind::Host => MOST_LANES,
        };
        // A row for one other alone would save nothing.
        let most = if order.len() == most + 1 {
            most + 1
        } else {
            most
        };
        let mut labels: Vec<LaneLabel> = Vec::new();
        let mut above = None;
        for key in order.iter().take(most) {
            labels.push(label(kind, aggregate, *key, above));
            above = Some(*key);
        }
        if order.len() > most {
            let short = format!("{} others", count((order.len() - most) as u64));
            let long = format!(
                "{}, with fewer faults",
                counted((order.len() - most) as u64, "site")
            );
            labels.push(LaneLabel { short, long });
        }
        let rows = order.iter().enumerate();
        Self {
            kind,
            labels,
            rows: rows.map(|(row, key)| (*key, row.min(most))).collect(),
        }
    }

    pub(super) fn row(&self, aggregate: &Aggregate, task: &TimelineBar) -> usize {
        let key = key(self.kind, aggregate, task);
        self.rows.get(&key).copied().unwrap_or(0)
    }
}

fn are_too_many(kind: LaneKind, aggregate: &Aggregate) -> bool {
    let mut seen = BTreeSet::new();
    let mut tasks = aggregate.timeline_data.tasks.iter();
    tasks.any(|task| seen.insert(key(kind, aggregate, task)) && seen.len() > MOST_LANES)
}

/// All lanes, those of the pilot, host or site with the most faults first.
fn order(kind: LaneKind, aggregate: &Aggregate) -> Vec<LaneKey> {
    let mut faults: BTreeMap<LaneKey, u64> = BTreeMap::new();
    let mut lanes = BTreeSet::new();
    for task in &aggregate.timeline_data.tasks {
        let key = key(kind, aggregate, task);
        lanes.insert(key);
        *faults.entry(group(key)).or_default() +=
            u64::from(matches!(task.fate, TaskFate::Failed(_)));
    }
    let mut order: Vec<LaneKey> = lanes.into_iter().collect();
    order.sort_by_key(|key| {
        let fewer = std::cmp::Reverse(faults.get(&group(*key)).copied().unwrap_or(0));
        let host = host_name(kind, aggregate, key.1);
        // Events that never ran come after the slots.
        (
            fewer,
            site_name(aggregate, key.0),
            host,
            key.2,
            key.3.wrapping_sub(1),
        )
    });
    order
}

/// The lane without its slot.
fn group((site, host, pilot, _): LaneKey) -> LaneKey {
    (site, host, pilot, 0)
}

fn key(kind: LaneKind, aggregate: &Aggregate, task: &TimelineBar) -> LaneKey {
    let host = aggregate.pilots[task.pilot as usize].host;
    let site = aggregate.hosts[host as usize].site;
    match kind {
        LaneKind::Slot => (site, host, task.pilot, task.slot),
        LaneKind::Host => (site, host, 0, 0),
        LaneKind::Site => (site, 0, 0, 0),
    }
}

fn site_name(aggregate: &Aggregate, site: u32) -> &str {
    let name = aggregate.sites[site as usize].precise();
    name.unwrap_or("(no site)")
}

fn host_name(kind: LaneKind, aggregate: &Aggregate, host: u32) -> &str {
    match kind {
        LaneKind::Site => "",
        LaneKind::Slot | LaneKind::Host => &aggregate.hosts[host as usize].name,
    }
}

fn label(kind: LaneKind, aggregate: &Aggregate, key: LaneKey, above: Option<LaneKey>) -> LaneLabel {
    let site = site_name(aggregate, key.0);
    let host = host_name(kind, aggregate, key.1);
    match kind {
        LaneKind::Site => LaneLabel {
            short: site.to_owned(),
            long: site.to_owned(),
        },
        LaneKind::Host => LaneLabel {
            short: host.to_owned(),
            long: format!("{host} ({site})"),
        },
        LaneKind::Slot => {
            let job = aggregate.pilots[key.2 as usize].job_id.as_deref();
            let job = job.map(|job| format!(" · job {job}")).unwrap_or_default();
            let machine = host.split('.').next().unwrap_or_default();
            let is_first = above.is_none_or(|above| group(above) != group(key));
            let slot = match key.3 {
                0 => "never ran".to_owned(),
                slot => format!("slot {slot}"),
            };
            let short = match (is_first, key.3) {
                (true, _) => format!("{machine}{job}"),
                (false, 0) => slot.clone(),
                (false, _) => String::new(),
            };
            LaneLabel {
                short,
                long: format!("{host} ({site}){job} · {slot}"),
            }
        }
    }
}
