//! Takes an access token, and the key it is bound to if it is; puts on a request what shows them: `Bearer`, or `DPoP` with a fresh
//! proof (RFC 9449, 7.1). Remembers the nonces that servers ask for, and says when a request is to be made once more with one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use postern_base::secret::Secret;
use postern_base::sync::lock;

use super::dpop::{KeyError, ProofKey, Purpose};
use super::{Access, Token, now};

pub(crate) const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
/// The error code by which a server asks for its nonce (RFC 9449, 8).
pub(crate) const USE_NONCE: &str = "use_dpop_nonce";
/// Nonces are some dozens of bytes; a server must not make every request larger by much.
const LONGEST_NONCE: usize = 512;

/// The last nonce that a server gave; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nonce(Arc<Mutex<Option<String>>>);

impl Nonce {
    pub(crate) fn last(&self) -> Option<String> {
        lock(&self.0).clone()
    }

    /// Whether this answer brings a nonce, which is then the last one.
    pub(crate) fn heard(&self, headers: &HeaderMap) -> bool {
        let Some(nonce) = headers.get(DPOP_NONCE).and_then(|value| value.to_str().ok()) else { return false };
        if nonce.is_empty() || nonce.len() > LONGEST_NONCE {
            return false;
        }
        let mut last = lock(&self.0);
        if last.as_deref() != Some(nonce) {
            *last = Some(nonce.to_owned());
        }
        true
    }
}

/// Why a token cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error("the token holds bytes that no header may")]
    Token,
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A token, ready to be shown to the relay.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    access: Access,
    /// What the token is bound to.
    key: Option<Arc<ProofKey>>,
    nonce: Nonce,
}

impl Pass {
    /// `key` is the session's: a token that is not bound is shown without it.
    pub(crate) fn new(access: Access, key: Option<&Arc<ProofKey>>, nonce: &Nonce) -> Self {
        let key = key.filter(|_| access.bound).cloned();
        Self { access, key, nonce: nonce.clone() }
    }

    /// A token whose end nobody here knows.
    pub(crate) fn given(token: &Secret) -> Self {
        let access = Access { token: Token(token.clone()), issued: 0, expires: u64::MAX, bound: false };
        Self { access, key: None, nonce: Nonce::default() }
    }

    pub(crate) fn token(&self) -> &Secret {
        &self.access.token.0
    }

    /// Seconds since the epoch.
    pub(crate) fn issued(&self) -> u64 {
        self.access.issued
    }

    /// Seconds since the epoch; the largest number when it is not known.
    pub(crate) fn expires(&self) -> u64 {
        self.access.expires
    }

    /// How long it is still good.
    pub(crate) fn left(&self) -> Duration {
        Duration::from_secs(self.expires().saturating_sub(now()))
    }

    /// Whether the token is worth nothing without a key that stays here.
    pub(crate) fn is_bound(&self) -> bool {
        self.key.is_some()
    }

    /// The word before the token in `Authorization`.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.is_bound() { "DPoP" } else { "Bearer" }
    }

    pub(crate) fn is_same_token(&self, other: &Self) -> bool {
        self.token().expose() == other.token().expose()
    }

    /// Puts the token on a request, and the proof for it: `uri` is the request's public address, whose query is left out. A proof is good
    /// once.
    pub(crate) fn show(&self, headers: &mut HeaderMap, method: &str, uri: &str) -> Result<(), PassError> {
        let authorization = format!("{} {}", self.scheme(), self.token().expose());
        let mut authorization = HeaderValue::try_from(authorization).map_err(|_| PassError::Token)?;
        authorization.set_sensitive(true);
        headers.insert(AUTHORIZATION, authorization);
        if let Some(key) = &self.key {
            let nonce = self.nonce.last();
            let uri = uri.split(['?', '#']).next().unwrap_or_default();
            let token = Some(self.token().expose());
            headers.insert(DPOP, key.proof(&Purpose { method, uri, token, nonce: nonce.as_deref() })?);
        }
        Ok(())
    }

    /// Hears what an answer says of nonces; whether the request is to be made again with the one it brings.
    pub(crate) fn wants_nonce(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if !self.is_bound() || !self.nonce.heard(headers) || status != StatusCode::UNAUTHORIZED {
            return false;
        }
        let asks = |challenge: &HeaderValue| challenge.to_str().is_ok_and(|text| text.contains(USE_NONCE));
        headers.get_all(WWW_AUTHENTICATE).iter().any(asks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::opened;

    fn pass(bound: bool) -> Pass {
        let access = Access { token: Token::new("t0"), issued: 0, expires: 1, bound };
        Pass::new(access, Some(&Arc::new(ProofKey::generate().unwrap())), &Nonce::default())
    }

    #[test]
    fn a_bound_token_is_shown_with_a_proof_and_another_without() {
        let mut headers = HeaderMap::new();
        pass(false).show(&mut headers, "GET", "https://relay.example.com/x").unwrap();
        assert_eq!((headers[AUTHORIZATION].as_bytes(), headers.get(DPOP)), (&b"Bearer t0"[..], None));
        pass(true).show(&mut headers, "GET", "https://relay.example.com/x?a=b#c").unwrap();
        assert_eq!(headers[AUTHORIZATION], "DPoP t0");
        let (_, claims) = opened(headers[DPOP].to_str().unwrap());
        assert_eq!(claims["htu"], "https://relay.example.com/x");
        assert!(!format!("{:?}", headers[AUTHORIZATION]).contains("t0"));
        let bad = Pass::given(&Secret::new("a\nb"));
        assert!(matches!(bad.show(&mut headers, "GET", "u"), Err(PassError::Token)));
    }

    #[test]
    fn a_nonce_is_used_from_the_answer_on_that_brought_it() {
        let pass = pass(true);
        let mut answer = HeaderMap::new();
        let (refused, good) = (StatusCode::UNAUTHORIZED, StatusCode::OK);
        answer.insert(WWW_AUTHENTICATE, HeaderValue::from_static("DPoP error=\"use_dpop_nonce\""));
        assert!(!pass.wants_nonce(refused, &answer), "without one there is nothing to try again with");
        answer.insert(DPOP_NONCE, HeaderValue::from_static("n1"));
        assert!(pass.wants_nonce(refused, &answer) && !pass.wants_nonce(good, &answer));
        answer.insert(WWW_AUTHENTICATE, HeaderValue::from_static("DPoP error=\"invalid_token\""));
        answer.insert(DPOP_NONCE, HeaderValue::from_static("n2"));
        assert!(!pass.wants_nonce(refused, &answer));
        let mut headers = HeaderMap::new();
        pass.clone().show(&mut headers, "GET", "u").unwrap();
        assert_eq!(opened(headers[DPOP].to_str().unwrap()).1["nonce"], "n2");
        answer.insert(DPOP_NONCE, HeaderValue::from_str(&"n".repeat(LONGEST_NONCE + 1)).unwrap());
        assert!(!pass.nonce.heard(&answer));
    }
}
