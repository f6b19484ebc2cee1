//! Certificates of a test's own, made by openssl: an authority, and a server that it vouches for.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::rabbitmq::finish;

/// A directory with them.
#[derive(Debug)]
pub(crate) struct Certificates(tempfile::TempDir);

impl Certificates {
    /// For a server that is called by `names`, in openssl's form: `DNS:localhost,IP:::1`.
    #[track_caller]
    pub(crate) fn of(names: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let extensions = format!("subjectAltName={names}\n");
        std::fs::write(directory.path().join("names"), extensions).expect("it is writable");
        let certificates = Self(directory);
        // Two authorities of one name would be taken for each other.
        let name = uuid::Uuid::new_v4();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for call in [
            format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN={name}"),
            format!("req {key} -keyout server.key -out server.csr -subj /CN=server"),
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile names -out server.pem"
                .to_owned(),
        ] {
            let mut command = Command::new("openssl");
            let arguments = call.split_ascii_whitespace();
            command.args(arguments).current_dir(certificates.0.path());
            finish(command, "");
        }
        certificates
    }

    /// The authority's certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A key, which is PEM but no certificate.
    pub(crate) fn key(&self) -> PathBuf {
        self.path("server.key")
    }

    /// What RabbitMQ is to be told to listen with them.
    pub(crate) fn settings(&self, port: u16) -> String {
        let path = |name| self.path(name).display().to_string();
        let (authority, server, key) = (path("ca.pem"), path("server.pem"), path("server.key"));
        format!(
            "listeners.ssl.four = 127.0.0.1:{port}\n\
             listeners.ssl.six = ::1:{port}\n\
             ssl_options.cacertfile = {authority}\n\
             ssl_options.certfile = {server}\n\
             ssl_options.keyfile = {key}\n"
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.0.path()).join(name)
    }
}
