//! The signed assertion: takes a permit and a key; gives the JWT that tells a service, and nobody else, who calls (docs/assertion.md).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use postern_gate::principal::Principal;
use serde::Serialize;

use super::keys::Key;
use crate::request::authorize::Permitted;

/// Seconds that an assertion lives, at most (http.md).
const LIFE: u64 = 300;
/// Seconds for which one goes out again: what arrives has a minute left, which is more than clocks and queues take.
pub(super) const USED_FOR: u64 = 240;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    /// The token's `iss`: subjects are names there.
    issuer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    scopes: &'a [String],
    roles: Vec<&'a str>,
    jti: &'a str,
    iat: u64,
    exp: u64,
}

/// `now` is in seconds since the epoch.
pub(super) fn signed(key: &Key, permitted: &Permitted, relay: &str, now: u64) -> Option<String> {
    let principal = permitted.principal();
    let claims = Claims {
        iss: relay,
        aud: &format!("{relay}/services/{}", permitted.service().name),
        sub: principal.subject(),
        issuer: principal.iss(),
        client: principal.client(),
        scopes: principal.scopes(),
        roles: permitted.permit().roles().iter().collect(),
        jti: &BASE64.encode(rand::random::<[u8; 16]>()),
        iat: now,
        exp: principal.expires().min(now + LIFE),
    };
    let claims = BASE64.encode(serde_json::to_vec(&claims).ok()?);
    let mut token = format!("{}.{claims}", key.header);
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    token.push_str(&signature);
    Some(token)
}

/// Until when one that was signed at `now` goes out again. A token within its leeway has an assertion that is past already.
pub(super) fn used_until(principal: &Principal, now: u64) -> u64 {
    principal.expires().min(now + USED_FOR).max(now + 1)
}
