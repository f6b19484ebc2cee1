//! Payload ⇄ files: a task's infile and outfile, and the files of a spool directory.
//!
//! An outfile is written by an untrusted program in a directory that it can fill with anything. So it is
//! opened without following links and without blocking, must be a regular file, and is read up to a limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

use super::Payload;
use super::frame::{DecodeError, from_json_value};
use super::json::{self, SyntaxError};
use crate::fault::TaskError;

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// One JSON value.
    Json,
    /// UTF-8 text.
    Text,
}

impl FileKind {
    /// The kind for an extension: JSON if the last suffix is `json`, else text.
    ///
    /// `extension` is lower-case and without leading dots, and may have several suffixes: that of
    /// `pkl.b64` is `b64`.
    #[must_use]
    pub fn of_extension(extension: &str) -> Self {
        match extension.rsplit('.').next() {
            Some("json") => Self::Json,
            _ => Self::Text,
        }
    }
}

/// The machine failed to read or write a file.
#[derive(Debug, thiserror::Error)]
#[error("can't {action}: {source}; see to the disk that holds `ewms-pilot-data`")]
pub struct FileError {
    action: &'static str,
    source: io::Error,
}

impl FileError {
    pub(super) fn new(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, source }
    }
}

/// Why an infile was not written.
#[derive(Debug, thiserror::Error)]
pub enum InfileError {
    /// Data that is no text needs a `.json` infile. The error's text is the Python pilot's, and then the remedy.
    #[error(
        "Incoming-message data ('<class '{python_type}'>' type) must be JSON-serializable *and* \
         use an infile with a '.json' extension (string or bytes data can have any file extension) \
         for infile; set EWMS_PILOT_INFILE_EXT=.json"
    )]
    NeedsJson {
        /// Python's name for the type of the data.
        python_type: &'static str,
    },
    /// The data is a string that no file can hold.
    #[error(transparent)]
    Text(DecodeError),
    /// The infile would fill the disk, which other tasks write to.
    #[error(
        "the event's data have `{bytes}` bytes, and less is free; see to the disk that holds \
         `ewms-pilot-data`"
    )]
    NoRoom { bytes: u64 },
    /// The disk is full or broken.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<InfileError> for TaskError {
    fn from(error: InfileError) -> Self {
        let text = error.to_string();
        match error {
            InfileError::NeedsJson { .. } => Self::InvalidDataForInfile(text),
            InfileError::Text(_) => Self::EventDecode(text),
            InfileError::NoRoom { .. } | InfileError::File(_) => Self::Os(text),
        }
    }
}

/// Why an outfile was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum OutfileError {
    /// The outfile is a link, a directory, a pipe, …
    #[error("task left a {0} in place of its outfile; write a regular file for outfile")]
    NotAFile(&'static str),
    /// The permissions of the outfile don't let the pilot read it.
    #[error("task left an outfile that its own user may not read; set its permissions for outfile")]
    NotReadable,
    /// The outfile is longer than allowed.
    #[error(
        "task wrote `{size}` bytes, and at most `{limit}` can be sent; write less, or put the data \
         where others can fetch it and send its address for outfile"
    )]
    TooLarge { size: u64, limit: u64 },
    /// The outfile is not UTF-8, so no JSON string can carry it.
    #[error("data is not UTF-8 from byte {at} on; write text, or encode it (base64) for outfile")]
    NotUtf8 {
        /// Offset of the first byte that is not UTF-8.
        at: usize,
    },
    /// The outfile has a `.json` name but holds no JSON.
    #[error("data is not JSON ({0}); write one JSON value, or use another extension for outfile")]
    NotJson(#[from] SyntaxError),
    /// The outfile became longer or shorter while it was read.
    #[error(
        "task's outfile changed while it was read; let nothing of the task run on after its end for outfile"
    )]
    Changed,
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<OutfileError> for TaskError {
    fn from(error: OutfileError) -> Self {
        let text = error.to_string();
        match error {
            OutfileError::File(_) => Self::Os(text),
            _ => Self::InvalidDataFromOutfile(text),
        }
    }
}

/// Reads an event that is a file of its own, from a spool directory.
///
/// # Errors
/// Returns a [`DecodeError`] about UTF-8, JSON or surrogates. All of them are the event's own fault.
pub fn decode_file(kind: FileKind, content: Vec<u8>) -> Result<Payload, DecodeError> {
    let mut text = String::from_utf8(content)?;
    match kind {
        FileKind::Text => Ok(Payload::Text(text)),
        FileKind::Json => {
            let value = json::document(&text)?;
            text.truncate(value.end);
            text.drain(..value.start);
            Ok(from_json_value(text)?)
        }
    }
}

/// A result as a file of its own, for a spool directory.
#[must_use]
pub fn into_file(payload: Payload) -> (FileKind, Vec<u8>) {
    match payload {
        Payload::Text(text) => (FileKind::Text, text.into_bytes()),
        Payload::Json(value) => (FileKind::Json, value),
    }
}

/// Writes a new infile and returns its size in bytes. Text is written as it is, whatever the extension; any
/// other value needs an extension whose last suffix is `json`.
///
/// # Errors
/// Returns an [`InfileError`]. With `NeedsJson`, no file was created.
pub fn write_infile(payload: &Payload, extension: &str, path: &Path) -> Result<u64, InfileError> {
    let decoded;
    let content = match payload {
        Payload::Text(text) => text.as_bytes(),
        Payload::Json(value) => match python_type(value) {
            // Only a task's result can be a JSON string here; as an event, its content counts.
            "str" => {
                decoded =
                    json::decode_string(String::from_utf8_lossy(value.trim_ascii()).into_owned())
                        .map_err(|error| InfileError::Text(error.into()))?;
                decoded.as_bytes()
            }
            _ if FileKind::of_extension(extension) == FileKind::Json => value,
            python_type => return Err(InfileError::NeedsJson { python_type }),
        },
    };
    let mut file = File::create_new(path).map_err(FileError::new("create an infile"))?;
    file.write_all(content)
        .map_err(FileError::new("write an infile"))?;
    Ok(content.len() as u64)
}

fn python_type(value: &[u8]) -> &'static str {
    let value = value.trim_ascii();
    let (first, rest) = value.split_first().unwrap_or((&b' ', &[]));
    // Reading from memory can't fail.
    type_beginning(*first, rest).unwrap_or("float")
}

/// Python's name for the type of a JSON value that begins with `first` and goes on with `rest`.
pub(super) fn type_beginning(first: u8, mut rest: impl Read) -> io::Result<&'static str> {
    // `NaN`, `Infinity` and `-Infinity` have an `N` or `I`; an integer has only digits.
    let of_float = |byte: &u8| b".eENI".contains(byte);
    Ok(match first {
        b'{' => "dict",
        b'[' => "list",
        b'"' => "str",
        b't' | b'f' => "bool",
        b'n' => "NoneType",
        first if of_float(&first) => "float",
        _ => {
            let mut piece = [0; 4096];
            loop {
                match rest.read(&mut piece)? {
                    0 => break "int",
                    read if piece[..read].iter().any(of_float) => break "float",
                    _ => {}
                }
            }
        }
    })
}

/// A task's outfile that was checked but not read yet.
#[derive(Debug)]
pub struct Outfile {
    pub(super) file: File,
    pub(super) bytes: u64,
    pub(super) kind: FileKind,
    limit_bytes: u64,
}

/// Opens a task's outfile; `None` if the task wrote none.
///
/// # Errors
/// Returns an [`OutfileError`]. All but `File` are the task's fault.
pub fn open_outfile(
    path: &Path,
    extension: &str,
    limit_bytes: u64,
) -> Result<Option<Outfile>, OutfileError> {
    let file = match open_untrusted(path) {
        Ok(file) => file,
        Err(error) => return explain_open(path, error),
    };
    let metadata = file
        .metadata()
        .map_err(FileError::new("look at an outfile"))?;
    if !metadata.is_file() {
        return Err(OutfileError::NotAFile(describe(metadata.file_type())));
    }
    let (size, limit) = (metadata.len(), limit_bytes);
    if size > limit {
        return Err(OutfileError::TooLarge { size, limit });
    }
    Ok(Some(Outfile {
        file,
        bytes: size,
        kind: FileKind::of_extension(extension),
        limit_bytes,
    }))
}

impl Outfile {
    /// The size when the outfile was opened, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the content into memory. A `.json` file is checked and kept verbatim; any other file is text.
    ///
    /// # Errors
    /// Returns the errors of [`open_outfile`].
    pub fn read(&self) -> Result<Payload, OutfileError> {
        let mut file = &self.file;
        file.rewind().map_err(FileError::new("read an outfile"))?;
        let text = read_text(file, self.bytes, self.limit_bytes)?;
        Ok(match self.kind {
            FileKind::Text => Payload::Text(text),
            FileKind::Json => {
                json::document(&text)?;
                Payload::Json(text.into_bytes())
            }
        })
    }
}

/// Neither blocks on a FIFO nor follows a link out of the task's directory.
fn open_untrusted(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)
}

fn explain_open(path: &Path, error: io::Error) -> Result<Option<Outfile>, OutfileError> {
    match error.kind() {
        io::ErrorKind::NotFound => return Ok(None),
        io::ErrorKind::PermissionDenied => return Err(OutfileError::NotReadable),
        _ => {}
    }
    // Links (ELOOP) and sockets (ENXIO) can't be opened at all.
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_file() => {
            Err(OutfileError::NotAFile(describe(metadata.file_type())))
        }
        _ => Err(FileError::new("open an outfile")(error).into()),
    }
}

fn describe(file_type: std::fs::FileType) -> &'static str {
    if file_type.is_symlink() {
        "symbolic link"
    } else if file_type.is_dir() {
        "directory"
    } else if file_type.is_fifo() {
        "named pipe"
    } else if file_type.is_socket() {
        "socket"
    } else {
        "device"
    }
}

fn read_text(file: &File, size: u64, limit: u64) -> Result<String, OutfileError> {
    let cannot_read = || FileError::new("read an outfile");
    let mut content = Vec::new();
    content
        .try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX))
        .map_err(|error| cannot_read()(error.into()))?;
    // A process that outlived its task may still be writing.
    let read = file
        .take(limit.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(cannot_read())?;
    if read as u64 > limit {
        let size = read as u64;
        return Err(OutfileError::TooLarge { size, limit });
    }
    String::from_utf8(content).map_err(|error| OutfileError::NotUtf8 {
        at: error.utf8_error().valid_up_to(),
    })
}
