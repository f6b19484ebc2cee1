//! Reads the JSON object of variables for a container, and refuses what Apptainer would lose silently.
//! No text of an error holds a value, since users pass secrets to their tasks this way.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Variables that no container can be given: those that Apptainer or the image's shell always sets itself,
/// and those that Apptainer's start script uses and so loses or changes (each seen with 1.4.5).
const FIXED: [&str; 25] = [
    "UID",
    "GID",
    "HOME",
    "EUID",
    "PWD",
    "PPID",
    "SHLVL",
    "IFS",
    "OPTIND",
    "e",
    "key",
    "__script__",
    "__exported_env__",
    "__apptainer_cmd__",
    "PREPEND_PATH",
    "APPEND_PATH",
    "SING_USER_DEFINED_PATH",
    "SING_USER_DEFINED_PREPEND_PATH",
    "SING_USER_DEFINED_APPEND_PATH",
    "PROMPT_COMMAND",
    "APPTAINER_SHELL",
    "APPTAINER_APPNAME",
    "SINGULARITY_SHELL",
    "SINGULARITY_APPNAME",
    "SINGULARITY_ENVIRONMENT",
];

/// The most bytes that Linux takes for one string of an environment, name and closing zero
/// included (`MAX_ARG_STRLEN`).
const LONGEST: usize = 128 * 1024;

/// Apptainer passes a variable of this prefix into the container under the rest of its name.
const PREFIX: &str = "APPTAINERENV_";

/// The variables in the object's order, or everything that is wrong with them.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, Vec<String>> {
    let members = members(text).map_err(|problem| vec![problem])?;
    let mut variables: Vec<(String, String)> = Vec::with_capacity(members.len());
    let mut problems = Vec::new();
    for (name, raw) in members {
        match name_problem(&name).map_or_else(|| value(&name, raw.get()), Err) {
            Err(problem) => problems.push(problem),
            // Like Python's dict: the last value, at the first one's place.
            Ok(value) => match variables.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => variables.push((name, value)),
            },
        }
    }
    if problems.is_empty() {
        Ok(variables)
    } else {
        Err(problems)
    }
}

/// The text with the values left out, for a log.
pub(super) fn masked(text: &str) -> String {
    match members(text) {
        Ok(members) => {
            let names: Vec<String> = members
                .iter()
                .map(|(name, _)| format!("\"{}\": ***", name.escape_debug()))
                .collect();
            format!("{{{}}}", names.join(", "))
        }
        Err(_) => "***".to_owned(),
    }
}

fn members(text: &str) -> Result<Vec<(String, Box<RawValue>)>, String> {
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    let empty_list = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let nothing =
        matches!(text, "" | "null") || empty_list.is_some_and(|inner| inner.trim().is_empty());
    if nothing {
        return Ok(Vec::new());
    }
    if !text.starts_with('{') {
        // serde_json would quote the value in its own error.
        return Err("expected a JSON object such as `{\"NAME\": \"value\"}`".to_owned());
    }
    serde_json::from_str::<ObjectMembers>(text)
        .map(|members| members.0)
        .map_err(|error| format!("expected a JSON object, but it is broken: {error}"))
}

/// The reason why a variable of this name can't be set, if there is one.
fn name_problem(name: &str) -> Option<String> {
    if !is_name(name) {
        return Some(format!(
            "`{}` is no name of a variable: use ASCII letters, digits and `_`, no digit first",
            name.escape_debug()
        ));
    }
    (!is_settable(name)).then(|| {
        format!(
            "`{name}` can't be set in a container, Apptainer or its shell sets it: leave it out, or choose another \
             name"
        )
    })
}

/// Whether a container can be given this variable, if [`is_name`] holds.
#[must_use]
pub fn is_settable(name: &str) -> bool {
    !FIXED.contains(&name)
}

/// Whether a variable may have this name. With other names Apptainer silently loses variables.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The value as Python's `str()` writes it.
fn value(name: &str, raw: &str) -> Result<String, String> {
    let wrong = |what: &str| {
        Err(format!(
            "the value of `{name}` is {what}: expected a string, an integer or a boolean"
        ))
    };
    let value = match raw.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<String>(raw) {
            Ok(value) => value,
            Err(_) => {
                return Err(format!(
                    "the value of `{name}` is no Unicode text, it has a lone surrogate in it"
                ));
            }
        },
        Some(b't') => "True".to_owned(),
        Some(b'f') => "False".to_owned(),
        Some(b'n') => return wrong("null"),
        Some(b'{') => return wrong("an object"),
        Some(b'[') => return wrong("a list"),
        _ if raw.contains(['.', 'e', 'E']) => return wrong("a fraction"),
        _ if raw == "-0" => "0".to_owned(),
        _ => raw.to_owned(),
    };
    if value.contains('\0') {
        return Err(format!(
            "the value of `{name}` has a zero byte in it, which no variable can hold"
        ));
    }
    if value.contains("\r\n") {
        return Err(format!(
            "the value of `{name}` has a carriage return before a line feed, which Apptainer drops: \
             end lines with a line feed alone, or put it into a file"
        ));
    }
    if PREFIX.len() + name.len() + 1 + value.len() + 1 > LONGEST {
        return Err(format!(
            "the value of `{name}` has {} bytes, more than Linux passes in one variable (128 KiB): \
             put it into a file",
            value.len()
        ));
    }
    Ok(value)
}

/// An object's members in order, values as they are written: integers of any size stay what they
/// are.
struct ObjectMembers(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for ObjectMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = ObjectMembers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ObjectMembers, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(ObjectMembers(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"))
    }

    fn pairs(read: &[(String, String)]) -> Vec<(&str, &str)> {
        read.iter()
            .map(|(name, value)| (&**name, &**value))
            .collect()
    }

    fn problem(text: &str) -> String {
        match parse(text) {
            Ok(read) => panic!("{text} was read as {read:?}"),
            Err(problems) => problems.join("\n"),
        }
    }

    #[test]
    fn four_ways_to_say_none() {
        for text in ["", "null", "[]", "{}", " [ ] ", "\n{ }\n"] {
            assert!(read(text).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn order_is_kept_and_the_last_of_two_wins() {
        let read = read(r#"{"Z": "1", "A": "2", "_m9": "", "Z": "3"}"#);
        assert_eq!(pairs(&read), [("Z", "3"), ("A", "2"), ("_m9", "")]);
    }

    #[test]
    fn scalars_become_what_python_writes() {
        let read = read(
            r#"{"A": 123456789012345678901234567890, "B": -5, "C": -0, "D": true, "E": false}"#,
        );
        assert_eq!(
            pairs(&read),
            [
                ("A", "123456789012345678901234567890"),
                ("B", "-5"),
                ("C", "0"),
                ("D", "True"),
                ("E", "False")
            ]
        );
    }

    #[test]
    fn hostile_strings_are_kept() {
        let read = read(r#"{"A": "a,b='\"$X`\\\n\té\ud83d\ude00 {\"j\": [1]}"}"#);
        assert_eq!(read[0].1, "a,b='\"$X`\\\n\té😀 {\"j\": [1]}");
    }

    #[test]
    fn other_values_are_errors_that_name_the_key() {
        for (value, what) in [
            ("1.5", "a fraction"),
            ("1e3", "a fraction"),
            ("null", "null"),
            ("[1]", "a list"),
            (r#"{"x": 1}"#, "an object"),
            (r#""\ud800""#, "lone surrogate"),
            (r#""a\u0000b""#, "zero byte"),
            (r#""a\r\nb""#, "carriage return before a line feed"),
        ] {
            let text = problem(&format!(r#"{{"OK": 1, "BAD": {value}}}"#));
            assert!(
                text.contains("`BAD`") && text.contains(what),
                "{value}: {text}"
            );
        }
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let text = problem(r#"{"A": null, "B": "x", "C-D": 1, "": 1, "1x": 1, "é": 1}"#);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("`C-D` is no name"), "{text}");
    }

    #[test]
    fn what_apptainer_sets_itself_is_an_error() {
        for name in FIXED {
            assert!(
                problem(&format!(r#"{{"{name}": "x"}}"#))
                    .contains(&format!("`{name}` can't be set"))
            );
        }
        assert_eq!(read(r#"{"Home": "x"}"#).len(), 1);
    }

    #[test]
    fn a_value_that_linux_would_refuse_is_an_error() {
        let fits = LONGEST - PREFIX.len() - "A".len() - 2;
        assert_eq!(
            read(&format!(r#"{{"A": "{}"}}"#, "x".repeat(fits))).len(),
            1
        );
        assert!(problem(&format!(r#"{{"A": "{}"}}"#, "x".repeat(fits + 1))).contains("128 KiB"));
    }

    #[test]
    fn what_is_no_object_is_an_error_without_its_content() {
        for text in [
            r#""hidden""#,
            "7777",
            "[7777]",
            "true",
            "{",
            r#"{"A": hidden}"#,
            "hidden",
            r#"{"A": "hidden" 1}"#,
            r#"{"A": "hidden"} x"#,
            r#"{"\ud800": "hidden"}"#,
            "{\"A\": \"hidden\x01\"}",
        ] {
            let problem = problem(text);
            assert!(
                !problem.contains("hidden") && !problem.contains("7777"),
                "{problem}"
            );
            assert!(
                !problem.contains('\n') && problem.contains("expected a JSON object"),
                "{problem}"
            );
        }
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_crash() {
        let deep = format!(r#"{{"A": {}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert!(problem(&deep).contains("`A` is a list"));
    }

    #[test]
    fn only_names_are_shown() {
        assert_eq!(
            masked(r#"{"A": "secret", "B": 5}"#),
            r#"{"A": ***, "B": ***}"#
        );
        assert_eq!(masked("secret"), "***");
        assert_eq!(masked("null"), "{}");
    }
}
