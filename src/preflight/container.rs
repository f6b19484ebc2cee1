//! A container as tasks get it, started once before any of them: it reads a file of its task's
//! directory and writes it into the data hub, where the pilot reads it back. Uses task's probe.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Problem, Seen, writer};
use crate::container::{
    Answer, NO_COMMAND, ProcMount, Suspicion, apptainer_error, find_cause, suspect,
};
use crate::fault::Cause;
use crate::process::{Captured, ExitStatus, WillSender};
use crate::task::Workbench;
use crate::task::probe::{QUESTION, Trial, TrialError, WRITER, cause_of_io};
use crate::task::staging::{HUB_IN_CONTAINER, IO_IN_CONTAINER};

/// How far a container got.
enum Reached {
    /// It wrote a file.
    Wrote(Duration),
    /// It was made. Programs can't be started from the data directory, so nothing was written.
    Made(Duration),
}

/// Starts a container of `image`, and if that fails for a `/proc` that is masked, another one without.
///
/// # Errors
/// When tasks could not run in such a one.
pub async fn container(bench: &mut Workbench, image: &Path) -> Result<Seen, Problem> {
    let masked = match attempt(bench, image).await {
        Ok(reached) => return Ok(Seen::Fine(said(&reached))),
        Err((Cause::MaskedProc, said)) if bench.proc == ProcMount::Own => said,
        Err((cause, said)) => return Err(Problem::of(cause, said)),
    };
    bench.proc = ProcMount::None;
    match attempt(bench, image).await {
        Ok(reached) => Ok(Seen::WorkedAround(
            format!(
                "{}, but only with `--no-mount proc`, so tasks have no /proc: {masked}",
                said(&reached)
            ),
            Cause::MaskedProc.remedy().to_owned(),
        )),
        Err((cause, said)) => Err(Problem::of(cause, said)),
    }
}

fn said(reached: &Reached) -> String {
    match reached {
        Reached::Wrote(took) => {
            format!(
                "one was started and wrote a file in {:.2} s",
                took.as_secs_f64()
            )
        }
        Reached::Made(took) => format!(
            "one was started in {:.2} s; whether it can write was not tried, as no program can be started here",
            took.as_secs_f64()
        ),
    }
}

async fn attempt(bench: &Workbench, image: &Path) -> Result<Reached, (Cause, String)> {
    let trial = Trial::prepare(bench).map_err(by_io)?;
    let answer = bench
        .dirs
        .hub()
        .join(format!(".preflight-{}", Uuid::new_v4().simple()));
    let result = ask(bench, image, &trial, &answer).await;
    // A file that isn't there was not written.
    let _ = fs::remove_file(&answer);
    result
}

async fn ask(
    bench: &Workbench,
    image: &Path,
    trial: &Trial,
    answer: &Path,
) -> Result<Reached, (Cause, String)> {
    let question = Uuid::new_v4().to_string();
    if let Some(program) = writer::program() {
        fs::write(trial.question(), &question).map_err(by_io)?;
        let writer = trial.writer();
        fs::write(&writer, program).map_err(by_io)?;
        fs::set_permissions(&writer, fs::Permissions::from_mode(0o700)).map_err(by_io)?;
        let name = answer.file_name().unwrap_or_default().to_string_lossy();
        let command = [
            format!("{IO_IN_CONTAINER}/{WRITER}"),
            format!("{IO_IN_CONTAINER}/{QUESTION}"),
            format!("{HUB_IN_CONTAINER}/{name}"),
        ];
        let (captured, took) = timed(bench, image, trial, &command).await?;
        if let Some(cause) = useless(&captured) {
            return Err(cause);
        }
        match captured.exit {
            ExitStatus::Code(0) => {
                return match fs::read_to_string(answer) {
                    Ok(text) if text == question => Ok(Reached::Wrote(took)),
                    Ok(_) => Err((
                        Cause::BindsUseless,
                        "what a container writes arrives as something else".to_owned(),
                    )),
                    Err(error) => Err((
                        Cause::BindsUseless,
                        format!("what a container writes does not arrive: {error}"),
                    )),
                };
            }
            ExitStatus::Code(1) if apptainer_error(&captured.stderr).is_none() => {
                return Err((
                    Cause::BindsUseless,
                    "a container can't write into the data directory".to_owned(),
                ));
            }
            _ if is_refused(&captured) => {}
            _ => return broken(trial, &captured),
        }
    }
    let (captured, took) = timed(bench, image, trial, &[NO_COMMAND.to_owned()]).await?;
    match trial.answer(&captured) {
        Answer::Works => Ok(Reached::Made(took)),
        Answer::Broken { cause, said } => Err((cause, said)),
    }
}

async fn timed(
    bench: &Workbench,
    image: &Path,
    trial: &Trial,
    command: &[String],
) -> Result<(Captured, Duration), (Cause, String)> {
    let started = Instant::now();
    let will = WillSender::new().subscribe();
    let by_trial = |error: TrialError| (error.cause(), error.to_string());
    let captured = trial
        .run(bench, image, bench.proc, command, &will)
        .await
        .map_err(by_trial)?;
    let interrupted = || (Cause::Unknown, "the pilot was told to end".to_owned());
    Ok((captured.ok_or_else(interrupted)?, started.elapsed()))
}

/// What lets a container run, and be of no use.
fn useless(captured: &Captured) -> Option<(Cause, String)> {
    match suspect(0, &captured.stderr) {
        Suspicion::Probe => find_cause(&captured.stderr),
        Suspicion::Task | Suspicion::Known(_) | Suspicion::ProbeAndRead => None,
    }
}

/// Whether the container was made, and only our program not started: the file system is mounted
/// `noexec`.
fn is_refused(captured: &Captured) -> bool {
    let text = String::from_utf8_lossy(&captured.stderr);
    captured.exit == ExitStatus::Code(255)
        && text.contains(&format!("{IO_IN_CONTAINER}/{WRITER}"))
        && text.contains("permission denied")
}

fn broken(trial: &Trial, captured: &Captured) -> Result<Reached, (Cause, String)> {
    match trial.answer(captured) {
        // Can't be: its command was another one.
        Answer::Works => Err((
            Cause::Unknown,
            "apptainer's answer makes no sense".to_owned(),
        )),
        Answer::Broken { cause, said } => Err((cause, said)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn by_io(error: io::Error) -> (Cause, String) {
    let said = format!("can't make a probe's files: {error}");
    (cause_of_io(&error), said)
}
