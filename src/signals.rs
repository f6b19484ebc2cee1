//! The signals that people and HTCondor send to the pilot itself, as a stream.
//!
//! `SIGHUP` and `SIGINT` that the pilot's parent set to "ignore" stay ignored: that is how `nohup` and a
//! shell's `&` keep the end of a terminal and Ctrl-C from their children. `SIGTERM` is always taken, since
//! eviction depends on it.

use std::future::pending;
use std::io;

use nix::sys::signal::SigSet;
use tokio::signal::unix::{self, SignalKind};

/// A signal that tells the pilot to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `SIGTERM`: HTCondor evicts or removes the job.
    Terminate,
    /// `SIGINT`: Ctrl-C.
    Interrupt,
    /// `SIGHUP`: the terminal is gone.
    Hangup,
}

impl Signal {
    /// The number that the system knows it by, for the exit code.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Self::Terminate => SignalKind::terminate(),
            Self::Interrupt => SignalKind::interrupt(),
            Self::Hangup => SignalKind::hangup(),
        }
        .as_raw_value()
    }

    /// The name that people know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// The stream of signals. Once it is made, they don't end the process by themselves, even after the stream
/// is dropped.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: Option<unix::Signal>,
    hangup: Option<unix::Signal>,
    ignored: Ignored,
}

impl Signals {
    /// Takes the signals over. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// Fails if the system refuses a handler.
    pub fn install() -> io::Result<Self> {
        // A parent may have blocked signals, and a blocked one never arrives: neither an eviction nor the end
        // of a child. Done before the first thread is started, because threads inherit the mask.
        SigSet::all().thread_unblock()?;
        let ignored = Ignored::inherited();
        let unless_ignored = |kind: SignalKind| {
            if ignored.contains(kind) {
                Ok(None)
            } else {
                unix::signal(kind).map(Some)
            }
        };
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unless_ignored(SignalKind::interrupt())?,
            hangup: unless_ignored(SignalKind::hangup())?,
            ignored,
        })
    }

    /// Whether the pilot's parent wants `SIGTSTP` (Ctrl-Z) ignored.
    #[must_use]
    pub fn ignores_stop(&self) -> bool {
        self.ignored
            .contains(SignalKind::from_raw(nix::libc::SIGTSTP))
    }

    /// The next signal. Several of one kind that arrive before this is polled count as one, as they
    /// do in the system. Cancel-safe: no signal is lost when the future is dropped.
    pub async fn recv(&mut self) -> Signal {
        tokio::select! {
            () = next(Some(&mut self.terminate)) => Signal::Terminate,
            () = next(self.interrupt.as_mut()) => Signal::Interrupt,
            () = next(self.hangup.as_mut()) => Signal::Hangup,
        }
    }
}

/// Waits for one signal.
async fn next(stream: Option<&mut unix::Signal>) {
    if let Some(stream) = stream
        && stream.recv().await.is_some()
    {
        return;
    }
    pending::<()>().await;
}

/// The signals that the process ignores, as the bits of `SigIgn` in `/proc/self/status`. Read there,
/// because a call of `sigaction` is unsafe code.
#[derive(Debug, Clone, Copy)]
struct Ignored(u64);

impl Ignored {
    /// The signals that the parent set to "ignore". None without `/proc`.
    fn inherited() -> Self {
        Self::from_status(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn from_status(status: &str) -> Self {
        let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(
            bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
                .unwrap_or(0),
        )
    }

    fn contains(self, kind: SignalKind) -> bool {
        self.0 >> (kind.as_raw_value() - 1) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal as Raw, kill};
    use nix::unistd::Pid;
    use tokio::time::timeout;

    use super::*;

    /// Waits until this signal is received, and skips those that other tests send meanwhile.
    async fn until(signals: &mut Signals, wanted: Signal) {
        timeout(Duration::from_secs(10), async {
            while signals.recv().await != wanted {}
        })
        .await
        .unwrap_or_else(|_| panic!("{} arrives", wanted.name()));
    }

    #[tokio::test]
    async fn each_signal_arrives_as_itself() {
        let mut signals = Signals::install().expect("handlers");
        let ignored = Ignored::inherited();
        for (raw, wanted) in [
            (Raw::SIGTERM, Signal::Terminate),
            (Raw::SIGINT, Signal::Interrupt),
            (Raw::SIGHUP, Signal::Hangup),
        ] {
            assert_eq!((wanted.name(), wanted.number()), (raw.as_str(), raw as i32));
            if ignored.contains(SignalKind::from_raw(raw as i32)) {
                continue;
            }
            kill(Pid::this(), raw).expect("sent");
            until(&mut signals, wanted).await;
        }
    }

    #[tokio::test]
    async fn a_dropped_recv_loses_no_signal() {
        let mut signals = Signals::install().expect("handlers");
        for _ in 0..20 {
            kill(Pid::this(), Raw::SIGTERM).expect("sent");
            // Polled once and dropped, whether or not the signal is there already.
            tokio::select! {
                biased;
                received = signals.recv() => if received == Signal::Terminate { continue },
                () = std::future::ready(()) => {}
            }
            until(&mut signals, Signal::Terminate).await;
        }
    }

    #[test]
    fn ignored_signals_are_read_from_the_status_file() {
        let ignored = Ignored::from_status("Name:\tx\nSigIgn:\t0000000000001003\nSigCgt:\t4000\n");
        assert!(ignored.contains(SignalKind::hangup()));
        assert!(ignored.contains(SignalKind::interrupt()));
        assert!(!ignored.contains(SignalKind::terminate()));
        assert!(!Ignored::from_status("").contains(SignalKind::hangup()));
    }
}
