//! Tests of the settings of queues: lists, tokens, brokers and spools.

use super::*;

#[test]
fn a_semicolon_in_a_token_or_password_is_no_list() {
    read(&[("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "a;b")]);
    read(&[("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "me:p;w@x")]);
}

#[test]
fn several_queues_are_lists_in_step() {
    let config = read(&[
        ("EWMS_PILOT_QUEUE_INCOMING", "a;b"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "t;u"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "rabbitmq;spool"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "me@x;/y"),
    ]);
    let [first, second] = &config.incoming[..] else {
        panic!("they are two")
    };
    assert_eq!((&*first.name, &*second.name), ("a", "b"));
    let BrokerConfig::RabbitMq(address) = &first.broker else {
        panic!("is RabbitMQ")
    };
    assert_eq!((&*address.host, address.password.reveal()), ("x", "t"));
    assert!(matches!(&second.broker, BrokerConfig::Spool(path) if path == Path::new("/y")));
}

#[test]
fn a_list_may_be_a_literal_in_every_variable_that_takes_one() {
    let config = read(&[
        ("EWMS_PILOT_QUEUE_INCOMING", "['a', 'b;c']"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", r#"["t", "u;'"]"#),
        (
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE",
            "['rabbitmq', 'rabbitmq']",
        ),
        (
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            "('x', '[::1]:5')",
        ),
        ("EWMS_PILOT_QUEUE_OUTGOING", "['one']"),
        ("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN", "['out']"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "['rabbitmq']"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", "[::1]:7"),
        ("EWMS_PILOT_EXTERNAL_DIRECTORIES", "['/a', \"/b,c\"]"),
        ("EWMS_PILOT_OKAY_ERRORS", r#"["A", "B"]"#),
    ]);
    let found = |queues: &[QueueConfig]| -> Vec<(String, String, u16, String)> {
        let parts = queues.iter().map(|queue| {
            let BrokerConfig::RabbitMq(address) = &queue.broker else {
                panic!("is RabbitMQ")
            };
            let token = address.password.reveal().to_owned();
            (
                queue.name.clone(),
                address.host.clone(),
                address.port,
                token,
            )
        });
        parts.collect()
    };
    let expected = |name: &str, host: &str, port, token: &str| {
        (name.to_owned(), host.to_owned(), port, token.to_owned())
    };
    assert_eq!(
        found(&config.incoming),
        [
            expected("a", "x", 5672, "t"),
            expected("b;c", "::1", 5, "u;'")
        ]
    );
    assert_eq!(found(&config.outgoing), [expected("one", "::1", 7, "out")]);
    assert_eq!(
        config.external_directories,
        [Path::new("/a"), Path::new("/b,c")]
    );
    let except = ["A".to_owned(), "B".to_owned()].into();
    assert_eq!(config.on_task_error, OnTaskError::StopListening { except });
}

#[test]
fn a_list_that_is_cut_short_is_one_problem_and_no_secret_in_it_is_shown() {
    for (variable, value) in [
        ("EWMS_PILOT_QUEUE_INCOMING", "['a', 'b'"),
        ("EWMS_PILOT_QUEUE_INCOMING", "[a, b]"),
        ("EWMS_PILOT_QUEUE_INCOMING", "[]"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "['rabbitmq'"),
        (
            "EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS",
            "['me:hush@x', 'you:hush",
        ),
        ("EWMS_PILOT_EXTERNAL_DIRECTORIES", "['/a', '/b'"),
        ("EWMS_PILOT_OKAY_ERRORS", "('A'"),
    ] {
        let text = problem(&[(variable, value)]);
        assert!(text.starts_with(&format!("`{variable}` is `")), "{text}");
        assert!(!text.contains("hush"), "{text}");
    }
    let text = problem(&[
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "['hush', 'hush']"),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "['me:hush@x']"),
    ]);
    assert!(
        text.contains("lists of different lengths, 1 and 2"),
        "{text}"
    );
    assert!(!text.contains("hush"), "{text}");
}

#[test]
fn a_token_may_live_in_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "hush\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = read(&[
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN_FILE", path),
        ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "me@mq"),
    ]);
    let BrokerConfig::RabbitMq(address) = &config.incoming[0].broker else {
        panic!("{:?}", config.incoming)
    };
    assert_eq!((&*address.user, address.password.reveal()), ("me", "hush"));
    assert!(address.token_file.is_some());
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn the_broker_type_has_no_default() {
    let text = problem(&[("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "")]);
    assert!(
        text.starts_with("`EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE` is not set: "),
        "{text}"
    );
}

#[test]
fn a_spool_needs_a_directory_and_a_file_name() {
    let spool = ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "spool");
    let address = ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "/spool");
    assert!(problem(&[spool]).contains("BROKER_ADDRESS` is not set"));
    for name in ["a/b", ".", "..", ".hidden"] {
        assert!(
            problem(&[spool, address, ("EWMS_PILOT_QUEUE_INCOMING", name)]).contains("a file name")
        );
    }
    let config = read(&[spool, address]);
    assert!(
        matches!(&config.incoming[0].broker, BrokerConfig::Spool(path) if path == Path::new("/spool"))
    );
}

#[test]
fn several_outgoing_queues_are_of_one_kind() {
    let text = problem(&[
        ("EWMS_PILOT_QUEUE_OUTGOING", "a;b"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", "rabbitmq;spool"),
        ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", "x;/y"),
    ]);
    assert!(text.contains("queues of one kind only"), "{text}");
}

#[test]
fn a_name_missing_among_several_is_refused() {
    for names in ["a;", ";a"] {
        let text = problem(&[
            ("EWMS_PILOT_QUEUE_INCOMING", names),
            ("EWMS_PILOT_QUEUE_INCOMING_BROKER_TYPE", "rabbitmq;rabbitmq"),
            ("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "x;y"),
        ]);
        assert!(text.contains("a name is missing"), "{text}");
    }
}

#[test]
fn lists_of_different_lengths_are_named_as_such() {
    let text = problem(&[("EWMS_PILOT_QUEUE_INCOMING_BROKER_ADDRESS", "me:p;w@x;y")]);
    assert!(
        text.contains("lists of different lengths, 1 and 2") && !text.contains("p;w"),
        "{text}"
    );
    let text = errors(&environment(&[
        ("EWMS_PILOT_QUEUE_INCOMING", "a;b"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "t;u;v"),
    ]));
    assert_eq!(
        text.matches("lists of different lengths").count(),
        2,
        "{text}"
    );
}

#[test]
fn a_queue_that_is_named_twice_is_refused_unless_it_is_another_brokers() {
    let twice = |kind, addresses| {
        errors(&environment(&[
            ("EWMS_PILOT_QUEUE_OUTGOING", "a;b;a"),
            ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_TYPE", kind),
            ("EWMS_PILOT_QUEUE_OUTGOING_BROKER_ADDRESS", addresses),
            // So that there is a problem in any case.
            ("EWMS_PILOT_PREFETCH", "x"),
        ]))
    };
    let (rabbitmq, spool) = ("rabbitmq;rabbitmq;rabbitmq", "spool;spool;spool");
    for (kind, addresses) in [(rabbitmq, "mq/v;mq/v;mq:5672/v"), (spool, "x;x;x")] {
        let text = twice(kind, addresses);
        let refusal = "`EWMS_PILOT_QUEUE_OUTGOING` is `a`: it is there twice";
        assert_eq!(text.matches(refusal).count(), 1, "{text}");
    }
    for (kind, addresses) in [(rabbitmq, "mq;mq;other"), (spool, "x;x;y")] {
        let text = twice(kind, addresses);
        assert!(!text.contains("twice"), "{text}");
    }
}

#[test]
fn a_token_has_one_home_and_its_file_must_hold_one() {
    let both = problem(&[
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN", "hush"),
        ("EWMS_PILOT_QUEUE_INCOMING_AUTH_TOKEN_FILE", "/nowhere"),
    ]);
    assert!(both.contains("AUTH_TOKEN_FILE` are both set"), "{both}");
    assert!(!both.contains("hush"), "{both}");
    let text = problem(&[("EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE", "/nowhere")]);
    let start = "`EWMS_PILOT_QUEUE_OUTGOING_AUTH_TOKEN_FILE` is `/nowhere`: ";
    assert!(
        text.starts_with(start) && text.contains("can't be read"),
        "{text}"
    );
}
