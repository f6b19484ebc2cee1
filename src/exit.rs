//! The pilot's exit codes. HTCondor policies and people read them, so a code never changes its meaning.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Every task succeeded, or there was no event.
    Success,
    TasksFailed,
    /// A variable or an argument is wrong; nothing was contacted.
    Configuration,
    /// The machine can't run containers, write files or start processes.
    ExecutionPoint,
    /// The broker can't be reached or was lost.
    Broker,
    Init,
    /// The image can't be used or converted.
    Image,
    /// A signal ended the pilot; running tasks were given back.
    Signal(i32),
}

impl Exit {
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::TasksFailed => 1,
            Self::Configuration => 2,
            Self::ExecutionPoint => 3,
            Self::Broker => 4,
            Self::Init => 5,
            Self::Image => 6,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(255),
        }
    }
}

/// The table that `--help` and the README of `fault` show: code and meaning.
pub const TABLE: &[(&str, &str)] = &[
    ("0", "success: every task succeeded, or there was no event"),
    (
        "1",
        "one or more tasks failed; their events are back in the queue",
    ),
    (
        "2",
        "configuration: a variable or argument is wrong; nothing was contacted",
    ),
    (
        "3",
        "execution point: this machine can't run containers or write files",
    ),
    ("4", "broker: it can't be reached, refused us, or was lost"),
    ("5", "the init container failed or timed out"),
    (
        "6",
        "image: it is missing, is no image, or can't be converted",
    ),
    (
        "128+N",
        "ended by signal N; unfinished events are back in the queue",
    ),
];
