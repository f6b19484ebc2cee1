//! Gets records on disk. Talks to one file; whatever happens to it, the pilot's events come first.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use tracing::{info, warn};

use super::Record;

/// Appends records to a file that others may append to as well.
#[derive(Debug)]
pub struct RecordWriter(Option<Open>);

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    state: WriterState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriterState {
    Well,
    Lost,
    Torn,
}

impl RecordWriter {
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Appends to `path`, which is made if need be.
    ///
    /// # Errors
    /// When it can't be opened for writing.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(&path)?;
        Ok(Self(Some(Open {
            path,
            file,
            state: WriterState::Well,
        })))
    }

    /// Appends one line. What can't be written is lost and said once: an event is worth more than its
    /// record.
    pub fn write(&mut self, record: &Record) {
        let Some(open) = &mut self.0 else { return };
        match open.append(record) {
            Ok(()) if open.state != WriterState::Well => {
                info!(file = %open.path.display(), "records are written again");
                open.state = WriterState::Well;
            }
            Ok(()) => {}
            Err((state, error)) => {
                if open.state == WriterState::Well {
                    warn!(
                        file = %open.path.display(), %error,
                        "a task's record can't be written; see to the disk's free space: tasks go on, \
                         their records are lost until then"
                    );
                }
                if open.state != WriterState::Torn {
                    open.state = state;
                }
            }
        }
    }
}

impl Open {
    /// One `write(2)`: with `O_APPEND` no other pilot's line comes between.
    fn append(&mut self, record: &Record) -> Result<(), (WriterState, io::Error)> {
        let mut line = Vec::with_capacity(1024);
        if self.state == WriterState::Torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, record)
            .map_err(|error| (WriterState::Lost, error.into()))?;
        line.push(b'\n');
        loop {
            match self.file.write(&line) {
                Ok(written) if written == line.len() => return Ok(()),
                Ok(0) => return Err((WriterState::Lost, io::ErrorKind::WriteZero.into())),
                Ok(_) => return Err((WriterState::Torn, io::ErrorKind::StorageFull.into())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((WriterState::Lost, error)),
            }
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
        });
        record.task_id = "t".to_owned();
        record.received_unix_secs = UnixTime(1_795_454_006.123);
        record.outcome = EventOutcome::GivenBack;
        record
    }

    fn write(writer: &mut RecordWriter) {
        writer.write(&Record::Task(Box::new(record())));
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records.jsonl");
        let mut writer = RecordWriter::open(path.clone()).expect("opened");
        write(&mut writer);
        write(&mut writer);
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
                    let mut writer = RecordWriter::open(path.clone()).expect("opened");
                    (0..500).for_each(|_| write(&mut writer));
                });
            }
        });
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text.lines().count(), 2000);
        for line in text.lines() {
            serde_json::from_str::<TaskRecord>(line).expect("a whole record");
        }
    }

    #[test]
    fn a_full_disk_ends_nothing() {
        let mut writer = RecordWriter::open("/dev/full".into()).expect("opened");
        write(&mut writer);
        write(&mut writer);
        assert_eq!(writer.0.expect("open").state, WriterState::Lost);
    }

    #[test]
    fn after_a_torn_line_the_next_stands_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records.jsonl");
        std::fs::write(&path, "{\"torn\":").expect("written");
        let mut writer = RecordWriter::open(path.clone()).expect("opened");
        writer.0.as_mut().expect("open").state = WriterState::Torn;
        write(&mut writer);
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(serde_json::from_str::<TaskRecord>(text.lines().nth(1).expect("a line")).is_ok());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        let cut = shorten(&"ü".repeat(5000));
        assert!(cut.len() <= 4096 && cut.chars().all(|letter| letter == 'ü'));
    }
}
