//! Which Apptainer a pilot takes, and with which flags: the first rung of the ladder that holds. The Apptainers
//! here are scripts in front of the real one that are broken in one way each, and note what they were asked.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cvmfs::hung;
use crate::faults_site::Site;
use crate::support::scene::{Outcome, Scene};
use crate::support::spool::SpoolQueue;
use crate::support::{SOON, images};

/// Does as Apptainer does.
const REAL: &str = "exec /usr/bin/apptainer \"$@\"";
/// An Apptainer whose setuid starter lost its bit: it answers, and makes nothing.
const BROKEN: &str = "case $1 in --version) echo apptainer version 1.4.5; exit ;; esac
echo 'FATAL:   while executing starter-suid: it must be owned by root and setuid' >&2; exit 255";
/// The same, but `--userns` goes around the starter.
const BROKEN_SETUID: &str =
    "case \" $* \" in *' --version '*|*' --userns '*) exec /usr/bin/apptainer \"$@\" ;; esac
echo 'FATAL:   while executing starter-suid: it must be owned by root and setuid' >&2; exit 255";
const TOO_OLD: &str = "echo apptainer version 1.0.3-1.el8";
const STRANGER: &str = "echo singularity-ce version 4.1.0";

/// Below the place where CVMFS is mounted.
const OF_OSG: &str = "oasis.opensciencegrid.org/mis/apptainer/current/bin/apptainer";

/// An execution point whose PATH has just what the test puts there, and whose CVMFS is a directory. A pilot
/// with one event runs there.
struct Ep {
    scene: Scene,
    outgoing: SpoolQueue,
    /// Shell that makes it ready, as root.
    ready: String,
}

/// A pilot that has ended there.
struct Ran {
    outcome: Outcome,
    results: Vec<Vec<u8>>,
    /// What the programs were asked, as `PROGRAM VERB`, each once.
    asked: Vec<String>,
    /// The last program that was asked to run a container.
    runs: Option<String>,
}

impl Ep {
    fn new() -> Self {
        let scene = Scene::task(images::busybox(), "cp {{INFILE}} {{OUTFILE}}");
        let (scene, incoming, outgoing) = scene.spool();
        incoming.put("a.txt", "event");
        let home = scene.dir().to_owned();
        for directory in ["bin", "cvmfs", "store"] {
            fs::create_dir(home.join(directory)).expect("made");
        }
        // What starts the pilot is looked for in PATH, too.
        symlink("/usr/bin/setpriv", home.join("bin/setpriv")).expect("linked");
        let home = home.display();
        let ready = format!("mount --bind {home}/cvmfs /cvmfs\nexport PATH={home}/bin");
        Self {
            scene,
            outgoing,
            ready,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.dir().join(name)
    }

    fn set(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.scene = self.scene.set(name, value);
        self
    }

    /// Sets a variable to a path in the scene's directory.
    fn set_path(self, name: &str, path: &str) -> Self {
        let path = self.path(path);
        self.set(name, path)
    }

    /// Puts a program there, which first notes its name and its first argument.
    fn with(self, name: &str, script: &str) -> Self {
        let program = self.path(name);
        fs::create_dir_all(program.parent().expect("it has one")).expect("made");
        let notes = self.path("asked");
        let script = format!(
            "#!/bin/sh\necho {name} $1 >>{}\n{script}\n",
            notes.display()
        );
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("it is ours");
        self
    }

    /// Runs this image, for tasks and before them, converted if need be.
    fn of_any_image(self, image: &Path) -> Self {
        self.set("EWMS_PILOT_TASK_IMAGE", image)
            .set("EWMS_PILOT_INIT_IMAGE", image)
            .set("EWMS_PILOT_INIT_ARGS", "true")
            .set(
                "_EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT",
                "no",
            )
            .set_path("_EWMS_PILOT_APPTAINER_BUILD_WORKDIR", "store")
    }

    /// Adds a directory to PATH, in front.
    fn also_in_path(mut self, name: &str) -> Self {
        let directory = self.path(name);
        self.ready = format!("{}\nexport PATH={}:$PATH", self.ready, directory.display());
        self
    }

    /// Puts a machine ad there.
    fn with_ad(self, text: &str) -> Self {
        fs::write(self.path("machine.ad"), text).expect("written");
        self.set_path("_CONDOR_MACHINE_AD", "machine.ad")
    }

    fn run(self, arguments: &str) -> Ran {
        let notes = self.path("asked");
        let scene = Site::Prepared(&self.ready).with_arguments(self.scene, arguments);
        let outcome = scene.run(SOON * 3);
        let text = fs::read_to_string(notes).unwrap_or_default();
        let mut runs = text.lines().filter_map(|line| line.strip_suffix(" run"));
        let runs = runs.next_back().map(str::to_owned);
        let asked: BTreeSet<String> = text.lines().map(str::to_owned).collect();
        Ran {
            outcome,
            results: self.outgoing.files().into_values().collect(),
            asked: asked.into_iter().collect(),
            runs,
        }
    }
}

impl Ran {
    /// Panics unless the event was done, by `program`, after whose first container no other was asked for one: the
    /// first program is asked for one that is to wait before it has shown that it can.
    #[track_caller]
    fn assert_done_by(&self, program: &str) {
        self.outcome.assert_code(0);
        let stderr = &self.outcome.stderr;
        assert_eq!(self.results, [b"event".to_vec()], "{stderr}");
        assert_eq!(self.runs.as_deref(), Some(program), "{stderr}");
    }

    /// Panics unless the execution point got no event, for all these reasons, which the last line tells.
    #[track_caller]
    fn assert_unfit(&self, reasons: &[&str]) {
        self.outcome.assert_code(3);
        assert_eq!(self.results, [] as [Vec<u8>; 0]);
        let last = self.outcome.last_line();
        for reason in reasons {
            assert!(last.contains(reason), "no `{reason}` in {last}");
        }
    }

    #[track_caller]
    fn assert_asked_only(&self, program: &str) {
        let asked = &self.asked;
        assert!(asked.contains(&format!("{program} exec")), "{asked:?}");
        assert!(
            asked.iter().all(|asked| asked.starts_with(program)),
            "{asked:?}"
        );
    }

    /// The lines of `ewms-pilot check` about `check`.
    fn lines(&self, check: &str) -> Vec<&str> {
        let lines = self.outcome.stdout.lines();
        lines
            .filter(|line| line.split_whitespace().nth(1) == Some(check))
            .collect()
    }
}

#[test]
fn the_first_place_that_has_an_apptainer_counts() {
    let of_osg = format!("cvmfs/{OF_OSG}");
    let elsewhere = format!("elsewhere/{OF_OSG}");
    let ep = || {
        let ep = Ep::new().with(&of_osg, REAL);
        // An ad that names what isn't there: the machine's, seen from within a container.
        ep.with_ad("GWMS_SINGULARITY_PATH = \"/no/such/apptainer\"\nSINGULARITY_PATH = undefined\n")
    };
    ep().run("").assert_done_by(&of_osg);

    let mounted_elsewhere = ep()
        .with(&elsewhere, REAL)
        .set_path("CVMFS_MOUNT_DIR", "elsewhere");
    mounted_elsewhere.run("").assert_done_by(&elsewhere);

    let condors = "condor/usr/libexec/apptainer";
    let of_condor = || {
        ep().with(condors, REAL)
            .set_path("_CONDOR_BIN", "condor/usr/bin")
    };
    of_condor().run("").assert_done_by(condors);

    let glideins = of_condor().with("glidein/singularity", REAL);
    let program = glideins.path("glidein/singularity");
    let ad = format!("SINGULARITY_PATH = \"{}\"\n", program.display());
    let glideins = glideins.with_ad(&ad);
    glideins.run("").assert_done_by("glidein/singularity");

    let by_variable = of_condor()
        .with("site/apptainer", REAL)
        .set_path("GWMS_SINGULARITY_PATH", "site/apptainer");
    by_variable.run("").assert_done_by("site/apptainer");

    let of_path = of_condor().with("bin/apptainer", REAL);
    of_path.run("").assert_done_by("bin/apptainer");

    let by_setting = of_condor()
        .with("bin/apptainer", REAL)
        .with("mine/apptainer", REAL)
        .set_path("EWMS_PILOT_APPTAINER", "mine/apptainer");
    let ran = by_setting.run("");
    ran.assert_done_by("mine/apptainer");
    let others = ran.asked.iter().filter(|asked| !asked.starts_with("mine/"));
    assert_eq!(others.count(), 0, "{:?}", ran.asked);
}

#[test]
fn an_apptainer_that_makes_no_containers_is_passed_over_with_its_reason() {
    let of_osg = format!("cvmfs/{OF_OSG}");
    let ep = || {
        Ep::new()
            .with("old/apptainer", TOO_OLD)
            .with("bin/apptainer", BROKEN)
            .with("site/singularity", STRANGER)
            .with(&of_osg, REAL)
            .set_path("SINGULARITY_PATH", "site/singularity")
            .set("EWMS_PILOT_INIT_IMAGE", images::busybox())
            .set("EWMS_PILOT_INIT_ARGS", "true")
            .also_in_path("old")
    };
    let ran = ep().run("");
    ran.assert_done_by(&of_osg);
    let stderr = &ran.outcome.stderr;
    for reason in [
        "`apptainer version 1.0.3-1.el8` (apptainer-too-old)",
        "starter-suid: it must be owned by root and setuid (unknown)",
        "`singularity-ce version 4.1.0`, so it is no Apptainer",
        "this Apptainer makes the containers",
    ] {
        assert!(stderr.contains(reason), "no `{reason}` in {stderr}");
    }

    let ran = ep().run("check");
    ran.outcome.assert_code(0);
    let lines = ran.lines("apptainer");
    let verdicts: Vec<&str> = lines.iter().map(|line| &line[..4]).collect();
    assert_eq!(verdicts, ["NOTE", "NOTE", "ok  ", "ok  "], "{lines:#?}");
    assert!(lines[0].contains("apptainer-too-old"), "{lines:#?}");
    assert!(lines[1].contains("starter-suid"), "{lines:#?}");
    assert!(lines[2].contains("is no Apptainer"), "{lines:#?}");
    assert!(lines[3].contains("(CVMFS)"), "{lines:#?}");
    assert!(ran.lines("container")[0].starts_with("ok  "));

    // The same, and the image has to be converted first.
    let of_file = ep().of_any_image(&images::busybox_sif());
    of_file.run("").assert_done_by(&of_osg);

    // Without checks it is the first that is Apptainer, whatever it makes.
    let ran = ep().set("EWMS_PILOT_PREFLIGHT", "no").run("");
    ran.outcome.assert_code(3);
    assert!(!ran.asked.contains(&format!("{of_osg} run")));
}

#[test]
fn all_apptainers_come_before_user_namespaces_and_these_before_a_task_without_proc() {
    let of_osg = format!("cvmfs/{OF_OSG}");
    let ep = || Ep::new().with("bin/apptainer", BROKEN_SETUID);
    for image in [images::busybox(), images::busybox_sif()] {
        let ran = ep().of_any_image(&image).run("");
        ran.assert_done_by("bin/apptainer");
        let said = "but only with `--userns`: while executing starter-suid";
        assert!(ran.outcome.stderr.contains(said), "{}", ran.outcome.stderr);
    }
    ep().with(&of_osg, REAL).run("").assert_done_by(&of_osg);

    // Where /proc is masked, an Apptainer that needs `--userns` needs both.
    let mut masked = ep();
    masked.ready = format!("mount -t tmpfs masked /proc/sys/fs\n{}", masked.ready);
    let ran = masked.run("check");
    ran.outcome.assert_code(0);
    let line = ran.lines("container")[0];
    let (userns, proc) = (line.find("`--userns`"), line.find("`--no-mount proc`"));
    assert!(userns.is_some() && userns < proc, "{line}");
}

#[test]
fn where_no_rung_holds_all_reasons_are_told() {
    let of_osg = format!("cvmfs/{OF_OSG}");
    let refused = "case $1 in --version) echo apptainer version 1.3.0; exit ;; esac
echo 'ERROR  : Failed to create user namespace: user namespace disabled' >&2; exit 1";
    let ep = || {
        Ep::new()
            .with("bin/apptainer", BROKEN)
            .with("site/singularity", STRANGER)
            .with(&of_osg, refused)
            .set_path("SINGULARITY_PATH", "site/singularity")
    };
    let reasons = [
        "no Apptainer here makes containers: ",
        "bin/apptainer`: while executing starter-suid: it must be owned by root and setuid (unknown), also with `--userns`",
        "`singularity-ce version 4.1.0`, so it is no Apptainer",
        "user namespace disabled (namespaces)",
        "max_user_namespaces",
    ];
    ep().run("").assert_unfit(&reasons);
    let ran = ep().run("check");
    ran.outcome.assert_code(3);
    let line = ran.lines("container")[0];
    assert!(line.starts_with("FAIL"), "{line}");
    for reason in reasons {
        assert!(line.contains(reason), "no `{reason}` in {line}");
    }

    let nothing = Ep::new().with_ad("SINGULARITY_PATH = \"singularity\"\n");
    nothing.run("").assert_unfit(&[
        "no executable `apptainer` in PATH `",
        "SINGULARITY_PATH: `singularity` can't be started: the path is not absolute",
        &format!("CVMFS: `/cvmfs/{OF_OSG}` can't be started: No such file or directory"),
        "; install Apptainer, mount CVMFS",
    ]);
}

#[test]
fn an_image_at_fault_and_a_killed_container_are_no_reason_for_another_apptainer() {
    let of_osg = format!("cvmfs/{OF_OSG}");
    let killed = "case $1 in --version) echo apptainer version 1.4.5; exit ;; esac\nkill -KILL $$";
    let ran = Ep::new()
        .with("bin/apptainer", killed)
        .with(&of_osg, REAL)
        .run("");
    ran.assert_unfit(&["exit code 137"]);
    ran.assert_asked_only("bin/apptainer");

    let ep = Ep::new().with("bin/apptainer", REAL).with(&of_osg, REAL);
    let ready = format!(
        "cp -a /images/busybox {0}/image; printf '#!/no/interpreter\\n' >{0}/image/.singularity.d/runscript",
        ep.scene.dir().display()
    );
    let mut ep = ep.set("EWMS_PILOT_TASK_IMAGE", "image");
    ep.ready = format!("{ready}\n{}", ep.ready);
    let ran = ep.run("");
    ran.outcome.assert_code(6);
    ran.assert_asked_only("bin/apptainer");
}

#[test]
fn the_users_choice_is_the_only_one() {
    let ep = |script| {
        Ep::new()
            .with("bin/apptainer", REAL)
            .with("mine/apptainer", script)
            .set_path("EWMS_PILOT_APPTAINER", "mine/apptainer")
    };
    for (script, reason) in [
        (
            STRANGER,
            "`singularity-ce version 4.1.0`, so it is no Apptainer",
        ),
        (TOO_OLD, "(apptainer-too-old); ask the site"),
        (BROKEN, "it must be owned by root and setuid (unknown); "),
    ] {
        let ran = ep(script).run("");
        ran.assert_unfit(&[reason]);
        let others = ran.asked.iter().filter(|asked| !asked.starts_with("mine/"));
        assert_eq!(others.count(), 0, "{:?}", ran.asked);
    }
    let missing = ep(REAL).set_path("EWMS_PILOT_APPTAINER", "no/such");
    missing.run("").assert_unfit(&[
        "EWMS_PILOT_APPTAINER: `",
        "/no/such` can't be started: No such file or directory",
        "; correct EWMS_PILOT_APPTAINER, or unset it",
    ]);
    let relative = ep(REAL).set("EWMS_PILOT_APPTAINER", "mine/apptainer");
    let ran = relative.run("");
    ran.outcome.assert_code(2);
    let said = "`EWMS_PILOT_APPTAINER` is `mine/apptainer`: expected an absolute path";
    assert!(ran.outcome.stderr.contains(said), "{}", ran.outcome.stderr);
}

#[test]
fn a_hung_cvmfs_costs_nothing_unless_it_is_needed_and_then_no_more_than_its_deadline() {
    let ep = |script: Option<&str>| {
        let ep = Ep::new().set("EWMS_PILOT_CVMFS", "no");
        let mut ep = match script {
            Some(script) => ep.with("bin/apptainer", script),
            None => ep,
        };
        let bin = ep.path("bin");
        ep.ready = format!("{}\nexport PATH={}", hung("/cvmfs", "0"), bin.display());
        ep
    };
    let began = Instant::now();
    ep(Some(REAL)).run("").assert_done_by("bin/apptainer");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());

    let began = Instant::now();
    let ran = ep(None).run("");
    ran.assert_unfit(&[OF_OSG, "gives no answer (hanging); exclude this machine"]);
    let most = Duration::from_secs(45);
    assert!(began.elapsed() < most, "{:?}", began.elapsed());
}
