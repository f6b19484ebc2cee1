//! Output for a person while the pilot runs: log lines on stderr and, on a terminal, one line of progress
//! below them; copies of what containers wrote, on stdout and stderr.

use std::fmt::{self, Display};
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, LogLevels};
use json_lines::JsonLines;
use stream_queue::StreamQueue;

mod json_lines;
mod stream_queue;

/// The target of the pilot's own log lines: the crate's name.
const OWN_TARGET: &str = "ewms_pilot";

/// The target of lines that a person on a terminal doesn't need: tables and histograms at the end.
pub const DETAILS: &str = "ewms_pilot::details";

/// The reader of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogAudience {
    /// A person on a terminal: no date, no module path, no [`DETAILS`].
    Person,
    /// A file of a job.
    File,
    /// A program that takes one JSON object a line.
    Collector,
}

/// How often the progress line is drawn anew, so that its clock moves.
const TICK: Duration = Duration::from_secs(1);

/// The log and the progress line. Dropping it waits until everything is written, for as long as stderr and
/// stdout take something.
#[derive(Debug)]
pub struct Telemetry {
    pub progress: Progress,
    pub audience: LogAudience,
}

impl Telemetry {
    /// Writes a line that is no log line; for a collector, an object all the same.
    pub fn say(&self, text: &impl Display) {
        if self.audience == LogAudience::Collector {
            tracing::error!("{text}");
            return;
        }
        let line = format!("{text}\n").into_bytes();
        self.progress.write_line(line);
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let began = Instant::now();
        self.progress.stderr.flush(began);
        if let Some(stdout) = &self.progress.stdout {
            stdout.flush(began);
        }
    }
}

/// One of the two streams that the pilot, and every container, writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

impl Display for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// Stdout without the lock and buffer of [`io::stdout`], which the process would flush at its end, for as
/// long as that takes.
#[derive(Debug)]
struct UnbufferedStdout;

impl Write for UnbufferedStdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether stdout and stderr are the same terminal, pipe or file: then a dump in one must not come between
/// log lines of the other. Compares the kernel's names for them, which asks no disk that may hang.
fn are_streams_one() -> bool {
    let [stdout, stderr] = ["/proc/self/fd/1", "/proc/self/fd/2"].map(fs::read_link);
    matches!((stdout, stderr), (Ok(stdout), Ok(stderr)) if stdout == stderr)
}

/// Sends log lines to stderr: UTC time, level, spans, target, text; on a terminal level, spans and text. Colours
/// only on a terminal, and not when `NO_COLOR` is set. A second call leaves the first one's set-up as it is.
#[must_use]
pub fn init(levels: LogLevels, format: LogFormat) -> Telemetry {
    let audience = match format {
        LogFormat::Json => LogAudience::Collector,
        LogFormat::Text if io::stderr().is_terminal() => LogAudience::Person,
        LogFormat::Text => LogAudience::File,
    };
    let stderr = StreamQueue::start(OutputStream::Stderr, Box::new(io::stderr()));
    let stdout = (!are_streams_one())
        .then(|| StreamQueue::start(OutputStream::Stdout, Box::new(UnbufferedStdout)));
    let progress = match audience {
        LogAudience::Person => Progress::with_line(stderr, stdout, ProgressDrawTarget::stderr()),
        LogAudience::File => Progress::without_line(stderr, stdout),
        LogAudience::Collector => Progress {
            stderr_format: LogFormat::Json,
            ..Progress::without_line(stderr, stdout)
        },
    };
    let lines = layer().with_writer(Lines {
        progress: progress.clone(),
    });
    let lines = match audience {
        // The layer looks at NO_COLOR itself.
        LogAudience::Person => lines.without_time().with_target(false).boxed(),
        LogAudience::File => lines.with_ansi(false).boxed(),
        LogAudience::Collector => lines
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    };
    // Fails when a subscriber is set already, which then goes on.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter(levels, audience)))
        .try_init();
    Telemetry { progress, audience }
}

fn filter(levels: LogLevels, audience: LogAudience) -> Targets {
    let filter = Targets::new()
        .with_default(levels.third_party)
        .with_target(OWN_TARGET, levels.own);
    match audience {
        LogAudience::Person => filter.with_target(DETAILS, LevelFilter::OFF),
        LogAudience::File | LogAudience::Collector => filter,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgressCounts {
    pub done: u64,
    pub running: u64,
    pub failed: u64,
    /// Events that wait for a slot.
    pub waiting: u64,
}

/// The progress line, and the streams around it. Where stderr is no terminal there is no line, and every call
/// about it returns at once.
#[derive(Debug, Clone)]
pub struct Progress {
    stderr: StreamQueue,
    /// `None` if it is the same as stderr.
    stdout: Option<StreamQueue>,
    line: Option<Arc<Line>>,
    stderr_format: LogFormat,
}

/// A task waits this long for its dump; then the dump goes on by itself.
const DUMP_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Line {
    bar: ProgressBar,
    /// Set with the first counts; before them no line is shown.
    since: OnceLock<Instant>,
}

impl Progress {
    fn without_line(stderr: StreamQueue, stdout: Option<StreamQueue>) -> Self {
        Self {
            stderr,
            stdout,
            line: None,
            stderr_format: LogFormat::Text,
        }
    }

    fn with_line(
        stderr: StreamQueue,
        stdout: Option<StreamQueue>,
        target: ProgressDrawTarget,
    ) -> Self {
        let bar = ProgressBar::with_draw_target(None, target);
        // Cut at the terminal's width: a line that wraps can't be erased.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        Self {
            line: Some(Arc::new(Line {
                bar,
                since: OnceLock::new(),
            })),
            ..Self::without_line(stderr, stdout)
        }
    }

    /// One whose streams nobody sees, for containers whose output is kept in files.
    #[must_use]
    pub fn unseen() -> Self {
        let stream = |stream| StreamQueue::start(stream, Box::new(io::sink()));
        Self::without_line(stream(OutputStream::Stderr), None)
    }

    /// Shows a text in the line, until the first counts.
    pub fn show(&self, text: &'static str) {
        if let Some(line) = &self.line {
            let line = Arc::clone(line);
            self.stderr.latest(Box::new(move |_| {
                if line.since.get().is_none() {
                    line.bar.set_message(text);
                    line.bar.tick();
                }
            }));
        }
    }

    /// Shows these counts in the line, soon.
    pub fn update(&self, counts: ProgressCounts) {
        if let Some(line) = &self.line {
            let line = Arc::clone(line);
            self.stderr.latest(Box::new(move |_| line.show(counts)));
        }
    }

    /// Erases the line. Call this before the last log lines.
    pub fn finish(&self) {
        if let Some(line) = &self.line {
            let line = Arc::clone(line);
            self.stderr
                .job(Box::new(move |_| line.bar.finish_and_clear()));
        }
    }

    /// Writes to a stream without a log line in between, and erases the progress line meanwhile if both may
    /// be on the same terminal. Returns when that is done, or after ten seconds, while the write goes on.
    ///
    /// # Errors
    /// Returns the error of `write`, or that the stream takes too little.
    pub async fn dump(
        &self,
        stream: OutputStream,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let too_slow = |what: &str| io::Error::new(io::ErrorKind::TimedOut, what.to_owned());
        let (queue, line) = match (stream, &self.stdout) {
            // A line that waits for stdout would hold up stderr.
            (OutputStream::Stdout, Some(stdout)) => (stdout, None),
            _ => (&self.stderr, self.line.clone()),
        };
        let is_apart = stream == OutputStream::Stdout && self.stdout.is_some();
        let format = if is_apart {
            LogFormat::Text
        } else {
            self.stderr_format
        };
        let write = move |sink: &mut dyn Write| match format {
            LogFormat::Text => write(sink),
            LogFormat::Json => {
                let mut lines = JsonLines::new(sink);
                write(&mut lines)?;
                lines.finish()
            }
        };
        let written = queue.dump(move |sink| out_of_the_way(line.as_deref(), || write(sink)));
        let Some(written) = written else {
            return Err(too_slow("the stream is not read, and it is left out"));
        };
        match timeout(DUMP_WITHIN, written).await {
            Ok(Ok(result)) => result,
            Ok(Err(_panicked)) => Err(io::ErrorKind::Other.into()),
            Err(_) => Err(too_slow(
                "the stream is not read, and it waits for a reader until the pilot ends",
            )),
        }
    }

    /// Never fails: a pilot whose stderr is closed, or on a full disk, still has its tasks to end.
    fn write_line(&self, line: Vec<u8>) {
        let progress_line = self.line.clone();
        self.stderr.line(line, move |text, sink| {
            out_of_the_way(progress_line.as_deref(), || {
                let _ = sink.write_all(text);
            });
        });
    }
}

fn out_of_the_way<T>(line: Option<&Line>, write: impl FnOnce() -> T) -> T {
    match line {
        Some(line) => line.bar.suspend(write),
        None => write(),
    }
}

impl Line {
    fn show(&self, counts: ProgressCounts) {
        let since = self.since.get_or_init(|| {
            self.bar.reset_elapsed();
            keep_ticking(self.bar.downgrade());
            Instant::now()
        });
        self.bar.set_message(message(counts, since.elapsed()));
    }
}

/// Draws the line on a thread of its own. Where no thread can be started, the clock moves when the counts do;
/// the library's own ticker would panic.
fn keep_ticking(line: WeakProgressBar) {
    let ticking = move || {
        while let Some(bar) = line.upgrade().filter(|bar| !bar.is_finished()) {
            bar.tick();
            drop(bar);
            thread::sleep(TICK);
        }
    };
    let started = thread::Builder::new()
        .name("progress".into())
        .spawn(ticking);
    if let Err(error) = started {
        tracing::debug!(%error, "no thread for the progress line");
    }
}

fn message(counts: ProgressCounts, elapsed: Duration) -> String {
    let ProgressCounts {
        done,
        running,
        failed,
        waiting,
    } = counts;
    format!(
        "{done} done, {running} running, {failed} failed, {waiting} waiting, {}",
        rate(done, elapsed)
    )
}

/// Events a second, or a minute when they are slow.
fn rate(done: u64, elapsed: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let per_second = if elapsed.is_zero() {
        0.0
    } else {
        done as f64 / elapsed.as_secs_f64()
    };
    if per_second >= 1.0 {
        format!("{per_second:.1}/s")
    } else {
        format!("{:.1}/min", per_second * 60.0)
    }
}

/// Writes log lines to stderr, with the progress line erased meanwhile.
#[derive(Debug)]
struct Lines {
    progress: Progress,
}

/// Takes one log line, which the subscriber writes at once and whole.
#[derive(Debug)]
struct LineWriter<'a> {
    progress: &'a Progress,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter {
            progress: &self.progress,
        }
    }
}

impl Write for LineWriter<'_> {
    /// Never fails: the subscriber would answer an error by a panic.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.progress.write_line(text.to_owned());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;
    use tracing::Level;

    use super::*;

    fn unread() -> StreamQueue {
        StreamQueue::start(OutputStream::Stderr, Box::new(io::sink()))
    }

    fn with_line(terminal: &InMemoryTerm) -> Progress {
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        Progress::with_line(unread(), None, target)
    }

    #[test]
    fn own_and_third_party_lines_have_levels_of_their_own() {
        let levels = LogLevels {
            own: LevelFilter::DEBUG,
            third_party: LevelFilter::WARN,
        };
        let on_terminal = filter(levels, LogAudience::Person);
        assert!(on_terminal.would_enable("ewms_pilot::broker", &Level::INFO));
        assert!(!on_terminal.would_enable(DETAILS, &Level::ERROR));
        let filter = filter(levels, LogAudience::File);
        assert!(filter.would_enable(DETAILS, &Level::INFO));
        assert!(filter.would_enable("ewms_pilot::broker", &Level::DEBUG));
        assert!(!filter.would_enable("ewms_pilot::broker", &Level::TRACE));
        assert!(filter.would_enable("amqprs::api", &Level::WARN));
        assert!(!filter.would_enable("amqprs::api", &Level::INFO));
    }

    #[test]
    fn the_rate_has_a_unit_that_suits_it() {
        assert_eq!(rate(0, Duration::ZERO), "0.0/min");
        assert_eq!(rate(3, Duration::from_mins(1)), "3.0/min");
        assert_eq!(rate(300, Duration::from_mins(1)), "5.0/s");
    }

    #[test]
    fn the_line_shows_the_counts_and_goes() {
        let terminal = InMemoryTerm::new(5, 79);
        let progress = with_line(&terminal);
        assert_eq!(
            terminal.contents(),
            "",
            "nothing is there before the first counts"
        );
        progress.update(ProgressCounts {
            done: 12,
            running: 4,
            failed: 1,
            waiting: 2,
        });
        progress.stderr.flush(Instant::now());
        let shown = terminal.contents();
        assert!(
            shown.contains("12 done, 4 running, 1 failed, 2 waiting, "),
            "{shown}"
        );
        assert_eq!(shown.lines().count(), 1, "{shown}");
        progress.finish();
        progress.stderr.flush(Instant::now());
        assert_eq!(terminal.contents(), "");
    }

    #[test]
    fn a_narrow_terminal_still_has_one_line() {
        let terminal = InMemoryTerm::new(5, 30);
        let progress = with_line(&terminal);
        progress.update(ProgressCounts {
            done: 12_000_000,
            running: 4,
            failed: 1_000_000,
            waiting: 2,
        });
        progress.stderr.flush(Instant::now());
        let shown = terminal.contents();
        assert_eq!(shown.lines().count(), 1, "{shown}");
        progress.finish();
    }

    #[test]
    fn without_a_terminal_there_is_nothing_to_update() {
        let progress = Progress::without_line(unread(), None);
        progress.update(ProgressCounts::default());
        progress.finish();
        assert!(progress.line.is_none());
    }
}
