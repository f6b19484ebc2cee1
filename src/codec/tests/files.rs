//! The claims about infiles, outfiles and spool files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo};
use tempfile::TempDir;

use super::{LIMIT, json, text};
use crate::codec::*;
use crate::fault::{FaultClass, TaskError};

struct Outfile {
    _directory: TempDir,
    path: PathBuf,
}

impl Outfile {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("outfile");
        Self {
            _directory: directory,
            path,
        }
    }

    fn holding(content: impl AsRef<[u8]>) -> Self {
        let outfile = Self::new();
        fs::write(&outfile.path, content).unwrap();
        outfile
    }

    fn read(&self, extension: &str) -> Result<Option<Payload>, OutfileError> {
        match open_outfile(&self.path, extension, LIMIT)? {
            Some(outfile) => outfile.read().map(Some),
            None => Ok(None),
        }
    }

    /// The text of the error, as the last line of a pilot shows it.
    fn refusal(&self, extension: &str) -> String {
        TaskError::from(self.read(extension).unwrap_err()).repr()
    }
}

#[test]
fn text_is_written_raw_whatever_the_extension() {
    for extension in ["in", "json", "pkl.b64", ""] {
        let file = Outfile::new();
        let content = "{\"a\": 1}\r\n\0é";
        assert_eq!(
            write_infile(&text(content), extension, &file.path).unwrap(),
            13
        );
        assert_eq!(fs::read_to_string(&file.path).unwrap(), content);
    }
}

#[test]
fn other_values_are_written_verbatim_into_json_infiles() {
    for extension in ["json", "x.json"] {
        let file = Outfile::new();
        let value = "[NaN, \"\\ud800\", 18446744073709551616]";
        let size = write_infile(&json(value), extension, &file.path).unwrap();
        assert_eq!(size, value.len() as u64);
        assert_eq!(fs::read_to_string(&file.path).unwrap(), value);
    }
}

#[test]
fn other_values_need_a_json_infile_and_the_error_names_pythons_type() {
    for (value, python_type) in [
        ("{}", "dict"),
        ("[1.5]", "list"),
        ("12345678901234567890", "int"),
        ("-1", "int"),
        ("-1.0", "float"),
        ("1e5", "float"),
        ("NaN", "float"),
        ("-Infinity", "float"),
        ("true", "bool"),
        ("null", "NoneType"),
    ] {
        for extension in ["in", "json.txt", "jsonl", "pkl.b64"] {
            let file = Outfile::new();
            let error = write_infile(&json(value), extension, &file.path).unwrap_err();
            assert!(!file.path.exists());
            let error = TaskError::from(error);
            assert_eq!(error.class(), FaultClass::Event);
            assert_eq!(
                error.repr(),
                format!(
                    "InvalidDataForInfileException(\"Incoming-message data ('<class \
                     '{python_type}'>' type) must be JSON-serializable *and* use an infile with a \
                     '.json' extension (string or bytes data can have any file extension) for \
                     infile; set EWMS_PILOT_INFILE_EXT=.json\")"
                )
            );
        }
    }
}

#[test]
fn an_infile_that_the_disk_refuses_is_the_machines_fault() {
    let file = Outfile::new();
    let error = write_infile(&text("x"), "in", &file.path.join("in")).unwrap_err();
    assert_eq!(TaskError::from(error).class(), FaultClass::Ep);
}

#[test]
fn an_absent_outfile_is_no_result() {
    assert_eq!(Outfile::new().read("json").unwrap(), None);
}

#[test]
fn text_outfiles_are_sent_as_they_are() {
    for content in ["", "a\r\nb\n", "{not json", "\u{feff}bom\0"] {
        assert_eq!(
            Outfile::holding(content).read("out").unwrap(),
            Some(text(content))
        );
    }
}

#[test]
fn json_outfiles_keep_their_text() {
    for content in ["{\"b\": NaN,\n \"a\": 1e999}\n", "\"\\ud800\"", " 0 "] {
        let outfile = Outfile::holding(content);
        assert_eq!(outfile.read("json").unwrap(), Some(json(content)));
    }
}

#[test]
fn an_outfile_that_can_not_be_sent_is_the_tasks_error_and_says_why() {
    let not_json = Outfile::holding("{'a': 1}");
    assert_eq!(
        not_json.refusal("json"),
        "InvalidDataFromOutfileException('data is not JSON (expected a key in double quotes at byte \
         1); write one JSON value, or use another extension for outfile')"
    );
    let not_utf8 = Outfile::holding(b"ab\xff");
    for extension in ["out", "json"] {
        assert!(
            not_utf8
                .refusal(extension)
                .contains("data is not UTF-8 from byte 2 on")
        );
    }
}

#[test]
fn an_outfile_over_the_limit_is_refused_with_both_numbers() {
    let outfile = Outfile::holding(vec![b'x'; 1 << 20]);
    assert!(outfile.read("out").is_ok());
    // The file is sparse. If it were read before its size is checked, this test would take 1 TiB.
    fs::File::options()
        .write(true)
        .open(&outfile.path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let refusal = outfile.refusal("out");
    assert!(
        refusal.contains("`1099511627776`") && refusal.contains("`1048576`"),
        "{refusal}"
    );
}

#[test]
fn what_is_no_regular_file_is_refused_at_once_by_name() {
    for name in [
        "symbolic link",
        "dangling",
        "directory",
        "named pipe",
        "socket",
    ] {
        let elsewhere = Outfile::holding("secret");
        let outfile = Outfile::new();
        let path = &outfile.path;
        match name {
            "symbolic link" => symlink(&elsewhere.path, path).unwrap(),
            "dangling" => symlink("nowhere", path).unwrap(),
            "directory" => fs::create_dir(path).unwrap(),
            "named pipe" => mkfifo(path, Mode::S_IRWXU).unwrap(),
            _ => drop(UnixListener::bind(path).unwrap()),
        }
        let name = if name == "dangling" {
            "symbolic link"
        } else {
            name
        };
        let refusal = outfile.refusal("out");
        assert!(
            refusal.contains(&format!("task left a {name} in place")),
            "{refusal}"
        );
        assert!(
            refusal.starts_with("InvalidDataFromOutfileException("),
            "{refusal}"
        );
    }
}

#[test]
fn an_outfile_that_we_may_not_read_is_the_tasks_error() {
    let outfile = Outfile::holding("x");
    fs::set_permissions(&outfile.path, fs::Permissions::from_mode(0o000)).unwrap();
    if Uid::effective().is_root() {
        // Root may read everything.
        assert_eq!(outfile.read("out").unwrap(), Some(text("x")));
    } else {
        assert!(matches!(
            outfile.read("out"),
            Err(OutfileError::NotReadable)
        ));
    }
}

#[test]
fn spool_files_become_payloads_and_back() {
    let bytes = |content: &str| content.as_bytes().to_vec();
    let decode = |kind, content: &str| decode_file(kind, bytes(content)).unwrap();
    assert_eq!(decode(FileKind::Text, "\"a\"\n"), text("\"a\"\n"));
    assert_eq!(decode(FileKind::Json, " \"caf\\u00e9\"\n"), text("café"));
    assert_eq!(decode(FileKind::Json, "\n[1, NaN]\n"), json("[1, NaN]"));
    assert_eq!(into_file(text("a")), (FileKind::Text, bytes("a")));
    assert_eq!(
        into_file(json("\"\\ud800\"")),
        (FileKind::Json, bytes("\"\\ud800\""))
    );
    for (kind, content) in [
        (FileKind::Json, &b"nope"[..]),
        (FileKind::Json, b"\"\\ud800\""),
        (FileKind::Text, b"\xff"),
    ] {
        let error = decode_file(kind, content.to_vec()).unwrap_err();
        assert_eq!(TaskError::from(error).class(), FaultClass::Event);
    }
}
