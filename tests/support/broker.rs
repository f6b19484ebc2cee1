//! A RabbitMQ of a test's own, to be killed, suspended and started again while other tests use theirs.
//! It runs as the ordinary user on ports of its own; dropped, it is killed and its data are gone.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::rabbitmq::Queue;
use super::{SOON, eventually};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
/// It takes four seconds on an idle machine.
const STARTS_WITHIN: Duration = Duration::from_mins(3);

/// One node with its own data, alone or in a cluster.
#[derive(Debug)]
pub(crate) struct Broker {
    directory: tempfile::TempDir,
    host: Ipv4Addr,
    port: u16,
    distribution_port: u16,
    server: Child,
}

impl Broker {
    /// Starts one with nothing in it.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same, with more lines in its `rabbitmq.conf`.
    #[track_caller]
    pub(crate) fn start_with(settings: &str) -> Self {
        Self::start_with_plugins(settings, &[])
    }

    /// The same, with plugins that are part of RabbitMQ but not enabled by default.
    #[track_caller]
    pub(crate) fn start_with_plugins(settings: &str, plugins: &[&str]) -> Self {
        let [port, distribution_port] = free_ports();
        let host = Ipv4Addr::LOCALHOST;
        let mut broker = Self::spawn_at(host, port, distribution_port, settings, plugins);
        broker.await_startup();
        broker
    }

    /// The same at this address, named after its distribution port, and not waited for: the nodes of a
    /// cluster wait for each other.
    #[track_caller]
    pub(super) fn spawn_at(
        host: Ipv4Addr,
        port: u16,
        distribution_port: u16,
        settings: &str,
        plugins: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let listener = format!("listeners.tcp.local = {host}:{port}\n{settings}");
        // By default it looks once a minute for acknowledgements that are late, and counts messages anew
        // every five seconds.
        let advanced =
            "[{rabbit, [{channel_tick_interval, 1000}, {quorum_tick_interval, 250}]}].\n";
        let enabled = format!("[{}].\n", plugins.join(","));
        for (name, text) in [
            ("rabbitmq.conf", listener.as_str()),
            ("advanced.config", advanced),
            ("plugins", enabled.as_str()),
        ] {
            fs::write(directory.path().join(name), text).expect("the directory is writable");
        }
        // All nodes of this machine know each other by it.
        let cookie = directory.path().join(".erlang.cookie");
        fs::write(&cookie, "TESTS").expect("the directory is writable");
        fs::set_permissions(&cookie, Permissions::from_mode(0o400)).expect("it is ours");
        let server = spawn(directory.path(), port, distribution_port);
        Self {
            directory,
            host,
            port,
            distribution_port,
            server,
        }
    }

    /// As mqclient and the pilot take it.
    pub(crate) fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Waits until the broker has written down that it has this queue, which it does half a second
    /// after it said so. A queue that is younger when the broker is killed confirms nothing afterwards.
    #[track_caller]
    pub(crate) fn await_durable(&self, queue: &Queue) {
        let node = self.node();
        let registry = format!("data/{node}/quorum/{node}/names.dets");
        let registry = self.directory.path().join(registry);
        let name = queue.name().as_bytes();
        let written = eventually(SOON, || {
            let content = fs::read(&registry).unwrap_or_default();
            content.windows(name.len()).any(|part| part == name)
        });
        assert!(written, "{} is not in {}", queue.name(), registry.display());
    }

    /// Ends it as a power failure does.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.server.wait().expect("a child can be waited for");
    }

    /// Ends it as an operator does.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let stopped = eventually(STARTS_WITHIN, || {
            let ended = self.server.try_wait();
            ended.expect("a child can be waited for").is_some()
        });
        assert!(stopped, "the broker does not stop");
    }

    /// Runs `rabbitmqctl` on this node and gives what it printed.
    #[track_caller]
    pub(crate) fn control(&self, arguments: &[&str]) -> String {
        let output = node_command(CONTROL, self.directory.path(), self.distribution_port)
            .arg("--quiet")
            .args(arguments)
            .output()
            .expect("RabbitMQ is there: run the tests with scripts/test");
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its Erlang node's name.
    pub(crate) fn node(&self) -> String {
        node_name(self.distribution_port)
    }

    /// Starts it again with the data that it had.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.spawn_again();
        self.await_startup();
    }

    /// The same without waiting for it.
    pub(super) fn spawn_again(&mut self) {
        self.kill();
        self.server = spawn(self.directory.path(), self.port, self.distribution_port);
    }

    /// SIGSTOP makes it a black hole until SIGCONT.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.server.id()).expect("pids fit");
        // Gone is what it may well be.
        let _ = kill(Pid::from_raw(pid), signal);
    }

    #[track_caller]
    pub(super) fn await_startup(&mut self) {
        let mut ended = None;
        let listens = || TcpStream::connect((self.host, self.port)).is_ok();
        let started = eventually(STARTS_WITHIN, || {
            ended = self.server.try_wait().expect("a child can be waited for");
            ended.is_some() || listens()
        });
        assert!(
            started && ended.is_none(),
            "the broker did not start ({ended:?}):\n{}{}",
            fs::read_to_string(self.directory.path().join("output")).unwrap_or_default(),
            self.log()
        );
    }

    fn log(&self) -> String {
        let log = format!("log/{}.log", self.node());
        fs::read_to_string(self.directory.path().join(log)).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(directory: &Path, port: u16, distribution_port: u16) -> Child {
    let output = File::create(directory.join("output")).expect("the directory is writable");
    let errors = output.try_clone().expect("a file can be had twice");
    node_command(SERVER, directory, distribution_port)
        .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
        .env("RABBITMQ_NODE_PORT", port.to_string())
        // Makes the script become the server, so that a signal to the child is one to the server.
        .env("RUNNING_UNDER_SYSTEMD", "1")
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .expect("RabbitMQ is there: run the tests with scripts/test")
}

fn node_command(program: &str, directory: &Path, distribution_port: u16) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LANG", "C.UTF-8")
        .env("HOME", directory)
        // The machine's own settings name the machine's own node.
        .env("RABBITMQ_CONF_ENV_FILE", directory.join("none"))
        .env("RABBITMQ_CONFIG_FILE", directory.join("rabbitmq.conf"))
        .env(
            "RABBITMQ_ADVANCED_CONFIG_FILE",
            directory.join("advanced.config"),
        )
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", directory.join("plugins"))
        .env("RABBITMQ_MNESIA_BASE", directory.join("data"))
        .env("RABBITMQ_LOG_BASE", directory.join("log"))
        .env("RABBITMQ_PID_FILE", directory.join("pid"))
        .env("RABBITMQ_NODENAME", node_name(distribution_port));
    command
}

/// Of the node with this distribution port.
pub(super) fn node_name(distribution_port: u16) -> String {
    format!("test-{distribution_port}@localhost")
}

/// All at once, so that they differ.
pub(crate) fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners = [0; COUNT]
        .map(|any| TcpListener::bind((Ipv4Addr::LOCALHOST, any)).expect("loopback has free ports"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}
