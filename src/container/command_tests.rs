//! The command lines that the real Apptainer was seen to accept.

use std::fs;

use super::*;
use crate::config::Gpu;
use crate::container::Access;

fn apptainer(scratch: &str) -> Apptainer {
    Apptainer {
        program: "/usr/bin/apptainer".into(),
        env: vec![
            ("PATH".into(), "/usr/bin".into()),
            ("TMPDIR".into(), scratch.into()),
        ],
        proxies: vec![("http_proxy".into(), "http://proxy:3128".into())],
    }
}

fn run_with(
    args: &[&str],
    env: &[(&str, &str)],
    binds: &[Bind],
) -> Result<Invocation, CommandError> {
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let spec = RunSpec {
        image: Path::new("/images/x"),
        args: &args,
        env: &env,
        binds,
        workdir: Path::new("/scratch/work"),
        verbosity: Verbosity::Normal,
        gpus: None,
        proc: ProcMount::Own,
        user_namespace: UserNamespace::AsInstalled,
    };
    run(&apptainer("/scratch"), &spec)
}

fn variables(invocation: &Invocation) -> Vec<(&str, &str)> {
    let text =
        |string: &OsString| -> &str { Box::leak(string.to_string_lossy().into_owned().into()) };
    invocation
        .env
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect()
}

#[test]
fn a_run_contains_all_and_evaluates_nothing() {
    let invocation = run_with(&["bash", "-c", "a b"], &[], &[]).expect("is allowed");
    assert_eq!(
        invocation.args,
        [
            "run",
            "--containall",
            "--no-eval",
            "--no-privs",
            "--no-nv",
            "--no-rocm",
            "--workdir",
            "/scratch/work",
            "/images/x",
            "bash",
            "-c",
            "a b"
        ]
    );
    assert_eq!(invocation.program, Path::new("/usr/bin/apptainer"));
}

#[test]
fn debug_is_an_option_of_apptainer_and_not_of_run() {
    let spec = RunSpec {
        image: Path::new("/images/x"),
        args: &[],
        env: &[],
        binds: &[],
        workdir: Path::new("/w"),
        verbosity: Verbosity::Debug,
        gpus: None,
        proc: ProcMount::Own,
        user_namespace: UserNamespace::AsInstalled,
    };
    let invocation = run(&apptainer("/scratch"), &spec).expect("is allowed");
    assert_eq!(invocation.args[..2], ["--debug", "run"]);
}

#[test]
fn an_image_with_a_dash_is_no_flag() {
    let spec = RunSpec {
        image: Path::new("--fakeroot"),
        args: &[],
        env: &[],
        binds: &[],
        workdir: Path::new("/w"),
        verbosity: Verbosity::Normal,
        gpus: None,
        proc: ProcMount::Own,
        user_namespace: UserNamespace::AsInstalled,
    };
    let invocation = run(&apptainer("/scratch"), &spec).expect("is allowed");
    assert_eq!(invocation.args.last().expect("an image"), "./--fakeroot");
}

fn run_with_gpus(vendor: GpuVendor, ids: &[&str], env: &[(String, String)]) -> Invocation {
    let gpus = ids.iter().map(|id| Gpu {
        id: (*id).to_owned(),
        uuid: None,
        model: None,
    });
    let set = GpuSet {
        vendor,
        gpus: gpus.collect(),
        order: None,
    };
    let spec = RunSpec {
        image: Path::new("/images/x"),
        args: &[],
        env,
        binds: &[],
        workdir: Path::new("/w"),
        verbosity: Verbosity::Normal,
        gpus: Some(&set),
        proc: ProcMount::Own,
        user_namespace: UserNamespace::AsInstalled,
    };
    run(&apptainer("/scratch"), &spec).expect("is allowed")
}

#[test]
fn gpus_are_let_in_by_flag_and_named_by_variables_that_win_over_the_users() {
    let wanted = [("CUDA_VISIBLE_DEVICES".to_owned(), "0,1,2".to_owned())];
    let nvidia = run_with_gpus(GpuVendor::Nvidia, &["GPU-a"], &wanted);
    assert_eq!(nvidia.args[4..6], ["--nv", "--no-rocm"]);
    assert_eq!(
        variables(&nvidia),
        [
            ("APPTAINERENV_CUDA_VISIBLE_DEVICES", "GPU-a"),
            ("APPTAINERENV_NVIDIA_VISIBLE_DEVICES", "GPU-a")
        ]
    );
    let own = ("NVIDIA_VISIBLE_DEVICES".into(), "GPU-a".into());
    assert!(nvidia.env.contains(&own), "{nvidia:?}");
    let amd = run_with_gpus(GpuVendor::Amd, &["1", "2"], &[]);
    assert_eq!(amd.args[4..6], ["--no-nv", "--rocm"]);
    assert_eq!(
        variables(&amd),
        [("APPTAINERENV_ROCR_VISIBLE_DEVICES", "1,2")]
    );
    let hidden = run_with_gpus(GpuVendor::Nvidia, &[], &wanted);
    assert_eq!(hidden.args[4..6], ["--no-nv", "--no-rocm"]);
    assert_eq!(
        variables(&hidden),
        [
            ("APPTAINERENV_CUDA_VISIBLE_DEVICES", ""),
            ("APPTAINERENV_NVIDIA_VISIBLE_DEVICES", "none")
        ]
    );
}

/// The values after each `option` in the command of a container with these binds.
fn values_of(option: &str, binds: &[Bind]) -> Vec<OsString> {
    let args = run_with(&[], &[], binds).expect("is allowed").args;
    let pairs = args.windows(2).filter(|pair| pair[0] == option);
    pairs.map(|pair| pair[1].clone()).collect()
}

#[test]
fn binds_escape_their_source() {
    let dir = tempfile::tempdir().expect("a directory");
    let rows = [
        ("plain", "plain"),
        ("a:b,c", "a\\:b\\,c"),
        ("a\\b", "a\\b"),
        ("a\\:b", "a\\\\:b"),
        ("end\\", "end\\/"),
        ("sp ace\"'", "sp ace\"'"),
    ];
    for (name, written) in rows {
        let source = dir.path().join(name);
        fs::create_dir(&source).expect("made");
        let binds = [
            Bind::new(&source, "/t/rw", Access::ReadWrite).expect("is allowed"),
            Bind::new(&source, "/t/ro", Access::ReadOnly).expect("is allowed"),
        ];
        let expected =
            |rest: &str| OsString::from(format!("{}/{written}{rest}", dir.path().display()));
        assert_eq!(
            values_of("--bind", &binds),
            [expected(":/t/rw"), expected(":/t/ro:ro")]
        );
    }
}

#[test]
fn a_target_that_bind_can_not_say_is_told_as_csv() {
    let dir = tempfile::tempdir().expect("a directory");
    let top = dir.path().display().to_string();
    for (name, written) in [
        ("a:b", "a:b"),
        ("c,d", "c,d"),
        ("e\\", "e\\"),
        ("q\"uo,te", "q\"\"uo,te"),
        ("new\nline", "new\nline"),
    ] {
        let place = dir.path().join(name);
        fs::create_dir(&place).expect("made");
        let binds = [
            Bind::new(&place, &place, Access::ReadWrite).expect("is allowed"),
            Bind::new(&place, &place, Access::ReadOnly).expect("is allowed"),
        ];
        let expected = |rest: &str| {
            let fields = format!("\"source={top}/{written}\",\"destination={top}/{written}\"");
            OsString::from(format!("type=bind,{fields}{rest}"))
        };
        assert_eq!(
            values_of("--mount", &binds),
            [expected(""), expected(",ro")]
        );
    }
}

#[test]
fn variables_travel_under_apptainers_prefix_and_the_last_one_wins() {
    let env = [
        ("A", "a=1,B=2"),
        ("PATH", "/opt"),
        ("A", "{\"x\": \"$y\nz\"}"),
        ("E", ""),
    ];
    let invocation = run_with(&[], &env, &[]).expect("is allowed");
    assert_eq!(
        variables(&invocation),
        [
            ("APPTAINERENV_PATH", "/opt"),
            ("APPTAINERENV_A", "{\"x\": \"$y\nz\"}"),
            ("APPTAINERENV_E", "")
        ]
    );
    assert!(invocation.args.iter().all(|arg| arg != "--env"));
    assert_eq!(
        invocation.env[0],
        ("PATH".into(), "/usr/bin".into()),
        "apptainer's own PATH is changed"
    );
}

#[test]
fn what_apptainer_sets_itself_is_left_out() {
    let fixed = ["HOME", "UID", "GID", "SHLVL"].map(|name| (name, "1"));
    let env = [&fixed[..], &[("HOMER", "doh")]].concat();
    let invocation = run_with(&[], &env, &[]).expect("is allowed");
    assert_eq!(variables(&invocation), [("APPTAINERENV_HOMER", "doh")]);
}

#[test]
fn names_that_would_lose_other_variables_are_refused() {
    for name in ["", "1A", "A-B", "A B", "Ä", "A=B", "A\n"] {
        assert_eq!(
            check_variable(name, ""),
            Err(CommandError::Name { name: name.into() }),
            "{name:?}"
        );
    }
    for name in ["_", "a", "A1_b"] {
        assert_eq!(check_variable(name, ""), Ok(()), "{name:?}");
    }
}

#[test]
fn what_the_kernel_would_refuse_is_refused_by_name() {
    assert_eq!(
        check_variable("A", "x\0y"),
        Err(CommandError::Nul { what: "A".into() })
    );
    // APPTAINERENV_A= and the final NUL.
    let around = "APPTAINERENV_A=".len() + 1;
    assert_eq!(check_variable("A", &"x".repeat(LONGEST - around)), Ok(()));
    let error = check_variable("A", &"x".repeat(LONGEST - around + 1)).expect_err("is refused");
    assert_eq!(
        error.to_string(),
        "the value of `A` has 131073 bytes, and the kernel takes 131072; give it as a file"
    );
    let long = "x".repeat(LONGEST);
    let error = run_with(&["a", &long], &[], &[]).expect_err("is refused");
    assert_eq!(
        error,
        CommandError::TooLong {
            what: "argument 2".into(),
            bytes: LONGEST + 1
        }
    );
    let large = "x".repeat(100_000);
    let all = vec![large.as_str(); 9];
    assert!(run_with(&all, &[], &[]).is_ok());
    let error = run_with(&all, &[("A", large.as_str())], &[]).expect_err("is refused");
    assert!(
        matches!(error, CommandError::TooMuch { bytes } if bytes > MOST),
        "{error}"
    );
}

#[test]
fn without_a_path_apptainer_finds_its_helpers_in_the_usual_places() {
    let of = |path: &str| {
        let environment = ApptainerEnvironment {
            path: path.into(),
            ..ApptainerEnvironment::default()
        };
        let apptainer = Apptainer::new("/cvmfs/apptainer".into(), environment);
        apptainer.env[0].clone()
    };
    assert_eq!(of("/site/bin"), ("PATH".into(), "/site/bin".into()));
    assert_eq!(of(""), ("PATH".into(), USUAL_PATH.into()));
}

#[test]
fn the_environment_is_built_from_the_list_alone() {
    let environment = ApptainerEnvironment {
        path: "/usr/bin".into(),
        home: Some("/home/x".into()),
        lang: Some("C.UTF-8".into()),
        scratch: "/scratch".into(),
        proxies: vec![("https_proxy".into(), "p".into())],
    };
    let apptainer = Apptainer::new("/usr/bin/apptainer".into(), environment);
    let names = |invocation: &Invocation| -> Vec<String> {
        invocation
            .env
            .iter()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .collect()
    };
    let own = [
        "PATH",
        "HOME",
        "LANG",
        "TMPDIR",
        "APPTAINER_TMPDIR",
        "APPTAINER_CACHEDIR",
    ];
    assert_eq!(names(&apptainer.version()), own);

    let build = apptainer.build(
        OsStr::new("docker://x"),
        Path::new("/t"),
        Path::new("/b"),
        Verbosity::Normal,
        UserNamespace::Always,
    );
    assert_eq!(
        build.args,
        [
            "build",
            "--fix-perms",
            "--section",
            "none",
            "--userns",
            "--sandbox",
            "/t",
            "docker://x"
        ]
    );
    assert_eq!(
        names(&build),
        [
            "PATH",
            "HOME",
            "LANG",
            "https_proxy",
            "TMPDIR",
            "APPTAINER_TMPDIR",
            "APPTAINER_CACHEDIR"
        ]
    );
}
