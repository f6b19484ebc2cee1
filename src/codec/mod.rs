//! Message body ⇄ payload ⇄ infile and outfile.
//!
//! A value is never parsed into a tree and written out again: `json` checks it and finds its ends, and its
//! text is passed on as it is. So `NaN`, `-Infinity`, integers of any size, the order and repetition of keys,
//! lone surrogates in strings and the last digit of a number all survive.
//!
//! Bodies that fit into memory are converted there in one piece, which is fastest. Larger events and results
//! go through readers and writers ([`unpack_frame`], [`pack_outfile`]), to the same result, byte for byte.
//!
//! The reference on the wire is Python's `oms-mqclient`; for infiles and outfiles, it is the Python pilot.
//!
//! | data | infile | outfile → data |
//! | --- | --- | --- |
//! | JSON string | its content, whatever the extension | text of a file that is not `.json` |
//! | any other JSON value | its JSON text; the last suffix must be `.json` | text of a `.json` file, checked |

mod escape;
mod files;
mod frame;
mod json;
mod large;
mod stream;

pub use files::{
    FileError, FileKind, InfileError, Outfile, OutfileError, decode_file, into_file, open_outfile,
    write_infile,
};
pub use frame::{DecodeError, EncodeError, decode_frame, encode_frame, unpacked_size};
pub use json::SyntaxError;
pub use large::{
    NewInfile, PackError, UnpackError, check_outfile, pack_outfile, unpack_file, unpack_frame,
};

/// The largest unpacked event or outfile, in bytes: 512 MiB.
///
/// A broker's limit applies to compressed bodies, and 40 KB can become 400 MB. This limit keeps a hostile or
/// broken body from filling the disk of every slot that it comes to.
pub const DEFAULT_LIMIT_BYTES: u64 = 512 * 1024 * 1024;

/// One event's data, or one task's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    Text(String),
    /// The checked text of a JSON value, verbatim. An event's JSON string is [`Payload::Text`]; a task's
    /// `.json` outfile stays JSON even if it holds a string.
    Json(Vec<u8>),
}

#[cfg(test)]
mod tests;
