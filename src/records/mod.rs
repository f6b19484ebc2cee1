//! The file of JSON lines that a pilot writes about itself and each of its tasks: the only source of the
//! numbers at the pilot's end, and of the reports about thousands of pilots. The format outlives the program.
//!
//! # Format 1
//!
//! One JSON object a line, UTF-8, appended by a single `write(2)`. Pilots that share a file never split each
//! other's lines, but their lines alternate: `pilot_id` tells them apart. A line may be torn after a full
//! disk; the next one then starts on a new line. A reader counts lines that it can't read, skips `kind`s and
//! fields that it doesn't know, and treats an absent field as `null`. Within a format, fields are only added;
//! `format` changes when the meaning of a field does.
//!
//! Times are seconds since 1970 (UTC) with milliseconds; durations are seconds, sizes bytes. `null` is
//! "not known" or "didn't happen".
//!
//! ## In every line
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `format` | integer | 1 |
//! | `kind` | text | `pilot_start`, `task`, `pilot_end`: one start, then tasks as they are settled, then one end; a pilot that was killed has no end |
//! | `pilot_id` | text | this run of the pilot |
//! | `host` | text | the machine's name: `Machine` of the machine ad, else its host name |
//! | `site` | text or null | `GLIDEIN_Site`, else `OSG_SITE_NAME` |
//! | `resource` | text or null | `GLIDEIN_ResourceName`: the part of the site |
//!
//! ## `pilot_start`
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `version` | text | of the pilot |
//! | `started_unix_secs` | number | |
//! | `job_id` | text or null | HTCondor's `ClusterId.ProcId` |
//! | `taskforce_uuid` | text or null | `EWMSTaskforceUUID` of the job ad: the pilots that were submitted together |
//! | `slots` | integer | tasks that may run at once |
//! | `window` | integer | unsettled events held at most |
//! | `requested_cpus` | integer or null | `RequestCpus` of the job ad, else `Cpus` of the machine ad |
//! | `requested_memory_bytes` | integer or null | `RequestMemory`, else the slot's `Memory` |
//! | `requested_disk_bytes` | integer or null | `RequestDisk`, else the slot's `Disk` |
//! | `max_runtime_secs` | number or null | the wall time that the pilot keeps to |
//!
//! ## `task`
//!
//! A record is written once the event is settled, or can't be settled any more.
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `task_id` | text | also the name of its directory |
//! | `event_name` | text or null | what its queue calls the event: the name of a spool's file; null for a message of RabbitMQ's |
//! | `slot` | integer or null | which of the pilot's slots, from 1; null when it never started |
//! | `gpus` | list of text or null | the GPUs that its container saw, as it was told them; null for none |
//! | `gpu_model` | text or null | their model; several between commas |
//! | `earlier_deliveries` | integer or null | how often the broker had delivered the event before (`x-delivery-count`; tries in a spool) |
//! | `received_unix_secs` | number | the event was taken |
//! | `started_unix_secs` | number or null | its turn came: the infile is written, and the gate of its container opens |
//! | `start_latency_secs` | number or null | from taking the event until its container let the image's own code begin; null where containers have no gate |
//! | `container_waited` | boolean or null | whether its container was waiting for it; null where containers have no gate |
//! | `ended_unix_secs` | number or null | its files were collected |
//! | `published_unix_secs` | number or null | the broker confirmed the result |
//! | `settled_unix_secs` | number or null | the event was acknowledged or given back; null when the connection was gone, and the broker delivers it again |
//! | `wall_time_secs` | number or null | from start to end |
//! | `container_time_secs` | number or null | of that, while the container ran for its task; null when none did |
//! | `cpu_user_secs`, `cpu_system_secs` | number or null | of all processes in the container and the runtime, its start included even if it waited |
//! | `max_rss_bytes` | integer or null | the largest resident memory of any one process |
//! | `container_memory_bytes` | integer or null | the largest resident memory of the container that was seen; only with a limit on it |
//! | `input_bytes` | integer | size of the event as it came |
//! | `output_bytes` | integer or null | size of the result as it was sent |
//! | `disk_bytes` | integer or null | what the task's directories, scratch included, took at its end |
//! | `exit_code` | integer or null | of the container |
//! | `exit_signal` | integer or null | what ended the container's first process |
//! | `outcome` | text | `done`, `failed` (back to the queue), `dead_lettered`, `rejected` (out of the queue, kept in `rejected/`), `given_back` (not its fault, or untried), `unsettled` (the pilot broke down) |
//! | `fault_class` | text or null | whose fault: `task`, `event`, `image`, `ep`, `broker` |
//! | `error_name` | text or null | as in `EWMS_PILOT_OKAY_ERRORS` |
//! | `error` | text or null | at most 4 KiB, from its start; equal failures have equal texts |
//!
//! ## `pilot_end`
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `started_unix_secs`, `ended_unix_secs` | number | |
//! | `init_time_secs` | number or null | how long the init container ran |
//! | `connected_unix_secs` | number or null | events could be taken from here on |
//! | `first_event_unix_secs` | number or null | |
//! | `first_event_wait_secs` | number or null | from one to the other |
//! | `intake_closed_unix_secs` | number or null | no event was taken any more; from here on the pilot drained |
//! | `slots` | integer | as at the start |
//! | `busy_secs` | number | sum over the slots of the time in which they ran a task |
//! | `broker_outages`, `broker_outage_secs` | integer, number | connections to brokers that were lost, and time in which at least one was away |
//! | `received`, `started`, `succeeded`, `failed`, `given_back`, `dead_lettered`, `rejected`, `published`, `no_output` | integer | events; `failed` counts the dead-lettered and rejected too |
//! | `outfile_never_written` | true or false | tasks succeeded and none wrote an outfile, though their arguments or variables name one |
//! | `duplicates` | integer | results that may be in the outgoing queue twice, for an outage of the broker |
//! | `exit_code` | integer | as HTCondor saw it |
//! | `error` | text or null | the pilot's last line, at most 4 KiB |

mod record;
mod writer;

pub use record::{
    EventOutcome, FORMAT, PilotEnd, PilotIdentity, PilotStart, Record, RecordKind, TaskRecord,
    UnixTime, shorten,
};
pub use writer::RecordWriter;
