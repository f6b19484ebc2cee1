//! The table of variables as people read it, at the end of `--help` and in this folder's README.md. It is
//! made from [`variables::ALL`](super::variables::ALL), the parser's own list.

use std::fmt::Write as _;

use super::variables::{ALL, ValueKind, Variable};

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

/// The list of variables for the end of `--help`.
#[must_use]
pub fn help() -> String {
    let mut text = String::from("Environment variables:\n");
    for variable in ALL {
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
    text
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
    fn help_names_every_variable_with_default_and_unit() {
        let help = help();
        for variable in ALL {
            assert!(
                help.contains(&format!("  {} [", variable.name)),
                "{}",
                variable.name
            );
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
