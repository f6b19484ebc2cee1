//! Task arguments: turns a string with placeholders, as users write it, into a list of words.
//!
//! Placeholders are replaced first, so that one inside quotes stays inside them. Then the string is split as
//! a POSIX shell splits words, without any expansion. No shell is involved.

use crate::fault::ContainerRole;

/// The configured arguments, known to be splittable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

/// The values of the placeholders: paths inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerPaths<'a> {
    /// For `{{INFILE}}` and `{{IN_FILE}}`. `None`, as for the init container, keeps the placeholders.
    pub infile: Option<&'a str>,
    /// For `{{OUTFILE}}` and `{{OUT_FILE}}`. `None`, as for the init container, keeps the placeholders.
    pub outfile: Option<&'a str>,
    /// For `{{DATA_HUB}}` and `{{DATAHUB}}`.
    pub data_hub: &'a str,
    /// For `{{INPUT_FILES}}` and `{{INPUTFILES}}`.
    pub input_files: &'a str,
}

/// The reason why arguments can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("a quote in `{args}` is never closed; close it, or escape it with a backslash")]
    Quote { args: String },
    /// No argument can contain a NUL character.
    #[error("`{args}` holds a NUL character; remove it")]
    Nul {
        /// The arguments, with the character shown as `\0`.
        args: String,
    },
}

impl Template {
    /// Checks `args`, above all its quotes.
    ///
    /// # Errors
    /// When they can't be split into words.
    pub fn parse(args: &str) -> Result<Self, TemplateError> {
        if args.contains('\0') {
            return Err(TemplateError::Nul {
                args: args.replace('\0', "\\0"),
            });
        }
        // No inserted path contains a quote or backslash, so arguments that can be split now can be split
        // later.
        if split(args).is_none() {
            return Err(TemplateError::Quote {
                args: args.to_owned(),
            });
        }
        Ok(Self(args.to_owned()))
    }

    /// Whether the arguments name an outfile, by a placeholder or by the variable that holds its path.
    #[must_use]
    pub fn names_outfile(&self) -> bool {
        names_outfile(&self.0)
    }

    /// The words for one run. Unknown placeholders stay.
    ///
    /// # Errors
    /// When a path brought in a quote or a NUL that the arguments didn't have.
    pub fn render(&self, places: &ContainerPaths<'_>) -> Result<Vec<String>, TemplateError> {
        let mut args = self.0.clone();
        for (names, path) in [
            (["{{INFILE}}", "{{IN_FILE}}"], places.infile),
            (["{{OUTFILE}}", "{{OUT_FILE}}"], places.outfile),
            (["{{DATA_HUB}}", "{{DATAHUB}}"], Some(places.data_hub)),
            (
                ["{{INPUT_FILES}}", "{{INPUTFILES}}"],
                Some(places.input_files),
            ),
        ] {
            let Some(path) = path else { continue };
            for name in names {
                args = args.replace(name, path);
            }
        }
        if args.contains('\0') {
            return Err(TemplateError::Nul {
                args: args.replace('\0', "\\0"),
            });
        }
        split(&args).ok_or(TemplateError::Quote { args })
    }
}

/// The placeholders for files of an event.
const OF_EVENT: [&str; 4] = ["INFILE", "IN_FILE", "OUTFILE", "OUT_FILE"];
/// The placeholders of every container.
const OF_ALL: [&str; 4] = ["DATA_HUB", "DATAHUB", "INPUT_FILES", "INPUTFILES"];
/// The longest text between braces that is checked, in bytes.
const LONGEST: usize = 40;

/// Text in a container's arguments that looks like a placeholder but is not replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OddPlaceholder {
    /// It resembles this placeholder.
    Misspelt {
        written: String,
        meant: &'static str,
    },
    /// It is a placeholder of tasks only.
    OfTasks { written: String },
}

/// The texts in `args` that look like placeholders but are none for such a container, each once.
#[must_use]
pub fn odd_placeholders(args: &str, role: ContainerRole) -> Vec<OddPlaceholder> {
    let mut odd = Vec::new();
    for (start, _) in args.match_indices('{') {
        // Inner braces were checked with the outer one. `${…}` is a variable of a shell.
        if args[..start].ends_with(['{', '$']) {
            continue;
        }
        let found = braced(&args[start..]).and_then(|braced| judge(braced, role));
        odd.extend(found.filter(|found| !odd.contains(found)));
    }
    odd
}

/// The braced text at the start of `text`, up to its last closing brace.
fn braced(text: &str) -> Option<&str> {
    let inner = text.trim_start_matches('{');
    let end = inner.find(['{', '}', '\n']).filter(|end| *end <= LONGEST)?;
    let closing = inner[end..].len() - inner[end..].trim_start_matches('}').len();
    let length = text.len() - inner.len() + end + closing;
    (closing > 0).then(|| &text[..length])
}

fn judge(braced: &str, role: ContainerRole) -> Option<OddPlaceholder> {
    let written = braced.to_owned();
    let inside = braced.trim_matches(['{', '}']);
    let known = || OF_EVENT.into_iter().chain(OF_ALL);
    if !(braced.starts_with("{{") && braced.ends_with("}}")) {
        // Single braces have meanings in many languages, but these names have a meaning only here.
        let meant = known().find(|name| *name == inside.trim())?;
        return Some(OddPlaceholder::Misspelt { written, meant });
    }
    if OF_ALL.contains(&inside) || (role == ContainerRole::Task && OF_EVENT.contains(&inside)) {
        return None;
    }
    if OF_EVENT.contains(&inside) {
        return Some(OddPlaceholder::OfTasks { written });
    }
    let name = inside.trim().to_uppercase();
    known()
        .map(|known| (strsim::damerau_levenshtein(&name, known), known))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, _)| distance <= 1.max(name.len() / 3))
        .map(|(_, meant)| OddPlaceholder::Misspelt { written, meant })
}

/// Whether a text for a task names its outfile.
#[must_use]
pub fn names_outfile(text: &str) -> bool {
    ["{{OUTFILE}}", "{{OUT_FILE}}", "EWMS_TASK_OUTFILE"]
        .iter()
        .any(|name| text.contains(name))
}

/// `None` when a quote isn't closed. `args` contains no NUL.
fn split(args: &str) -> Option<Vec<String>> {
    // In a shell and in shell_words `#` begins a comment. Users' workflows were written for Python's
    // shlex.split, where it is an ordinary character (`--color #fff`). NUL, which is not in the string,
    // stands in for it.
    let words = shell_words::split(&args.replace('#', "\0")).ok()?;
    Some(
        words
            .into_iter()
            .map(|word| word.replace('\0', "#"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: ContainerPaths<'static> = ContainerPaths {
        infile: Some("/io/in.json"),
        outfile: Some("/io/out.json"),
        data_hub: "/hub",
        input_files: "/inputs",
    };
    const INIT: ContainerPaths<'static> = ContainerPaths {
        infile: None,
        outfile: None,
        data_hub: "/hub",
        input_files: "/inputs",
    };

    fn render(args: &str, places: &ContainerPaths<'_>) -> Vec<String> {
        Template::parse(args)
            .expect("parses")
            .render(places)
            .expect("renders")
    }

    #[test]
    fn real_strings_of_workflows_become_the_words_their_authors_meant() {
        let rows: &[(&str, &[&str])] = &[
            ("", &[]),
            ("   ", &[]),
            (
                r#"bash -c "sleep 10 && cp {{INFILE}} {{OUTFILE}}""#,
                &["bash", "-c", "sleep 10 && cp /io/in.json /io/out.json"],
            ),
            (
                "python3 -c \"\nimport sys\nprint('a  b', '{{IN_FILE}}')\n\"",
                &[
                    "python3",
                    "-c",
                    "\nimport sys\nprint('a  b', '/io/in.json')\n",
                ],
            ),
            (
                r#"bash -c "curl --fail-with-body -o {{DATA_HUB}}/startup.json 'https://x.org/a?b=1&c=2'" "#,
                &[
                    "bash",
                    "-c",
                    "curl --fail-with-body -o /hub/startup.json 'https://x.org/a?b=1&c=2'",
                ],
            ),
            (
                "python -m reco --in {{INFILE}} --out {{OUT_FILE}} --gcdqp {{DATAHUB}}/g",
                &[
                    "python",
                    "-m",
                    "reco",
                    "--in",
                    "/io/in.json",
                    "--out",
                    "/io/out.json",
                    "--gcdqp",
                    "/hub/g",
                ],
            ),
        ];
        for (args, words) in rows {
            assert_eq!(&render(args, &TASK), words, "{args}");
        }
    }

    #[test]
    fn nothing_is_expanded_and_no_operator_is_special() {
        let rows: &[(&str, &[&str])] = &[
            (
                "echo $HOME ~ * `date` $(date)",
                &["echo", "$HOME", "~", "*", "`date`", "$(date)"],
            ),
            ("a;b | c && d > e", &["a;b", "|", "c", "&&", "d", ">", "e"]),
            ("x '' \"\" y", &["x", "", "", "y"]),
            (r"a\ b 'c\d' e''f", &["a b", r"c\d", "ef"]),
            (r#""a\"b" 'it'\''s'"#, &[r#"a"b"#, "it's"]),
            ("K=V --x=y", &["K=V", "--x=y"]),
        ];
        for (args, words) in rows {
            assert_eq!(&render(args, &TASK), words, "{args}");
        }
    }

    #[test]
    fn a_hash_is_no_comment() {
        let words = render(r##"--color #fff "#1" '#2' \#3 a#b # c"##, &TASK);
        assert_eq!(
            words,
            ["--color", "#fff", "#1", "#2", "#3", "a#b", "#", "c"]
        );
    }

    #[test]
    fn what_is_known_as_a_placeholder_is_replaced_and_nothing_else() {
        for name in OF_EVENT.into_iter().chain(OF_ALL) {
            let args = format!("{{{{{name}}}}}");
            let is_of_all = OF_ALL.contains(&name);
            assert_ne!(render(&args, &TASK), [&*args]);
            assert_eq!(render(&args, &INIT) != [&*args], is_of_all);
            assert_eq!(odd_placeholders(&args, ContainerRole::Task), []);
            let odd = odd_placeholders(&args, ContainerRole::Init);
            assert_eq!(odd.is_empty(), is_of_all, "{odd:?}");
        }
    }

    #[test]
    fn what_looks_like_a_placeholder_and_is_none_is_found_once() {
        let meant = |args: &str| -> Vec<(String, &str)> {
            let odd = odd_placeholders(args, ContainerRole::Task).into_iter();
            odd.map(|odd| match odd {
                OddPlaceholder::Misspelt { written, meant } => (written, meant),
                OddPlaceholder::OfTasks { .. } => panic!("it is a task"),
            })
            .collect()
        };
        for (written, name) in [
            ("{{IN_FLE}}", "IN_FILE"),
            ("{{ INFILE }}", "INFILE"),
            ("{{infile}}", "INFILE"),
            ("{{OUTFIEL}}", "OUTFILE"),
            ("{{DATA-HUB}}", "DATA_HUB"),
            ("{{INFILE}", "INFILE"),
            ("{OUTFILE}", "OUTFILE"),
        ] {
            let args = format!("cat '{{{{INFILE}}}}' {written} {written}");
            assert_eq!(meant(&args), [(written.to_owned(), name)], "{args}");
        }
        for none in [
            "{{{INFILE}}}",
            "${INFILE} ${OUTFILE:-x}",
            "python -c 'print({\"a\": {\"b\": 1}}, f\"{infile}\")'",
            "{{ file }} {{OTHER}} {{}} {} {{ {{INFILE}} }} }} {",
            "awk '{{print $1}}'",
        ] {
            assert_eq!(meant(none), [], "{none}");
        }
    }

    #[test]
    fn unknown_placeholders_stay() {
        assert_eq!(
            render("{{OTHER}} {INFILE} {{ INFILE }}", &TASK),
            ["{{OTHER}}", "{INFILE}", "{{", "INFILE", "}}"]
        );
    }

    #[test]
    fn the_init_container_knows_only_the_hub() {
        assert_eq!(
            render("{{INFILE}} {{OUT_FILE}} {{DATAHUB}}", &INIT),
            ["{{INFILE}}", "{{OUT_FILE}}", "/hub"]
        );
    }

    #[test]
    fn an_open_quote_is_found_when_configured() {
        for args in ["bash -c \"echo", "it's", "'"] {
            let error = Template::parse(args).expect_err("is refused");
            assert!(error.to_string().contains(&format!("`{args}`")), "{error}");
        }
    }

    #[test]
    fn a_nul_is_refused() {
        assert!(matches!(
            Template::parse("a\0b"),
            Err(TemplateError::Nul { .. })
        ));
    }
}
