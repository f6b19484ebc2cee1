//! A view of a running pilot for a person on the execution point: the status file that the pilot writes, and
//! the command that reads it and measures the rest. The pilot never waits for the file, and measures nothing
//! for it: values that change all the time, such as CPU time, are measured by the command.
//!
//! | file | what it is |
//! | --- | --- |
//! | `snapshot` | the format, as types |
//! | `file` | writes it to disk and reads it back |
//! | `debounce` | decides when a change is written |
//! | `writer` | the pilot's side: takes changes, writes them |
//! | `discover` | finds files, and tells whether their pilots are alive |
//! | `measure` | measures what the file doesn't hold |
//! | `render` | shows all of it as text |
//! | `watch`, `screen` | shows it again and again, in place on a terminal |
//!
//! # The file, format 1
//!
//! `ewms-pilot-status-<pilot id>.json`, beside `ewms-pilot-data/`, readable by the pilot's user only: one
//! JSON object, replaced as a whole when something in it changes, at most once a second, and removed at the
//! pilot's end. A file whose process is gone belongs to a pilot that was killed. The file holds no token or
//! password. A reader skips fields that it doesn't know. Times are seconds since 1970.
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `format` | integer | 1 |
//! | `version` | text | of the pilot |
//! | `pilot_id` | text | as in the records |
//! | `job_id` | text or null | HTCondor's `ClusterId.ProcId` |
//! | `site` | text or null | as in the records |
//! | `process` | object | `host`, `boot_id`, `pid_namespace`, `pid` and `start_ticks` (field 22 of `/proc/PID/stat`): one process for good |
//! | `started_unix_secs`, `written_unix_secs` | number | |
//! | `ends_unix_secs` | number or null | when its wall time, or its token, is over |
//! | `status` | text | `Started`, `Tasking`, …, as reported to HTCondor |
//! | `error` | text or null | the pilot's last line, once it failed |
//! | `slots`, `window` | integer | tasks that may run at once; unsettled events held at most |
//! | `events` | object | counts: `received`, `started`, `succeeded`, `failed`, `given_back`, `dead_lettered`, `rejected`, `published`, `no_output` |
//! | `waiting_containers` | integer | containers that wait for their event |
//! | `reconnects` | integer | sessions with a broker that were replaced |
//! | `gpus` | text or null | the job's GPUs, as `2 × NVIDIA A100` |
//! | `queues` | list | each with `direction`, `queue`, `address`, `link` (`up`, `down`, `given_up`), `since_unix_secs`, `error` |
//! | `tasks` | object | by task id (or `init-…`): `slot`, `gpus` (a list of ids), `started_unix_secs`, `pid` of the container's first process once it is known; their outputs are in `ewms-pilot-data/<id>/outputs/` |

mod debounce;
mod discover;
mod file;
mod measure;
mod render;
mod screen;
mod snapshot;
mod watch;
mod writer;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

pub use file::is_file_name;
pub use snapshot::{PilotFacts, ProcessId, QueueState, QueueStatus, Snapshot, TaskStatus};
pub use watch::watch;
pub use writer::StatusWriter;

use crate::exit::Exit;
use crate::human::OutputFormat;
use discover::Liveness;
use screen::StatusScreen;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRequest {
    /// A directory to look in, or a status file. `None` stands for the places where pilots keep their data.
    pub path: Option<PathBuf>,
    pub output: OutputFormat,
    pub repeat: Repeat,
}

/// How often the pilots are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    Once,
    Every(Duration),
}

/// Shows the pilots whose files are in `places`. Succeeds if one of them runs, or if that can't be told
/// from here.
pub fn run(
    places: &[PathBuf],
    output: OutputFormat,
    out: &mut impl Write,
    complaints: &mut impl Write,
) -> Exit {
    // If stderr is closed, only the exit code tells.
    let mut complain = |text: String| drop(writeln!(complaints, "ewms-pilot status: {text}"));
    let found = discover::pilots(places);
    for problem in found.problems {
        complain(problem.to_string());
    }
    let views = measure::views(found.pilots);
    let runs = views.iter().any(|view| view.state != Liveness::Dead);
    if views.is_empty() {
        complain(discover::nothing(places));
    }
    let text = match output {
        OutputFormat::Json => serde_json::to_string_pretty(&views)
            .map(|text| text + "\n")
            .map_err(io::Error::from),
        OutputFormat::Text => Ok(render::text(&views, StatusScreen::of_stdout().columns())),
    };
    match text.and_then(|text| out.write_all(text.as_bytes()).and_then(|()| out.flush())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(format!("can't write the answer: {error}"));
            Exit::ExecutionPoint
        }
        _ if runs => Exit::Success,
        _ => Exit::Configuration,
    }
}
