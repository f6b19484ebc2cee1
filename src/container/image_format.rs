//! Recognises image files by their first bytes.
//!
//! `apptainer build` takes an unknown file for a definition and runs its `%pre` and `%setup` outside of any
//! container. So only files that begin as an image are passed to it. No definition can begin like that,
//! because its second line would have to be a keyword.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The line before each SIF and the images of Singularity.
const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";
/// The line before the file-system images of Singularity 2.
const OLD_LAUNCH: &[u8] = b"#!/usr/bin/env singularity\n";
const SIF: &[u8] = b"\0SIF_MAGIC\0";
const SQUASHFS: &[u8] = b"hsqs";
/// The offset of ext3's superblock, then the offset and value of its magic number. Only zeros precede the
/// superblock.
const EXT3_SUPERBLOCK: usize = 1024;
const EXT3: (usize, [u8; 2]) = (1080, [0x53, 0xef]);
/// Enough bytes for all of these.
const READ: u64 = 2048;

/// Whether the file at `path` is an image that Apptainer recognises.
///
/// # Errors
/// When it can't be read.
pub(super) fn is_image(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(READ).read_to_end(&mut head)?;
    Ok(begins_an_image(&head))
}

fn begins_an_image(head: &[u8]) -> bool {
    if let Some(rest) = head.strip_prefix(LAUNCH) {
        return rest.starts_with(SIF) || is_file_system(rest);
    }
    is_file_system(head.strip_prefix(OLD_LAUNCH).unwrap_or(head))
}

fn is_file_system(head: &[u8]) -> bool {
    let (at, magic) = EXT3;
    let is_ext3 = head.get(at..at + magic.len()) == Some(&magic)
        && head[..EXT3_SUPERBLOCK].iter().all(|byte| *byte == 0);
    head.starts_with(SQUASHFS) || is_ext3
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFINITION: &[u8] = b"Bootstrap: localimage\nFrom: x\n%setup\n echo here\n";

    #[test]
    fn images_are_known_by_their_beginning() {
        let mut ext3 = vec![0; 2048];
        ext3[1080] = 0x53;
        ext3[1081] = 0xef;
        for head in [
            [LAUNCH, SIF, b"01\x0002\0"].concat(),
            [SQUASHFS, b"\x07\0\0\0"].concat(),
            [LAUNCH, SQUASHFS].concat(),
            ext3.clone(),
            [LAUNCH, &ext3[..1500]].concat(),
            [OLD_LAUNCH, &ext3[..1500]].concat(),
        ] {
            assert!(begins_an_image(&head), "{head:?}");
        }
    }

    #[test]
    fn a_definition_is_none_whatever_is_in_front_of_it() {
        let mut ext3 = [b"#", [b'x'; 1079].as_slice(), &[0x53, 0xef, b'\n']].concat();
        ext3.extend(DEFINITION);
        for head in [
            DEFINITION.to_vec(),
            [b"# comment\n", DEFINITION].concat(),
            [b"#hsqs\n", DEFINITION].concat(),
            [LAUNCH, DEFINITION].concat(),
            // The launch line without its end makes everything a comment.
            [&LAUNCH[..30], SIF, b"\n", DEFINITION].concat(),
            [&LAUNCH[..30], b" ", SIF, b"\n", DEFINITION].concat(),
            ext3,
            Vec::new(),
            b"#".to_vec(),
        ] {
            assert!(!begins_an_image(&head), "{head:?}");
        }
    }
}
