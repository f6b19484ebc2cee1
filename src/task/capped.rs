//! A container's output on its way into a file, of which only so much is kept: the beginning, and the
//! end, where errors are. Through a pipe, because a file that is cut while a task writes into it holds
//! no limit against a task that writes faster than we look, and would lose the end. A thread for each,
//! because a disk that hangs must not hold up the pilot's loop.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

/// What is read at once: a pipe's size.
const CHUNK: usize = 64 * 1024;
/// Of what is kept, this much at most is the end.
const END_MAX: u64 = 1024 * 1024;
/// How long an output may stay open after all of its container is gone: nothing can hold it then but
/// what the kernel doesn't let go.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// An output that is being copied.
#[derive(Debug)]
pub(super) struct Capped {
    written: Arc<AtomicU64>,
    done: oneshot::Receiver<io::Result<()>>,
}

/// How many bytes an output had so far, what isn't kept included.
#[derive(Debug, Clone)]
pub(super) struct Written(Arc<AtomicU64>);

impl Written {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Capped {
    /// Starts to copy into `file`, of which at most about `limit` bytes are made; returns what the
    /// container is to write to.
    ///
    /// # Errors
    /// When the system has no pipe or thread left.
    pub(super) fn start(file: File, limit: u64) -> io::Result<(File, Self)> {
        let (from, to) = io::pipe()?;
        let written = Arc::new(AtomicU64::new(0));
        let (finished, done) = oneshot::channel();
        let copy = Copy {
            from,
            file,
            limit,
            written: Arc::clone(&written),
        };
        std::thread::Builder::new()
            .name("output".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                // Nobody waits any more when the task was dropped.
                let _ = finished.send(copy.run());
            })?;
        Ok((File::from(OwnedFd::from(to)), Self { written, done }))
    }

    pub(super) fn written(&self) -> Written {
        Written(Arc::clone(&self.written))
    }

    /// Waits until all that was written is in the file; to be called when the container is gone.
    pub(super) async fn finish(self, what: &'static str) {
        match timeout(CLOSE_WITHIN, self.done).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                warn!(what, %error, "a container's output is incomplete; see to the disk's free space");
            }
            Ok(Err(_)) => warn!(what, "a container's output is incomplete: its thread died"),
            Err(_) => warn!(what, "a container's output stays open after its end"),
        }
    }
}

struct Copy {
    from: PipeReader,
    file: File,
    limit: u64,
    written: Arc<AtomicU64>,
}

impl Copy {
    /// Reads to the end whatever happens to the file: a task that waits for us would never end.
    fn run(mut self) -> io::Result<()> {
        let end_bytes = END_MAX.min(self.limit / 2);
        let mut head_left = self.limit - end_bytes;
        let end_max = usize::try_from(end_bytes).unwrap_or(usize::MAX);
        let mut end: VecDeque<u8> = VecDeque::new();
        let mut left_out = 0_u64;
        let mut outcome = Ok(());
        let mut chunk = vec![0; CHUNK];
        loop {
            let bytes = match self.from.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => &chunk[..length],
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.written.fetch_add(length_of(bytes), Ordering::Relaxed);
            let cut = usize::try_from(head_left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (head, rest) = bytes.split_at(cut);
            head_left -= length_of(head);
            if outcome.is_ok() {
                outcome = self.file.write_all(head);
            }
            end.extend(rest);
            let surplus = end.len().saturating_sub(end_max);
            end.drain(..surplus);
            left_out += u64::try_from(surplus).unwrap_or(u64::MAX);
        }
        outcome?;
        if left_out > 0 {
            writeln!(
                self.file,
                "\n[ewms-pilot: {left_out} bytes are left out here: EWMS_PILOT_TASK_OUTPUT_MAX is {} bytes]",
                self.limit
            )?;
        }
        self.file.write_all(end.make_contiguous())
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the file after `text` went through.
    async fn through(text: &[u8], limit: u64) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let (mut to, capped) =
            Capped::start(file.reopen().expect("opened"), limit).expect("a pipe");
        let written = capped.written();
        let text_len = length_of(text);
        let text = text.to_owned();
        let writer = std::thread::spawn(move || to.write_all(&text).expect("it is read"));
        capped.finish("stdout").await;
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
        let (mut to, capped) = Capped::start(full, 1 << 20).expect("a pipe");
        let writer = std::thread::spawn(move || to.write_all(&vec![7; 1 << 22]));
        assert!(writer.join().expect("no panic").is_ok());
        capped.finish("stdout").await;
    }
}
