//! What a site's `apptainer.conf` says, as far as it decides what may be tried before a container has shown it.

use std::fs;
use std::io;
use std::path::Path;

/// Below the prefix of an installation that can be moved, as in CVMFS, and below the root.
const SETTINGS: &str = "etc/apptainer/apptainer.conf";
const USER_BINDS: &str = "user bind control";

/// Whether the settings of this Apptainer are found and let users bind files. Blocks.
#[must_use]
pub fn surely_allows_binds(program: &Path) -> bool {
    let prefix = program.parent().and_then(Path::parent);
    let places = prefix.into_iter().chain([Path::new("/")]);
    let found: Vec<_> = places
        .map(|place| fs::read_to_string(place.join(SETTINGS)))
        .filter(|read| !is_missing(read))
        .collect();
    let allows = |read: &io::Result<String>| read.as_ref().is_ok_and(|text| allows_binds(text));
    !found.is_empty() && found.iter().all(allows)
}

fn is_missing(read: &io::Result<String>) -> bool {
    read.as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Unset, they are allowed.
fn allows_binds(text: &str) -> bool {
    let settings = text.lines().filter_map(|line| line.split_once('='));
    let mut said = settings.filter(|(key, _)| key.trim() == USER_BINDS);
    said.all(|(_, value)| value.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_that_forbids_binds_anywhere_or_whose_settings_are_not_found_is_not_relied_on() {
        assert!(allows_binds(
            "# user bind control = no\nuser bind control = yes\n"
        ));
        assert!(allows_binds("mount tmp = yes\n"));
        assert!(!allows_binds("user bind control = no\n"));
        let top = tempfile::tempdir().expect("a directory");
        let program = top.path().join("bin/apptainer");
        let settings = top.path().join(SETTINGS);
        fs::create_dir_all(settings.parent().expect("below")).expect("made");
        fs::write(&settings, "user bind control = no\n").expect("written");
        assert!(!surely_allows_binds(&program));
        fs::write(&settings, [0xff]).expect("written");
        assert!(!surely_allows_binds(&program));
    }
}
