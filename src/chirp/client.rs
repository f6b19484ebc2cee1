//! One connection to the starter's chirp server: authenticates with the cookie, sends one command at a time,
//! waits with a deadline.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::protocol::{ChirpCommand, ChirpError, ChirpServer, REPLY_MAX, in_time, judge};
use crate::blocking;

/// A connection that the server has authenticated.
#[derive(Debug)]
pub struct Client<S = TcpStream> {
    stream: BufReader<S>,
    patience: Duration,
}

impl Client<TcpStream> {
    /// Connects and sends the cookie. Connecting, and each command, may take `patience`.
    ///
    /// # Errors
    /// Returns any [`ChirpError`] but those of the configuration file.
    pub async fn connect(contact: &ChirpServer, patience: Duration) -> Result<Self, ChirpError> {
        let connecting = async {
            let addresses = blocking::resolve(&contact.host, contact.port).await?;
            TcpStream::connect(addresses.as_slice()).await
        };
        let stream =
            in_time(patience, connecting)
                .await?
                .map_err(|source| ChirpError::Unreachable {
                    address: format!("{}:{}", contact.host, contact.port),
                    source,
                })?;
        Self::greet(stream, contact, patience).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Sends the cookie on an open connection.
    ///
    /// # Errors
    /// Returns the errors of [`Client::send`].
    pub async fn greet(
        stream: S,
        contact: &ChirpServer,
        patience: Duration,
    ) -> Result<Self, ChirpError> {
        let mut client = Self {
            stream: BufReader::new(stream),
            patience,
        };
        // Not escaped like other words: the server compares the cookie as it is in the file.
        client
            .ask(format!("cookie {}\n", contact.cookie).as_bytes())
            .await?;
        Ok(client)
    }

    /// Sends a command and waits for its reply. After any error but [`ChirpError::Refused`] and
    /// [`ChirpError::TooLong`] the connection must not be used any more.
    ///
    /// # Errors
    /// Fails if the command is too long, if the server refuses it, or if no reply comes in time.
    pub async fn send(&mut self, command: ChirpCommand<'_>) -> Result<(), ChirpError> {
        let line = command.encode()?;
        self.ask(&line).await
    }

    async fn ask(&mut self, line: &[u8]) -> Result<(), ChirpError> {
        let stream = &mut self.stream;
        let exchange = async {
            stream.write_all(line).await?;
            stream.flush().await?;
            let mut reply = Vec::new();
            stream.take(REPLY_MAX).read_until(b'\n', &mut reply).await?;
            Ok::<_, io::Error>(reply)
        };
        judge(&in_time(self.patience, exchange).await??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn contact() -> ChirpServer {
        ChirpServer::parse("127.0.0.1 9618 s3cret\n").unwrap()
    }

    /// The result of a `ulog` if the server answers `replies` to the cookie and the command.
    async fn outcome(replies: &[u8]) -> (Result<(), ChirpError>, DuplexStream) {
        let (ours, mut theirs) = duplex(8_192);
        theirs.write_all(replies).await.unwrap();
        let talk = async {
            let mut client = Client::greet(ours, &contact(), PATIENCE).await?;
            client.send(ChirpCommand::Ulog { text: "x" }).await
        };
        (talk.await, theirs)
    }

    #[tokio::test]
    async fn the_cookie_goes_first_and_a_command_follows_its_reply() {
        let (result, mut theirs) = outcome(b"0\n0\n").await;
        result.unwrap();
        let mut seen = String::new();
        theirs.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "cookie s3cret\nulog x\n");
    }

    #[tokio::test]
    async fn a_wrong_cookie_is_refused() {
        let error = outcome(b"-1\n").await.0.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the chirp server answered `-1`: not authenticated; was the chirp configuration replaced?"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_given_up() {
        let start = tokio::time::Instant::now();
        let (result, theirs) = outcome(b"0\n").await;
        assert!(
            matches!(result, Err(ChirpError::Silent { .. })),
            "{result:?}"
        );
        assert_eq!(start.elapsed(), PATIENCE);
        drop(theirs);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_reads_nothing_is_given_up() {
        let (ours, theirs) = duplex(8);
        let result = Client::greet(ours, &contact(), PATIENCE).await;
        assert!(
            matches!(result, Err(ChirpError::Silent { .. })),
            "{result:?}"
        );
        drop(theirs);
    }

    #[tokio::test]
    async fn garbage_is_no_reply_and_is_not_repeated() {
        for garbage in [
            &b"0\nhello\n"[..],
            b"0\n\n",
            b"0\n\xff\n",
            b"0\ns3cret\n",
            &[b'7'; 4_000],
        ] {
            let error = outcome(garbage).await.0.unwrap_err();
            assert!(matches!(error, ChirpError::Garbled), "{error}");
            assert!(
                !format!("{error} {error:?}").contains("s3cret"),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_closed_connection_is_no_success_even_after_a_digit() {
        for replies in [&b""[..], b"0"] {
            let (ours, mut theirs) = duplex(8_192);
            theirs.write_all(replies).await.unwrap();
            theirs.shutdown().await.unwrap();
            let result = Client::greet(ours, &contact(), PATIENCE).await;
            assert!(matches!(result, Err(ChirpError::Closed)), "{result:?}");
        }
    }
}
