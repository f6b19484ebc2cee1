//! Where events come from and results go. Knows queues, deliveries and confirms; knows nothing of
//! tasks, files' meaning or message formats.
//!
//! A broker is added by one more variant in [`Source`], [`Sink`] and [`ReceiptKind`].


pub mod rabbitmq;
pub mod spool;

/// What a queue carries for one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A message body as it is on the wire: a zstd frame around `{"headers", "data"}`.
    Frame(Vec<u8>),
    /// A file's bytes: the event's data and nothing else.
    File(FileFormat, Vec<u8>),
}

/// How the bytes of a [`Content::File`] are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// A JSON value.
    Json,
    /// Text.
    Text,
}

/// Which kind of [`Content`] a sink wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// [`Content::Frame`].
    Frame,
    /// [`Content::File`].
    File,
}

/// One event, taken from a queue and not settled yet.
#[derive(Debug)]
pub struct Delivery {
    /// The event.
    pub content: Content,
    /// How often it was delivered before, when the broker says so (`x-delivery-count`, tries).
    pub earlier_deliveries: Option<u64>,
    /// What settles it.
    pub receipt: Receipt,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was worked through, and its result, if any, is confirmed.
    Done,
    /// The event or its task failed: back to the queue, and the broker may count it.
    Failed {
        /// The error, for whoever looks at the event next.
        reason: String,
    },
    /// It was not tried to the end for a reason that is not its own: back to the queue.
    Released,
}

/// Settles one delivery, once.
#[derive(Debug)]
pub struct Receipt;
