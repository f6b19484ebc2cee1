//! The syntax of an env file: `export NAME=<quoted>` lines between `set -x` and `set +x`, as a shell quotes them.
//! Text that a shell would expand or execute is an error. No error from here holds a value.

use super::env_json::is_name;

/// One command of the file, which may span lines inside of quotes.
#[derive(Debug, Default)]
pub(super) struct ShellCommand {
    pub(super) line: usize,
    text: String,
    flaw: Option<ShellFlaw>,
}

/// The reason why a command is no plain assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShellFlaw {
    /// A shell would do something at this character.
    Special(char),
    /// The file ends inside of quotes.
    OpenQuote,
}

impl ShellCommand {
    /// Whether the next character starts a word. After an escaped blank it doesn't, since that blank is part
    /// of a word.
    fn between_words(&self) -> bool {
        let text = &self.text;
        text.is_empty() || (text.ends_with([' ', '\t']) && !text[..text.len() - 1].ends_with('\\'))
    }

    /// The variable that the command exports, or `None` when it does nothing.
    pub(super) fn assignment(&self) -> Result<Option<(String, String)>, String> {
        match self.flaw {
            Some(ShellFlaw::OpenQuote) => {
                return Err("a quote that is opened here is never closed".to_owned());
            }
            Some(ShellFlaw::Special('\r')) => {
                return Err(
                    "the line ends as on Windows: write the file with Unix line ends".to_owned(),
                );
            }
            Some(ShellFlaw::Special(c)) => {
                return Err(format!(
                    "`{}` would be expanded or run by a shell, which this file never meets: put the \
                     value between single quotes",
                    c.escape_debug()
                ));
            }
            None => {}
        }
        let expected =
            || Err("expected `export NAME='value'`, `set -x`, `set +x` or a comment".to_owned());
        let Ok(words) = shell_words::split(&self.text) else {
            return expected();
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            [] | ["set", "-x" | "+x"] => Ok(None),
            ["export", assignment] => match assignment.split_once('=') {
                Some((name, _)) if !is_name(name) => Err(
                    "the name of the variable is none: use ASCII letters, digits and `_`"
                        .to_owned(),
                ),
                Some((name, value)) if value.contains('\0') => {
                    Err(format!("the value of `{name}` has a zero byte in it"))
                }
                Some((name, value)) => Ok(Some((name.to_owned(), value.to_owned()))),
                None => expected(),
            },
            ["export", _, ..] => Err(
                "one `export` sets one variable; put a value with spaces between quotes".to_owned(),
            ),
            _ => expected(),
        }
    }
}

/// The quotes that a character stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoting {
    Bare,
    Single,
    Double,
}

/// Cuts the text into commands at the line ends that stand outside of quotes.
pub(super) fn commands(text: &str) -> Vec<ShellCommand> {
    let mut commands = Vec::new();
    let mut command = ShellCommand {
        line: 1,
        ..ShellCommand::default()
    };
    let mut quoting = Quoting::Bare;
    let mut line = 1;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        line += usize::from(c == '\n');
        match (quoting, c) {
            (Quoting::Bare, '\n') => {
                let next = ShellCommand {
                    line,
                    ..ShellCommand::default()
                };
                commands.push(std::mem::replace(&mut command, next));
                continue;
            }
            (Quoting::Bare, '#') if command.between_words() => {
                while rest.next_if(|&c| c != '\n').is_some() {}
                continue;
            }
            (Quoting::Bare, '\'') => quoting = Quoting::Single,
            (Quoting::Bare, '"') => quoting = Quoting::Double,
            (Quoting::Single, '\'') | (Quoting::Double, '"') => quoting = Quoting::Bare,
            (Quoting::Bare | Quoting::Double, '\\') => {
                command.text.push(c);
                let Some(escaped) = rest.next() else { break };
                line += usize::from(escaped == '\n');
                command.text.push(escaped);
                continue;
            }
            (Quoting::Bare, _) if !is_plain(c) => special(&mut command, c),
            (Quoting::Double, '$' | '`') => special(&mut command, c),
            _ => {}
        }
        command.text.push(c);
    }
    if quoting != Quoting::Bare {
        command.flaw = Some(ShellFlaw::OpenQuote);
    }
    commands.push(command);
    commands
}

fn special(command: &mut ShellCommand, c: char) {
    command.flaw.get_or_insert(ShellFlaw::Special(c));
}

/// The characters that Python's `shlex.quote` leaves without quotes, and blanks.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || " \t@%+=:,./_-".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables = Vec<(String, String)>;
    type Problems = Vec<(usize, String)>;

    fn read(text: &str) -> (Variables, Problems) {
        let mut variables = Vec::new();
        let mut problems = Vec::new();
        for command in commands(text) {
            match command.assignment() {
                Ok(variable) => variables.extend(variable),
                Err(advice) => problems.push((command.line, advice)),
            }
        }
        (variables, problems)
    }

    fn value(text: &str) -> String {
        let (variables, problems) = read(text);
        assert_eq!(problems, [], "{text}");
        assert_eq!(variables.len(), 1, "{text}");
        variables[0].1.clone()
    }

    #[test]
    fn what_the_service_writes_is_read() {
        let text = "#!/bin/sh\nset -x\n\nexport A=plain/text-1\nexport B='with \"spaces\"'\n\
                    export C=''\n  # a remark with $HOME and 'quote\nexport D=1 # more\nset +x\n";
        let (variables, problems) = read(text);
        assert_eq!(problems, []);
        let variables: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(
            variables,
            [
                ("A", "plain/text-1"),
                ("B", "with \"spaces\""),
                ("C", ""),
                ("D", "1")
            ]
        );
    }

    #[test]
    fn quoting_is_the_shells() {
        assert_eq!(value(r#"export A='it'"'"'s $HOME `x`'"#), "it's $HOME `x`");
        assert_eq!(value(r#"export A="a\$b\"c\\d\e""#), r#"a$b"c\d\e"#);
        assert_eq!(value(r"export A=a\ b\'c"), "a b'c");
        assert_eq!(value("export A='x # y' # z"), "x # y");
        assert_eq!(value("export A=b=c"), "b=c");
        assert_eq!(value("export A=''"), "");
    }

    #[test]
    fn values_span_lines() {
        let (variables, problems) =
            read("export A='import x\n\nexport B=$(no)\n'\nexport C=d\\\ne\nbad\n");
        assert_eq!(variables[0].1, "import x\n\nexport B=$(no)\n");
        assert_eq!(variables[1].1, "de");
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].0, 7);
    }

    #[test]
    fn what_a_shell_would_do_is_an_error_and_not_done() {
        for text in [
            "export A=$(touch x)",
            "export A=`touch x`",
            "export A=\"$HOME\"",
            "export A=\"`x`\"",
            "export A=$B",
            "export A=~/x",
            "export A=*",
            "export A=a;touch x",
            "export A=a|b",
            "export A=a & b",
            "export A=x>y",
            "export A={1,2}",
            r"export A=\ #b",
            "export A=b#c",
            "export A=$'x'",
            "(export A=1)",
        ] {
            let (variables, problems) = read(text);
            assert_eq!(variables, [], "{text}");
            assert!(problems[0].1.contains("by a shell"), "{text}: {problems:?}");
        }
    }

    #[test]
    fn other_lines_are_errors_without_their_content() {
        for text in [
            "A=hidden",
            "export hidden",
            "export A=hidden hidden",
            "export 1A=hidden",
            "source hidden",
            "set -e",
            "unset hidden",
            "export",
            "export -n A=hidden",
            "export A='hidden",
            "export A=hidden\r",
        ] {
            let (variables, problems) = read(&format!("set -x\n{text}"));
            assert_eq!(variables, [], "{text}");
            assert_eq!(problems.len(), 1, "{text}");
            assert_eq!(problems[0].0, 2, "{text}");
            assert!(!problems[0].1.contains("hidden"), "{problems:?}");
        }
    }
}
