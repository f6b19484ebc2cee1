//! Recognises image files by their first bytes, and those that end too early.
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
/// In the header of a SIF: where the offset of its data is, and their size. The header has so many bytes.
const SIF_DATA: [usize; 2] = [112, 120];
const SIF_HEADER: u64 = 128;
/// In a squashfs superblock: where the number of bytes in use is.
const SQUASHFS_USED: usize = 40;
/// Enough bytes for all of these.
const READ: u64 = 2048;

/// A file, as far as its beginning and its size tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageFile {
    Complete,
    /// It has so many bytes, and its own header says that it needs more.
    CutOff {
        has: u64,
        needs: u64,
    },
    NoImage,
}

/// Looks whether the file at `path` is an image that Apptainer recognises.
///
/// # Errors
/// When it can't be read.
pub(super) fn examine(path: &Path) -> io::Result<ImageFile> {
    let mut head = Vec::new();
    let mut file = File::open(path)?;
    let has = file.metadata()?.len();
    file.by_ref().take(READ).read_to_end(&mut head)?;
    Ok(examine_head(&head, has))
}

fn examine_head(head: &[u8], has: u64) -> ImageFile {
    if !begins_an_image(head) {
        return ImageFile::NoImage;
    }
    match stated_size(head) {
        Some(needs) if has < needs => ImageFile::CutOff { has, needs },
        _ => ImageFile::Complete,
    }
}

/// The size that the header of a SIF or squashfs file states, in bytes. Later bytes are padding or a signature's.
fn stated_size(head: &[u8]) -> Option<u64> {
    let number = |head: &[u8], at: usize| {
        let bytes = head.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let rest = head.strip_prefix(LAUNCH).unwrap_or(head);
    if rest.starts_with(SIF) {
        let Some(data) = SIF_DATA.map(|at| number(head, at)).into_iter().sum() else {
            return Some(SIF_HEADER);
        };
        return Some(data);
    }
    let squashfs = head.len() - rest.len();
    let used = number(rest, SQUASHFS_USED).filter(|_| rest.starts_with(SQUASHFS))?;
    used.checked_add(u64::try_from(squashfs).ok()?)
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
    fn an_image_that_is_shorter_than_its_header_says_is_cut_off() {
        let mut sif = [LAUNCH, SIF, b"01\x0002\0"].concat();
        let cut = |has, needs| ImageFile::CutOff { has, needs };
        assert_eq!(examine_head(&sif, 60), cut(60, SIF_HEADER));
        sif.resize(112, 0);
        sif.extend(32_176_u64.to_le_bytes());
        sif.extend(1_086_032_u64.to_le_bytes());
        assert_eq!(examine_head(&sif, 1_118_207), cut(1_118_207, 1_118_208));
        assert_eq!(examine_head(&sif, 1_118_208), ImageFile::Complete);
        assert_eq!(examine_head(&sif, 2_000_000), ImageFile::Complete);

        let mut squashfs = [SQUASHFS, &[0; 36]].concat();
        squashfs.extend(5_000_u64.to_le_bytes());
        assert_eq!(examine_head(&squashfs, 4_999), cut(4_999, 5_000));
        assert_eq!(examine_head(&squashfs, 5_000), ImageFile::Complete);
        let launched = [LAUNCH, &squashfs].concat();
        assert_eq!(examine_head(&launched, 5_000), cut(5_000, 5_031));
        assert_eq!(examine_head(b"#!/bin/sh\n", 9), ImageFile::NoImage);
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
