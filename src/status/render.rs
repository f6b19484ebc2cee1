//! Shows pilots as text for a person at a terminal. Control characters in the texts of brokers and tasks and
//! in the names of queues are replaced, so that none moves the cursor.

use std::fmt::Write as _;

use super::discover::Liveness;
use super::measure::{MOMENT, PilotView, TaskView};
use super::{QueueState, QueueStatus};
use crate::human::{as_float, bytes, count, counted, one_line, round_seconds, seconds};
use crate::records::UnixTime;

/// The least characters of a line of output, even on a narrower terminal.
const LINE_MIN: usize = 10;
/// Characters of a task's id that are shown; they tell tasks apart, and the task's directory begins with them.
const ID_LENGTH: usize = 8;

/// Columns of the table of tasks.
const COLUMNS: usize = 8;
/// The column of GPUs, which is left out if no task has one.
const GPU: usize = 2;

/// All pilots, for a terminal of so many columns.
pub(super) fn text(views: &[PilotView], width: usize) -> String {
    let pilots: Vec<String> = views.iter().map(|view| pilot(view, width)).collect();
    harmless(&pilots.join("\n"))
}

fn harmless(text: &str) -> String {
    let replaced = |letter: char| letter.is_control() && letter != '\n';
    text.replace(replaced, "\u{fffd}")
}

fn pilot(view: &PilotView, width: usize) -> String {
    let mut out = format!("pilot {}\n", view.facts.pilot_id);
    for (name, value) in facts(view) {
        // Writing into a string can't fail.
        let _ = writeln!(out, "  {name:<10} {value}");
    }
    if !view.tasks.is_empty() {
        out.push('\n');
        out.push_str(&table(view, width));
    }
    out
}

fn facts(view: &PilotView) -> Vec<(&str, String)> {
    let facts = &view.facts;
    let mut lines = vec![("state", state(view))];
    if let Some(error) = &facts.error {
        lines.push(("error", one_line(error, usize::MAX)));
    }
    lines.push(("process", process(view)));
    lines.push(("time", time(view)));
    lines.push((
        "slots",
        format!(
            "{} of {} taken; at most {} held",
            view.tasks
                .iter()
                .filter(|task| task.task.slot.is_some())
                .count(),
            facts.slots,
            counted(facts.window.into(), "event"),
        ),
    ));
    if facts.waiting_containers > 0 {
        let waiting = counted(facts.waiting_containers.into(), "container");
        lines.push(("ready", format!("{waiting} waiting for an event")));
    }
    if let Some(gpus) = &facts.gpus {
        lines.push(("gpus", one_line(gpus, usize::MAX)));
    }
    lines.push(("events", events(view)));
    if facts.queues.is_empty() {
        lines.push(("queues", "not connected yet".to_owned()));
    }
    for each in &facts.queues {
        lines.push((each.direction.as_str(), queue(each, view)));
    }
    if facts.reconnects > 0 {
        lines.push(("reconnects", count(facts.reconnects)));
    }
    if let Some(free) = view.free_disk_bytes {
        let directory = super::discover::directory_of(&view.file).display();
        lines.push((
            "disk",
            format!("{} free in `{directory}`", bytes(as_float(free))),
        ));
    }
    lines
}

fn state(view: &PilotView) -> String {
    let (status, written) = (&view.facts.status, seconds(view.written_secs_ago));
    match view.state {
        Liveness::Running => format!("running, {status}"),
        Liveness::Dead => format!(
            "DEAD: it was killed, or the machine was; all below is what it wrote {written} ago ({status})"
        ),
        Liveness::Elsewhere => format!(
            "unknown: it runs on another machine or in another container, ask there; all below is what \
             it wrote {written} ago ({status})"
        ),
    }
}

fn process(view: &PilotView) -> String {
    let facts = &view.facts;
    let mut text = format!("{} on {}", facts.process.pid, facts.process.host);
    if let Some(site) = &facts.site {
        let _ = write!(text, " ({site})");
    }
    if let Some(job) = &facts.job_id {
        let _ = write!(text, ", job {job}");
    }
    let _ = write!(text, ", ewms-pilot {}", facts.version);
    text
}

fn time(view: &PilotView) -> String {
    let ran = format!("began {} ago", seconds(view.age_secs));
    match view.remaining_secs {
        None => format!("{ran}, no limit"),
        Some(left) if left > 0.0 => format!("{ran}, {} left", seconds(left)),
        Some(_) => format!("{ran}, none left"),
    }
}

fn events(view: &PilotView) -> String {
    let tally = &view.facts.events;
    let dispose = tally.dead_lettered + tally.rejected;
    let mut text = format!("{} received", count(tally.received));
    for (number, what) in [
        (tally.succeeded, "done"),
        (tally.failed, "failed"),
        (dispose, "of them put away for good"),
        (tally.given_back, "given back"),
    ] {
        if number > 0 {
            let _ = write!(text, ", {} {what}", count(number));
        }
    }
    text
}

fn queue(queue: &QueueStatus, view: &PilotView) -> String {
    // For a dead pilot, the time at which it wrote the file.
    let now = UnixTime(view.facts.started_unix_secs.0 + view.age_secs);
    let lasted = seconds(now.since(queue.since_unix_secs));
    let state = match queue.link {
        QueueState::Up => format!("up for {lasted}"),
        QueueState::Down => format!("DOWN for {lasted}"),
        QueueState::GivenUp => format!("DOWN for {lasted}, longer than is borne"),
    };
    let mut text = format!("{state}: `{}` at `{}`", queue.queue, queue.address);
    if let Some(error) = &queue.error {
        let _ = write!(text, "; {}", one_line(error, usize::MAX));
    }
    text
}

fn table(view: &PilotView, width: usize) -> String {
    let cpu = format!("CPU ({})", round_seconds(MOMENT.as_secs_f64()));
    let head = [
        "slot",
        "task",
        "GPU",
        "age",
        &cpu,
        "memory",
        "output",
        "last line",
    ]
    .map(str::to_owned);
    let rows: Vec<[String; COLUMNS]> = std::iter::once(head)
        .chain(view.tasks.iter().map(|task| row(task, view)))
        .collect();
    let mut widths = [0; COLUMNS - 1];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if view.tasks.iter().all(|task| task.task.gpus.is_empty()) {
        widths[GPU] = 0;
    }
    let shown = |width: &usize| *width > 0;
    let taken: usize = widths
        .iter()
        .copied()
        .filter(shown)
        .map(|width| width + 2)
        .sum();
    let room = width.saturating_sub(taken + 2).max(LINE_MIN);
    let mut out = String::new();
    for row in &rows {
        let mut line = String::from("  ");
        for (cell, width) in row.iter().zip(widths).filter(|(_, width)| shown(width)) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        let last = &row[COLUMNS - 1];
        if !last.is_empty() {
            line.push_str(&one_line(last, room));
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn row(task: &TaskView, view: &PilotView) -> [String; COLUMNS] {
    let slot = task
        .task
        .slot
        .map_or("init".to_owned(), |slot| slot.to_string());
    let name = task.task_id.strip_prefix("init-").unwrap_or(&task.task_id);
    let id = name.chars().take(ID_LENGTH).collect();
    let known = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    let age = match view.state {
        Liveness::Dead => None,
        Liveness::Running | Liveness::Elsewhere => Some(seconds(task.age_secs)),
    };
    [
        slot,
        id,
        known((!task.task.gpus.is_empty()).then(|| task.task.gpus.join(","))),
        known(age),
        known(task.cpu_percent.map(|percent| format!("{percent:.0} %"))),
        known(task.memory_bytes.map(|memory| bytes(as_float(memory)))),
        known(
            task.last_output_secs_ago
                .map(|secs| format!("{} ago", seconds(secs))),
        ),
        task.last_line.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::status::{PilotFacts, ProcessId, TaskStatus};

    fn view() -> PilotView {
        let mut facts = PilotFacts {
            version: "1.2.3".into(),
            pilot_id: "f00d".into(),
            job_id: Some("12.3".into()),
            site: Some("SITE-03".into()),
            process: ProcessId {
                host: "node7".into(),
                pid: 4711,
                ..ProcessId::default()
            },
            started_unix_secs: UnixTime(1_000_000.0),
            status: "Tasking".into(),
            slots: 2,
            window: 3,
            ..PilotFacts::default()
        };
        facts.events.received = 1200;
        facts.events.succeeded = 1190;
        facts.queues = vec![QueueStatus {
            direction: "incoming".into(),
            queue: "pixels".into(),
            address: "mq:5671".into(),
            link: QueueState::Up,
            since_unix_secs: UnixTime(1_000_010.0),
            error: None,
        }];
        PilotView {
            file: PathBuf::from("/srv/job/ewms-pilot-status-f00d.json"),
            state: Liveness::Running,
            facts,
            age_secs: 12_010.0,
            written_secs_ago: 245.0,
            remaining_secs: Some(3600.0),
            free_disk_bytes: Some(3 << 30),
            tasks: vec![TaskView {
                task_id: "0123456789abcdef".into(),
                task: TaskStatus {
                    slot: Some(1),
                    gpus: Vec::new(),
                    started_unix_secs: UnixTime(1_011_000.0),
                    pid: Some(4712),
                },
                age_secs: 245.0,
                cpu_percent: Some(99.6),
                memory_bytes: Some(1536 << 20),
                last_output_secs_ago: Some(2.1),
                last_line: Some("scanning pixel 17 of 48 in all of the sky".into()),
                ..TaskView::default()
            }],
        }
    }

    #[test]
    fn a_person_sees_the_pilot_its_queues_and_its_tasks() {
        let expected = "\
pilot f00d
  state      running, Tasking
  process    4711 on node7 (SITE-03), job 12.3, ewms-pilot 1.2.3
  time       began 3 h 20 min ago, 1 h left
  slots      1 of 2 taken; at most 3 events held
  events     1,200 received, 1,190 done
  incoming   up for 3 h 20 min: `pixels` at `mq:5671`
  disk       3.0 GiB free in `/srv/job`

  slot  task      age        CPU (0.5 s)  memory   output      last line
  1     01234567  4 min 5 s  100 %        1.5 GiB  2.10 s ago  scanning pixel 17 of 48 in all of the sky
";
        assert_eq!(text(&[view()], 200), expected);
    }

    #[test]
    fn gpus_are_shown_where_there_are_some() {
        let mut view = view();
        view.facts.gpus = Some("2 × NVIDIA A100".into());
        view.tasks[0].task.gpus = vec!["GPU-a0223334".into()];
        let text = text(&[view], 200);
        assert!(text.contains("  gpus       2 × NVIDIA A100\n"), "{text}");
        assert!(
            text.contains("slot  task      GPU           age "),
            "{text}"
        );
        assert!(text.contains("01234567  GPU-a0223334  4 min 5 s"), "{text}");
    }

    #[test]
    fn a_line_is_cut_at_the_terminals_width() {
        for width in [80, 100] {
            let text = text(&[view()], width);
            let row = text.lines().last().expect("a row");
            assert_eq!(row.chars().count(), width, "{row}");
            assert!(row.ends_with('…'), "{row}");
        }
        assert!(text(&[view()], 0).contains("scanning"));
    }

    #[test]
    fn a_lost_broker_a_dead_pilot_and_one_that_can_not_be_seen_are_said_so() {
        let mut view = view();
        view.facts.queues[0].link = QueueState::Down;
        view.facts.queues[0].error = Some("nobody\nanswers".into());
        view.facts.reconnects = 3;
        let running = text(std::slice::from_ref(&view), 100);
        let line = "DOWN for 3 h 20 min: `pixels` at `mq:5671`; nobody … answers";
        assert!(running.contains(line), "{running}");
        assert!(running.contains("reconnects 3"), "{running}");
        view.state = Liveness::Dead;
        let dead = text(std::slice::from_ref(&view), 100);
        assert!(
            dead.contains("DEAD") && dead.contains("4 min 5 s ago"),
            "{dead}"
        );
        view.state = Liveness::Elsewhere;
        let elsewhere = text(&[view], 100);
        assert!(elsewhere.contains("unknown"), "{elsewhere}");
    }

    #[test]
    fn what_others_wrote_moves_no_cursor() {
        let mut view = view();
        view.facts.queues[0].queue = "a\x1b[2Jb\u{9b}".into();
        view.tasks[0].last_line = Some("\x1b]0;title\x07".into());
        let text = text(&[view], 100);
        let bad = text.chars().filter(|c| c.is_control() && *c != '\n');
        assert_eq!(bad.count(), 0, "{text:?}");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let mut view = view();
        view.facts.queues.clear();
        view.remaining_secs = None;
        view.tasks = vec![TaskView {
            task_id: "init-0123456789".into(),
            ..TaskView::default()
        }];
        let text = text(&[view], 100);
        assert!(text.contains("not connected yet"), "{text}");
        assert!(text.contains("no limit"), "{text}");
        let row: Vec<&str> = text
            .lines()
            .last()
            .expect("a row")
            .split_whitespace()
            .collect();
        assert_eq!(row, ["init", "01234567", "0.00", "s", "–", "–", "–"]);
    }
}
