//! Appends records to their file, off the event loop: a disk that hangs holds up no event, and a record that
//! can't be written is lost rather than the event.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Record;
use crate::blocking;

/// The most records that wait. They come at the rate of tasks, so only a disk that hangs reaches this;
/// further records are lost then.
const WAITING_MAX: usize = 10_000;
/// How long the pilot's end waits for the disk. A sound one takes milliseconds.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// Appends records to a file that others may append to as well. Dropping it waits until they are written, for
/// at most five seconds.
#[derive(Debug)]
pub struct RecordWriter(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    drained: Condvar,
    /// Held while a record is written, so only threads that may block lock it.
    file: Mutex<RecordFile>,
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Record>,
    is_draining: bool,
    lost: u64,
}

#[derive(Debug)]
struct RecordFile {
    path: PathBuf,
    state: RecordFileState,
}

#[derive(Debug)]
enum RecordFileState {
    Unopened,
    Open(File, LastLine),
    /// The file could not be opened.
    Off,
}

/// How much of the last line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastLine {
    Whole,
    /// None of it.
    Lost,
    /// A part of it.
    Torn,
}

impl RecordWriter {
    /// A writer that writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Appends to `path`, which is created if missing. Records that can't be written are lost, and the first
    /// one is logged: an event is worth more than its record.
    #[must_use]
    pub fn appending_to(path: PathBuf) -> Self {
        Self(Some(Arc::new(Shared {
            queue: Mutex::default(),
            drained: Condvar::new(),
            file: Mutex::new(RecordFile {
                path,
                state: RecordFileState::Unopened,
            }),
        })))
    }

    /// Appends one line soon, without blocking.
    pub fn write(&self, record: Record) {
        let Some(shared) = &self.0 else { return };
        let mut queue = shared.queue();
        if queue.records.len() >= WAITING_MAX {
            queue.lost += 1;
            return;
        }
        queue.records.push_back(record);
        if !std::mem::replace(&mut queue.is_draining, true) {
            drop(queue);
            let shared = Arc::clone(shared);
            drop(blocking::start(move || shared.drain()));
        }
    }

    /// Waits until all records are written, for at most five seconds. No record is accepted after that.
    pub async fn close(&mut self) {
        let Some(shared) = self.0.take() else { return };
        let drained = blocking::start(move || shared.wait_until_drained());
        let drained = tokio::time::timeout(FLUSH_WITHIN, drained).await;
        if !matches!(drained, Ok(Ok(Drained::All))) {
            warn!(
                seconds = FLUSH_WITHIN.as_secs(),
                "records are not written yet when the pilot ends; see to the disk of EWMS_PILOT_TASK_LOG"
            );
        }
    }
}

/// A pilot that breaks down still leaves the records of its tasks.
impl Drop for RecordWriter {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.wait_until_drained();
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Drained {
    All,
    NotInTime,
}

impl Shared {
    /// Writes all waiting records, on one thread at a time.
    fn drain(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((record, lost)) = self.next() {
            if lost > 0 {
                warn!(
                    lost,
                    "records of tasks were lost: the disk was too slow for them"
                );
            }
            file.write(&record);
        }
    }

    fn next(&self) -> Option<(Record, u64)> {
        let mut queue = self.queue();
        let Some(record) = queue.records.pop_front() else {
            queue.is_draining = false;
            self.drained.notify_all();
            return None;
        };
        Some((record, std::mem::take(&mut queue.lost)))
    }

    fn wait_until_drained(&self) -> Drained {
        let end = Instant::now() + FLUSH_WITHIN;
        let mut queue = self.queue();
        while queue.is_draining {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Drained::NotInTime;
            }
            let waited = self.drained.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Drained::All
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Consistent after every statement.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordFile {
    fn write(&mut self, record: &Record) {
        if matches!(self.state, RecordFileState::Unopened) {
            self.open();
        }
        let RecordFileState::Open(file, last) = &mut self.state else {
            return;
        };
        let path = self.path.display();
        match append(file, *last, record) {
            Ok(()) if *last != LastLine::Whole => {
                info!(file = %path, "records are written again");
                *last = LastLine::Whole;
            }
            Ok(()) => {}
            Err((fared, error)) => {
                if *last == LastLine::Whole {
                    warn!(
                        file = %path, %error,
                        "a task's record can't be written; see to the disk's free space: tasks go on, \
                         their records are lost until then"
                    );
                }
                if *last != LastLine::Torn {
                    *last = fared;
                }
            }
        }
    }

    fn open(&mut self) {
        let opened = File::options().create(true).append(true).open(&self.path);
        self.state = match opened {
            Ok(file) => RecordFileState::Open(file, LastLine::Whole),
            Err(error) => {
                warn!(
                    file = %self.path.display(), %error,
                    "no records of tasks are written; see to EWMS_PILOT_TASK_LOG"
                );
                RecordFileState::Off
            }
        };
    }
}

/// One `write(2)`, so that with `O_APPEND` no other pilot's line comes in between.
fn append(file: &mut File, last: LastLine, record: &Record) -> Result<(), (LastLine, io::Error)> {
    let mut line = Vec::with_capacity(1024);
    if last == LastLine::Torn {
        line.push(b'\n');
    }
    serde_json::to_writer(&mut line, record).map_err(|error| (LastLine::Lost, error.into()))?;
    line.push(b'\n');
    loop {
        match file.write(&line) {
            Ok(written) if written == line.len() => return Ok(()),
            Ok(0) => return Err((LastLine::Lost, io::ErrorKind::WriteZero.into())),
            Ok(_) => return Err((LastLine::Torn, io::ErrorKind::StorageFull.into())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((LastLine::Lost, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{EventOutcome, PilotIdentity, TaskRecord, UnixTime, shorten};

    fn record() -> TaskRecord {
        let mut record = TaskRecord::of(&PilotIdentity {
            pilot_id: "p".to_owned(),
            host: "h".to_owned(),
            site: None,
            resource: None,
        });
        record.task_id = "t".to_owned();
        record.received_unix_secs = UnixTime(1_795_454_006.123);
        record.outcome = EventOutcome::GivenBack;
        record
    }

    fn write(writer: &RecordWriter) {
        writer.write(Record::Task(Box::new(record())));
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records.jsonl");
        let writer = RecordWriter::appending_to(path.clone());
        write(&writer);
        write(&writer);
        drop(writer);
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            let read: TaskRecord = serde_json::from_str(line).expect("a record");
            assert_eq!(read, record());
            assert!(line.contains(r#""format":1,"kind":"task""#), "{line}");
            assert!(line.contains("1795454006.123"), "{line}");
            assert!(line.contains(r#""outcome":"given_back""#), "{line}");
        }
    }

    #[test]
    fn absent_and_unknown_fields_are_no_trouble() {
        let line = r#"{"format":1,"kind":"task","pilot_id":"p","host":"h","new_in_2031":[1]}"#;
        let read: TaskRecord = serde_json::from_str(line).expect("a record");
        assert_eq!(
            (read.wall_time_secs, read.outcome),
            (None, EventOutcome::Unsettled)
        );
    }

    #[test]
    fn many_writers_never_mix_their_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records.jsonl");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let writer = RecordWriter::appending_to(path.clone());
                    (0..500).for_each(|_| write(&writer));
                });
            }
        });
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text.lines().count(), 2000);
        for line in text.lines() {
            serde_json::from_str::<TaskRecord>(line).expect("a whole record");
        }
    }

    fn opened(path: &std::path::Path, last: LastLine) -> RecordFile {
        let file = File::options().append(true).open(path).expect("opened");
        RecordFile {
            path: path.to_owned(),
            state: RecordFileState::Open(file, last),
        }
    }

    #[test]
    fn a_full_disk_ends_nothing() {
        let mut file = opened("/dev/full".as_ref(), LastLine::Whole);
        file.write(&Record::Task(Box::new(record())));
        assert!(matches!(
            file.state,
            RecordFileState::Open(_, LastLine::Lost)
        ));
    }

    #[test]
    fn after_a_torn_line_the_next_stands_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records.jsonl");
        std::fs::write(&path, "{\"torn\":").expect("written");
        opened(&path, LastLine::Torn).write(&Record::Task(Box::new(record())));
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(serde_json::from_str::<TaskRecord>(text.lines().nth(1).expect("a line")).is_ok());
    }

    #[test]
    fn a_disk_that_hangs_holds_up_nobody_who_writes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records.jsonl");
        // Opening a FIFO waits for a reader.
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let writer = RecordWriter::appending_to(path.clone());
        (0..=WAITING_MAX).for_each(|_| write(&writer));
        let reader = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("opened");
        let first = io::BufRead::lines(io::BufReader::new(reader)).next();
        let first = first.expect("a line").expect("it is text");
        assert!(serde_json::from_str::<TaskRecord>(&first).is_ok());
        // Dropping it would only wait for a reader.
        std::mem::forget(writer);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        let cut = shorten(&"ü".repeat(5000));
        assert!(cut.len() <= 4096 && cut.chars().all(|letter| letter == 'ü'));
    }
}
