//! What `condor_submit` and HTCondor's ClassAd library make of ours, without a pool.

use std::path::Path;

use ewms_pilot::chirp::quote;

use crate::support::condor::{FIRST, Submission, python};

fn submission() -> Submission {
    Submission::new(Path::new("/cvmfs/image"), "true")
}

/// The value of an attribute, as `condor_submit` writes it.
#[track_caller]
fn attribute<'a>(ads: &'a str, name: &str) -> &'a str {
    let mut values = ads
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values
        .next()
        .unwrap_or_else(|| panic!("no {name} in:\n{ads}"))
}

/// What is promised with and without an image of the pilot's.
#[track_caller]
fn assert_common(ads: &str) {
    for (name, value) in [
        ("RequestCpus", "2"),
        ("OriginalTime", "600"),
        ("EWMSTaskforceUUID", "\"tf\""),
        ("WantIOProxy", "true"),
        ("KillSig", "\"SIGTERM\""),
        ("JobMaxVacateTime", "20 + 30"),
        ("JobMaxRetries", "5"),
        ("WhenToTransferOutput", "\"ON_EXIT_OR_EVICT\""),
        (
            "TransferOutput",
            "\"ewms-pilot-tasks.jsonl,rejected,unsent\"",
        ),
        ("JobBatchName", "\"ewms-pilot tf\""),
        ("ProjectName", "\"IceCube\""),
        ("JobDurationCategory", "\"Medium\""),
        ("AcctGroup", "\"group_sky\""),
        (
            "JobAdInformationAttrs",
            "\"MachineAttrMachine0, MachineAttrGLIDEIN_Site0\"",
        ),
    ] {
        assert_eq!(attribute(ads, name), value, "{name}");
    }
    let environment = attribute(ads, "Environment");
    for variable in [
        "EWMS_PILOT_TASK_IMAGE=/cvmfs/image",
        "EWMS_PILOT_KILL_GRACE=20",
        "EWMS_PILOT_HTCHIRP=True",
        "EWMS_PILOT_HTCHIRP_DEST=JOB_ATTR",
        "EWMS_PILOT_PREFETCH=4",
        "EWMS_PILOT_ENV_FILE=ewms_htcondor_envfile.sh",
    ] {
        assert!(environment.contains(variable), "{environment}");
    }
    let inputs = attribute(ads, "TransferInput");
    for input in ["ewms_htcondor_envfile.sh", "table.fits"] {
        assert!(inputs.contains(input), "{inputs}");
    }
    assert_eq!(attribute(ads, "RequestGPUs"), "2");
    assert_eq!(attribute(ads, "GPUsMinCapability"), "7.5");
    assert_eq!(attribute(ads, "GPUsMinMemory"), "16384");
    assert!(attribute(ads, "RequireGPUs").contains("DriverVersion >= 12.2"));
    assert!(attribute(ads, "Requirements").contains("HasUserNamespaces"));
    assert!(attribute(ads, "Cmd").ends_with("condor/ewms-pilot-wrapper\""));
    assert!(attribute(ads, "Requirements").contains("\"node1,node2\""));
    assert_eq!(ads.matches("ProcId=").count(), 3, "{ads}");
}

fn with_macros() -> Submission {
    submission()
        .set("n_pilots", "3")
        .set("cpus", "2")
        .set("max_seconds", "600")
        .set("kill_grace", "20")
        .set("taskforce_uuid", "tf")
        .set("input_files", "table.fits")
        .set("pilot_env", "EWMS_PILOT_PREFETCH=4")
        .set("gpus", "2")
        .set("gpu_capability", "7.5")
        .set("gpu_memory", "16GB")
        .set("require_gpus", "DriverVersion >= 12.2")
        .set("excluded_machines", "node1,node2")
        .set("project", "IceCube")
        .set("duration", "Medium")
        .set("accounting_group", "group_sky")
}

#[test]
fn the_template_makes_the_jobs_that_it_promises() {
    let ads = with_macros().dry_run();
    assert_common(&ads);
    assert_eq!(attribute(&ads, "JobUniverse"), "5");
    assert!(attribute(&ads, "TransferInput").contains("/ewms-pilot,"));
    assert!(attribute(&ads, "Requirements").contains("HasSingularity"));
    let own = submission()
        .set("batch_name", "sky 7")
        .set("chirp_dest", "JOB_EVENT_LOG");
    let ads = own.dry_run();
    assert_eq!(attribute(&ads, "JobBatchName"), "\"sky 7\"");
    // There every report is an event.
    assert!(!ads.contains("JobAdInformationAttrs"), "{ads}");
}

#[test]
fn the_pilots_go_where_an_apptainer_is_or_can_be_had_from_cvmfs() {
    let job = submission().dry_run();
    let machine = |attributes: &[&str]| {
        let mut machine = serde_json::json!({
            "Machine": FIRST, "Arch": "X86_64", "OpSys": "LINUX", "Cpus": 8, "Memory": 65536,
            "Disk": 100_000_000, "HasFileTransfer": true, "FileSystemDomain": "ep",
        });
        for name in attributes {
            machine[*name] = true.into();
        }
        machine
    };
    let of_osg = "HAS_CVMFS_oasis_opensciencegrid_org";
    let machines = [
        machine(&["HasUserNamespaces", "HasSingularity"]),
        machine(&["HasUserNamespaces", "HAS_SINGULARITY"]),
        machine(&["HasUserNamespaces", of_osg]),
        machine(&["HasUserNamespaces"]),
        machine(&["HasSingularity", "HAS_SINGULARITY", of_osg]),
    ];
    let asked = serde_json::json!([job, machines]).to_string();
    let answer = python(&["matches"], &asked);
    assert_eq!(answer.trim(), "[true, true, true, false, false]", "{job}");
    for (excluded, answers) in [
        ("node1, LOCALHOST", "[false, false, false, false, false]"),
        ("node1,local", "[true, true, true, false, false]"),
    ] {
        let job = submission().set("excluded_machines", excluded).dry_run();
        let asked = serde_json::json!([job, machines]).to_string();
        assert_eq!(python(&["matches"], &asked).trim(), answers, "{job}");
    }
}

#[test]
fn with_an_image_of_the_pilots_the_template_makes_container_jobs() {
    let ads = with_macros().set("pilot_image", "/cvmfs/pilot").dry_run();
    assert_common(&ads);
    assert_eq!(attribute(&ads, "WantContainer"), "true");
    assert_eq!(attribute(&ads, "ContainerImage"), "\"/cvmfs/pilot\"");
}

#[test]
fn every_text_is_quoted_byte_for_byte_as_htcondor_quotes_it() {
    let mut texts: Vec<String> = (1..=0x2ff)
        .chain([0xfffd, 0xffff, 0x1_f980])
        .filter_map(char::from_u32)
        .flat_map(|letter| {
            [
                letter.to_string(),
                format!("a{letter}7"),
                format!("{letter}\"{letter}"),
            ]
        })
        .collect();
    texts.extend(["", "\\\"", "\\n\n", "it's", "$(X) {} [] ; //"].map(str::to_owned));
    let list = serde_json::to_string(&texts).expect("JSON takes strings");
    let answer = python(&["quote"], &list);
    let theirs: Vec<String> = serde_json::from_str(&answer).expect("a list");
    let ours: Vec<String> = texts.iter().map(|text| quote(text)).collect();
    assert!(ours.len() > 2_000);
    for ((text, ours), theirs) in texts.iter().zip(&ours).zip(&theirs) {
        assert_eq!(ours, theirs, "{text:?}");
    }
    let answer = python(&["unquote"], &serde_json::to_string(&ours).expect("JSON"));
    let back: Vec<String> = serde_json::from_str(&answer).expect("a list");
    assert_eq!(back, texts);
}
