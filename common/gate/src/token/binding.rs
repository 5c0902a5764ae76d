//! What a request shows besides its token, and what a token is bound to: takes a token's `cnf` and the proof that came with it; refuses
//! a bound token without its proof, and a proof without a token that asks for it.

use super::error::TokenError;
use crate::principal::Principal;

/// How a token came (RFC 6750 2.1, RFC 9449 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Bearer,
    Dpop,
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

/// Whether what was presented fits what the token is bound to. Judged on every request: the token may be remembered, the proof never.
pub(super) fn judge(principal: &Principal, presented: &Presented<'_>) -> Result<(), TokenError> {
    if principal.binding().is_some() || presented.scheme != Scheme::Bearer {
        return Err(TokenError::Bound);
    }
    Ok(())
}
