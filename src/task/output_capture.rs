//! Copies a container's output into a file of limited size, which keeps the beginning and the end, where
//! errors are. It uses a pipe, because truncating a file that a task writes to can't hold a limit against a
//! task that writes faster than we look, and would lose the end. It runs on its own thread, because a disk
//! that hangs must not block the event loop.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use crate::blocking;

/// The size of one read: a pipe's capacity.
const CHUNK: usize = 64 * 1024;
/// The most that is kept of an output's end, in bytes.
const END_MAX: u64 = 1024 * 1024;
/// How long an output may stay open after its container is gone. Only a process that the kernel can't kill
/// holds it then.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// The part of an [`OutputCapture`] that copies, not yet started.
#[derive(Debug)]
pub(super) struct OutputCopying<const N: usize> {
    written: [Arc<AtomicU64>; N],
    finished: oneshot::Sender<[io::Result<()>; N]>,
    limit: u64,
}

/// A container's outputs while they are copied.
#[derive(Debug)]
pub(super) struct OutputCapture<const N: usize> {
    written: [Arc<AtomicU64>; N],
    done: oneshot::Receiver<[io::Result<()>; N]>,
}

/// The bytes that an output had so far, including those not kept.
#[derive(Debug, Clone)]
pub(super) struct BytesWritten(Arc<AtomicU64>);

impl BytesWritten {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<const N: usize> OutputCapture<N> {
    /// For files of which each gets at most about `limit` bytes.
    pub(super) fn new(limit: u64) -> (OutputCopying<N>, Self) {
        let written: [_; N] = std::array::from_fn(|_| Arc::new(AtomicU64::new(0)));
        let (finished, done) = oneshot::channel();
        let copying = OutputCopying {
            written: written.clone(),
            finished,
            limit,
        };
        (copying, Self { written, done })
    }

    pub(super) fn written(&self) -> [BytesWritten; N] {
        self.written
            .each_ref()
            .map(|count| BytesWritten(Arc::clone(count)))
    }

    /// Waits until the files are complete. Call this when the container is gone.
    pub(super) async fn finish(self, names: [&'static str; N]) {
        match timeout(CLOSE_WITHIN, self.done).await {
            Ok(Ok(outcomes)) => {
                for (what, outcome) in names.iter().zip(outcomes) {
                    if let Err(error) = outcome {
                        warn!(what, %error, "a container's output is incomplete; see to the disk's free space");
                    }
                }
            }
            Ok(Err(_)) => warn!("a container's output is incomplete: its thread died"),
            Err(_) => warn!(
                waited_secs = CLOSE_WITHIN.as_secs(),
                "a container's output is still open after the container's end"
            ),
        }
    }
}

impl<const N: usize> OutputCopying<N> {
    /// Starts to copy into `files`. Returns the files that the container writes to.
    ///
    /// # Errors
    /// When the system has no pipe or thread left.
    pub(super) fn start(self, files: [File; N]) -> io::Result<[File; N]> {
        let (mut pipes, mut copies) = (Vec::new(), Vec::new());
        for (file, written) in files.into_iter().zip(self.written) {
            let (from, to) = io::pipe()?;
            pipes.push(File::from(OwnedFd::from(to)));
            copies.push(OutputCopy::new(from, file, self.limit, written));
        }
        let (copies, finished) = (in_place(copies), self.finished);
        blocking::start_long(move || {
            // No receiver is left when the task was dropped.
            let _ = finished.send(run(copies));
        })?;
        Ok(in_place(pipes))
    }
}

fn in_place<T, const N: usize>(items: Vec<T>) -> [T; N] {
    let Ok(items) = items.try_into() else {
        unreachable!("one was made for each place")
    };
    items
}

fn run<const N: usize>(mut copies: [OutputCopy; N]) -> [io::Result<()>; N] {
    let mut chunk = vec![0; CHUNK];
    loop {
        let ready = readable(&copies);
        if ready.is_empty() {
            return copies.map(|copy| copy.outcome);
        }
        for place in ready {
            copies[place].step(&mut chunk);
        }
    }
}

/// Waits until an output has data or has ended, and returns the ready ones; none when all have ended. If
/// poll(2) fails, returns all open ones: read(2) waits as well.
fn readable(copies: &[OutputCopy]) -> Vec<usize> {
    let (mut places, mut pipes) = (Vec::new(), Vec::new());
    for (place, copy) in copies.iter().enumerate() {
        if let Some(from) = &copy.from {
            places.push(place);
            pipes.push(PollFd::new(from.as_fd(), PollFlags::POLLIN));
        }
    }
    if places.len() > 1 && poll(&mut pipes, PollTimeout::NONE).is_ok() {
        let mut ready = pipes.iter().map(|pipe| pipe.any().unwrap_or(true));
        places.retain(|_| ready.next().unwrap_or(true));
    }
    places
}

struct OutputCopy {
    /// `None` after the end.
    from: Option<PipeReader>,
    file: File,
    limit: u64,
    written: Arc<AtomicU64>,
    head_left: u64,
    end: VecDeque<u8>,
    end_max: usize,
    left_out: u64,
    outcome: io::Result<()>,
}

impl OutputCopy {
    fn new(from: PipeReader, file: File, limit: u64, written: Arc<AtomicU64>) -> Self {
        let end_bytes = END_MAX.min(limit / 2);
        Self {
            from: Some(from),
            file,
            limit,
            written,
            head_left: limit - end_bytes,
            end: VecDeque::new(),
            end_max: usize::try_from(end_bytes).unwrap_or(usize::MAX),
            left_out: 0,
            outcome: Ok(()),
        }
    }

    /// Reads once. A file that fails doesn't stop the reading: the task would block on a full pipe.
    fn step(&mut self, chunk: &mut [u8]) {
        let Some(from) = &mut self.from else { return };
        match from.read(chunk) {
            Ok(0) => {
                self.from = None;
                let finished = self.finish();
                if self.outcome.is_ok() {
                    self.outcome = finished;
                }
            }
            Ok(length) => self.take(&chunk[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                self.from = None;
                self.outcome = Err(error);
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.written.fetch_add(length_of(bytes), Ordering::Relaxed);
        let cut = usize::try_from(self.head_left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (head, rest) = bytes.split_at(cut);
        self.head_left -= length_of(head);
        if self.outcome.is_ok() {
            self.outcome = self.file.write_all(head);
        }
        self.end.extend(rest);
        let surplus = self.end.len().saturating_sub(self.end_max);
        self.end.drain(..surplus);
        self.left_out += u64::try_from(surplus).unwrap_or(u64::MAX);
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.left_out > 0 {
            writeln!(
                self.file,
                "\n[ewms-pilot: {} bytes are left out here: EWMS_PILOT_TASK_OUTPUT_MAX is {} bytes]",
                self.left_out, self.limit
            )?;
        }
        self.file.write_all(self.end.make_contiguous())
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file's content after `text` was copied.
    async fn through(text: &[u8], limit: u64) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let (copying, capture) = OutputCapture::new(limit);
        let to = copying.start([file.reopen().expect("opened")]);
        let [mut to] = to.expect("a pipe");
        let [written] = capture.written();
        let text_len = length_of(text);
        let text = text.to_owned();
        let writer = std::thread::spawn(move || to.write_all(&text).expect("it is read"));
        capture.finish(["stdout"]).await;
        writer.join().expect("written");
        assert_eq!(written.bytes(), text_len);
        std::fs::read(file.path()).expect("read")
    }

    #[tokio::test]
    async fn an_output_up_to_the_limit_is_kept_whole() {
        for length in [0, 1, 50, 99, 100] {
            let text: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
            assert_eq!(through(&text, 100).await, text);
        }
    }

    #[tokio::test]
    async fn of_a_longer_one_the_middle_is_left_out_and_said_so() {
        let text: Vec<u8> = (b'a'..=b'z').cycle().take(1_000_000).collect();
        let kept = through(&text, 1000).await;
        assert!(kept.len() < 1200, "{}", kept.len());
        assert_eq!(kept[..500], text[..500]);
        assert_eq!(kept[kept.len() - 500..], text[text.len() - 500..]);
        let kept = String::from_utf8(kept).expect("text");
        assert!(
            kept.contains("\n[ewms-pilot: 999000 bytes are left out here: EWMS_PILOT_TASK_OUTPUT_MAX is 1000 bytes]\n"),
            "{kept}"
        );
    }

    #[tokio::test]
    async fn with_a_limit_of_nothing_only_the_remark_is_kept() {
        assert!(
            String::from_utf8(through(b"x", 0).await)
                .expect("text")
                .contains(": 1 bytes")
        );
    }

    #[tokio::test]
    async fn a_full_disk_lets_the_task_go_on() {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("opened");
        let (copying, capture) = OutputCapture::new(1 << 20);
        let [mut to] = copying.start([full]).expect("a pipe");
        let writer = std::thread::spawn(move || to.write_all(&vec![7; 1 << 22]));
        assert!(writer.join().expect("no panic").is_ok());
        capture.finish(["stdout"]).await;
    }

    #[tokio::test]
    async fn two_outputs_are_kept_apart_and_one_may_end_before_the_other() {
        let files = [(); 2].map(|()| tempfile::NamedTempFile::new().expect("a file"));
        let to = files.each_ref().map(|file| file.reopen().expect("opened"));
        let (copying, capture) = OutputCapture::new(1 << 20);
        let [mut out, mut err] = copying.start(to).expect("pipes");
        out.write_all(b"out").expect("it is read");
        drop(out);
        for _ in 0..100 {
            err.write_all(&[b'e'; 10_000]).expect("it is read");
        }
        drop(err);
        capture.finish(["stdout", "stderr"]).await;
        let kept = files.map(|file| std::fs::read(file.path()).expect("read"));
        assert_eq!(kept[0], b"out");
        assert_eq!(kept[1], vec![b'e'; 1_000_000]);
    }
}
