//! The protocol between a job and the starter's chirp server: one line a command, one number a reply.
//!
//! The cookie in the configuration file is a secret: no error and no `Debug` output shows it, or the text of
//! a reply, which could be an echo of it.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use crate::{blocking, regular_file};

/// The longest command, its newline included (`CHIRP_LINE_MAX` of HTCondor's `chirp_protocol.h`).
pub const COMMAND_MAX: usize = 5_120;

/// Replies to the pilot's commands are a single number.
pub(super) const REPLY_MAX: u64 = 64;

/// The starter writes one short line.
const CONFIG_MAX: u64 = 4_096;

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ChirpError {
    /// The configuration file can't be read.
    #[error(
        "can't read the chirp configuration `{path}`: {source}; does the job have `+WantIOProxy = true`?"
    )]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "the chirp configuration `{path}` is not `host port cookie`; its writer, HTCondor's starter, may be at fault"
    )]
    Malformed { path: PathBuf },
    #[error("can't connect to the chirp server at `{address}`: {source}; see the starter's log")]
    Unreachable { address: String, source: io::Error },
    #[error("the chirp server did not answer within `{}` s; see the starter's log", patience.as_secs_f64())]
    Silent { patience: Duration },
    #[error("the connection to the chirp server broke: {0}; see the starter's log")]
    Broken(#[from] io::Error),
    #[error("the chirp server closed the connection instead of answering; see the starter's log")]
    Closed,
    #[error("the chirp server's reply is not a number; is something else listening on its port?")]
    Garbled,
    #[error("the chirp server answered `{code}`: {}", meaning(*code))]
    Refused { code: i64 },
    /// The command is longer than the server accepts.
    #[error(
        "a chirp command of `{length}` bytes is over the limit of {COMMAND_MAX}; shorten the value"
    )]
    TooLong {
        /// Length in bytes, the newline included.
        length: usize,
    },
}

/// The meaning of a negative reply (`chirp_protocol.h`), and what to do.
fn meaning(code: i64) -> &'static str {
    match code {
        -1 => "not authenticated; was the chirp configuration replaced?",
        -2 => "not authorized; HTCondor lets jobs set no such attribute",
        -5 => "too big; shorten the value",
        // The starter's answer to everything that a job without an I/O proxy isn't allowed to do.
        -8 => "invalid request; does the job have `+WantIOProxy = true`?",
        -10 => "busy; see the starter's log",
        -11 => "try again; see the starter's log",
        -17 => "offline; see the starter's log",
        _ => "see the starter's log",
    }
}

/// The chirp server's address, and the cookie that it accepts.
#[derive(Clone, PartialEq, Eq)]
pub struct ChirpServer {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) cookie: String,
}

impl fmt::Debug for ChirpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contact({}:{}, cookie ***)", self.host, self.port)
    }
}

impl ChirpServer {
    /// Parses `host port cookie`; `None` if `text` is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let host = words.next()?;
        let contact = Self {
            // The resolver wants an IPv6 address without the brackets.
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: words.next()?.parse().ok()?,
            cookie: words.next()?.to_owned(),
        };
        words.next().is_none().then_some(contact)
    }

    /// Reads the configuration file.
    ///
    /// # Errors
    /// Returns [`ChirpError::Unreadable`], [`ChirpError::Malformed`] or [`ChirpError::Silent`].
    pub async fn read(path: &Path, patience: Duration) -> Result<Self, ChirpError> {
        let file = path.to_owned();
        let read = blocking::start(move || {
            let mut text = Vec::new();
            regular_file::open(&file)?
                .take(CONFIG_MAX)
                .read_to_end(&mut text)?;
            Ok(text)
        });
        let text = in_time(patience, read)
            .await?
            .unwrap_or_else(|panicked| Err(panicked.into()))
            .map_err(|source| ChirpError::Unreadable {
                path: path.to_owned(),
                source,
            })?;
        std::str::from_utf8(&text)
            .ok()
            .and_then(Self::parse)
            .ok_or_else(|| ChirpError::Malformed {
                path: path.to_owned(),
            })
    }
}

/// A command to the server, after authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChirpCommand<'a> {
    /// Sets an attribute of the job ad.
    SetJobAttr {
        name: &'a str,
        /// A ClassAd expression.
        expression: &'a str,
    },
    /// Writes a user event into the job event log.
    Ulog {
        /// The event's text, not empty.
        text: &'a str,
    },
}

impl ChirpCommand<'_> {
    /// Encodes the command as a line.
    ///
    /// # Errors
    /// Returns [`ChirpError::TooLong`].
    pub fn encode(self) -> Result<Vec<u8>, ChirpError> {
        let line = match self {
            Self::SetJobAttr { name, expression } => {
                format!("set_job_attr {} {}\n", word(name), word(expression))
            }
            Self::Ulog { text } => format!("ulog {}\n", word(text)),
        };
        if line.len() > COMMAND_MAX {
            return Err(ChirpError::TooLong { length: line.len() });
        }
        Ok(line.into_bytes())
    }
}

/// `text` escaped as one word of a command.
fn word(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if matches!(character, '\\' | ' ' | '\t' | '\n' | '\r') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Checks that a reply, its newline included, reports success.
pub(super) fn judge(reply: &[u8]) -> Result<(), ChirpError> {
    let Some(number) = reply.strip_suffix(b"\n") else {
        // A number that was cut off could have been any.
        let full = u64::try_from(reply.len()).is_ok_and(|length| length >= REPLY_MAX);
        return Err(if full {
            ChirpError::Garbled
        } else {
            ChirpError::Closed
        });
    };
    let number = std::str::from_utf8(number)
        .ok()
        .and_then(|text| text.trim().parse::<i64>().ok());
    match number {
        None => Err(ChirpError::Garbled),
        Some(code) if code < 0 => Err(ChirpError::Refused { code }),
        Some(_) => Ok(()),
    }
}

pub(super) async fn in_time<T>(
    patience: Duration,
    wait: impl Future<Output = T>,
) -> Result<T, ChirpError> {
    timeout(patience, wait)
        .await
        .map_err(|_elapsed| ChirpError::Silent { patience })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chirp::quote;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn contact() -> ChirpServer {
        ChirpServer::parse("127.0.0.1 9618 s3cret\n").unwrap()
    }

    #[test]
    fn commands_are_encoded_as_htcondors_client_does() {
        let long = "x".repeat(5_120 - "ulog \n".len());
        for (command, line) in [
            (ChirpCommand::Ulog { text: "A: \"b\"" }, "ulog A:\\ \"b\"\n"),
            (
                ChirpCommand::Ulog { text: "\\ \t\n\r" },
                "ulog \\\\\\ \\\t\\\n\\\r\n",
            ),
            (
                ChirpCommand::Ulog {
                    text: &quote("a b\n"),
                },
                "ulog \"a\\ b\\\\n\"\n",
            ),
            (
                ChirpCommand::SetJobAttr {
                    name: "A",
                    expression: "5",
                },
                "set_job_attr A 5\n",
            ),
            (
                ChirpCommand::SetJobAttr {
                    name: "A",
                    expression: &quote("é \""),
                },
                "set_job_attr A \"\\\\303\\\\251\\ \\\\\"\"\n",
            ),
            (
                ChirpCommand::Ulog { text: &long },
                &format!("ulog {long}\n"),
            ),
        ] {
            assert_eq!(String::from_utf8(command.encode().unwrap()).unwrap(), line);
        }
    }

    #[test]
    fn a_command_over_the_limit_is_not_sent() {
        let text = " ".repeat(2_558);
        let error = ChirpCommand::Ulog { text: &text }.encode().unwrap_err();
        assert!(
            matches!(error, ChirpError::TooLong { length: 5_122 }),
            "{error}"
        );
    }

    #[test]
    fn the_longest_report_fits_into_a_command() {
        let text = "\\".repeat(crate::chirp::value::REPORT_MAX);
        assert!(
            ChirpCommand::SetJobAttr {
                name: &text,
                expression: &text
            }
            .encode()
            .is_ok()
        );
    }

    #[test]
    fn a_configuration_is_three_words() {
        for text in ["", "h 1", "h 1 c d", "h x c", "h 65536 c", "h -1 c"] {
            assert_eq!(ChirpServer::parse(text), None, "{text:?}");
        }
        for text in ["h 1 c", "h 1 c\n", " h\t1\n c \r\n"] {
            assert!(ChirpServer::parse(text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn the_cookie_is_not_printed() {
        assert_eq!(
            format!("{:?}", contact()),
            "Contact(127.0.0.1:9618, cookie ***)"
        );
    }

    #[tokio::test]
    async fn a_missing_and_a_malformed_configuration_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".chirp.config");
        let missing = ChirpServer::read(&path, PATIENCE).await.unwrap_err();
        assert!(
            matches!(missing, ChirpError::Unreadable { .. }),
            "{missing}"
        );
        std::fs::write(&path, "127.0.0.1 s3cret").unwrap();
        let malformed = ChirpServer::read(&path, PATIENCE).await.unwrap_err();
        assert!(
            matches!(malformed, ChirpError::Malformed { .. }),
            "{malformed}"
        );
        assert!(!malformed.to_string().contains("s3cret"), "{malformed}");
        std::fs::write(&path, "127.0.0.1 9618 s3cret\n").unwrap();
        assert_eq!(ChirpServer::read(&path, PATIENCE).await.unwrap(), contact());
    }
}
