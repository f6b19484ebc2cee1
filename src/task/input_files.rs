//! Gathers the files that came with the job in one directory that all containers see, read-only: hard-linked
//! where the file system can, else copied. The pilot's own files are left out, by inode and by path, and so
//! are links that lead out of the job's directory and anything that is no file.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::own_files::HiddenFiles;
use crate::regular_file::kind_of;

/// How many of the files that are left out the log names.
const NAMED: usize = 10;

const THE_PILOTS_OWN: &str = "the pilot's own";

#[derive(Debug, Default)]
pub struct GatheredInputs {
    /// Files that containers see.
    pub files: usize,
    left_out: Vec<(PathBuf, &'static str)>,
}

/// A file or directory still to be gathered.
struct PendingInput {
    /// Without links, except perhaps the last name.
    from: PathBuf,
    to: PathBuf,
    way: LinkWay,
}

/// How the walk reached an entry. It follows a link to a directory only if it has followed none before: a few
/// links could otherwise make endlessly many directories.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LinkWay {
    Straight,
    ThroughLink,
}

/// Links `files`, and the contents of the directories among them, into the directory `inputs` under their own
/// names. All of them are in the directory `home`.
///
/// # Errors
/// When a file or directory can't be read or linked.
pub fn gather(
    files: &[PathBuf],
    home: &Path,
    inputs: &Path,
    own: &HiddenFiles,
) -> io::Result<GatheredInputs> {
    fs::create_dir_all(inputs)?;
    let home = fs::canonicalize(home)?;
    let mut gathered = GatheredInputs::default();
    let mut open: Vec<PendingInput> = Vec::new();
    for file in files {
        if let (Some(name), Some(parent)) = (file.file_name(), file.parent()) {
            open.push(PendingInput {
                from: fs::canonicalize(parent)?.join(name),
                to: inputs.join(name),
                way: LinkWay::Straight,
            });
        }
    }
    while let Some(entry) = open.pop() {
        gathered.take(entry, &home, own, &mut open)?;
    }
    // An earlier pilot in the same place may have gathered files that are this pilot's own.
    withdraw(inputs, own)?;
    Ok(gathered)
}

impl GatheredInputs {
    fn take(
        &mut self,
        entry: PendingInput,
        home: &Path,
        own: &HiddenFiles,
        open: &mut Vec<PendingInput>,
    ) -> io::Result<()> {
        let PendingInput {
            mut from,
            to,
            mut way,
        } = entry;
        // By path first: a file that the pilot replaces may vanish after it was listed.
        if own.contain_path(&from) {
            self.leave_out(from, THE_PILOTS_OWN);
            return Ok(());
        }
        let mut found = fs::symlink_metadata(&from)?;
        if found.is_symlink() {
            match led_to(&from, home) {
                Some((target, _)) if target.is_dir() && way == LinkWay::ThroughLink => {
                    self.leave_out(from, "a link to a directory behind another one");
                    return Ok(());
                }
                Some((target, at)) => {
                    found = target;
                    from = at;
                    way = LinkWay::ThroughLink;
                }
                None => {
                    self.leave_out(from, "a link that leads out of the job's directory");
                    return Ok(());
                }
            }
        }
        if own.contain(&found) || own.contain_path(&from) {
            self.leave_out(from, THE_PILOTS_OWN);
        } else if found.is_dir() {
            fs::create_dir_all(&to)?;
            for inside in fs::read_dir(&from)? {
                let inside = inside?;
                open.push(PendingInput {
                    from: inside.path(),
                    to: to.join(inside.file_name()),
                    way,
                });
            }
        } else if found.is_file() {
            link(&from, &to)?;
            self.files += 1;
        } else {
            self.leave_out(from, kind_of(found.file_type()));
        }
        Ok(())
    }

    fn leave_out(&mut self, path: PathBuf, why: &'static str) {
        self.left_out.push((path, why));
    }

    /// Logs what containers see and what they don't.
    pub fn report(&self) {
        info!(
            count = self.files,
            "the job's input files are in every container"
        );
        for (path, why) in self.left_out.iter().take(NAMED) {
            let name: OsString = path.file_name().unwrap_or_default().to_owned();
            warn!(
                name = %name.display(), why,
                "an input file of the job is not shown to tasks"
            );
        }
        if let Some(more) = self.left_out.len().checked_sub(NAMED).filter(|n| *n > 0) {
            warn!(
                more,
                "further input files of the job are not shown to tasks"
            );
        }
    }
}

/// The target of a link, if it is in `home`.
fn led_to(link: &Path, home: &Path) -> Option<(Metadata, PathBuf)> {
    let real = fs::canonicalize(link).ok()?;
    let found = fs::symlink_metadata(&real).ok()?;
    real.starts_with(home).then_some((found, real))
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    // Another pilot in the same place may have linked it already.
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => fs::copy(from, to).map(drop),
        Ok(()) => Ok(()),
    }
}

/// Removes the pilot's own files from `inputs`.
fn withdraw(inputs: &Path, own: &HiddenFiles) -> io::Result<()> {
    let mut open = vec![inputs.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let found = fs::symlink_metadata(&path)?;
            if found.is_dir() {
                open.push(path);
            } else if own.contain(&found) || own.contain_path(&path) {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::super::own_files::{OwnPath, Privacy};
    use super::*;

    /// The gathered files of `a`, `data` and `link`, and the files left out. `prepare` names the pilot's own;
    /// those that don't exist are made after the pilot looked at its own.
    fn gathered(prepare: impl FnOnce(&Path) -> Vec<PathBuf>) -> (Vec<String>, GatheredInputs) {
        let top = tempfile::tempdir().expect("a directory");
        let home = top.path().join("scratch");
        fs::create_dir_all(home.join("data/deep")).expect("made");
        fs::write(home.join("a"), "a").expect("written");
        fs::write(home.join("data/b"), "b").expect("written");
        let paths = prepare(&home);
        let own = paths.iter().map(|path| OwnPath {
            path: path.clone(),
            what: "own",
            privacy: Privacy::Secret,
        });
        let own = HiddenFiles::of(&own.collect::<Vec<_>>(), |name| name == "of-all-pilots");
        for path in paths.iter().filter(|path| !path.exists()) {
            fs::write(path, "made later").expect("written");
        }
        let files = ["a", "data", "link"].map(|name| home.join(name));
        let files: Vec<_> = files
            .into_iter()
            .filter(|file| fs::symlink_metadata(file).is_ok())
            .collect();
        let inputs = home.join("pilot/inputs");
        let gathered = gather(&files, &home, &inputs, &own).expect("gathered");
        // Again, as another pilot does.
        gather(&files, &home, &inputs, &own).expect("gathered");
        let mut seen = Vec::new();
        let mut open = vec![inputs.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).expect("listed") {
                let path = entry.expect("listed").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path.strip_prefix(&inputs).expect("it is below");
                    seen.push(name.display().to_string());
                }
            }
        }
        seen.sort();
        (seen, gathered)
    }

    #[test]
    fn the_pilots_own_is_left_out_by_whatever_name() {
        let (seen, gathered) = gathered(|home| {
            fs::write(home.join("token"), "secret").expect("written");
            fs::hard_link(home.join("token"), home.join("data/second name")).expect("linked");
            symlink("../../token", home.join("data/deep/link")).expect("linked");
            symlink("token", home.join("link")).expect("linked");
            fs::create_dir(home.join("data/unsent")).expect("made");
            fs::write(home.join("data/unsent/c"), "c").expect("written");
            vec![home.join("token"), home.join("data/unsent")]
        });
        assert_eq!(seen, ["a", "data/b"]);
        assert_eq!(gathered.left_out.len(), 4);
    }

    #[test]
    fn what_the_pilot_makes_or_replaces_meanwhile_is_left_out_by_its_path() {
        let (seen, gathered) = gathered(|home| {
            fs::write(home.join("data/deep/of-all-pilots"), "a").expect("written");
            symlink("deep/of-all-pilots", home.join("data/link to it")).expect("linked");
            symlink("gone", home.join("data/of-all-pilots")).expect("linked");
            vec![home.join("data/made later")]
        });
        assert_eq!(seen, ["a", "data/b"]);
        assert!(
            gathered
                .left_out
                .iter()
                .all(|(_, why)| *why == THE_PILOTS_OWN),
            "{gathered:?}"
        );
    }

    #[test]
    fn links_are_followed_inside_the_jobs_directory_only_and_never_for_ever() {
        let (seen, gathered) = gathered(|home| {
            symlink("../../a", home.join("data/deep/to a file")).expect("linked");
            symlink("/etc/hostname", home.join("data/out")).expect("linked");
            symlink("/etc", home.join("data/far out")).expect("linked");
            symlink("nowhere", home.join("data/dangling")).expect("linked");
            symlink("..", home.join("data/deep/loop")).expect("linked");
            symlink("data", home.join("link")).expect("linked");
            Vec::new()
        });
        let expected = [
            "a",
            "data/b",
            "data/deep/loop/b",
            "data/deep/loop/deep/to a file",
            "data/deep/to a file",
            "link/b",
            "link/deep/to a file",
        ];
        assert_eq!(seen, expected);
        assert_eq!(gathered.files, seen.len());
    }

    #[test]
    fn what_is_no_file_is_left_out_and_not_waited_for() {
        let (seen, gathered) = gathered(|home| {
            mkfifo(&home.join("data/fifo"), Mode::S_IRWXU).expect("made");
            Vec::new()
        });
        assert_eq!(seen, ["a", "data/b"]);
        assert_eq!(gathered.left_out[0].1, "a FIFO");
    }

    #[test]
    fn what_an_earlier_pilot_gathered_is_withdrawn_when_it_is_this_ones_own() {
        let (seen, _) = gathered(|home| {
            let inputs = home.join("pilot/inputs");
            fs::create_dir_all(&inputs).expect("made");
            fs::write(home.join("token"), "secret").expect("written");
            fs::hard_link(home.join("token"), inputs.join("token")).expect("linked");
            vec![home.join("token")]
        });
        assert_eq!(seen, ["a", "data/b"]);
    }
}
