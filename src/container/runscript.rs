//! The runscript that `apptainer run` starts in a sandbox directory: its path, its interpreter, and whether
//! it can start at all. Reads files and starts nothing, so that no user code runs; [`RunscriptNeeds`] lists
//! the facts that only a container can show.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::rootfs;

pub(super) const RUNSCRIPT: &str = "/.singularity.d/runscript";
/// The fallbacks that Apptainer starts without a runscript, in this order.
const OLD_RUNSCRIPT: &str = "/apptainer";
pub(super) const SHELL: &str = "/bin/sh";
/// More than the kernel reads of a first line (`BINPRM_BUF_SIZE`), and more than the size of the default
/// runscript.
const READ: u64 = 64 * 1024;
/// The only command of the runscript that Apptainer gives images without one.
const DEFAULT: &str = "echo \"There is no runscript defined for this container";

/// The requirements for a start that only the container can show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunscriptNeeds {
    /// Paths of programs that must exist and be executable: the runscript, then its interpreter.
    pub programs: Vec<String>,
    /// A program that `env` looks up in the container's PATH.
    pub in_path: Option<String>,
}

/// The reason why a runscript can't start or does nothing. Always the image's fault.
#[derive(Debug, thiserror::Error)]
pub enum RunscriptError {
    #[error(
        "`{path}` of the image is the default one of Apptainer, which runs no task and exits with 0"
    )]
    Default { path: &'static str },
    #[error("`{path}` of the image has no command in it: it runs no task and exits with 0")]
    Idle { path: &'static str },
    /// Its first line ends in CR LF, as on Windows.
    #[error(
        "`{path}` of the image has lines that end in CR LF, so `{line}` can't be found to run it"
    )]
    CarriageReturn { path: &'static str, line: String },
    #[error("`{path}` of the image begins with `#!` and names no interpreter")]
    NoInterpreter { path: &'static str },
    #[error("`{path}` of the image is no file")]
    NoFile { path: &'static str },
}

/// The requirements for starting a task in `image`.
///
/// # Errors
/// When no container could start one. A file that can't be read here is no error, because nothing is known of
/// it.
pub(super) fn needs(image: &Path) -> Result<RunscriptNeeds, RunscriptError> {
    for path in [RUNSCRIPT, OLD_RUNSCRIPT] {
        match rootfs::resolve(image, Path::new(path)) {
            Ok(file) => return of_file(path, &file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that dangles here may lead into a bound directory.
                if image.join(path.trim_start_matches('/')).is_symlink() {
                    return Ok(programs([path]));
                }
            }
            Err(_) => return Ok(RunscriptNeeds::default()),
        }
    }
    // Apptainer then runs the arguments with the shell.
    Ok(programs([SHELL]))
}

/// Whether the image's runscript is Apptainer's default one. If the image was converted, its source may have
/// had another.
#[must_use]
pub(super) fn is_default(image: &Path) -> bool {
    matches!(needs(image), Err(RunscriptError::Default { .. }))
}

fn programs<const N: usize>(programs: [&str; N]) -> RunscriptNeeds {
    RunscriptNeeds {
        programs: programs.map(str::to_owned).into(),
        in_path: None,
    }
}

fn of_file(path: &'static str, file: &Path) -> Result<RunscriptNeeds, RunscriptError> {
    if !file.is_file() {
        return Err(RunscriptError::NoFile { path });
    }
    let mut text = Vec::new();
    match File::open(file).and_then(|file| file.take(READ).read_to_end(&mut text)) {
        Ok(_) => of_text(path, &text),
        Err(_) => Ok(programs([path])),
    }
}

/// The requirements of a script, or of a compiled program.
fn of_text(path: &'static str, text: &[u8]) -> Result<RunscriptNeeds, RunscriptError> {
    if text.contains(&0) {
        // A NUL: the file is a compiled program.
        return Ok(programs([path]));
    }
    let text = String::from_utf8_lossy(text);
    let (first, _) = text.split_once('\n').unwrap_or((&text, ""));
    let Some(interpreter) = first.strip_prefix("#!") else {
        // The kernel refuses it, and Apptainer then runs it with a shell.
        check_commands(path, &text)?;
        return Ok(programs([path, SHELL]));
    };
    if first.ends_with('\r') {
        let line = first.trim_end_matches('\r').to_owned();
        return Err(RunscriptError::CarriageReturn { path, line });
    }
    let mut words = interpreter.split_ascii_whitespace();
    let Some(program) = words.next() else {
        return Err(RunscriptError::NoInterpreter { path });
    };
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    if ["sh", "bash", "dash", "ash", "ksh", "zsh"].contains(&name(program).as_str()) {
        check_commands(path, &text)?;
    }
    let mut needs = programs([path, program]);
    if name(program) == "env" {
        let mut looked_for = words.skip_while(|word| *word == "-S");
        // With an option or a variable first, the word isn't the program.
        needs.in_path = looked_for
            .next()
            .filter(|word| !word.starts_with('-') && !word.contains(['=', '/']))
            .map(str::to_owned);
    }
    Ok(needs)
}

/// Checks that a shell script has a command, and not only the default one.
fn check_commands(path: &'static str, text: &str) -> Result<(), RunscriptError> {
    let mut commands = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    match (commands.next(), commands.next()) {
        (None, _) => Err(RunscriptError::Idle { path }),
        (Some(only), None) if only.starts_with(DEFAULT) => Err(RunscriptError::Default { path }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// An image with this runscript.
    fn image(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(".singularity.d")).expect("made");
        fs::write(dir.path().join(&RUNSCRIPT[1..]), text).expect("written");
        dir
    }

    fn needed(text: &str) -> (Vec<String>, Option<String>) {
        let RunscriptNeeds { programs, in_path } = needs(image(text).path()).expect("it can start");
        (programs, in_path)
    }

    #[test]
    fn a_script_needs_its_interpreter() {
        let own = RUNSCRIPT.to_owned();
        for (text, interpreter, in_path) in [
            ("#!/bin/sh\nexec \"$@\"\n", "/bin/sh", None),
            ("#! /bin/bash -e\nexec \"$@\"\n", "/bin/bash", None),
            (
                "#!/usr/bin/env python3\nprint()\n",
                "/usr/bin/env",
                Some("python3"),
            ),
            (
                "#!/usr/bin/env -S python3 -u\n",
                "/usr/bin/env",
                Some("python3"),
            ),
            ("#!/usr/bin/env -i sh\n", "/usr/bin/env", None),
            ("#!/usr/bin/env A=b sh\n", "/usr/bin/env", None),
            ("exec \"$@\"\n", "/bin/sh", None),
            // Other lines may have any end.
            ("#!/bin/sh\nexec \"$@\"\r\n", "/bin/sh", None),
        ] {
            let expected = (
                vec![own.clone(), interpreter.to_owned()],
                in_path.map(str::to_owned),
            );
            assert_eq!(needed(text), expected, "{text}");
        }
        assert_eq!(needed("\x7fELF\x02\x01\x01\0\0").0, [own]);
    }

    #[test]
    fn a_script_that_does_nothing_is_no_runscript() {
        for text in [
            "#!/bin/sh\n# Copyright\n\necho \"There is no runscript defined for this container\\n\";\n",
            "#!/bin/sh\n# only a comment\n",
            "#!/bin/bash\n",
            "",
        ] {
            let error = needs(image(text).path()).expect_err("nothing would run");
            assert!(error.to_string().contains(RUNSCRIPT), "{error}");
            assert_eq!(is_default(image(text).path()), text.contains("defined"));
        }
        let more =
            "#!/bin/sh\necho \"There is no runscript defined for this container\"\nexec \"$@\"\n";
        assert!(needs(image(more).path()).is_ok());
    }

    #[test]
    fn windows_line_ends_and_empty_interpreters_are_named() {
        for (text, words) in [
            ("#!/bin/sh\r\nexec \"$@\"\r\n", "CR LF"),
            ("#!/usr/bin/env python3\r\n", "CR LF"),
            ("#!\nexec \"$@\"\n", "names no interpreter"),
        ] {
            let error = needs(image(text).path()).expect_err("it can't start");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn what_is_started_without_a_runscript_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(needs(dir.path()).expect("sh").programs, ["/bin/sh"]);
        fs::write(dir.path().join("apptainer"), "#!/bin/x\n").expect("written");
        let found = needs(dir.path()).expect("the old one").programs;
        assert_eq!(found, ["/apptainer", "/bin/x"]);
        fs::create_dir_all(dir.path().join(&RUNSCRIPT[1..])).expect("made");
        assert!(matches!(
            needs(dir.path()),
            Err(RunscriptError::NoFile { .. })
        ));
        fs::remove_dir(dir.path().join(&RUNSCRIPT[1..])).expect("removed");
        symlink("/nowhere", dir.path().join(&RUNSCRIPT[1..])).expect("linked");
        assert_eq!(needs(dir.path()).expect("asks").programs, [RUNSCRIPT]);
    }
}
