//! CA certificates from a file, for brokers whose certificate no authority of the machine has signed.
//! Reads that file. Apart, because TLS libraries take a file without a certificate for an empty list
//! of authorities, and then blame the broker.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::problem::ConfigProblem;
use super::reader::VariableReader;
use super::variables::BROKER_CA_FILE;
use crate::regular_file;

/// Certificates that can be trusted, usually none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CaCertificates(Arc<[CertificateDer<'static>]>);

impl CaCertificates {
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

/// What the file holds; none when there is no file.
pub(super) fn authorities(reader: &mut VariableReader<'_>, cwd: &Path) -> CaCertificates {
    let Some(path) = reader.file(&BROKER_CA_FILE, cwd) else {
        return CaCertificates::default();
    };
    parse(&path).unwrap_or_else(|advice| {
        let path = path.display().to_string();
        let problem = ConfigProblem::value(BROKER_CA_FILE.name, &path, advice);
        reader.problems.push(problem);
        CaCertificates::default()
    })
}

fn parse(path: &Path) -> Result<CaCertificates, String> {
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
    Ok(CaCertificates(certificates.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_usable_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        assert!(parse(&path).unwrap_err().starts_with("can't be read: "));
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
            let error = parse(&path).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
