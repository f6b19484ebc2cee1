//! Stderr, written by a thread of its own: a reader that is slow, or reads no more, holds up no other thread.
//!
//! Log lines, dumps and the progress line come out in the order in which they were handed in, and none
//! stands inside another. What a reader leaves waiting is bounded: log lines by [`WAITING_BYTES_MAX`], dumps
//! by the tasks that wait for them, the progress line by its being replaced.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Of log lines that wait. Those that come then are left out, and counted.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// [`StderrQueue::flush`] gives up when nothing was taken for so long,
const STALLED: Duration = Duration::from_secs(5);
/// or after so long in all: a reader may be slow without an end.
const FLUSH_WITHIN: Duration = Duration::from_mins(1);
/// How often it looks whether something was taken.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What is written at once, so that a slow reader is seen to take something.
const CHUNK: usize = 16 * 1024;

/// What is done on the thread, with what it writes to.
pub(super) type Job = Box<dyn FnOnce(&mut dyn Write) + Send>;

/// A handle to the thread, which ends with the process.
#[derive(Clone)]
pub(super) struct StderrQueue(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    taken_bytes: AtomicU64,
}

struct Queue {
    jobs: VecDeque<(usize, Job)>,
    /// Done when no other waits; a later one takes its place.
    latest: Option<Job>,
    waiting_bytes: usize,
    lost_lines: u64,
    is_busy: bool,
    /// Stderr itself where there can be no thread: the caller writes then.
    in_place: Option<StderrSink>,
}

type StderrSink = Box<dyn Write + Send>;

impl StderrQueue {
    pub(super) fn start(sink: StderrSink) -> Self {
        let queue = Self(Arc::new(Shared {
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                latest: None,
                waiting_bytes: 0,
                lost_lines: 0,
                is_busy: false,
                in_place: None,
            }),
            changed: Condvar::new(),
            taken_bytes: AtomicU64::new(0),
        }));
        let shared = Arc::clone(&queue.0);
        // Out of the closure again if there is no thread for it.
        let sink = Arc::new(Mutex::new(Some(sink)));
        let of_thread = Arc::clone(&sink);
        let started = thread::Builder::new().name("stderr".into()).spawn(move || {
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
            queue.lost_lines += 1;
            return;
        }
        self.0
            .submit(queue, bytes, Box::new(move |sink| write(&line, sink)));
    }

    /// Does something else with stderr. The caller bounds how much of it waits.
    pub(super) fn job(&self, job: Job) {
        self.0.submit(self.0.lock(), 0, job);
    }

    /// Does it once nothing waits, unless a later one comes before.
    pub(super) fn latest(&self, job: Job) {
        let mut queue = self.0.lock();
        if queue.in_place.is_some() {
            self.0.submit(queue, 0, job);
        } else {
            queue.latest = Some(job);
            self.0.changed.notify_all();
        }
    }

    /// Blocks until all that was handed in is written, or stderr takes no more.
    pub(super) fn flush(&self) {
        let end = Instant::now() + FLUSH_WITHIN;
        let mut taken = (self.0.taken_bytes.load(Ordering::Relaxed), Instant::now());
        let mut queue = self.0.lock();
        while queue.is_busy || !queue.jobs.is_empty() || queue.latest.is_some() {
            let now = self.0.taken_bytes.load(Ordering::Relaxed);
            if now != taken.0 {
                taken = (now, Instant::now());
            }
            if taken.1.elapsed() >= STALLED || Instant::now() >= end {
                return;
            }
            let waited = self.0.changed.wait_timeout(queue, LOOK_AGAIN);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn take(sink: &Mutex<Option<StderrSink>>) -> Option<StderrSink> {
    sink.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl fmt::Debug for StderrQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StderrQueue").finish_non_exhaustive()
    }
}

impl Shared {
    fn submit(&self, mut queue: MutexGuard<'_, Queue>, bytes: usize, job: Job) {
        if let Some(sink) = &mut queue.in_place {
            job(&mut **sink);
            return;
        }
        queue.waiting_bytes += bytes;
        queue.jobs.push_back((bytes, job));
        drop(queue);
        self.changed.notify_all();
    }

    fn serve(&self, sink: StderrSink) {
        let mut sink = Counted {
            sink,
            taken_bytes: &self.taken_bytes,
        };
        loop {
            let (job, lost_lines) = self.next();
            if lost_lines > 0 {
                // Nobody is left to be told when stderr is gone.
                let _ = writeln!(
                    sink,
                    "{lost_lines} log lines are left out here: stderr was not read in time"
                );
            }
            // A panic ends the job alone; the hook has told where.
            let _told = catch_unwind(AssertUnwindSafe(|| job(&mut sink)));
        }
    }

    fn next(&self) -> (Job, u64) {
        let mut queue = self.lock();
        queue.is_busy = false;
        loop {
            let job = match queue.jobs.pop_front() {
                Some((bytes, job)) => {
                    queue.waiting_bytes -= bytes;
                    Some(job)
                }
                None => queue.latest.take(),
            };
            if let Some(job) = job {
                queue.is_busy = true;
                return (job, std::mem::take(&mut queue.lost_lines));
            }
            self.changed.notify_all();
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Whole after every statement.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts what its reader takes.
struct Counted<'a> {
    sink: StderrSink,
    taken_bytes: &'a AtomicU64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(&bytes[..bytes.len().min(CHUNK)])?;
        let count = u64::try_from(written).unwrap_or(u64::MAX);
        self.taken_bytes.fetch_add(count, Ordering::Relaxed);
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

    fn line(queue: &StderrQueue, text: String) {
        queue.line(text.into_bytes(), |text, sink| {
            let _gone = sink.write_all(text);
        });
    }

    fn piped() -> (PipeReader, StderrQueue) {
        let (reader, writer) = io::pipe().expect("a pipe");
        (reader, StderrQueue::start(Box::new(writer)))
    }

    #[test]
    fn what_is_handed_in_comes_out_in_order_and_is_there_after_a_flush() {
        let (mut reader, queue) = piped();
        for number in 0..100 {
            line(&queue, format!("{number}\n"));
        }
        queue.flush();
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
            // Whatever comes after those that were lost.
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
        queue.flush();
        let mut text = [0; 1];
        reader.read_exact(&mut text).expect("there");
        assert_eq!(text, *b"8");
    }
}
