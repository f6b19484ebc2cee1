//! Stdout or stderr, written by a thread of its own: a reader that is slow, or reads no more, holds up no
//! other thread.
//!
//! Log lines, dumps and the progress line come out in the order in which they were handed in, and none stands
//! inside another. Waiting output is bounded: log lines by [`WAITING_BYTES_MAX`], dumps by
//! [`WAITING_DUMPS_MAX`]; of the progress line only the newest waits.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::OutputStream;
use crate::blocking;

/// The most bytes of log lines that wait. Further lines are left out, and counted.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most dumps that wait, each of which holds a file open. Further ones are left out, and counted.
const WAITING_DUMPS_MAX: usize = 16;
/// [`StreamQueue::flush`] gives up when the reader took nothing for this long,
const STALLED: Duration = Duration::from_secs(5);
/// or after this long in all, since a slow reader may never be done.
const FLUSH_WITHIN: Duration = Duration::from_mins(1);
/// How often [`StreamQueue::flush`] looks whether something was taken.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The most bytes of one write: small, so that a slow reader is seen to take something.
const CHUNK: usize = 16 * 1024;

/// Work for the thread, which hands it the stream.
pub(super) type Job = Box<dyn FnOnce(&mut dyn Write) + Send>;

/// A handle to the thread, which ends with the process.
#[derive(Clone)]
pub(super) struct StreamQueue(Arc<Shared>);

struct Shared {
    stream: OutputStream,
    queue: Mutex<Queue>,
    changed: Condvar,
    last_taken: Mutex<Instant>,
}

struct Queue {
    jobs: VecDeque<(JobLoad, Job)>,
    /// Done when no other job waits; a later one replaces it.
    latest: Option<Job>,
    waiting_bytes: usize,
    waiting_dumps: usize,
    left_out: LeftOut,
    is_busy: bool,
    /// Whether the thread waits for work, and how many callers wait in [`StreamQueue::flush`]: a notification that
    /// nobody waits for costs a system call, too.
    is_waiting: bool,
    flushing: usize,
    /// The stream itself if no thread could be started: the caller writes then.
    in_place: Option<OutputWriter>,
}

type OutputWriter = Box<dyn Write + Send>;

/// How a waiting job counts against the limits.
#[derive(Clone, Copy)]
enum JobLoad {
    LogLine { bytes: usize },
    Dump,
    Nothing,
}

/// Output that was left out since the reader was last told.
#[derive(Default)]
struct LeftOut {
    log_lines: u64,
    dumps: u64,
}

impl StreamQueue {
    pub(super) fn start(stream: OutputStream, sink: OutputWriter) -> Self {
        let queue = Self(Arc::new(Shared {
            stream,
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                latest: None,
                waiting_bytes: 0,
                waiting_dumps: 0,
                left_out: LeftOut::default(),
                is_busy: false,
                is_waiting: false,
                flushing: 0,
                in_place: None,
            }),
            changed: Condvar::new(),
            last_taken: Mutex::new(Instant::now()),
        }));
        let shared = Arc::clone(&queue.0);
        // Shared, to get it back out of the closure if no thread can be started.
        let sink = Arc::new(Mutex::new(Some(sink)));
        let of_thread = Arc::clone(&sink);
        let thread = thread::Builder::new().name(stream.to_string());
        let started = thread.spawn(move || {
            blocking::take_no_signals();
            if let Some(sink) = take(&of_thread) {
                shared.serve(sink);
            }
        });
        if started.is_err() {
            queue.0.lock().in_place = take(&sink);
        }
        queue
    }

    /// Writes a log line, unless too many wait.
    pub(super) fn line(
        &self,
        line: Vec<u8>,
        write: impl FnOnce(&[u8], &mut dyn Write) + Send + 'static,
    ) {
        let bytes = line.len();
        let mut queue = self.0.lock();
        if queue.waiting_bytes.saturating_add(bytes) > WAITING_BYTES_MAX {
            queue.left_out.log_lines += 1;
            return;
        }
        let job = Box::new(move |sink: &mut dyn Write| write(&line, sink));
        self.0.submit(queue, JobLoad::LogLine { bytes }, job);
    }

    /// Writes a dump; its result is sent. `None` if it is left out because too many wait.
    pub(super) fn dump(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Option<oneshot::Receiver<io::Result<()>>> {
        let mut queue = self.0.lock();
        if queue.waiting_dumps >= WAITING_DUMPS_MAX {
            queue.left_out.dumps += 1;
            return None;
        }
        let (done, written) = oneshot::channel();
        let job = Box::new(move |sink: &mut dyn Write| {
            // The caller is gone if this took too long.
            let _late = done.send(write(sink));
        });
        self.0.submit(queue, JobLoad::Dump, job);
        Some(written)
    }

    /// Does other work with the stream. The caller bounds how many such jobs wait.
    pub(super) fn job(&self, job: Job) {
        self.0.submit(self.0.lock(), JobLoad::Nothing, job);
    }

    /// Does the job once nothing else waits, unless a later one replaces it.
    pub(super) fn latest(&self, job: Job) {
        let mut queue = self.0.lock();
        if queue.in_place.is_some() {
            self.0.submit(queue, JobLoad::Nothing, job);
        } else {
            queue.latest = Some(job);
            self.0.wake(queue);
        }
    }

    /// Blocks until all that was handed in is written, or the stream takes no more. `began` is when the caller
    /// began to wait, for this stream or one before.
    pub(super) fn flush(&self, began: Instant) {
        let mut queue = self.0.lock();
        queue.flushing += 1;
        while queue.is_busy || !queue.jobs.is_empty() || queue.latest.is_some() {
            let last_taken = *self.0.last_taken();
            let stalled = last_taken.max(began).elapsed() >= STALLED;
            if stalled || began.elapsed() >= FLUSH_WITHIN {
                break;
            }
            let waited = self.0.changed.wait_timeout(queue, LOOK_AGAIN);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.flushing -= 1;
    }
}

fn take(sink: &Mutex<Option<OutputWriter>>) -> Option<OutputWriter> {
    sink.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl fmt::Debug for StreamQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamQueue").finish_non_exhaustive()
    }
}

impl Shared {
    fn submit(&self, mut queue: MutexGuard<'_, Queue>, load: JobLoad, job: Job) {
        if let Some(sink) = &mut queue.in_place {
            job(&mut **sink);
            return;
        }
        match load {
            JobLoad::LogLine { bytes } => queue.waiting_bytes += bytes,
            JobLoad::Dump => queue.waiting_dumps += 1,
            JobLoad::Nothing => {}
        }
        queue.jobs.push_back((load, job));
        self.wake(queue);
    }

    /// Wakes the thread, unless it is at work or was woken already.
    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        let is_waiting = std::mem::take(&mut queue.is_waiting);
        drop(queue);
        if is_waiting {
            self.changed.notify_all();
        }
    }

    fn serve(&self, sink: OutputWriter) {
        let mut sink = Watched { sink, shared: self };
        loop {
            let (job, left_out) = self.next();
            // If the stream is gone, there is no reader to tell.
            let _ = left_out.tell(self.stream, &mut sink);
            // A panic ends only the job; the panic hook has reported where.
            let _told = catch_unwind(AssertUnwindSafe(|| job(&mut sink)));
        }
    }

    /// The next job, and the losses to tell the reader before it.
    fn next(&self) -> (Job, LeftOut) {
        let mut queue = self.lock();
        queue.is_busy = false;
        loop {
            if let Some(job) = queue.take_job() {
                queue.is_busy = true;
                return (job, std::mem::take(&mut queue.left_out));
            }
            if queue.flushing > 0 {
                self.changed.notify_all();
            }
            queue.is_waiting = true;
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Consistent after every statement.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_taken(&self) -> MutexGuard<'_, Instant> {
        self.last_taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take_job(&mut self) -> Option<Job> {
        let Some((load, job)) = self.jobs.pop_front() else {
            return self.latest.take();
        };
        match load {
            JobLoad::LogLine { bytes } => self.waiting_bytes -= bytes,
            JobLoad::Dump => self.waiting_dumps -= 1,
            JobLoad::Nothing => {}
        }
        Some(job)
    }
}

impl LeftOut {
    fn tell(&self, stream: OutputStream, sink: &mut dyn Write) -> io::Result<()> {
        let counts = [
            (self.log_lines, "log lines"),
            (self.dumps, "outputs of containers"),
        ];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            writeln!(
                sink,
                "{count} {what} are left out here: {stream} was not read in time"
            )?;
        }
        Ok(())
    }
}

/// A stream that notes when its reader takes something.
struct Watched<'a> {
    sink: OutputWriter,
    shared: &'a Shared,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(&bytes[..bytes.len().min(CHUNK)])?;
        *self.shared.last_taken() = Instant::now();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};

    use super::*;

    fn line(queue: &StreamQueue, text: String) {
        queue.line(text.into_bytes(), |text, sink| {
            let _gone = sink.write_all(text);
        });
    }

    fn piped() -> (PipeReader, StreamQueue) {
        let (reader, writer) = io::pipe().expect("a pipe");
        (
            reader,
            StreamQueue::start(OutputStream::Stderr, Box::new(writer)),
        )
    }

    #[test]
    fn what_is_handed_in_comes_out_in_order_and_is_there_after_a_flush() {
        let (mut reader, queue) = piped();
        for number in 0..100 {
            line(&queue, format!("{number}\n"));
        }
        queue.flush(Instant::now());
        let mut text = vec![0; 290];
        reader.read_exact(&mut text).expect("all is there");
        let text = String::from_utf8(text).expect("text");
        let numbers = text
            .lines()
            .map(|line| line.parse::<u32>().expect("a number"));
        assert!(numbers.eq(0..100), "{text}");
    }

    #[test]
    fn a_reader_that_reads_nothing_holds_up_nobody_and_is_told_what_it_missed() {
        let (mut reader, queue) = piped();
        let long = "x".repeat(1023) + "\n";
        // All at once: more than a pipe and the queue hold.
        for _ in 0..8 * 1024 {
            line(&queue, long.clone());
        }
        let mut text = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        while !String::from_utf8_lossy(&text).contains("log lines are left out here") {
            // Lines after those that were lost.
            line(&queue, "after\n".to_owned());
            let length = reader.read(&mut chunk).expect("it is written to");
            assert!(length > 0);
            text.extend_from_slice(&chunk[..length]);
        }
        assert!(text.len() < 6 * 1024 * 1024, "{}", text.len());
    }

    #[test]
    fn of_things_that_are_shown_only_the_latest_is() {
        let (mut reader, queue) = piped();
        let (go, going) = std::sync::mpsc::channel::<()>();
        queue.job(Box::new(move |_| {
            let _gone = going.recv();
        }));
        for number in 0..9 {
            queue.latest(Box::new(move |sink| {
                let _gone = write!(sink, "{number}");
            }));
        }
        drop(go);
        queue.flush(Instant::now());
        let mut text = [0; 1];
        reader.read_exact(&mut text).expect("there");
        assert_eq!(text, *b"8");
    }

    #[test]
    fn dumps_that_a_reader_leaves_waiting_are_bounded_and_counted() {
        let (mut reader, queue) = piped();
        // The first is being written, since a pipe doesn't hold it; as many as may wait; two too many.
        let dump = |byte: u8| {
            let bytes = vec![byte; 200_000];
            queue.dump(move |sink| sink.write_all(&bytes))
        };
        let mut first = vec![0; 1];
        assert!(dump(b'1').is_some());
        reader.read_exact(&mut first).expect("it is written");
        for _ in 0..WAITING_DUMPS_MAX {
            assert!(dump(b'2').is_some());
        }
        assert!(dump(b'3').is_none() && dump(b'3').is_none());
        let told = "2 outputs of containers are left out here: stderr was not read in time";
        let bytes = (1 + WAITING_DUMPS_MAX) * 200_000 - first.len() + told.len() + 1;
        let mut all = vec![0; bytes];
        reader.read_exact(&mut all).expect("it is written");
        let text = String::from_utf8(all).expect("text");
        assert_eq!(
            text.lines().next().map(|line| line.ends_with(told)),
            Some(true)
        );
        assert!(!text.contains('3'), "{}", text.len());
    }

    #[test]
    fn a_flush_of_two_streams_that_nobody_reads_has_one_deadline() {
        let ((_unread_1, first), (_unread_2, second)) = (piped(), piped());
        for queue in [&first, &second] {
            line(queue, "x".repeat(1_000_000));
        }
        let began = Instant::now();
        first.flush(began);
        second.flush(began);
        let waited = began.elapsed();
        assert!(
            waited >= STALLED && waited < STALLED + STALLED / 2,
            "{waited:?}"
        );
    }
}
