//! A fake chirp server for tests: speaks the starter's protocol, answers as configured, and records the
//! commands that it gets. It proves nothing about HTCondor.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{ChirpSettings, Destination};

const COOKIE: &str = "s3cret";

/// The fake's reaction to one command.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    Reply(&'static str),
    Nothing,
    HangUp,
}

pub(super) const OBEY: fn(usize, &str) -> Answer = |_, _| Answer::Reply("0\n");

pub(super) struct FakeServer {
    directory: tempfile::TempDir,
    port: u16,
    seen: watch::Receiver<Vec<String>>,
}

impl FakeServer {
    /// Answers each command, cookies included, with `answer(connection, command)`. Connections are counted
    /// from 1.
    pub(super) async fn start(
        answer: impl Fn(usize, &str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        std::fs::write(config(&directory), format!("127.0.0.1 {port} {COOKIE}\n")).unwrap();
        let (sender, seen) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let answer = std::sync::Arc::new(answer);
            for connection in 1.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (sender, answer) = (sender.clone(), answer.clone());
                tokio::spawn(
                    async move { converse(stream, &sender, |c| answer(connection, c)).await },
                );
            }
        });
        Self {
            directory,
            port,
            seen,
        }
    }

    pub(super) fn settings(&self, destination: Destination, interval: Duration) -> ChirpSettings {
        ChirpSettings {
            destination,
            interval,
            config_file: config(&self.directory),
        }
    }

    /// As [`FakeServer::settings`], but with a port that nothing listens on.
    pub(super) fn settings_of_the_dead(&self) -> ChirpSettings {
        std::fs::write(config(&self.directory), format!("127.0.0.1 1 {COOKIE}\n")).unwrap();
        self.settings(Destination::JobAttr, Duration::ZERO)
    }

    /// Writes the real port to the configuration, after [`FakeServer::settings_of_the_dead`].
    pub(super) fn come_to_life(&self) {
        let line = format!("127.0.0.1 {} {COOKIE}\n", self.port);
        std::fs::write(config(&self.directory), line).unwrap();
    }

    /// All commands received but the cookies, with the wire's escapes undone.
    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.borrow().clone()
    }

    /// Waits until the commands received satisfy `claim`.
    pub(super) async fn wait_for(&self, claim: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut seen = self.seen.clone();
        let wait = seen.wait_for(|lines| claim(lines));
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(lines) => lines.unwrap().clone(),
            Err(tokio::time::error::Elapsed { .. }) => {
                panic!("the fake was sent only {:?}", self.seen())
            }
        }
    }
}

fn config(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join(".chirp.config")
}

async fn converse(
    stream: TcpStream,
    seen: &watch::Sender<Vec<String>>,
    answer: impl Fn(&str) -> Answer,
) {
    let mut stream = BufReader::new(stream);
    let mut let_in = false;
    loop {
        let mut line = String::new();
        if !stream
            .read_line(&mut line)
            .await
            .is_ok_and(|length| length > 0)
        {
            return;
        }
        let command = unescape(line.strip_suffix('\n').unwrap());
        if command == format!("cookie {COOKIE}") {
            let_in = true;
        } else {
            assert!(let_in, "`{command}` came before the cookie");
            seen.send_modify(|lines| lines.push(command.clone()));
        }
        match answer(&command) {
            Answer::Reply(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Answer::Nothing => {}
            Answer::HangUp => return,
        }
    }
}

fn unescape(line: &str) -> String {
    let mut characters = line.chars();
    let mut text = String::new();
    while let Some(character) = characters.next() {
        text.push(if character == '\\' {
            characters.next().unwrap()
        } else {
            character
        });
    }
    text
}
