//! Checks the documents against the project: their tables against the parser's, their commands and links
//! against the files.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ewms_pilot::config::{help_table, variables};
use ewms_pilot::exit;

use crate::support::scene::Scene;
use crate::support::{SOON, source_dir};

fn read(document: &str) -> String {
    fs::read_to_string(source_dir().join(document)).expect("it is there")
}

/// What a document has between the markers of `section`.
#[track_caller]
fn section(document: &str, section: &str) -> String {
    let text = read(document);
    let (begin, end) = (
        format!("<!-- {section}: begin"),
        format!("<!-- {section}: end -->"),
    );
    let found = text
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once("-->\n"))
        .and_then(|(_, rest)| rest.split_once(&end))
        .map(|(between, _)| between.trim().to_owned());
    found.unwrap_or_else(|| panic!("{document} has no markers of `{section}`"))
}

/// Panics, with what to paste, unless `document` has `expected` between the markers of `name`.
#[track_caller]
fn assert_section(document: &str, name: &str, expected: &str) {
    assert!(
        section(document, name) == expected.trim(),
        "{document}, between the markers of `{name}`, is to be:\n\n{expected}\n"
    );
}

#[test]
fn the_page_on_configuration_has_the_parsers_table_of_variables() {
    assert_section("src/config/README.md", "variables", &help_table::markdown());
}

#[test]
fn the_readme_has_what_the_parsers_table_says_of_the_variables_that_everybody_needs() {
    let all = help_table::markdown();
    let known: BTreeSet<&str> = all.lines().collect();
    let basic = section("README.md", "basic variables");
    assert!(basic.lines().count() > 12, "{basic}");
    for line in basic.lines() {
        assert!(known.contains(line), "{line}");
    }
}

#[test]
fn the_page_on_faults_has_the_binarys_table_of_exit_codes() {
    let mut table = String::from("| code | meaning |\n| --- | --- |\n");
    for (code, meaning) in exit::TABLE {
        writeln!(table, "| {code} | {meaning} |").expect("a string takes it");
    }
    assert_section("src/fault/README.md", "exit codes", &table);
}

#[test]
fn the_readme_is_short_and_its_links_lead_somewhere() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 200);
    let links = readme.split("](").skip(1).filter_map(|rest| {
        let (target, _) = rest.split_once(')')?;
        (!target.contains("://")).then_some(target)
    });
    let links: Vec<&str> = links.collect();
    assert!(links.len() > 6, "{links:?}");
    for link in links {
        assert!(source_dir().join(link).is_file(), "{link}");
    }
}

#[test]
fn help_shows_every_variable_and_exit_code() {
    for arguments in [&["--help"][..], &["run", "--help"]] {
        let scene = arguments.iter().fold(Scene::bare(), Scene::arg);
        let outcome = scene.run(SOON);
        outcome.assert_code(0);
        let lines: Vec<&str> = outcome.stdout.lines().map(str::trim_start).collect();
        for variable in variables::ALL {
            let start = format!("{} [", variable.name);
            assert!(
                lines.iter().any(|line| line.starts_with(&start)),
                "{start}: {lines:#?}"
            );
        }
        for (code, _) in exit::TABLE {
            let start = format!("{code} ");
            assert!(
                lines.iter().any(|line| line.starts_with(&start)),
                "{start}: {lines:#?}"
            );
        }
    }
}

#[test]
fn the_version_is_the_packages() {
    let outcome = Scene::bare().arg("--version").run(SOON);
    // A release has its commit and date in the brackets.
    let version = concat!("ewms-pilot ", env!("CARGO_PKG_VERSION"), " (");
    let said = &outcome.assert_code(0).stdout;
    assert!(said.starts_with(version) && said.ends_with(")\n"), "{said}");
}

#[test]
fn every_variable_that_the_documents_name_is_one() {
    let known: BTreeSet<&str> = variables::ALL
        .iter()
        .map(|variable| variable.name)
        // The tests' own.
        .chain(["EWMS_PILOT_BIN", "EWMS_PILOT_SOURCE"])
        .collect();
    let mut unknown = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("it is text");
        for word in text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            let name = word.trim_start_matches('_');
            // `EWMS_PILOT_` alone stands for any.
            let names_one = name
                .strip_prefix("EWMS_PILOT_")
                .is_some_and(|rest| !rest.is_empty());
            let stands_for_several = word.ends_with('_');
            if names_one && !stands_for_several && !known.contains(word) {
                unknown.push(format!("{}: {word}", file.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn the_page_on_tests_has_a_result_for_every_row_of_the_matrix() {
    let matrix = read("scripts/matrix");
    let rows = matrix.split_once("rows() {").expect("it has rows").1;
    let rows = rows.split_once("\nEND").expect("they end").0;
    let parts = rows.lines().filter_map(|row| row.split('|').nth(1));
    let table = section("tests/README.md", "matrix");
    let results: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split(" | ").next())
        .collect();
    let count = |part: &str| results.iter().filter(|result| result[2..] == *part).count();
    let parts: Vec<&str> = parts.collect();
    assert!(parts.len() > 15, "{parts:?}");
    for part in &parts {
        let rows = parts.iter().filter(|row| *row == part).count();
        assert_eq!(count(part), rows, "{part}: {table}");
    }
}

#[test]
fn the_commands_that_the_readme_names_are_there_to_be_run() {
    let readme = read("README.md");
    let mut named = BTreeSet::new();
    for word in readme.split(|letter: char| letter.is_whitespace() || letter == '`') {
        if let Some(name) = word.strip_prefix("scripts/") {
            named.insert(name.to_owned());
        }
    }
    for expected in ["demo", "test", "check", "ep"] {
        assert!(named.contains(expected), "the README names no {expected}");
    }
    for name in named {
        let path = source_dir().join("scripts").join(&name);
        let mode = fs::metadata(&path)
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .permissions()
            .mode();
        assert_eq!(mode & 0o111, 0o111, "{name} can be executed by everyone");
    }
}

#[test]
fn the_project_names_nothing_that_only_its_makers_have() {
    // In pieces, so that this file doesn't name them.
    let foreign = [["..", "shared"].join("/"), ["/work", "shared"].join("/")];
    let mut found = Vec::new();
    for top in ["src", "tests", "scripts", "condor", ".ci", ".github"] {
        collect(&source_dir().join(top), &mut found);
    }
    found.extend(documents());
    assert!(found.len() > 60, "{found:?}");
    for file in found {
        let text = fs::read(&file).expect("it can be read");
        let text = String::from_utf8_lossy(&text);
        for name in &foreign {
            assert!(!text.contains(name), "{} names {name}", file.display());
        }
    }
}

/// What people read and run: the READMEs, the scripts, what is submitted.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&source_dir().join("src"), &mut found);
    found.retain(|file| file.ends_with("README.md"));
    for readme in ["README.md", "tests/README.md"] {
        found.push(source_dir().join(readme));
    }
    for top in ["scripts", "condor", ".ci", ".github"] {
        collect(&source_dir().join(top), &mut found);
    }
    found
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_none_or(|suffix| suffix != "pyc") {
            found.push(path);
        }
    }
}
