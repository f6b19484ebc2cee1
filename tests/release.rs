//! What a release is made of, as far as it can be tried without a compiler: the check of dependencies, the workflows,
//! the page for contributors.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::source_dir;

/// Runs the check on packages of these names, licences and sources.
fn check(packages: &[(&str, Value, Value)]) -> Output {
    let package = |(name, licence, source): &(&str, Value, Value)| json!({"name": name, "version": "1.0.0", "license": licence, "source": source});
    let packages: Vec<Value> = packages.iter().map(package).collect();
    let directory = source_dir().join("scripts/dependencies");
    let mut child = Command::new("python3")
        .arg(directory.join("check.py"))
        .arg(directory.join("about.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is there");
    let metadata = json!({"packages": packages}).to_string();
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(metadata.as_bytes()).expect("it reads");
    drop(input);
    child.wait_with_output().expect("it ends")
}

/// Where Cargo.lock says that packages come from.
fn registry() -> Value {
    let lock = fs::read_to_string(source_dir().join("Cargo.lock")).expect("it is there");
    let (_, rest) = lock
        .split_once("source = \"")
        .expect("a package with a source");
    json!(rest.split_once('"').expect("its end").0)
}

#[test]
fn a_dependency_with_another_licence_or_source_is_named() {
    let registry = registry();
    let packages = [
        ("good", json!("MIT OR GPL-3.0-only"), registry.clone()),
        (
            "nested",
            json!("(MIT OR Apache-2.0) AND Unicode-3.0"),
            registry.clone(),
        ),
        ("itself", json!("MIT"), Value::Null),
        ("viral", json!("GPL-3.0-only"), registry.clone()),
        ("both", json!("MIT AND GPL-3.0-only"), registry.clone()),
        ("silent", Value::Null, registry.clone()),
        ("forked", json!("MIT"), json!("git+ssh://example.org/fork")),
    ];
    let output = check(&packages);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let named: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!(named, ["viral", "both", "silent", "forked"], "{said}");
    assert!(check(&packages[..3]).status.success());
}

#[test]
fn the_workflows_run_scripts_that_are_there() {
    let mut run = Vec::new();
    for entry in fs::read_dir(source_dir().join(".github/workflows")).expect("workflows") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("it is text");
        let scripts = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- run: scripts/"));
        run.extend(scripts.map(|line| line.split(' ').next().unwrap_or_default().to_owned()));
    }
    for script in ["check", "test", "release"] {
        assert!(
            run.iter().any(|name| name == script),
            "no workflow runs {script}: {run:?}"
        );
    }
    for script in run {
        let path = source_dir().join("scripts").join(&script);
        let mode = fs::metadata(&path)
            .unwrap_or_else(|error| panic!("{script}: {error}"))
            .permissions()
            .mode();
        assert_eq!(mode & 0o111, 0o111, "{script}");
    }
}

#[test]
fn the_page_for_contributors_names_files_that_are_there() {
    let page =
        fs::read_to_string(source_dir().join(".github/CONTRIBUTING.md")).expect("it is there");
    assert!(page.lines().count() <= 80, "one page");
    let mut named = 0;
    for word in page.split('`').skip(1).step_by(2) {
        let path = word.split(' ').next().unwrap_or_default();
        if ["src/", "tests/", "scripts/", "condor/"]
            .iter()
            .any(|top| path.starts_with(top))
        {
            assert!(source_dir().join(path).exists(), "{path}");
            named += 1;
        }
    }
    assert!(named > 15, "{named}");
}
