//! An unchanged copy of an event, kept while its task runs in case it goes to the dead-letter queue. A large
//! one waits on the disk, so that a full prefetch window takes no memory. The infile can't serve as the copy,
//! because the task can change it.

use std::io;

use crate::blocking::{self, BlockingWork};
use crate::broker::{BodyStore, Content};

#[derive(Debug)]
pub enum EventCopy {
    Kept(Content),
    /// It could not be kept. The broker still has it.
    Lost(String),
}

impl EventCopy {
    /// # Errors
    /// When the copy was lost.
    pub fn into_content(self) -> io::Result<Content> {
        match self {
            Self::Kept(content) => {
                drop(content.body().reader()?);
                Ok(content)
            }
            Self::Lost(reason) => Err(io::Error::other(reason)),
        }
    }
}

/// An event whose copy is being made.
#[derive(Debug)]
pub(super) enum PendingCopy {
    AsItCame {
        event: Content,
        bodies: BodyStore,
    },
    /// A large one on its way to the disk.
    Moving(BlockingWork<Content>),
}

impl PendingCopy {
    pub(super) fn of(event: Content, bodies: &BodyStore) -> Self {
        Self::AsItCame {
            event,
            bodies: bodies.clone(),
        }
    }

    /// Begins to move a large event to the disk, so that its memory is free while its task waits and runs.
    pub(super) fn put_by(self) -> Self {
        match self {
            Self::AsItCame { event, bodies } if bodies.would_put_by(event.body()) => {
                let moving = move || event.with_body(bodies.put_by(event.body().clone()));
                Self::Moving(blocking::start(moving))
            }
            other => other,
        }
    }

    pub(super) async fn kept(self) -> EventCopy {
        match self.put_by() {
            Self::AsItCame { event, .. } => EventCopy::Kept(event),
            Self::Moving(moving) => match moving.await {
                Ok(event) => EventCopy::Kept(event),
                Err(panicked) => EventCopy::Lost(panicked.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::broker::{Body, FileFormat, LARGE_BYTES};

    #[tokio::test]
    async fn events_of_any_size_come_back_as_they_were_and_no_large_one_stays_in_memory() {
        let scratch = tempfile::tempdir().expect("a directory");
        for size in [0, 64 * 1024, 3_000_000, LARGE_BYTES + 1] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
            for event in [
                Content::Frame(Body::from(bytes.clone())),
                Content::File(FileFormat::Text, Body::from(bytes.clone())),
            ] {
                let bodies = BodyStore::new(scratch.path().to_owned());
                let keeping = PendingCopy::of(event.clone(), &bodies);
                let kept = keeping.kept().await.into_content().expect("kept");
                assert_eq!(kept.body().in_memory().is_some(), size <= 64 * 1024);
                assert!(kept == event, "{kept:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_could_not_be_kept_is_an_error_that_says_so() {
        let bodies = BodyStore::new(Path::new("/proc/none").to_owned());
        let event = Content::Frame(Body::from(vec![0; 100_000]));
        let keeping = PendingCopy::of(event, &bodies);
        assert!(keeping.kept().await.into_content().is_err());
        assert!(EventCopy::Lost("why".into()).into_content().is_err());
    }
}
