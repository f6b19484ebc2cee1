//! Image conversion: decides whether an image can be used as it is, and if not, turns it into a sandbox
//! directory. The caller runs the converting command.
//!
//! Apptainer's builder removes its target first, and of two builders of one target both report success. So a
//! builder takes a file lock, builds under a temporary name beside the target, and renames the result.
//! Targets are made in no other way, so an existing one is complete. A temporary name found under the lock
//! was left by a builder that died.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use uuid::Uuid;

use super::command::{Apptainer, Invocation, UserNamespace};
use super::fs_util::remove_tree;
use super::image_format::{self, ImageFile};
use super::probe_script::{self, ENV_DIR, LAST};
use super::reference::{self, Reference};
use super::{Bind, rootfs, runscript};
use crate::config::{ImagePolicy, Verbosity};
use crate::fault::{self, Cause, FaultClass};

/// The interval between attempts at a held lock. It is held for seconds to minutes.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// The interval between log lines while we wait.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// The step needed before an image can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// None: it is this directory. Absolute.
    Ready(PathBuf),
    Convert(Conversion),
}

/// An image and the sandbox directory that it is converted to, which all pilots of this user on this machine
/// share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversion {
    /// The image as the user wrote it: equal failures of different jobs read the same.
    image: String,
    source: String,
    store: PathBuf,
    name: String,
}

#[derive(Debug)]
pub enum LockOutcome {
    Done(PathBuf),
    /// This pilot has the right to convert it.
    Ours(ConversionLock),
}

/// The exclusive right to convert an image. Dropping it removes everything unfinished.
#[derive(Debug)]
pub struct ConversionLock {
    conversion: Conversion,
    making: PathBuf,
    /// Closing the file releases the lock.
    _lock: File,
}

/// The reason why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(
        "image `{image}` does not exist here; check the path, and that its file system is mounted"
    )]
    Missing { image: String },
    /// It exists but can't be read.
    #[error("image `{image}` can't be read: {source}; check its permissions and its file system")]
    Unreadable { image: String, source: io::Error },
    /// A directory without entries.
    #[error("image `{image}` is an empty directory; check that its file system is mounted")]
    Empty { image: String },
    #[error(
        "image `{image}` is no sandbox directory here; name one, or set \
         _EWMS_PILOT_APPTAINER_IMAGE_DIRECTORY_MUST_BE_PRESENT=False to have it converted"
    )]
    NoDirectory { image: String },
    /// It is a file, but no image.
    #[error(
        "image `{image}` is no image: neither SIF nor squashfs nor ext3; \
         check that it is complete, and build a definition before you submit (its `%setup` would run here, \
         outside of any container)"
    )]
    NoImage { image: String },
    /// Its content is not whole.
    #[error("image `{image}` is damaged: {flaw}; copy it again, or build it anew")]
    Damaged { image: String, flaw: String },
    #[error(
        "converted images can't be kept in `{store}`: {reason}; \
         set _EWMS_PILOT_APPTAINER_BUILD_WORKDIR to a directory of your own with enough space"
    )]
    Store { store: PathBuf, reason: String },
    /// Another pilot has been converting the image for longer than we wait.
    #[error(
        "another pilot still converts `{image}` after {seconds} s; look for a hanging `apptainer build`"
    )]
    Busy { image: String, seconds: u64 },
    /// Apptainer gave it a runscript that runs nothing, and the source's can't be read.
    #[error(
        "image `{image}` lost its runscript when it was converted, as Apptainer 1.3.4 and 1.3.5 do; name a \
         sandbox directory that another version made, or ask the site for one"
    )]
    Runscript { image: String },
    #[error("image `{image}` can't be converted: {reason}")]
    Build {
        image: String,
        /// Apptainer's last error lines.
        reason: String,
        /// The cause, if the lines tell it.
        cause: Option<Cause>,
    },
}

impl ImageError {
    #[must_use]
    pub fn class(&self) -> FaultClass {
        match self {
            Self::Missing { .. }
            | Self::Unreadable { .. }
            | Self::Empty { .. }
            | Self::NoDirectory { .. }
            | Self::NoImage { .. }
            | Self::Damaged { .. }
            | Self::Runscript { .. }
            // The directory for converted images is configured with the image.
            | Self::Store { .. } => FaultClass::Image,
            Self::Busy { .. } => FaultClass::Ep,
            // A damaged image and a full disk make the builder fail in the same way.
            Self::Build { cause, .. } => cause.map_or(FaultClass::Image, Cause::class),
        }
    }

    /// Whether another Apptainer on this machine might convert the image.
    #[must_use]
    pub fn depends_on_apptainer(&self) -> bool {
        match self {
            Self::Build { cause, .. } => cause.is_none_or(Cause::depends_on_apptainer),
            Self::Runscript { .. } => true,
            _ => false,
        }
    }
}

impl Resolution {
    /// Resolves `image` as the user wrote it; a relative path is below `cwd`.
    ///
    /// # Errors
    /// When the image visibly can't be used, or the policy forbids its conversion.
    pub fn of(image: &str, cwd: &Path, policy: &ImagePolicy) -> Result<Self, ImageError> {
        let missing = || ImageError::Missing {
            image: image.to_owned(),
        };
        let reference =
            reference::resolve(image, cwd).map_err(|source| ImageError::Unreadable {
                image: image.to_owned(),
                source,
            })?;
        let workdir = match (&reference, policy) {
            (Reference::Directory(path), _) => return ready(image, path),
            (Reference::Missing, _) => return Err(missing()),
            (_, ImagePolicy::DirectoryOnly) => {
                return Err(ImageError::NoDirectory {
                    image: image.to_owned(),
                });
            }
            (_, ImagePolicy::Convert { workdir }) => workdir,
        };
        let (source, identity) = match reference {
            Reference::Archive { source, identity } => (source, identity),
            Reference::File {
                path,
                source,
                identity,
            } => {
                check_format(image, &path)?;
                (source, identity)
            }
            Reference::Remote(source) => (source.clone(), source),
            Reference::Directory(_) | Reference::Missing => return Err(missing()),
        };
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, identity.as_bytes())
            .simple()
            .to_string();
        Ok(Self::Convert(Conversion {
            image: image.to_owned(),
            name: format!("{}-{}", reference::label(image), &hash[..16]),
            // One for each user: other users' images are not to be trusted.
            store: workdir.join(format!("ewms-pilot-images-{}", geteuid())),
            source,
        }))
    }
}

/// Refuses a file that is no image, which Apptainer would run as a definition, and one that is cut off.
fn check_format(image: &str, path: &Path) -> Result<(), ImageError> {
    let image = image.to_owned();
    // Opening a FIFO would block.
    let found = path.is_file().then(|| image_format::examine(path));
    match found.transpose() {
        Ok(Some(ImageFile::Complete)) => Ok(()),
        Ok(Some(ImageFile::CutOff { has, needs })) => Err(ImageError::Damaged {
            image,
            flaw: format!("it has {has} bytes, and by its header it needs {needs}"),
        }),
        Ok(Some(ImageFile::NoImage) | None) => Err(ImageError::NoImage { image }),
        Err(source) => Err(ImageError::Unreadable { image, source }),
    }
}

fn ready(image: &str, path: &Path) -> Result<Resolution, ImageError> {
    match holds_something(path) {
        Ok(true) => Ok(Resolution::Ready(path.to_owned())),
        Ok(false) => Err(ImageError::Empty {
            image: image.to_owned(),
        }),
        Err(source) => Err(ImageError::Unreadable {
            image: image.to_owned(),
            source,
        }),
    }
}

fn holds_something(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().transpose()?.is_some())
}

impl Conversion {
    /// The image as Apptainer takes it.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.store.join(format!("{}.sandbox", self.name))
    }

    /// Waits up to `patience` until the image is converted or this pilot has the lock.
    ///
    /// # Errors
    /// When the store can't be used, or another pilot takes too long.
    pub async fn turn(self, patience: Duration) -> Result<LockOutcome, ImageError> {
        let unusable = |reason: String| ImageError::Store {
            store: self.store.clone(),
            reason,
        };
        open_store(&self.store).map_err(unusable)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.store.join(format!("{}.lock", self.name)))
            .map_err(|error| unusable(error.to_string()))?;

        let began = Instant::now();
        let mut said = None;
        loop {
            if holds_something(&self.target()).unwrap_or(false) {
                return Ok(LockOutcome::Done(self.target()));
            }
            // Polling costs less than a thread blocked in a lock, which could not be cancelled.
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(unusable(error.to_string())),
            }
            let waited = began.elapsed();
            if waited >= patience {
                return Err(ImageError::Busy {
                    image: self.image,
                    seconds: waited.as_secs(),
                });
            }
            if said.is_none_or(|said: Instant| said.elapsed() >= SAY_AGAIN) {
                tracing::info!(
                    image = self.source,
                    waited_secs = waited.as_secs(),
                    "another pilot converts the image"
                );
                said = Some(Instant::now());
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        // Another pilot may have finished it between our check and our lock.
        if holds_something(&self.target()).unwrap_or(false) {
            return Ok(LockOutcome::Done(self.target()));
        }
        let making = self
            .store
            .join(format!("{}.making-{}", self.name, Uuid::new_v4().simple()));
        Ok(LockOutcome::Ours(ConversionLock {
            conversion: self,
            making,
            _lock: lock,
        }))
    }
}

/// Makes the store, or checks that only we can write to it: everyone can write to `/var/tmp`, and an image
/// that another user planted there would run as us.
fn open_store(store: &Path) -> Result<(), String> {
    if let Err(error) = DirBuilder::new().mode(0o700).create(store)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error.to_string());
    }
    let found = fs::symlink_metadata(store).map_err(|error| error.to_string())?;
    if !found.is_dir() {
        return Err("it is no directory".to_owned());
    }
    if found.uid() != geteuid().as_raw() {
        return Err("it belongs to another user".to_owned());
    }
    if found.mode() & 0o022 != 0 {
        return Err("other users can write to it".to_owned());
    }
    Ok(())
}

impl ConversionLock {
    /// Removes the leftovers of builders that died and returns the command that converts the image. The
    /// command may run for minutes.
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn build(
        &self,
        apptainer: &Apptainer,
        verbosity: Verbosity,
        user_namespace: UserNamespace,
    ) -> Result<Invocation, ImageError> {
        let unusable = |error: io::Error| self.unusable(&error);
        let half_made = format!("{}.making-", self.conversion.name);
        for entry in fs::read_dir(&self.conversion.store)
            .map_err(unusable)?
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with(&half_made) {
                tracing::info!(path = %entry.path().display(), "removing a half-made image");
                remove_tree(&entry.path()).map_err(unusable)?;
            }
        }
        let scratch = self.scratch();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&scratch)
            .map_err(unusable)?;
        Ok(apptainer.build(
            self.conversion.source.as_ref(),
            &self.made(),
            &scratch,
            verbosity,
            user_namespace,
        ))
    }

    /// The command that reads the source's runscript, if the conversion lost it. Apptainer 1.3.4 and 1.3.5
    /// give every image that they convert their default runscript, which runs no task and exits with 0. The
    /// command doesn't start the source's programs; pass its stdout to [`ConversionLock::restore`].
    ///
    /// # Errors
    /// When the store can't be written.
    pub fn reread(
        &self,
        apptainer: &Apptainer,
        user_namespace: UserNamespace,
    ) -> Result<Option<Invocation>, ImageError> {
        if !runscript::is_default(&self.made()) {
            return Ok(None);
        }
        let reader = self.scratch().join(LAST);
        fs::write(
            &reader,
            probe_script::reader(&self.word(), runscript::RUNSCRIPT),
        )
        .map_err(|error| self.unusable(&error))?;
        let reader = Bind::script(reader, format!("{ENV_DIR}/{LAST}"));
        Ok(Some(apptainer.unpacked(
            self.conversion.source.as_ref(),
            &reader,
            &self.scratch(),
            user_namespace,
        )))
    }

    /// Gives the converted image the runscript of its source, which may be the default one.
    ///
    /// # Errors
    /// When `stdout` contains no runscript, or it can't be written.
    pub fn restore(&self, stdout: &[u8]) -> Result<(), ImageError> {
        let lost = || ImageError::Runscript {
            image: self.conversion.image.clone(),
        };
        let text = probe_script::read_by(&self.word(), stdout).ok_or_else(lost)?;
        let path = rootfs::resolve(&self.made(), Path::new(runscript::RUNSCRIPT));
        path.and_then(|path| fs::write(path, text))
            .map_err(|error| self.unusable(&error))
    }

    /// A word with which no line of an image begins.
    fn word(&self) -> String {
        let name = self.making.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn scratch(&self) -> PathBuf {
        self.making.join("scratch")
    }

    /// After the command succeeded: renames its result to the image's final name, and returns that.
    ///
    /// # Errors
    /// When there is no result, or it can't be renamed.
    pub fn commit(self) -> Result<PathBuf, ImageError> {
        let target = self.conversion.target();
        if !holds_something(&self.made()).unwrap_or(false) {
            return Err(self.failed(b"apptainer made no directory, though it reported success"));
        }
        // rename(2) replaces a directory only if that is empty: a complete image is never touched.
        match fs::rename(self.made(), &target) {
            Ok(()) => Ok(target),
            Err(_) if holds_something(&target).unwrap_or(false) => Ok(target),
            Err(error) => Err(self.unusable(&error)),
        }
    }

    /// After the command failed: returns the error, with a quote from Apptainer's `stderr`.
    #[must_use]
    pub fn failed(&self, stderr: &[u8]) -> ImageError {
        if let Some(flaw) = self.damage(stderr) {
            return ImageError::Damaged {
                image: self.conversion.image.clone(),
                flaw: flaw.to_owned(),
            };
        }
        let said = fault::apptainer_error(stderr).unwrap_or_else(|| fault::reason(stderr));
        let cause = fault::find_cause(stderr).map(|(cause, _)| cause);
        // Paths of this job are removed, so that equal failures read the same.
        let Conversion { image, source, .. } = &self.conversion;
        let making = self.making.to_string_lossy();
        let reason = fault::scrub(&said, &[(&making, "<scratch>"), (source, image)]);
        ImageError::Build {
            image: self.conversion.image.clone(),
            reason,
            cause,
        }
    }

    /// The flaw of a local image that unpacking came upon, in the words of `unsquashfs` and of Go's `tar`. A
    /// download that ends early says the same, and is no damage.
    fn damage(&self, stderr: &[u8]) -> Option<&'static str> {
        const SIGNS: [(&str, &str); 3] = [
            (
                "File system corruption detected",
                "its file system is corrupt",
            ),
            ("unexpected EOF", "it ends too early"),
            ("invalid tar header", "its archive is corrupt"),
        ];
        let text = fault::readable(stderr);
        let is_local = !self.conversion.source.contains("://");
        let sign = SIGNS.iter().find(|(sign, _)| text.contains(sign));
        sign.filter(|_| is_local).map(|(_, flaw)| *flaw)
    }

    fn made(&self) -> PathBuf {
        self.making.join("sandbox")
    }

    fn unusable(&self, error: &io::Error) -> ImageError {
        ImageError::Store {
            store: self.conversion.store.clone(),
            reason: error.to_string(),
        }
    }
}

impl Drop for ConversionLock {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.making) {
            tracing::warn!(path = %self.making.display(), %error, "a half-made image can't be removed");
        }
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
