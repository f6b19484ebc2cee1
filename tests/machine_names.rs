//! The names by which HTCondor matches machines: they are in what a pilot chirps and records, and the report's
//! expression excludes the very machine, or the resource of a site, that failed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::records::{lines, of_kind};
use crate::support::chirp::{ChirpServer, values};
use crate::support::scene::Scene;
use crate::support::{SOON, images};

/// As a glidein's slot has it. No host name of this machine is in it.
const MACHINE_AD: &str = "Name = \"slot1_1@glidein_7_1@wn7.example.org\"\nMachine = \"wn7.example.org\"\n\
                          GLIDEIN_Site = \"Northpole\"\nGLIDEIN_ResourceName = \"Northpole-CE2\"\n";
const NAMES: [&str; 3] = ["wn7.example.org", "Northpole", "Northpole-CE2"];

/// Whether a job with these requirements may run on the machine of that ad: HTCondor says so itself.
#[track_caller]
fn matches(ad: &Path, requirements: &str) -> bool {
    let output = Command::new("condor_status")
        .arg("-ads")
        .arg(ad)
        .args(["-af", "Machine", "-constraint", requirements])
        .output()
        .expect("the execution point has HTCondor");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim() == NAMES[0]
}

/// Thirty records on each of three machines, made of one that a pilot wrote. On the bad machines each is a fault
/// of the machine.
fn ninety_records(task: &Value, bad: &[&str]) -> String {
    let mut text = String::new();
    let machines = [("wn7", "CE2"), ("wn8", "CE2"), ("wn9", "CE1")];
    for (number, (machine, resource)) in machines.iter().cycle().take(90).enumerate() {
        let mut task = task.clone();
        for (field, value) in [
            ("task_id", number.to_string()),
            ("pilot_id", (*machine).to_owned()),
            ("host", format!("{machine}.example.org")),
            ("resource", format!("Northpole-{resource}")),
        ] {
            task[field] = value.into();
        }
        if bad.contains(machine) {
            task["outcome"] = "given_back".into();
            task["fault_class"] = "ep".into();
        }
        writeln!(text, "{task}").expect("a string takes it");
    }
    text
}

/// The expression that `ewms-pilot report` prints last.
#[track_caller]
fn expression(records: &str) -> String {
    let scene = Scene::new().arg("report").arg("tasks.jsonl");
    fs::write(scene.dir().join("tasks.jsonl"), records).expect("the scene is writable");
    let outcome = scene.run(SOON);
    outcome.assert_code(0);
    let last = outcome.stdout.lines().last().unwrap_or_default();
    let expression = last.strip_prefix("requirements = ");
    let expression = expression.unwrap_or_else(|| panic!("{}", outcome.stdout));
    expression.to_owned()
}

#[test]
fn the_names_of_the_machine_ad_are_chirped_and_recorded_and_the_reports_expression_excludes_them() {
    let server = ChirpServer::start();
    let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
    incoming.put("a.txt", "x");
    let ad = scene.dir().join("machine.ad");
    fs::write(&ad, MACHINE_AD).expect("the scene is writable");
    // What the environment calls the site is not what is matched.
    let scene = server
        .told_by(scene, "JOB_ATTR")
        .set("_CONDOR_MACHINE_AD", &ad)
        .set("OSG_SITE_NAME", "Somewhere");
    scene.run(SOON).assert_code(0);
    for line in lines(&scene) {
        let names = ["host", "site", "resource"].map(|name| line[name].clone());
        assert_eq!(names, NAMES, "{line}");
    }
    let told = server.attributes();
    for (attribute, name) in ["Machine", "Site", "ResourceName"].iter().zip(NAMES) {
        assert_eq!(values(&told, attribute), [name], "{told:?}");
    }

    assert!(matches(&ad, "true"));
    let task = &of_kind(&scene, "task")[0];
    let machine = expression(&ninety_records(task, &["wn7"]));
    assert_eq!(machine, r#"Machine =!= "wn7.example.org""#);
    assert!(!matches(&ad, &machine));
    // The site's other resource is none the worse for it.
    let resource = expression(&ninety_records(task, &["wn7", "wn8"]));
    assert_eq!(resource, r#"GLIDEIN_ResourceName =!= "Northpole-CE2""#);
    assert!(!matches(&ad, &resource));
}

#[test]
fn without_a_machine_ad_the_host_name_counts_and_an_earlier_runs_site_is_forgotten() {
    let server = ChirpServer::start();
    let (scene, incoming, _) = Scene::task(images::busybox(), "true").spool();
    incoming.put("a.txt", "x");
    server.told_by(scene, "JOB_ATTR").run(SOON).assert_code(0);
    let told = server.attributes();
    assert_eq!(values(&told, "Machine"), ["ep"], "{told:?}");
    for attribute in ["Site", "ResourceName"] {
        assert_eq!(values(&told, attribute), ["UNDEFINED"], "{told:?}");
    }
}
