//! Measures values that change all the time: ages, CPU, memory, last output, free disk. The command does
//! this, from `/proc` and the outputs of tasks, at no cost to the pilot. Sleeps for [`MOMENT`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::discover::{self, FoundPilot, Liveness};
use super::{PilotFacts, TaskStatus};
use crate::human::one_line;
use crate::records::UnixTime;
use crate::task::disk_space;
use crate::task::process_tree::{self, ProcessTable, ProcessTree};
use crate::task::staging::outputs_of;

/// The time between two measurements of CPU use: long enough for some ticks of 10 ms, short enough to wait
/// for.
pub(super) const MOMENT: Duration = Duration::from_millis(500);
/// How much of an output's end is searched for its last line.
const TAIL_BYTES: u64 = 16 * 1024;
/// The most characters of a last line that are kept.
const LINE_MAX: usize = 1000;

/// A pilot, with its measurements.
#[derive(Debug, Serialize)]
pub(super) struct PilotView {
    pub(super) file: PathBuf,
    pub(super) state: Liveness,
    #[serde(flatten)]
    pub(super) facts: PilotFacts,
    pub(super) age_secs: f64,
    pub(super) written_secs_ago: f64,
    pub(super) remaining_secs: Option<f64>,
    pub(super) free_disk_bytes: Option<u64>,
    /// By slot.
    pub(super) tasks: Vec<TaskView>,
}

/// A task, with its measurements.
#[derive(Debug, Default, Serialize)]
pub(super) struct TaskView {
    pub(super) task_id: String,
    #[serde(flatten)]
    pub(super) task: TaskStatus,
    pub(super) age_secs: f64,
    /// Percent of one core, over [`MOMENT`].
    pub(super) cpu_percent: Option<f64>,
    /// CPU time of the processes that are there, since they began.
    pub(super) cpu_secs: Option<f64>,
    /// Pages that several processes share are divided among them.
    pub(super) memory_bytes: Option<u64>,
    pub(super) processes: Option<usize>,
    pub(super) last_output_secs_ago: Option<f64>,
    /// The last line of stdout or stderr, whichever was written to later, with control characters replaced.
    pub(super) last_line: Option<String>,
}

pub(super) fn views(pilots: Vec<FoundPilot>) -> Vec<PilotView> {
    let leaders: Vec<i32> = pilots
        .iter()
        .filter(|pilot| pilot.state == Liveness::Running)
        .flat_map(|pilot| pilot.snapshot.tasks.values().filter_map(|task| task.pid))
        .collect();
    let loads = loads(&leaders);
    pilots
        .into_iter()
        .map(|pilot| view(pilot, &loads))
        .collect()
}

fn view(pilot: FoundPilot, loads: &BTreeMap<i32, ContainerLoad>) -> PilotView {
    let FoundPilot {
        path,
        snapshot,
        state,
    } = pilot;
    let now = UnixTime::now();
    let directory = discover::directory_of(&path);
    let mut tasks: Vec<TaskView> = snapshot
        .tasks
        .into_iter()
        .map(|(task_id, task)| {
            let load = task.pid.and_then(|pid| loads.get(&pid));
            let (last_output_secs_ago, last_line) = last_output(&outputs_of(directory, &task_id));
            TaskView {
                task_id,
                age_secs: now.since(task.started_unix_secs),
                cpu_percent: load.map(|load| load.percent),
                cpu_secs: load.map(|load| load.secs),
                memory_bytes: load.map(|load| load.memory),
                processes: load.map(|load| load.processes),
                last_output_secs_ago,
                last_line,
                task,
            }
        })
        .collect();
    tasks.sort_by_key(|view| view.task.slot);
    let facts = snapshot.facts;
    PilotView {
        state,
        age_secs: now.since(facts.started_unix_secs),
        written_secs_ago: now.since(facts.written_unix_secs),
        remaining_secs: facts.ends_unix_secs.map(|end| end.since(now)),
        free_disk_bytes: disk_space::free(directory).ok(),
        tasks,
        facts,
        file: path,
    }
}

#[derive(Debug, Clone, Copy)]
struct ContainerLoad {
    percent: f64,
    secs: f64,
    memory: u64,
    processes: usize,
}

/// The loads of the containers that are there at both measurements.
fn loads(leaders: &[i32]) -> BTreeMap<i32, ContainerLoad> {
    if leaders.is_empty() {
        return BTreeMap::new();
    }
    let look = || {
        let at = Instant::now();
        let process_table = ProcessTable::look();
        let process_trees: Vec<ProcessTree> = leaders
            .iter()
            .map(|pid| process_table.below(*pid))
            .collect();
        (at, process_trees)
    };
    let (began, before) = look();
    thread::sleep(MOMENT);
    let (ended, after) = look();
    let secs = ended.duration_since(began).as_secs_f64();
    leaders
        .iter()
        .zip(before.iter().zip(&after))
        .filter(|(_, (before, after))| before.processes() > 0 && after.processes() > 0)
        .map(|(pid, (before, after))| (*pid, load(before, after, secs)))
        .collect()
}

fn load(before: &ProcessTree, after: &ProcessTree, secs: f64) -> ContainerLoad {
    // Ticks may be fewer than before, when a process ended whose parent hasn't waited for it yet.
    let worked = of_ticks(after.ticks.saturating_sub(before.ticks));
    ContainerLoad {
        percent: (worked / secs * 1e3).round() / 10.0,
        secs: of_ticks(after.ticks),
        memory: after.memory(0),
        processes: after.processes(),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 ticks are three million years"
)]
fn of_ticks(ticks: u64) -> f64 {
    ticks as f64 / process_tree::ticks_per_second() as f64
}

/// When something was last written to any of these files, and the last line of that one.
fn last_output(files: &[PathBuf]) -> (Option<f64>, Option<String>) {
    let newest = files
        .iter()
        .filter_map(|path| {
            let found = path.metadata().ok()?;
            (found.is_file() && found.len() > 0).then_some((found.modified().ok()?, path))
        })
        .max();
    let Some((at, path)) = newest else {
        return (None, None);
    };
    let ago = SystemTime::now().duration_since(at).unwrap_or_default();
    let ago = (ago.as_secs_f64() * 1e3).round() / 1e3;
    let line = tail(path).ok().and_then(|text| last_line(&text));
    (Some(ago), line)
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(2 * TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last line that isn't blank. Of a line that was overwritten in place, as progress bars do, it is the
/// last version. No character of it moves a cursor.
fn last_line(text: &str) -> Option<String> {
    let line = text
        .rsplit(['\n', '\r'])
        .find(|line| !line.trim().is_empty())?;
    Some(one_line(&without_colours(line), LINE_MAX))
}

/// Leaves out terminal sequences like those for colours: `ESC [`, parameters, a letter. Other control
/// characters are replaced by the caller.
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|letter: char| matches!(letter, '\x20'..='\x3f'));
        plain.push_str(
            rest.strip_prefix(|letter: char| matches!(letter, '@'..='~'))
                .unwrap_or(rest),
        );
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_last_that_says_something_and_is_harmless() {
        for (text, expected) in [
            ("a\nb\n", Some("b")),
            ("a\nb", Some("b")),
            ("a\n\n \n", Some("a")),
            ("10 %\r20 %\r", Some("20 %")),
            ("\x1b[1;31mred\x1b[0m hat\x1b[", Some("red hat")),
            ("a\x1b]0;b\x07", Some("a\u{fffd}]0;b\u{fffd}")),
            ("\n", None),
            ("", None),
        ] {
            assert_eq!(last_line(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_output_that_was_written_to_later_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = ["out", "err"].map(|name| directory.path().join(name));
        assert_eq!(last_output(&files), (None, None));
        std::fs::write(&files[1], "warning").expect("written");
        std::fs::write(&files[0], "").expect("written");
        assert_eq!(last_output(&files).1.as_deref(), Some("warning"));
        std::fs::write(&files[0], "x\n".repeat(100_000) + "done").expect("written");
        let later = SystemTime::now() + Duration::from_mins(1);
        let file = File::options().write(true).open(&files[0]);
        file.and_then(|file| file.set_modified(later)).expect("set");
        assert_eq!(last_output(&files), (Some(0.0), Some("done".into())));
    }

    #[test]
    fn a_process_that_works_uses_a_core_and_one_that_is_gone_nothing() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sh -c 'while :; do :; done'; :"])
            .spawn()
            .expect("started");
        let pid = i32::try_from(child.id()).expect("a pid");
        let mut seen = None;
        for _ in 0..20 {
            seen = loads(&[pid, i32::MAX]).get(&pid).copied();
            if seen.is_some_and(|load| load.percent > 5.0 && load.processes == 2) {
                break;
            }
        }
        let grandchildren = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for pid in grandchildren.unwrap_or_default().split_whitespace() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a pid"));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = child.kill();
        child.wait().expect("reaped");
        let load = seen.expect("it was there");
        assert!(load.percent > 5.0 && load.secs > 0.0, "{load:?}");
        assert!(load.memory > 0 && load.processes == 2, "{load:?}");
        assert!(loads(&[i32::MAX]).is_empty());
    }
}
