//! When a token ends: reads the claim `exp` of a JWT (RFC 7519, section 4.1.4) without verifying
//! anything, which is the broker's business. Apart, because no other part of a token concerns us, and
//! nothing of it may be shown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

/// The end of a token's life; `None` when it is no JWT, or one without an end.
#[must_use]
pub fn expiry(token: &str) -> Option<SystemTime> {
    let mut parts = token.trim().split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = BASE64_URL_SAFE_NO_PAD
        .decode(claims.trim_end_matches('='))
        .ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(exp?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
