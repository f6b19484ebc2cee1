//! Tokens that are renewed while the pilot runs. Each new connection gets the newest token, and a live one
//! gets it before its own ends. The token's file may be on a disk that hangs; then the last token is used.

use std::pin::pin;
use std::time::{Duration, SystemTime};

use amqprs::connection::Connection;
use amqprs::error::Error;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::blocking;
use crate::broker::Endpoint;
use crate::config::{AmqpAddress, Secret, TokenFile, expiry};

/// The deadline for reading a small file, on a file system that may hang.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// How long the server's answer may take before its absence is logged.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// The shortest pause between two reads of the file, when its token's end is near or past.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The secret to show the server now.
pub(super) async fn current(address: &AmqpAddress, at: &Endpoint) -> Secret {
    match &address.token_file {
        Some(file) => read(file, at).await,
        None => address.password.clone(),
    }
}

/// The token in the file, or the last one if the file can't be read.
async fn read(file: &TokenFile, at: &Endpoint) -> Secret {
    let reading = file.clone();
    let read = async {
        let turn = reading.turn_to_read().await;
        let read = blocking::start(move || {
            let token = reading.read();
            drop(turn);
            token
        });
        read.await
    };
    let problem = match timeout(READ_WITHIN, read).await {
        Ok(Ok(Ok(token))) => return token,
        Ok(Ok(Err(problem))) => problem,
        Ok(Err(ended)) => ended.to_string(),
        Err(_elapsed) => format!("no answer within `{}` s", READ_WITHIN.as_secs()),
    };
    tracing::warn!(%at, problem, "no newer token can be read: using the last one");
    file.last()
}

/// Renews the token of a live connection, until it is dropped.
pub(super) struct Renewal(JoinHandle<()>);

impl Renewal {
    /// For a connection that was opened with `secret`; `None` without a token file.
    pub(super) fn of(
        connection: &Connection,
        address: &AmqpAddress,
        secret: Secret,
        at: &Endpoint,
    ) -> Option<Self> {
        let file = address.token_file.clone()?;
        let (connection, at) = (connection.clone(), at.clone());
        // In a task of its own, since a server that is short of memory does not answer publishers.
        Some(Self(tokio::spawn(renew(connection, file, secret, at))))
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Failures are tried again. At worst, the server ends the connection with the token, and the next connection
/// begins with the token that the file holds then.
async fn renew(connection: Connection, file: TokenFile, mut secret: Secret, at: Endpoint) {
    while let Some(end) = expiry(secret.reveal()) {
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        sleep(pause_of(left)).await;
        let newer = read(&file, &at).await;
        if newer == secret {
            continue;
        }
        match update(&connection, &newer, &at).await {
            Ok(()) => {
                tracing::info!(%at, "the broker was sent a newer token");
                secret = newer;
            }
            Err(error) => tracing::warn!(%at, %error, "the broker took no newer token"),
        }
    }
}

/// Waits for as long as the server takes. Other code checks whether the connection is alive.
async fn update(connection: &Connection, newer: &Secret, at: &Endpoint) -> Result<(), Error> {
    let mut sent = pin!(connection.update_secret(newer.reveal(), "a newer token"));
    if let Ok(answer) = timeout(ANSWER_WITHIN, &mut sent).await {
        return answer;
    }
    tracing::warn!(%at, "the broker did not answer to a newer token yet");
    // Not cancelled: an answer to a dropped call ends amqprs' reader.
    sent.await
}

/// The pause before the next renewal: four fifths of the time left.
fn pause_of(left: Duration) -> Duration {
    (left / 5 * 4).max(LOOK_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Direction;

    /// In real time, since a thread reads the file.
    #[tokio::test]
    async fn while_a_read_hangs_the_last_token_is_used_and_no_second_read_is_begun() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "last").unwrap();
        let file = TokenFile::open(path).unwrap();
        std::fs::write(file.path(), "newer").unwrap();
        let at = Endpoint {
            direction: Direction::Incoming,
            address: "mq:5672".into(),
            queues: vec!["q".into()],
        };
        let hangs = file.turn_to_read().await;
        assert_eq!(read(&file, &at).await.reveal(), "last");
        drop(hangs);
        assert_eq!(read(&file, &at).await.reveal(), "newer");
    }

    #[test]
    fn a_token_is_renewed_when_a_fifth_of_its_life_is_left_and_looked_for_soon_after_its_end() {
        assert_eq!(pause_of(Duration::from_hours(1)), Duration::from_mins(48));
        assert_eq!(pause_of(Duration::ZERO), LOOK_EVERY);
    }
}
