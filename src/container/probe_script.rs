//! The script that a probe container runs, and the meaning of what it prints.
//!
//! Before Apptainer starts any program of an image, its built-in shell sources all `/.singularity.d/env/*.sh`
//! in the order of their names. A script bound there under the last name runs in every image, even one
//! without a shell, after the image's own environment was set. It uses only built-in commands of that shell,
//! and its lines on stdout begin with a random word that no image can know.

use super::runscript::{RunscriptNeeds, SHELL};
use crate::fault::{Cause, ProbeResult, apptainer_error, lines, readable};

/// The directory from which Apptainer sources scripts.
pub const ENV_DIR: &str = "/.singularity.d/env";
/// The script's name in [`ENV_DIR`], which sorts after all others.
pub const LAST: &str = "~ewms-pilot-probe.sh";
/// The suffix of a script that only reports the end of the script before it.
pub const MARK: &str = "~ewms-pilot-mark.sh";

/// The places where tasks may write or read in any image: the word that reports it, the path, and the setting
/// of Apptainer that provides it.
pub(super) const PLACES: [(&str, &str, &str); 6] = [
    ("tmp", "/tmp", "mount tmp"),
    ("var-tmp", "/var/tmp", "mount tmp"),
    ("home", "$HOME", "mount home"),
    ("null", "/dev/null", "mount dev"),
    ("shm", "/dev/shm", "mount dev"),
    ("proc", "/proc", "mount proc"),
];
const QUESTION: &str = "question";
const HUB: &str = "hub";
const IO: &str = "io";
const END: &str = "end";
const PROGRAM: &str = "program ";
const NAME: &str = "name ";
const NO_PATH: &str = "no-path";

/// The tests of a probe, besides the places that every task may rely on.
#[derive(Debug, Clone, Copy)]
pub struct Trials<'a> {
    pub word: &'a str,
    /// The requirements for a start of the image.
    pub needs: &'a RunscriptNeeds,
    /// A file with one line, as the container sees it, and a new file to copy that line to.
    pub copy: Option<(&'a str, &'a str)>,
    /// A new file in the task's own directory.
    pub own: &'a str,
}

#[must_use]
pub fn script(trials: &Trials<'_>) -> String {
    let Trials {
        word,
        needs,
        copy,
        own,
    } = trials;
    let said = |what: &str| format!("printf '%s\\n' {};", quoted(&format!("{word} {what}")));
    // Only conditions, because the image may have set `-e` and `-u`.
    let writes =
        |path: &str, what: &str| format!("if printf '' >\"{path}\"; then {} fi", said(what));
    let mut script: Vec<String> = PLACES
        .iter()
        .map(|&(what, path, _)| match what {
            "null" => writes(path, what),
            "proc" => format!("if test -r /proc/self/stat; then {} fi", said(what)),
            // An image may set another HOME; Apptainer starts in the one that it mounted.
            "home" => format!(
                "if printf '' >\"${{HOME:-}}/.{word}\" || printf '' >\"${{PWD:-}}/.{word}\"; then {} fi",
                said(what)
            ),
            _ => writes(&format!("{path}/.{word}"), what),
        })
        .collect();
    script.push(writes(own, IO));
    if let Some((question, answer)) = copy {
        script.push(format!(
            "if IFS= read -r ewms_pilot_line <\"{question}\"; then {}\n\
             if printf '%s\\n' \"$ewms_pilot_line\" >\"{answer}\"; then {} fi; fi",
            said(QUESTION),
            said(HUB)
        ));
    }
    for program in &needs.programs {
        script.push(format!(
            "if test -f {0} && test -x {0}; then {1} fi",
            quoted(program),
            said(&format!("{PROGRAM}{program}"))
        ));
    }
    if let Some(name) = &needs.in_path {
        script.push(format!(
            "if test -z \"${{PATH:-}}\"; then {} elif test -n \"$(command -v {})\"; then {} fi",
            said(NO_PATH),
            quoted(name),
            said(&format!("{NAME}{name}"))
        ));
    }
    script.push(said(END));
    script.join("\n") + "\n"
}

/// A script that reports that Apptainer got past the script `name`.
#[must_use]
pub fn mark(word: &str, name: &str) -> String {
    format!(
        "printf '%s\\n' {}\n",
        quoted(&format!("{word} past {name}"))
    )
}

/// The first of `names`, in Apptainer's order, that the container didn't get past.
#[must_use]
pub fn not_past<'a>(word: &str, names: &'a [String], stdout: &[u8]) -> Option<&'a str> {
    let said = ScriptOutput::of(word, stdout);
    names
        .iter()
        .find(|name| !said.has(&format!("past {name}")))
        .map(String::as_str)
}

/// A script that prints the file at `path` with `word` before each line, between two lines with `word` alone.
#[must_use]
pub(super) fn reader(word: &str, path: &str) -> String {
    let word = quoted(word);
    format!(
        "printf '%s\\n' {word}\n\
         while IFS= read -r ewms_pilot_line || test -n \"$ewms_pilot_line\"; do\n\
         printf '%s %s\\n' {word} \"$ewms_pilot_line\"\n\
         done <{path}\n\
         printf '%s\\n' {word}\n"
    )
}

/// The file printed by [`reader`]'s script; `None` if the output is incomplete.
#[must_use]
pub(super) fn read_by(word: &str, stdout: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(stdout).ok()?;
    let is_whole = text.lines().filter(|line| *line == word).count() == 2;
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    let read: String = lines.flat_map(|line| [line, "\n"]).collect();
    (is_whole && !read.is_empty()).then_some(read)
}

fn quoted(text: &str) -> String {
    shell_words::quote(text).into_owned()
}

struct ScriptOutput(Vec<String>);

impl ScriptOutput {
    fn of(word: &str, stdout: &[u8]) -> Self {
        // The image's environment may print any other lines.
        let text = String::from_utf8_lossy(stdout);
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        Self(lines.map(str::to_owned).collect())
    }

    fn has(&self, what: &str) -> bool {
        self.0.iter().any(|said| said == what)
    }
}

/// Whether the image has a directory, as seen from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InImage {
    /// The image has the directory, so the site has to make it usable for tasks.
    Directory,
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeFinding {
    /// Everything that a task needs works. The notes name what tasks may miss.
    Well { notes: Vec<String> },
    /// Something that every task needs is missing.
    Broken { cause: Cause, said: String },
    /// The script didn't reach its end, and Apptainer reported no reason: the image's environment ended it.
    Ended,
    /// The script never ran: nothing is known.
    Silent,
}

/// Evaluates the output of the script of `trials`, and Apptainer's final `answer`. `has_proc` tells whether
/// the container should have a `/proc`, `in_image` whether the image has a directory.
#[must_use]
pub fn found(
    trials: &Trials<'_>,
    (stdout, stderr): (&[u8], &[u8]),
    answer: &ProbeResult,
    has_proc: super::ProcMount,
    in_image: impl Fn(&str) -> InImage,
) -> ProbeFinding {
    let said = ScriptOutput::of(trials.word, stdout);
    if !said.has(END) || *answer != ProbeResult::Works {
        return match answer {
            ProbeResult::Works => ProbeFinding::Silent,
            ProbeResult::Broken {
                cause: Cause::Unknown,
                ..
            } if apptainer_error(stderr).is_none() => ProbeFinding::Ended,
            ProbeResult::Broken { cause, said } => ProbeFinding::Broken {
                cause: *cause,
                said: said.clone(),
            },
        };
    }
    let mut notes = lost_environment(stderr);
    let mut off = Vec::new();
    for (what, path, setting) in PLACES {
        let is_wanted = what != "proc" || has_proc == super::ProcMount::Own;
        if said.has(what) || !is_wanted {
            continue;
        }
        match in_image(path) {
            InImage::Directory => off.push((path, setting)),
            InImage::Nothing => notes.push(format!(
                "the image has no directory `{path}`, so tasks can't write there"
            )),
        }
    }
    if let Some((_, setting)) = off.first() {
        let paths: Vec<String> = off.iter().map(|(path, _)| format!("`{path}`")).collect();
        return ProbeFinding::Broken {
            cause: Cause::MountsOff,
            said: format!(
                "containers here can't use {} (`{setting}`)",
                paths.join(", ")
            ),
        };
    }
    if !said.has(IO) {
        return useless("a container can't write into its task's directory");
    }
    if trials.copy.is_some() && !said.has(QUESTION) {
        return useless("a container can't read a file of its task's directory");
    }
    if trials.copy.is_some() && !said.has(HUB) {
        return useless("a container can't write into the data directory");
    }
    match missing(trials.needs, &said) {
        Some((cause, said)) => ProbeFinding::Broken { cause, said },
        None => ProbeFinding::Well { notes },
    }
}

fn useless(said: &str) -> ProbeFinding {
    ProbeFinding::Broken {
        cause: Cause::BindsUseless,
        said: said.to_owned(),
    }
}

/// The first missing requirement for a start.
fn missing(needs: &RunscriptNeeds, said: &ScriptOutput) -> Option<(Cause, String)> {
    let first = needs.programs.first()?;
    let mut absent = needs
        .programs
        .iter()
        .filter(|program| !said.has(&format!("{PROGRAM}{program}")));
    let lacks = match absent.next() {
        Some(program) if program == first && first == SHELL => {
            let said = "the image has neither a runscript nor `/bin/sh`".to_owned();
            return Some((Cause::ImageIncomplete, said));
        }
        Some(program) if program == first => {
            "can't be executed: it has no execute bit, or leads nowhere".to_owned()
        }
        Some(program) => format!("needs `{program}`, which is not there or can't be executed"),
        None => {
            let name = needs.in_path.as_ref()?;
            if said.has(NO_PATH) || said.has(&format!("{NAME}{name}")) {
                return None;
            }
            format!("needs `{name}`, which is not in the image's PATH")
        }
    };
    Some((
        Cause::ImageRunscript,
        format!("`{first}` of the image {lacks}"),
    ))
}

/// The image's scripts that Apptainer could not read: the environment is different without them.
fn lost_environment(stderr: &[u8]) -> Vec<String> {
    let text = readable(stderr);
    lines(&text)
        .filter_map(|line| line.strip_prefix("source: "))
        .filter(|line| line.starts_with(ENV_DIR))
        .map(|line| format!("apptainer can't read the image's environment: {line}"))
        .collect()
}

#[cfg(test)]
#[path = "probe_script_tests.rs"]
mod tests;
