//! What a request shows besides its token, and what a token is bound to: takes a token's `cnf` and the proof or certificate that came
//! with it; refuses a bound token without them, and a proof without a token that asks for it. Judged on every request: a token may be
//! remembered, a proof never.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::dpop::{ProofError, Proofs};
use super::error::TokenError;
use crate::principal::Principal;

/// How a token came (RFC 6750 2.1, RFC 9449 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Bearer,
    Dpop,
}

impl Scheme {
    /// The scheme of this name, in any case of letters (RFC 9110, 11.1).
    pub fn named(name: &str) -> Option<Self> {
        [Self::Bearer, Self::Dpop].into_iter().find(|scheme| scheme.as_str().eq_ignore_ascii_case(name))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "Bearer",
            Self::Dpop => "DPoP",
        }
    }
}

/// One token, and what its bearer shows with it.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    pub scheme: Scheme,
    pub token: &'a str,
    /// The DPoP field, and the request that it must be made for.
    pub proof: Option<Proof<'a>>,
    /// SHA-256 of the client certificate that the caller's TLS handshake proved (RFC 8705 3).
    pub certificate: Option<[u8; 32]>,
}

/// A DPoP proof (RFC 9449 4) as it came, and what it has to be for.
#[derive(Debug, Clone, Copy)]
pub struct Proof<'a> {
    pub jwt: &'a str,
    pub method: &'a str,
    /// The public address of the request, without query and fragment.
    pub uri: &'a str,
}

impl<'a> Presented<'a> {
    /// A token and nothing else.
    pub fn bearer(token: &'a str) -> Self {
        Self { scheme: Scheme::Bearer, token, proof: None, certificate: None }
    }
}

/// The key that a token is bound to (`cnf`, RFC 7800).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Binding {
    /// SHA-256 thumbprint of a proof's public key (`jkt`, RFC 9449 6.1).
    Key([u8; 32]),
    /// SHA-256 of a client certificate (`x5t#S256`, RFC 8705 3.1).
    Certificate([u8; 32]),
}

impl Binding {
    /// What the claims bind the token to. Whoever stole a token that is bound in a way that nobody here can check must not be able to
    /// use it as if it were a plain one (RFC 7800 3.1, RFC 9449 7.2): everything but one of the two known members is refused.
    pub(super) fn of(claims: &Map<String, Value>) -> Result<Option<Self>, TokenError> {
        let Some(cnf) = claims.get("cnf") else { return Ok(None) };
        let members = cnf.as_object().ok_or(TokenError::BadClaim("cnf"))?;
        let mut members = members.iter();
        let (Some((name, value)), None) = (members.next(), members.next()) else {
            return Err(TokenError::Bound);
        };
        let hash = || {
            let bytes = value.as_str().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
            bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(TokenError::Bound)
        };
        match name.as_str() {
            "jkt" => Ok(Some(Self::Key(hash()?))),
            "x5t#S256" => Ok(Some(Self::Certificate(hash()?))),
            _ => Err(TokenError::Bound),
        }
    }
}

/// Whether what was presented fits what the token is bound to. `hash` is the token's; `required` is its issuer's
/// `sender_constrained`. Comes last: a proof that was found good is spent.
pub(super) fn judge(
    caller: &Principal,
    presented: &Presented<'_>,
    hash: &[u8; 32],
    required: bool,
    proofs: Option<&Proofs>,
    now: SystemTime,
) -> Result<(), TokenError> {
    match (caller.binding(), presented.scheme) {
        (None, Scheme::Bearer) if required => Err(TokenError::NotBound),
        (None, Scheme::Bearer) => Ok(()),
        (None | Some(Binding::Certificate(_)), Scheme::Dpop) => Err(TokenError::NotDpop),
        (Some(Binding::Certificate(bound)), Scheme::Bearer) => match &presented.certificate {
            Some(shown) if shown == bound => Ok(()),
            Some(_) => Err(TokenError::WrongCertificate),
            None => Err(TokenError::NoCertificate),
        },
        (Some(Binding::Key(_)), Scheme::Bearer) => Err(TokenError::BoundAsBearer),
        (Some(Binding::Key(bound)), Scheme::Dpop) => {
            let proofs = proofs.ok_or(TokenError::Bound)?;
            let proof = presented.proof.as_ref().ok_or(TokenError::Proof(ProofError::Missing))?;
            proofs.judge(proof, bound, hash, now)
        }
    }
}

#[cfg(test)]
mod tests;
