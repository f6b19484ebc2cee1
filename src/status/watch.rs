//! `ewms-pilot status --watch`: shows the pilots again and again. A terminal is redrawn in place; elsewhere each turn
//! is a block of its own. Ctrl-C ends it, whatever a file system does meanwhile.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::discover::Liveness;
use super::{StatusScreen, discover, measure, render};
use crate::blocking;
use crate::exit::Exit;
use crate::human::{round_seconds, utc};
use crate::records::UnixTime;

/// What there is to show in one turn.
struct Turn {
    text: String,
    problems: Vec<String>,
    /// Whether a pilot runs, or may.
    runs: bool,
}

/// How a turn ended that was waited for.
enum Waited<T> {
    Done(T),
    Interrupted,
}

/// Shows the pilots whose files are in `places`, until Ctrl-C or until none runs any more. Needs a runtime.
///
/// # Errors
/// When the signal can't be taken over, or `out` can't be written.
pub async fn watch(
    places: &[PathBuf],
    every: Duration,
    out: &mut impl Write,
    complaints: &mut impl Write,
) -> io::Result<Exit> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut has_shown_one = false;
    loop {
        let screen = StatusScreen::of_stdout();
        let (look, columns) = (places.to_vec(), screen.columns());
        let looking = blocking::start(move || turn(&look, columns));
        let turn = match unless_interrupted(looking, &mut interrupts).await {
            Waited::Done(turn) => turn.map_err(io::Error::other)?,
            Waited::Interrupted => return Ok(Exit::Success),
        };
        for problem in &turn.problems {
            writeln!(complaints, "ewms-pilot status: {problem}")?;
        }
        if !turn.runs && turn.text.is_empty() && !has_shown_one {
            return Ok(Exit::Configuration);
        }
        let now = utc(UnixTime::now().0);
        let every_secs = round_seconds(every.as_secs_f64());
        let text = format!(
            "{now} UTC, every {every_secs}, until Ctrl-C\n\n{}",
            turn.text
        );
        out.write_all(screen.frame(&text).as_bytes())?;
        out.flush()?;
        if !turn.runs {
            writeln!(complaints, "ewms-pilot status: no pilot runs here any more")?;
            return Ok(if has_shown_one {
                Exit::Success
            } else {
                Exit::Configuration
            });
        }
        has_shown_one = true;
        if let Waited::Interrupted = unless_interrupted(sleep(every), &mut interrupts).await {
            return Ok(Exit::Success);
        }
    }
}

async fn unless_interrupted<T>(
    work: impl Future<Output = T>,
    interrupts: &mut Signal,
) -> Waited<T> {
    tokio::select! {
        done = work => Waited::Done(done),
        _ = interrupts.recv() => Waited::Interrupted,
    }
}

fn turn(places: &[PathBuf], columns: usize) -> Turn {
    let found = discover::pilots(places);
    let mut problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
    let views = measure::views(found.pilots);
    if views.is_empty() {
        problems.push(discover::nothing(places));
    }
    Turn {
        runs: views.iter().any(|view| view.state != Liveness::Dead),
        text: render::text(&views, columns),
        problems,
    }
}
