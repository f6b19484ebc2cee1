//! The variables of a task: the user's, whatever is in them, ours, and none of the pilot's.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{result_of, sh, shell_task};
use crate::support::scene::Scene;
use crate::support::{SOON, images};

const TELL: &str = r#"env -0 >"$EWMS_TASK_OUTFILE""#;

/// Values that get lost, split or evaluated wherever a shell, a comma list or a template is on the way.
fn hostile() -> Vec<String> {
    let mut values: Vec<String> = [
        "",
        " ",
        "  leading and trailing  ",
        "a,b,c",
        "A=1,B=2",
        "=",
        "'single'",
        "\"double\"",
        "it's \"both\" `at` once",
        "$HOME",
        "${PATH}",
        "$(echo evaluated)",
        "`echo evaluated`",
        "line one\nline two\n",
        "\n",
        "\ttab\t",
        "back\\slash \\n \\\\ \\",
        r#"{"json": [1, "two", null], "deep": {"a": "b,c"}}"#,
        "grüße, 日本語, 😀, \u{202e}",
        "100% %s %d %%",
        "${X:-default} ${#X} $$ $? $! $0",
        "; touch /tmp/evaluated & | > < * ? [a] ~ # !",
        "{{INFILE}} {{DATA_HUB}}",
        "\u{1}\u{7f}\u{1b}[31m\r\u{b}",
        "\"$\\\"'`\n\\",
    ]
    .map(str::to_owned)
    .into();
    values.push("x,'\"$\n ".repeat(100_000 / 7));
    values
}

fn variables(dump: &str) -> BTreeMap<&str, &str> {
    let pairs = dump.split_terminator('\0');
    pairs
        .map(|pair| pair.split_once('=').expect("NAME=value"))
        .collect()
}

#[track_caller]
fn assert_values_arrive(image: std::path::PathBuf) {
    let values = hostile();
    let named = |index: usize| format!("HOSTILE_{index}");
    let object: Map<String, Value> = values
        .iter()
        .enumerate()
        .map(|(index, value)| (named(index), value.as_str().into()))
        .collect();
    let scene = Scene::task(image, sh(TELL)).set(
        "EWMS_PILOT_TASK_ENV_JSON",
        Value::Object(object).to_string(),
    );
    let dump = result_of(scene);
    let seen = variables(&dump);
    for (index, value) in values.iter().enumerate() {
        assert_eq!(
            seen.get(named(index).as_str()),
            Some(&value.as_str()),
            "{}",
            named(index)
        );
    }
}

#[test]
fn hostile_values_arrive_byte_for_byte_through_busyboxs_shell() {
    assert_values_arrive(images::busybox());
}

#[test]
fn hostile_values_arrive_byte_for_byte_through_dash() {
    assert_values_arrive(images::python());
}

/// An object that gives each name a value of its own.
fn all_set(names: &[&str]) -> String {
    let object: Map<String, Value> = names
        .iter()
        .map(|name| ((*name).to_owned(), format!("/bin:/of/{name}").into()))
        .collect();
    Value::Object(object).to_string()
}

#[test]
fn the_users_variables_replace_those_of_the_image_and_of_apptainer() {
    let names = [
        "PATH",
        "LANG",
        "LC_ALL",
        "TERM",
        "TMPDIR",
        "SHELL",
        "USER",
        "TZ",
        "PS1",
        "PYTHONPATH",
        "OMP_NUM_THREADS",
        "http_proxy",
        "HTTP_PROXY",
        "OLDPWD",
        "HOSTNAME",
        "ENV",
        "BASH_ENV",
        "SHELLOPTS",
        "RANDOM",
        "USER_PATH",
        "XDG_RUNTIME_DIR",
        "APPTAINER_BIND",
        "APPTAINER_NAME",
        "SINGULARITY_CONTAINER",
        "APPTAINERENV_X",
        "_",
    ];
    let dump = result_of(shell_task(TELL).set("EWMS_PILOT_TASK_ENV_JSON", all_set(&names)));
    let seen = variables(&dump);
    for name in names {
        assert_eq!(
            seen.get(name),
            Some(&format!("/bin:/of/{name}").as_str()),
            "{name}"
        );
    }
}

#[test]
fn a_name_that_apptainer_or_the_shell_sets_is_refused_before_anything_runs() {
    let names = [
        "UID",
        "GID",
        "HOME",
        "EUID",
        "PWD",
        "PPID",
        "SHLVL",
        "IFS",
        "OPTIND",
        // Apptainer's start script uses these for itself.
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
    let (scene, _, _) = shell_task(TELL)
        .set("EWMS_PILOT_TASK_ENV_JSON", all_set(&names))
        .spool();
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    for name in names {
        let told = outcome.stderr.contains(&format!("`{name}` can't be set"));
        assert!(told, "{name}: {}", outcome.stderr);
    }
}

#[test]
fn a_line_end_that_apptainer_would_shorten_is_refused_before_anything_runs() {
    let (scene, _, _) = shell_task(TELL)
        .set(
            "EWMS_PILOT_TASK_ENV_JSON",
            r#"{"LINES": "a\r\nb", "FINE": "a\rb"}"#,
        )
        .spool();
    let outcome = scene.run(SOON);
    outcome.assert_code(2);
    assert!(
        outcome.stderr.contains("`LINES` has a carriage return"),
        "{}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("`FINE`"), "{}", outcome.stderr);
}

#[test]
fn our_variables_win_over_the_users() {
    let scene = shell_task(TELL).set(
        "EWMS_PILOT_TASK_ENV_JSON",
        r#"{"EWMS_TASK_DATA_HUB_DIR": "/x", "EWMS_TASK_INFILE": "/x", "EWMS_TASK_OUTFILE": "/x"}"#,
    );
    let dump = result_of(scene);
    let seen = variables(&dump);
    assert_eq!(seen["EWMS_TASK_DATA_HUB_DIR"], "/ewms-pilot-data/data-hub");
    for (name, start) in [
        ("EWMS_TASK_INFILE", "/ewms-pilot-data/task-io/infile-"),
        ("EWMS_TASK_OUTFILE", "/ewms-pilot-data/task-io/outfile-"),
    ] {
        assert!(seen[name].starts_with(start), "{name}={}", seen[name]);
    }
}

#[test]
fn integers_and_booleans_arrive_as_python_writes_them() {
    let scene = shell_task(r#"echo "$A $B $C" >"$EWMS_TASK_OUTFILE""#).set(
        "EWMS_PILOT_TASK_ENV_JSON",
        r#"{"A": 12345678901234567890123, "B": true, "C": false}"#,
    );
    assert_eq!(result_of(scene), "12345678901234567890123 True False\n");
}

#[test]
fn no_variable_of_the_pilot_reaches_a_task_or_changes_how_it_runs() {
    let names = [
        "MARKED",
        "APPTAINERENV_MARKED",
        "SINGULARITYENV_MARKED",
        "APPTAINERENV_PATH",
        "APPTAINERENV_LD_PRELOAD",
        "APPTAINER_NAME",
        "SINGULARITY_CACHEDIR",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "NO_PROXY",
        "ALL_PROXY",
        "TERM",
        "USER",
        "LOGNAME",
        "SHELL",
        "_CONDOR_SCRATCH_DIR",
        "_CONDOR_JOB_AD",
        "OMP_NUM_THREADS",
        "LD_LIBRARY_PATH",
    ];
    let mut scene = shell_task(
        r#"env -0 >"$EWMS_TASK_OUTFILE"; ls -d /marked* >>"$EWMS_TASK_OUTFILE" 2>/dev/null; true"#,
    );
    for name in names {
        scene = scene.set(name, "/marked-value");
    }
    let bind = format!("{}:/marked-bind", scene.dir().display());
    for name in [
        "BIND", "BINDPATH", "MOUNT", "HOME", "ENV_FILE", "OVERLAY", "WORKDIR",
    ] {
        for prefix in ["APPTAINER", "SINGULARITY"] {
            scene = scene.set(&format!("{prefix}_{name}"), &bind);
        }
    }
    for name in [
        "FAKEROOT",
        "NOSHIMINIT",
        "NO_INIT",
        "DEBUG",
        "WRITABLE_TMPFS",
        "NO_EVAL",
    ] {
        scene = scene.set(&format!("APPTAINER_{name}"), "1");
    }
    let told = result_of(scene);
    assert!(told.contains("EWMS_TASK_INFILE="), "{told}");
    assert!(!told.contains("marked"), "{}", told.replace('\0', "\n"));
    assert!(!told.contains("uid=0"), "{told}");
}
