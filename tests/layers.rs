//! Enforces the structure of the source: which module may use which, the meaning of names, and that every
//! file states its purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::source::{code_of, is_of_tests, rust_files};
use crate::support::source_dir;

/// A module and those it may use besides itself; `lib`, `main` and `cli` may use all. Down only: the
/// parts know nothing of each other, and nothing of what drives them.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "pilot",
        &[
            "preflight",
            "status",
            "task",
            "broker",
            "container",
            "process",
            "codec",
            "chirp",
            "config",
            "records",
            "stats",
            "telemetry",
            "signals",
            "human",
            "backoff",
            "blocking",
            "human",
            "fault",
            "exit",
            "ids",
            "regular_file",
        ],
    ),
    (
        "preflight",
        &[
            "task",
            "container",
            "process",
            "blocking",
            "fault",
            "exit",
            "ids",
        ],
    ),
    (
        "status",
        &[
            "task", "process", "records", "stats", "mailbox", "blocking", "human", "exit", "ids",
        ],
    ),
    (
        "task",
        &[
            "broker",
            "container",
            "process",
            "codec",
            "chirp",
            "config",
            "telemetry",
            "blocking",
            "fault",
            "exit",
            "ids",
            "regular_file",
        ],
    ),
    (
        "broker",
        &[
            "config",
            "backoff",
            "blocking",
            "fault",
            "exit",
            "ids",
            "regular_file",
        ],
    ),
    ("container", &["config", "fault", "exit", "ids"]),
    ("process", &["blocking", "fault", "exit", "ids"]),
    ("codec", &["fault", "exit", "ids"]),
    (
        "chirp",
        &[
            "mailbox",
            "backoff",
            "blocking",
            "fault",
            "exit",
            "ids",
            "regular_file",
        ],
    ),
    ("config", &["fault", "exit", "ids", "regular_file"]),
    (
        "telemetry",
        &["config", "stats", "blocking", "fault", "exit", "ids"],
    ),
    ("report", &["records", "stats", "human", "exit"]),
    ("records", &["blocking", "fault", "exit", "ids"]),
    ("stats", &["fault", "exit", "ids"]),
    ("signals", &["fault", "exit", "ids"]),
    ("fault", &["exit", "ids"]),
    ("human", &[]),
    ("exit", &[]),
    ("ids", &[]),
    ("regular_file", &[]),
    ("mailbox", &[]),
    ("backoff", &[]),
    ("blocking", &[]),
];

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for file in rust_files(&source_dir().join("src")) {
        let module = module_of(&file);
        if matches!(module.as_str(), "lib" | "main" | "cli") {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("`{module}` has no row in MAY_USE"));
            continue;
        };
        let source = fs::read_to_string(&file).expect("it is text");
        for used in used_modules(&source) {
            if used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!(
                    "{}: `{module}` may not use `{used}`",
                    file.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// tokio's pool panics when the system has no thread left; a finished result was lost so.
#[test]
fn blocking_work_goes_through_the_one_helper() {
    let files = rust_files(&source_dir().join("src"));
    let others = files
        .into_iter()
        .filter(|file| module_of(file) != "blocking");
    let wrong: Vec<_> = others
        .filter(|file| {
            let source = fs::read_to_string(file).expect("it is text");
            ["spawn_blocking", "tokio::fs", "lookup_host"]
                .iter()
                .any(|other| source.contains(other))
        })
        .collect();
    assert!(wrong.is_empty(), "use `crate::blocking` in {wrong:#?}");
}

#[test]
fn every_file_opens_with_its_purpose() {
    let files = ["src", "tests"]
        .map(|top| rust_files(&source_dir().join(top)))
        .concat();
    assert!(
        files.len() > 20,
        "the source is not where it should be: {files:?}"
    );
    let silent: Vec<_> = files
        .into_iter()
        .filter(|file| {
            !fs::read_to_string(file)
                .expect("it is text")
                .starts_with("//! ")
        })
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

/// So that a name means one thing in the whole source, whichever module one comes from.
#[test]
fn no_type_name_that_another_module_can_see_is_used_twice() {
    let mut homes: BTreeMap<String, Vec<(PathBuf, Reach)>> = BTreeMap::new();
    for file in rust_files(&source_dir().join("src")) {
        if is_of_tests(&file) {
            continue;
        }
        let source = fs::read_to_string(&file).expect("it is text");
        for (name, reach) in types_of(&source) {
            homes.entry(name).or_default().push((file.clone(), reach));
        }
    }
    assert!(homes.len() > 300, "only {} types were found", homes.len());
    let used_twice: Vec<_> = homes
        .into_iter()
        .filter(|(_, homes)| homes.len() > 1)
        .filter(|(_, homes)| homes.iter().any(|(_, reach)| *reach == Reach::Beyond))
        .collect();
    assert!(used_twice.is_empty(), "{used_twice:#?}");
}

#[test]
fn the_reader_of_types_sees_how_far_they_reach_and_no_tests() {
    let source = "
pub(super) struct Seen;
enum Private {}
pub trait Wide<T> {}
impl Iterator for Private {
    type Item = u8;
}
pub fn f() {
    struct Inner;
}
#[cfg(test)]
mod tests {
    struct Fake;
}
";
    let expected = [
        ("Seen", Reach::Beyond),
        ("Private", Reach::Own),
        ("Wide", Reach::Beyond),
    ];
    assert_eq!(
        types_of(source),
        expected.map(|(name, reach)| (name.to_owned(), reach))
    );
}

/// Who can see a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Its own module.
    Own,
    /// Another module too.
    Beyond,
}

/// The types that a file defines outside of functions and of its tests.
fn types_of(source: &str) -> Vec<(String, Reach)> {
    let code = code_of(source);
    code.lines().filter_map(type_of).collect()
}

fn type_of(line: &str) -> Option<(String, Reach)> {
    let (reach, rest) = match line.strip_prefix("pub") {
        None => (Reach::Own, line),
        Some(rest) => {
            let rest = rest
                .strip_prefix('(')
                .map_or(rest, |scope| scope.split_once(')').expect("it is closed").1);
            (Reach::Beyond, rest.strip_prefix(' ')?)
        }
    };
    let (kind, rest) = rest.split_once(' ')?;
    let is_type = ["struct", "enum", "trait", "type", "union"].contains(&kind);
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    let name = &rest[..end.unwrap_or(rest.len())];
    is_type.then(|| (name.to_owned(), reach))
}

#[test]
fn the_reader_of_imports_sees_groups_and_nested_paths() {
    let source = "
        use crate::ids::TaskId;
        use crate::{broker::{Sink, spool}, codec, fault as f};
        // crate::comment
        fn f() -> crate::exit::Exit {}
    ";
    let expected = ["broker", "codec", "exit", "fault", "ids"].map(str::to_owned);
    assert_eq!(used_modules(source), BTreeSet::from(expected));
}

/// The top-level module of a file below `src`.
fn module_of(file: &Path) -> String {
    let inside = file
        .strip_prefix(source_dir().join("src"))
        .expect("it is below src");
    let first = inside
        .iter()
        .next()
        .expect("it has a name")
        .to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The names that follow `crate::`, alone or in a braced group.
fn used_modules(source: &str) -> BTreeSet<String> {
    let code = code_of(source);
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(group) => found.extend(first_names(group)),
            None => found.extend(first_name(after)),
        }
    }
    found
}

/// The first name of each member of a group whose opening brace was read.
fn first_names(group: &str) -> Vec<String> {
    let mut depth = 0_u32;
    let mut members = vec![String::new()];
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(String::new()),
            _ if depth == 0 => members.last_mut().expect("there is one").push(letter),
            _ => {}
        }
    }
    members
        .iter()
        .filter_map(|member| first_name(member.trim()))
        .collect()
}

fn first_name(text: &str) -> Option<String> {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    let name = &text[..end.unwrap_or(text.len())];
    // A macro or a type of the crate's root begins no module's name.
    (name.starts_with(|letter: char| letter.is_ascii_lowercase())).then(|| name.to_owned())
}
