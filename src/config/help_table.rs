//! The table of variables as people read it, at the end of `--help` and in this folder's README.md. It is
//! made from [`variables::ALL`](super::variables::ALL), the parser's own list.

use std::fmt::Write as _;

use super::variables::{self as var, ALL, ValueKind, Variable};

/// The most columns of a line of `--help`, so that a terminal of 80 columns doesn't break it.
const WIDTH: usize = 78;

/// The indentation of the text about a variable.
const INDENT: usize = 6;

/// The Markdown table that this folder's README.md holds between its markers, from its header to the last row.
#[must_use]
pub fn markdown() -> String {
    let mut table =
        String::from("| variable | default | value | meaning |\n| --- | --- | --- | --- |\n");
    for variable in ALL {
        let Variable {
            name,
            kind,
            meaning,
            ..
        } = variable;
        let cells = [
            format!("`{name}`"),
            default_with_unit(variable),
            kind.expected(),
            placeholders(meaning),
        ];
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(table, "| {} |", cells.join(" | "));
    }
    table
}

/// The variables that everybody needs, in the order in which they are set.
static BASIC: [&Variable; 14] = [
    &var::TASK_IMAGE,
    &var::TASK_ARGS,
    &var::INFILE_EXT,
    &var::OUTFILE_EXT,
    &var::QUEUE_INCOMING,
    &var::QUEUE_INCOMING_BROKER_TYPE,
    &var::QUEUE_INCOMING_BROKER_ADDRESS,
    &var::QUEUE_INCOMING_AUTH_TOKEN,
    &var::QUEUE_OUTGOING,
    &var::QUEUE_OUTGOING_BROKER_TYPE,
    &var::QUEUE_OUTGOING_BROKER_ADDRESS,
    &var::QUEUE_OUTGOING_AUTH_TOKEN,
    &var::MAX_CONCURRENT_TASKS,
    &var::TIMEOUT_INCOMING,
];

/// The other variables, by what a person looks for. Those of no group are the last one, `Advanced`.
static GROUPS: [(&str, &[&Variable]); 5] = [
    (
        "Task",
        &[
            &var::TASK_ENV_JSON,
            &var::INIT_IMAGE,
            &var::INIT_ARGS,
            &var::INIT_ENV_JSON,
            &var::TASK_GPUS,
            &var::EXTERNAL_DIRECTORIES,
            &var::CVMFS,
            &var::STOP_LISTENING,
            &var::OKAY_ERRORS,
        ],
    ),
    (
        "Queues",
        &[
            &var::QUEUE_INCOMING_AUTH_TOKEN_FILE,
            &var::QUEUE_OUTGOING_AUTH_TOKEN_FILE,
            &var::TIMEOUT_FIRST,
            &var::PREFETCH,
            &var::RECONNECT_TIMEOUT,
            &var::MAX_DELIVERIES,
            &var::QUEUE_DEAD_LETTER,
            &var::BROKER_CA_FILE,
            &var::BROKER_MAX_MESSAGE_SIZE,
        ],
    ),
    (
        "Limits",
        &[
            &var::TASK_TIMEOUT,
            &var::TASK_STALL,
            &var::TASK_MEMORY,
            &var::INIT_TIMEOUT,
            &var::MAX_RUNTIME,
            &var::MIN_FREE_DISK,
            &var::TASK_OUTPUT_MAX,
            &var::KEPT_FILES_MAX,
            &var::KILL_GRACE,
        ],
    ),
    (
        "Files",
        &[
            &var::ENV_FILE,
            &var::DATA_DIR_PARENT,
            &var::TASK_LOG,
            &var::KEEP_ALL_TASK_FILES,
            &var::DUMP_TASK_OUTPUT,
            &var::DIRECTORY_MUST_BE_PRESENT,
            &var::BUILD_WORKDIR,
        ],
    ),
    (
        "HTCondor",
        &[
            &var::HTCHIRP,
            &var::HTCHIRP_DEST,
            &var::HTCHIRP_INTERVAL,
            &var::QUARANTINE_TIME,
        ],
    ),
];

/// The list of variables for the end of `--help`, those that everybody needs first.
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "Settings are environment variables, or lines export NAME='value' in a file\n\
         ewms_htcondor_envfile.sh in the working directory or in HTCondor's scratch\n\
         directory; a variable that is set wins over the file.\n\n\
         Variables that everybody needs:\n",
    );
    describe(&mut text, &BASIC);
    for (title, variables) in &GROUPS {
        let _ = writeln!(text, "\n{title}:");
        describe(&mut text, variables);
    }
    let is_grouped = |variable: &&Variable| {
        let groups = GROUPS.iter().flat_map(|(_, variables)| variables.iter());
        groups.chain(&BASIC).any(|one| one.name == variable.name)
    };
    let rest: Vec<&Variable> = ALL.iter().copied().filter(|one| !is_grouped(one)).collect();
    text.push_str("\nAdvanced:\n");
    describe(&mut text, &rest);
    text
}

fn describe(text: &mut String, variables: &[&Variable]) {
    for variable in variables {
        let _ = writeln!(
            text,
            "  {} [{}]",
            variable.name,
            default_with_unit(variable).replace('`', "")
        );
        let sentence = match variable.kind {
            ValueKind::Text => variable.meaning.to_owned(),
            kind => format!("{}: {}", variable.meaning, kind.expected()),
        };
        let sentence = sentence.replace('`', "");
        for line in wrap(&sentence, WIDTH - INDENT) {
            let _ = writeln!(text, "{:INDENT$}{line}", "");
        }
    }
}

/// A table of codes or words and their meanings for `--help`, wrapped beside the first column.
#[must_use]
pub fn two_columns(rows: &[(&str, &str)]) -> String {
    let first = rows.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (word, meaning) in rows {
        for (at, line) in wrap(meaning, WIDTH - first - 4).iter().enumerate() {
            let word = if at == 0 { word } else { "" };
            let _ = writeln!(text, "  {word:first$}  {line}");
        }
    }
    text
}

/// The default and, when it is a number that has one, the unit.
fn default_with_unit(variable: &Variable) -> String {
    let shown = variable.otherwise.shown();
    match variable.kind.unit() {
        Some(unit) if shown.starts_with('`') => format!("{shown} {unit}"),
        _ => shown,
    }
}

/// Puts backticks around `{{…}}`, which some Markdown readers take for a template.
fn placeholders(meaning: &str) -> String {
    meaning.replace("{{", "`{{").replace("}}", "}}`")
}

/// Breaks text at spaces into lines of at most `width` characters, a longer word apart.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_has_one_row_of_four_cells_for_each_variable() {
        let table = markdown();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows.len(), ALL.len());
        for (row, variable) in rows.iter().zip(ALL) {
            assert!(
                row.starts_with(&format!("| `{}` | ", variable.name)),
                "{row}"
            );
            assert_eq!(row.replace("\\|", "").matches('|').count(), 5, "{row}");
        }
    }

    #[test]
    fn help_names_every_variable_once_with_default_and_unit() {
        let help = help();
        for variable in ALL {
            let head = format!("\n  {} [", variable.name);
            assert_eq!(help.matches(&head).count(), 1, "{}", variable.name);
        }
        assert!(help.contains("EWMS_PILOT_KILL_GRACE [10 s]\n"), "{help}");
        assert!(
            help.contains("EWMS_PILOT_TASK_IMAGE [required]\n"),
            "{help}"
        );
    }

    #[test]
    fn help_fits_a_terminal_of_80_columns() {
        for line in help().lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
    }

    #[test]
    fn a_second_column_is_wrapped_under_itself() {
        let text = two_columns(&[("1", &"word ".repeat(30)), ("128+N", "x")]);
        assert!(
            text.lines()
                .nth(1)
                .is_some_and(|line| line.starts_with("         word")),
            "{text}"
        );
        assert!(text.ends_with("  128+N  x\n"), "{text}");
    }
}
