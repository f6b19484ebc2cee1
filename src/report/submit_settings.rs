//! What the report offers to paste: the settings of the next pilots that keep them off bad sites and machines, and
//! give them the memory that their tasks need.

/// A place to keep jobs off, by the name that HTCondor matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExcludedPlace<'a> {
    Site(&'a str),
    Resource(&'a str),
    Machine(&'a str),
}

impl ExcludedPlace<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Site(name) | Self::Resource(name) | Self::Machine(name) => name,
        }
    }

    fn term(self) -> String {
        let attribute = match self {
            Self::Site(_) => "GLIDEIN_Site",
            Self::Resource(_) => "GLIDEIN_ResourceName",
            Self::Machine(_) => "Machine",
        };
        format!("{attribute} =!= {}", quoted(self.name()))
    }
}

/// The expression for a job's `requirements` that keeps it off these places; `None` without any.
pub(super) fn requirements<'a>(
    places: impl IntoIterator<Item = ExcludedPlace<'a>>,
) -> Option<String> {
    let terms: Vec<String> = places.into_iter().map(ExcludedPlace::term).collect();
    (!terms.is_empty()).then(|| terms.join(" && "))
}

/// The macros of the bundled template that keep pilots off these places, quoted for a shell.
///
/// HTCondor cuts its lists at commas and blanks. A name that a list can't hold goes into `machines`, which takes any
/// expression.
pub(super) fn macros(places: &[ExcludedPlace<'_>]) -> Vec<String> {
    let (plain, odd): (Vec<ExcludedPlace<'_>>, Vec<_>) =
        places.iter().partition(|place| is_listable(place.name()));
    let (machines, sites): (Vec<ExcludedPlace<'_>>, Vec<_>) = plain
        .into_iter()
        .partition(|place| matches!(place, ExcludedPlace::Machine(_)));
    let list = |places: &[ExcludedPlace<'_>]| {
        let names: Vec<&str> = places.iter().map(ExcludedPlace::name).collect();
        names.join(",")
    };
    [
        ("excluded_sites", list(&sites)),
        ("excluded_machines", list(&machines)),
        ("machines", requirements(odd).unwrap_or_default()),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| format!("{name}={}", shell_words::quote(&value)))
    .collect()
}

fn is_listable(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-:/@#+".contains(&byte))
}

/// What a job with so many slots needs if a task needs `task_mib`, in MiB: the pilot and its guardian take 8, and
/// for each slot Apptainer's own processes and a container that waits for its event take some 20.
pub(super) fn memory_mib(task_mib: u64, slots: u32) -> u64 {
    16 + (task_mib + 32) * u64::from(slots)
}

/// The text as a ClassAd's string literal.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.extend(format!("\\{byte:03o}").chars()),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expression_is_quoted_as_classads_are() {
        let found = requirements([
            ExcludedPlace::Site("A\"B\\C"),
            ExcludedPlace::Resource("Zürich"),
            ExcludedPlace::Machine("node-1.example.org"),
        ]);
        let expected = r#"GLIDEIN_Site =!= "A\"B\\C" && GLIDEIN_ResourceName =!= "Z\303\274rich" && Machine =!= "node-1.example.org""#;
        assert_eq!(found.as_deref(), Some(expected));
        assert_eq!(requirements([]), None);
    }

    #[test]
    fn the_templates_macros_hold_every_name() {
        let places = [
            ExcludedPlace::Site("SITE-03"),
            ExcludedPlace::Machine("h7.site-05.example.org"),
            ExcludedPlace::Resource("CE1"),
            ExcludedPlace::Site("A, \"B\""),
            ExcludedPlace::Machine("it's"),
        ];
        assert_eq!(
            macros(&places),
            [
                "excluded_sites=SITE-03,CE1",
                "excluded_machines=h7.site-05.example.org",
                r#"machines='GLIDEIN_Site =!= "A, \"B\"" && Machine =!= "it'\''s"'"#,
            ]
        );
        assert_eq!(macros(&places[..1]), ["excluded_sites=SITE-03"]);
        assert_eq!(macros(&[]), [""; 0]);
    }
}
