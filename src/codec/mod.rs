//! Message body ⇄ payload ⇄ infile and outfile. Knows formats only: nothing of queues, tasks or
//! containers. Apart, because every obvious way to do it changes somebody's data.
//!
//! A value is never parsed into a tree and written out again: `json` checks it and says where it
//! lies, and its text travels as it is. So `NaN`, `-Infinity`, integers of any size, the order and
//! repetition of keys, lone surrogates in strings and the last digit of a number all survive.
//!
//! What Python's `oms-mqclient` writes and reads is the measure on the wire; what the Python pilot
//! writes into an infile and reads from an outfile is the measure for files.
//!
//! | data | infile | outfile → data |
//! | --- | --- | --- |
//! | JSON string | its content, whatever the extension | text of a file that is not `.json` |
//! | any other JSON value | its JSON text; the last suffix must be `.json` | text of a `.json` file, checked |

mod escape;
mod files;
mod frame;
mod json;

pub use files::{
    FileError, FileKind, InfileError, OutfileError, decode_file, into_file, read_outfile,
    write_infile,
};
pub use frame::{DecodeError, EncodeError, decode_frame, encode_frame};
pub use json::SyntaxError;

/// The most that one event or one outfile may occupy in memory, in bytes: 512 MiB.
///
/// A broker's limit (16 MiB by default) is for compressed bodies, and 1.5 KB can become 50 MB; this
/// one keeps a hostile or broken body from taking the memory of the whole slot.
pub const DEFAULT_LIMIT_BYTES: u64 = 512 * 1024 * 1024;

/// One event's data, or one task's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A string's content.
    Text(String),
    /// The checked text of a JSON value, verbatim. What came in as a JSON string is
    /// [`Payload::Text`]; what a task wrote into a `.json` outfile stays JSON even if it is a string.
    Json(Vec<u8>),
}

#[cfg(test)]
mod tests;
