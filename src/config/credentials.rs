//! Tokens and certificates, by which a broker and the pilot authenticate each other. A token may live in a
//! file that another program renews while the pilot runs. No text of this file's errors holds a part of a
//! token.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::sync::OwnedMutexGuard;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use crate::regular_file;

/// A token or password. Printing it in any form gives `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value that must reach no log.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, for the broker's handshake and nothing else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The file, and the last token that was read from it.
#[derive(Debug, Clone)]
pub struct TokenFile(Arc<TokenFileState>);

#[derive(Debug)]
struct TokenFileState {
    path: PathBuf,
    last: Mutex<Secret>,
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// Returns the reason why there is no token in it. No text holds a part of a token.
    pub fn open(path: PathBuf) -> Result<Self, String> {
        let file = Self(Arc::new(TokenFileState {
            path,
            last: Mutex::new(Secret::new(String::new())),
            reading: Arc::default(),
        }));
        file.read()?;
        Ok(file)
    }

    /// Resolves when no other read of the file is under way. Hold the guard while [`read`](Self::read) runs
    /// on another thread: then only one thread hangs on a file system that hangs.
    pub fn turn_to_read(&self) -> impl Future<Output = OwnedMutexGuard<()>> + Send + use<> {
        Arc::clone(&self.0.reading).lock_owned()
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// Returns the errors of [`TokenFile::open`]; the last token stays.
    pub fn read(&self) -> Result<Secret, String> {
        let path = self.0.path.display();
        let unreadable = |error: &dyn std::fmt::Display| format!("`{path}` can't be read: {error}");
        let bytes = regular_file::read(&self.0.path).map_err(|error| unreadable(&error))?;
        // The error itself holds the bytes, so it is dropped.
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

/// The time at which a token expires: the claim `exp` of a JWT (RFC 7519, section 4.1.4), which is not
/// verified here. `None` if it is no JWT, or doesn't expire.
#[must_use]
pub fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: Option<f64>,
    }
    let mut parts = token.trim().split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = BASE64_URL_SAFE_NO_PAD
        .decode(claims.trim_end_matches('='))
        .ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(exp?).ok()?)
}

/// Trusted certificates for brokers, besides those of the machine; usually none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CaCertificates(Arc<[CertificateDer<'static>]>);

impl CaCertificates {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// Returns the reason why it can't be used. TLS libraries take a file without a certificate for an empty
    /// list of authorities, and then blame the broker, so such a file is refused here.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = regular_file::read(path).map_err(|error| format!("can't be read: {error}"))?;
        let mut certificates = Vec::new();
        for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(&text)) {
            let broken = |error: &dyn fmt::Display| {
                format!("its certificate number {number} can't be used: {error}")
            };
            let certificate = certificate.map_err(|error| broken(&error))?;
            RootCertStore::empty()
                .add(certificate.clone())
                .map_err(|error| broken(&error))?;
            certificates.push(certificate);
        }
        if certificates.is_empty() {
            return Err(
                "holds no certificate: expected PEM, `-----BEGIN CERTIFICATE-----` …".to_owned(),
            );
        }
        Ok(Self(certificates.into()))
    }

    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

impl fmt::Debug for CaCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificate(s)", self.0.len())
    }
}

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

    fn token(claims: &str) -> String {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        format!(
            "{}.{}.{}",
            part(r#"{"alg":"RS256"}"#),
            part(claims),
            part("signature")
        )
    }

    #[test]
    fn the_end_of_a_jwt_is_its_exp_claim() {
        let end = UNIX_EPOCH + Duration::from_hours(500_000);
        assert_eq!(expiry(&token(r#"{"sub":"x","exp":1800000000}"#)), Some(end));
        assert_eq!(
            expiry(&format!("{}\n", token(r#"{"exp":1800000000.0}"#))),
            Some(end)
        );
    }

    #[test]
    fn what_is_no_jwt_or_has_no_end_has_none() {
        for text in ["", "guest", "a.b.c", "..", "a.b"] {
            assert_eq!(expiry(text), None, "{text}");
        }
        assert_eq!(expiry(&token("{}")), None);
        assert_eq!(expiry(&token(r#"{"exp":"soon"}"#)), None);
        assert_eq!(expiry(&token(r#"{"exp":-1}"#)), None);
        assert_eq!(expiry(&token(r#"{"exp":1e300}"#)), None);
    }

    #[test]
    fn a_file_without_a_usable_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        assert!(
            CaCertificates::read(&path)
                .unwrap_err()
                .starts_with("can't be read: ")
        );
        for (text, told) in [
            ("", "holds no certificate"),
            (
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
                "holds no certificate",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "its certificate number 1",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = CaCertificates::read(&path).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
