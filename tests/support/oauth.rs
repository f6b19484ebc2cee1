//! `OAuth2` tokens of a test's own, signed by openssl, and a broker that believes them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::broker::Broker;
use super::rabbitmq::finish;

/// All that can be done with the queues of a broker.
pub(crate) const EVERYTHING: &str = "rabbitmq.configure:*/* rabbitmq.write:*/* rabbitmq.read:*/*";

const PLUGIN: &str = "rabbitmq_auth_backend_oauth2";
/// What the broker is called in tokens.
const RESOURCE: &str = "rabbitmq";
const KEY_ID: &str = "key-of-the-test";

/// Who issues tokens: a pair of keys.
#[derive(Debug)]
pub(crate) struct Issuer(tempfile::TempDir);

impl Issuer {
    /// One with keys that nobody else has.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let issuer = Self(directory);
        issuer.openssl("genrsa -out private.pem 2048", "");
        issuer.openssl("rsa -in private.pem -pubout -out public.pem", "");
        issuer
    }

    /// A broker that lets in whoever shows a token of this issuer, and its own users as always.
    #[track_caller]
    pub(crate) fn start_broker(&self) -> Broker {
        let key = self.path("public.pem");
        let settings = format!(
            "auth_backends.1 = rabbit_auth_backend_oauth2\n\
             auth_backends.2 = internal\n\
             auth_oauth2.resource_server_id = {RESOURCE}\n\
             auth_oauth2.signing_keys.{KEY_ID} = {}\n",
            key.display()
        );
        Broker::start_with_plugins(&settings, &[PLUGIN])
    }

    /// A token that permits what `scope` says until `end`, whole seconds of which count.
    #[track_caller]
    pub(crate) fn token(&self, scope: &str, end: SystemTime) -> String {
        let end = end.duration_since(UNIX_EPOCH).expect("it is after 1970");
        let header = serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": KEY_ID});
        let claims = serde_json::json!({
            "sub": "physicist",
            "aud": [RESOURCE],
            "scope": scope,
            "exp": end.as_secs(),
            "jti": uuid::Uuid::new_v4().to_string(),
        });
        let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        // To a file, since what `finish` gives is text.
        self.openssl("dgst -sha256 -sign private.pem -out signature", &signed);
        let signature = fs::read(self.path("signature")).expect("openssl has written it");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    #[track_caller]
    fn openssl(&self, call: &str, input: &str) {
        let mut command = Command::new("openssl");
        let arguments = call.split_ascii_whitespace();
        command.args(arguments).current_dir(self.0.path());
        finish(command, input);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
