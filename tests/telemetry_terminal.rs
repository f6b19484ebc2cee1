//! The pilot on a terminal: the progress line, and a terminal that is closed while the pilot runs. `script`
//! gives the pilot a terminal and records its output.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::support::scene::{Pilot, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, eventually, images, pilot_binary};

/// A task that waits until the test lets it go.
const HELD: &str = r#"sh -c "until [ -e {{DATA_HUB}}/$(cat {{INFILE}}) ]; do sleep 0.05; done; test $(cat {{INFILE}}) != bad""#;

struct Terminal {
    scene: Scene,
    incoming: SpoolQueue,
}

impl Terminal {
    /// A pilot to be started on a terminal of so many columns.
    fn new(columns: u32, events: &[(&str, &str)]) -> Self {
        let (scene, incoming, _) = Scene::task(images::busybox(), HELD).spool();
        for (name, event) in events {
            incoming.put(name, event);
        }
        let pilot = pilot_binary();
        let command = format!("stty cols {columns} rows 24; exec {}", pilot.display());
        let screen = scene.dir().join("screen");
        let scene = scene
            .set("TERM", "xterm")
            .set("SHELL", "/bin/sh")
            .set("EWMS_PILOT_STOP_LISTENING_ON_TASK_ERROR", "False")
            .program("/usr/bin/script")
            .arg("--quiet")
            .arg("--return")
            .arg("--flush")
            .arg("--command")
            .arg(command)
            .arg(screen);
        Self { scene, incoming }
    }

    /// All that was sent to the terminal so far.
    fn screen(&self) -> String {
        let bytes = fs::read(self.scene.dir().join("screen")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[track_caller]
    fn await_shown(&self, text: &str) {
        assert!(
            eventually(SOON, || self.screen().contains(text)),
            "{text}: {}",
            self.screen()
        );
    }

    fn let_go(&self, event: &str) {
        let hub: PathBuf = self.scene.dir().join("ewms-pilot-data/data-hub");
        fs::write(hub.join(event), "").expect("written");
    }

    fn start(&self) -> Pilot {
        self.scene.start()
    }
}

#[test]
fn a_terminal_has_a_line_that_counts_done_running_failed_and_waiting() {
    let terminal = Terminal::new(120, &[("1", "good"), ("2", "bad")]);
    let pilot = terminal.start();
    terminal.await_shown("0 done, 1 running, 0 failed, 0 waiting, ");
    terminal.let_go("good");
    terminal.await_shown("1 done, 1 running, 0 failed, 0 waiting, ");
    terminal.let_go("bad");
    terminal.await_shown("1 done, 0 running, 3 failed, 0 waiting, ");
    pilot.wait(SOON).assert_code(1);
    let screen = terminal.screen();
    assert!(screen.contains("/min") || screen.contains("/s"), "{screen}");
    assert_eq!(terminal.incoming.done().len(), 1);
}

#[test]
fn log_lines_stand_whole_above_the_progress_line() {
    let terminal = Terminal::new(200, &[("1", "a"), ("2", "b"), ("3", "c")]);
    let pilot = terminal.start();
    terminal.await_shown("0 done, 1 running");
    for event in ["a", "b", "c"] {
        terminal.let_go(event);
    }
    pilot.wait(SOON).assert_code(0);
    let screen = terminal.screen();
    // The last thing done to a line's place before it was written is clearing it.
    let ends: Vec<&str> = screen
        .split(['\n', '\r'])
        .flat_map(|line| line.split("\x1b[2K"))
        .filter(|line| line.contains("task succeeded"))
        .collect();
    assert_eq!(ends.len(), 3, "{screen}");
    for line in ends {
        assert!(!line.contains(" running, "), "{line}");
    }
}

#[test]
fn the_progress_line_is_gone_before_the_last_line() {
    let terminal = Terminal::new(120, &[("1", "bad")]);
    let pilot = terminal.start();
    terminal.await_shown("0 done, 1 running");
    terminal.let_go("bad");
    pilot.wait(SOON).assert_code(1);
    let screen = terminal.screen();
    let (_, end) = screen
        .rsplit_once("RuntimeError: 3 TASK(S) FAILED: ")
        .unwrap_or_else(|| panic!("{screen}"));
    assert!(!end.contains(" waiting, "), "{end}");
}

#[test]
fn a_persons_log_has_no_date_and_no_module_path_and_ends_with_five_lines() {
    let terminal = Terminal::new(200, &[("1", "a")]);
    let terminal = Terminal {
        scene: terminal.scene.set("NO_COLOR", "1"),
        ..terminal
    };
    let pilot = terminal.start();
    terminal.await_shown("0 done, 1 running");
    terminal.let_go("a");
    pilot.wait(SOON).assert_code(0);
    let screen = terminal.screen();
    assert!(!screen.contains("ewms_pilot::"), "{screen}");
    assert!(!screen.contains("Z  INFO"), "{screen}");
    let log: Vec<&str> = screen
        .lines()
        .filter_map(|line| line.rsplit("\x1b[2K").next())
        .filter(|line| line.trim_start().starts_with("INFO "))
        .map(str::trim)
        .collect();
    let end = &log[log.len() - 5..];
    for (line, words) in end.iter().zip([
        "INFO 1 event taken: 1 done, 1 of these without a result",
        "INFO run time: median ",
        "INFO slots: busy ",
        "INFO failures: none",
        "INFO all numbers: ewms-pilot report /",
    ]) {
        assert!(line.starts_with(words), "{words}: {end:?}");
    }
    assert!(!screen.contains("Runtimes distribution"), "{screen}");
}

#[test]
fn colours_are_for_terminals_and_no_color_is_respected() {
    for (no_color, coloured) in [("", true), ("1", false)] {
        let terminal = Terminal::new(120, &[("1", "a")]);
        let terminal = Terminal {
            scene: terminal.scene.set("NO_COLOR", no_color),
            ..terminal
        };
        let pilot = terminal.start();
        terminal.await_shown("0 done, 1 running");
        terminal.let_go("a");
        pilot.wait(SOON).assert_code(0);
        let green_info = "\x1b[32m INFO";
        assert_eq!(
            terminal.screen().contains(green_info),
            coloured,
            "{}",
            terminal.screen()
        );
    }
}

#[test]
fn below_nohup_a_closed_terminal_ends_nothing() {
    let (scene, incoming, _) = Scene::task(images::busybox(), HELD).spool();
    incoming.put("1", "a");
    let scene = scene.program("/usr/bin/nohup").arg(pilot_binary());
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    pilot.signal(Signal::SIGHUP);
    fs::write(scene.dir().join("ewms-pilot-data/data-hub/a"), "").expect("written");
    let outcome = pilot.wait(SOON);
    outcome.assert_code(0);
    assert!(
        !outcome.stderr.contains("signal received"),
        "{}",
        outcome.stderr
    );
    assert_eq!(incoming.done().len(), 1);
}

#[test]
fn without_nohup_a_closed_terminal_ends_the_pilot() {
    let (scene, incoming, _) = Scene::task(images::busybox(), HELD).spool();
    incoming.put("1", "never");
    let scene = scene.set("EWMS_PILOT_KILL_GRACE", "0.2");
    let mut pilot = scene.start();
    pilot.wait_for_line("task started", SOON);
    pilot.signal(Signal::SIGHUP);
    pilot.wait(SOON).assert_code(129);
    assert_eq!(incoming.files().len(), 1);
}
