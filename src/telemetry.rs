//! What a person sees while the pilot runs: log lines on stderr and, on a terminal, one line of progress
//! below them.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogLevels;
use stderr_queue::StderrQueue;

mod stderr_queue;

/// The target of the pilot's own log lines: the crate's name.
const OWN_TARGET: &str = "ewms_pilot";

/// How often the progress line is drawn anew, so that its clock moves.
const TICK: Duration = Duration::from_secs(1);

/// The log and the progress line. Dropped, it waits until all is written, for as long as stderr takes something.
#[derive(Debug)]
pub struct Telemetry {
    pub progress: Progress,
}

impl Telemetry {
    /// Writes a line that is no log line.
    pub fn say(&self, text: &impl Display) {
        let line = format!("{text}\n").into_bytes();
        self.progress.write_line(line);
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.progress.queue.flush();
    }
}

/// Sends log lines to stderr: UTC time, level, spans, target, text. Colours only on a terminal, and
/// not when `NO_COLOR` is set. A second call leaves the first one's set-up as it is.
#[must_use]
pub fn init(levels: LogLevels) -> Telemetry {
    let queue = StderrQueue::start(Box::new(io::stderr()));
    let progress = if io::stderr().is_terminal() {
        Progress::with_line(queue, ProgressDrawTarget::stderr())
    } else {
        Progress::without_line(queue)
    };
    let lines = fmt::layer().with_writer(Lines {
        progress: progress.clone(),
    });
    // Left alone on a terminal, the layer looks at NO_COLOR itself.
    let lines = if io::stderr().is_terminal() {
        lines
    } else {
        lines.with_ansi(false)
    };
    // Fails when a subscriber is set already, which then goes on.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter(levels)))
        .try_init();
    Telemetry { progress }
}

fn filter(levels: LogLevels) -> Targets {
    Targets::new()
        .with_default(levels.third_party)
        .with_target(OWN_TARGET, levels.own)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgressCounts {
    pub done: u64,
    pub running: u64,
    pub failed: u64,
    /// Events that wait for a slot.
    pub waiting: u64,
}

/// The progress line. Where stderr is no terminal there is none, and every call returns at once.
#[derive(Debug, Clone)]
pub struct Progress {
    queue: StderrQueue,
    line: Option<Arc<Line>>,
    /// Dumps that are not written yet.
    dumps: Arc<AtomicUsize>,
}

/// A task waits this long for its dump; then the dump goes on by itself.
const DUMP_WITHIN: Duration = Duration::from_secs(10);
/// Dumps that may wait; those that come then are left out.
const DUMPS_MAX: usize = 16;

#[derive(Debug)]
struct Line {
    bar: ProgressBar,
    /// Set with the first counts; before them no line is shown.
    since: OnceLock<Instant>,
}

impl Progress {
    fn without_line(queue: StderrQueue) -> Self {
        Self {
            queue,
            line: None,
            dumps: Arc::default(),
        }
    }

    fn with_line(queue: StderrQueue, target: ProgressDrawTarget) -> Self {
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
            ..Self::without_line(queue)
        }
    }

    /// Shows these counts, soon.
    pub fn update(&self, counts: ProgressCounts) {
        if let Some(line) = &self.line {
            let line = Arc::clone(line);
            self.queue.latest(Box::new(move |_| line.show(counts)));
        }
    }

    /// Erases the line. To be called before the last log lines.
    pub fn finish(&self) {
        if let Some(line) = &self.line {
            let line = Arc::clone(line);
            self.queue
                .job(Box::new(move |_| line.bar.finish_and_clear()));
        }
    }

    /// Writes to stderr, with the progress line out of the way and no log line in between. Returns when that
    /// is done; after ten seconds it goes on by itself.
    ///
    /// # Errors
    /// Those of `write`, or that stderr takes too little.
    pub async fn dump(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let too_slow = || io::Error::from(io::ErrorKind::TimedOut);
        if self.dumps.fetch_add(1, Ordering::Relaxed) >= DUMPS_MAX {
            self.dumps.fetch_sub(1, Ordering::Relaxed);
            return Err(too_slow());
        }
        let (done, written) = oneshot::channel();
        let (line, dumps) = (self.line.clone(), Arc::clone(&self.dumps));
        self.queue.job(Box::new(move |sink| {
            let result = out_of_the_way(line.as_deref(), || write(sink));
            dumps.fetch_sub(1, Ordering::Relaxed);
            // Nobody waits any more when it took too long.
            let _late = done.send(result);
        }));
        match timeout(DUMP_WITHIN, written).await {
            Ok(Ok(result)) => result,
            Ok(Err(_panicked)) => Err(io::ErrorKind::Other.into()),
            Err(_) => Err(too_slow()),
        }
    }

    /// Never fails: a pilot whose stderr is closed, or on a full disk, still has its tasks to end.
    fn write_line(&self, line: Vec<u8>) {
        let progress_line = self.line.clone();
        self.queue.line(line, move |text, sink| {
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
    use tracing::level_filters::LevelFilter;

    use super::*;

    fn with_line(terminal: &InMemoryTerm) -> Progress {
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        Progress::with_line(StderrQueue::start(Box::new(io::sink())), target)
    }

    #[test]
    fn own_and_third_party_lines_have_levels_of_their_own() {
        let filter = filter(LogLevels {
            own: LevelFilter::DEBUG,
            third_party: LevelFilter::WARN,
        });
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
        progress.queue.flush();
        let shown = terminal.contents();
        assert!(
            shown.contains("12 done, 4 running, 1 failed, 2 waiting, "),
            "{shown}"
        );
        assert_eq!(shown.lines().count(), 1, "{shown}");
        progress.finish();
        progress.queue.flush();
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
        progress.queue.flush();
        let shown = terminal.contents();
        assert_eq!(shown.lines().count(), 1, "{shown}");
        progress.finish();
    }

    #[test]
    fn without_a_terminal_there_is_nothing_to_update() {
        let progress = Progress::without_line(StderrQueue::start(Box::new(io::sink())));
        progress.update(ProgressCounts::default());
        progress.finish();
        assert!(progress.line.is_none());
    }
}
