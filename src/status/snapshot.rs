//! The content of the status file as types. The module's docs say what each field means.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::ids;
use crate::process;
use crate::records::UnixTime;
use crate::stats::Tally;
use crate::task::ContainerPids;

pub(super) const FORMAT: u32 = 1;

/// The whole content of the status file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    #[serde(flatten)]
    pub facts: PilotFacts,
    /// The running containers, by the names of their directories.
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskStatus>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PilotFacts {
    /// The format, 1; set when the file is written.
    pub format: u32,
    pub version: String,
    pub pilot_id: String,
    pub job_id: Option<String>,
    pub site: Option<String>,
    pub process: ProcessId,
    pub started_unix_secs: UnixTime,
    pub written_unix_secs: UnixTime,
    pub ends_unix_secs: Option<UnixTime>,
    pub status: String,
    pub error: Option<String>,
    pub slots: u32,
    pub window: u32,
    pub events: Tally,
    /// Containers that wait for their event.
    pub waiting_containers: u32,
    pub reconnects: u64,
    pub queues: Vec<QueueStatus>,
    /// The job's GPUs: their number and model.
    pub gpus: Option<String>,
}

/// Identifies one process, across reboots and namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessId {
    /// The machine's name, for people.
    pub host: String,
    /// Identifies one boot of one machine.
    pub boot_id: String,
    /// The namespace of `pid`.
    pub pid_namespace: String,
    pub pid: i32,
    /// The start of the process, in the kernel's ticks.
    pub start_ticks: u64,
}

impl ProcessId {
    /// This process. Fields that can't be known are empty.
    #[must_use]
    pub fn own() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        Self {
            host: ids::host_name(),
            boot_id: text("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            pid,
            start_ticks: process::start_ticks(pid).unwrap_or_default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// `incoming` or `outgoing`
    pub direction: String,
    pub queue: String,
    /// `host:port`, or the spool directory.
    pub address: String,
    pub link: QueueState,
    pub since_unix_secs: UnixTime,
    /// The reason why the link is not up.
    #[serde(default)]
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueState {
    Up,
    /// Lost, and being tried again.
    Down,
    /// Away for longer than `EWMS_PILOT_BROKER_RECONNECT_TIMEOUT`.
    GivenUp,
}

/// A container that runs, is about to, or whose files are being collected.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    /// From 1; the init container has none.
    pub slot: Option<u32>,
    /// The GPUs that it sees.
    pub gpus: Vec<String>,
    pub started_unix_secs: UnixTime,
    /// The container's first process, while there is one.
    pub pid: Option<i32>,
}

impl Snapshot {
    pub fn begin(&mut self, id: String, slot: Option<u32>, gpus: Vec<String>) {
        let task = TaskStatus {
            slot,
            gpus,
            started_unix_secs: UnixTime::now(),
            pid: None,
        };
        self.tasks.insert(id, task);
    }

    pub fn end(&mut self, id: &str) {
        self.tasks.remove(id);
    }

    /// Updates the running containers. One without a task is the init container.
    pub fn contain(&mut self, running: &ContainerPids) {
        self.tasks
            .retain(|name, task| task.slot.is_some() || running.contains_key(name));
        for (name, pid) in running {
            if !self.tasks.contains_key(name) {
                self.begin(name.clone(), None, Vec::new());
            }
            if let Some(task) = self.tasks.get_mut(name) {
                task.pid = *pid;
            }
        }
        for (name, task) in &mut self.tasks {
            if !running.contains_key(name) {
                task.pid = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_there_from_its_staging_on_and_has_a_process_while_its_container_runs() {
        let mut snapshot = Snapshot::default();
        snapshot.begin("a".into(), Some(1), Vec::new());
        let pid = |snapshot: &Snapshot| snapshot.tasks.get("a").map(|task| task.pid);
        snapshot.contain(&ContainerPids::from([("a".into(), Some(7))]));
        assert_eq!(pid(&snapshot), Some(Some(7)));
        snapshot.contain(&ContainerPids::new());
        assert_eq!(pid(&snapshot), Some(None), "its files are collected");
        snapshot.end("a");
        assert_eq!(pid(&snapshot), None);
    }

    #[test]
    fn the_init_container_is_there_without_a_slot() {
        let mut snapshot = Snapshot::default();
        snapshot.contain(&ContainerPids::from([("init-a".into(), Some(7))]));
        let task = &snapshot.tasks["init-a"];
        assert_eq!((task.slot, task.pid), (None, Some(7)));
        assert!(task.started_unix_secs > UnixTime(1.7e9));
        snapshot.contain(&ContainerPids::new());
        assert!(snapshot.tasks.is_empty());
    }
}
