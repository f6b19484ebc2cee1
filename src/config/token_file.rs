//! A token that lives in a file, which somebody else renews. Reads that file. Apart, because it is the
//! one setting that changes while the pilot runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Secret;
use crate::regular_file;

/// The file, and the last token that was read from it.
#[derive(Debug, Clone)]
pub struct TokenFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    last: Mutex<Secret>,
}

impl TokenFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// Why there is no token in it. No text holds a part of it.
    pub fn open(path: PathBuf) -> Result<Self, String> {
        let file = Self(Arc::new(Inner {
            path,
            last: Mutex::new(Secret::new(String::new())),
        }));
        file.read()?;
        Ok(file)
    }

    /// Reads it again.
    ///
    /// # Errors
    /// As [`TokenFile::open`]; the last token stays.
    pub fn read(&self) -> Result<Secret, String> {
        let path = self.0.path.display();
        let unreadable = |error: &dyn std::fmt::Display| format!("`{path}` can't be read: {error}");
        let bytes = regular_file::read(&self.0.path).map_err(|error| unreadable(&error))?;
        // The bytes are in the error itself, which is told nobody.
        let text = String::from_utf8(bytes).map_err(|_secret| unreadable(&"it is not UTF-8"))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(format!("`{path}` is empty"));
        }
        let token = Secret::new(token.to_owned());
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        Ok(token)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The last token that could be read.
    #[must_use]
    pub fn last(&self) -> Secret {
        let last = self.0.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl PartialEq for TokenFile {
    fn eq(&self, other: &Self) -> bool {
        self.0.path == other.0.path
    }
}

impl Eq for TokenFile {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_became_unreadable_keeps_its_last_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        assert!(TokenFile::open(path.clone()).is_err());
        std::fs::write(&path, " \n").unwrap();
        assert!(
            TokenFile::open(path.clone())
                .unwrap_err()
                .ends_with("is empty")
        );
        std::fs::write(&path, "first\n").unwrap();
        let file = TokenFile::open(path.clone()).unwrap();
        std::fs::write(&path, "second\n").unwrap();
        assert_eq!(file.last().reveal(), "first");
        assert_eq!(file.read().unwrap().reveal(), "second");
        std::fs::remove_file(&path).unwrap();
        assert!(file.read().is_err());
        assert_eq!(file.last().reveal(), "second");
        assert!(!format!("{file:?}").contains("second"));
    }
}
