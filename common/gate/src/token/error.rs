//! Why a token was not accepted. Display is for the audit log; [`TokenError::told`] is for whoever sent the token: it repeats nothing of
//! it but `iss`, `kid`, `alg` and `typ`, escaped and cut short, says nothing of the claims before the signature was found good, and
//! nothing of who would be asked about the token.

use std::fmt;

use postern_base::id::IssuerName;

use super::claim::ClaimPath;
use super::dpop::ProofError;

/// A few characters of a token that its sender may see again: escaped, and cut after 64.
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(Box<str>);

impl Quoted {
    pub(super) fn new(text: &str) -> Self {
        let mut quoted: String = text.chars().take(64).flat_map(char::escape_default).collect();
        if text.chars().nth(64).is_some() {
            quoted.push('…');
        }
        Self(quoted.into())
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl fmt::Debug for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a token was not accepted. All but those of [`TokenError::is_unavailable`] are the token's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    // Found before the signature is looked at: from what the token says of itself.
    #[error("the token is longer than 8 KiB: ask the issuer for a smaller one (fewer groups or roles)")]
    TooLong,
    #[error("this is not a signed JWT: {0}")]
    Malformed(&'static str),
    #[error("the token's algorithm {0} is not one that this issuer's tokens may use")]
    Algorithm(Quoted),
    #[error("the token demands extensions (crit or b64) that are not supported")]
    Critical,
    #[error(
        "the token's type {0} is not that of an access token here: send the access token, not another kind"
    )]
    Type(Quoted),
    #[error("the token's issuer {0} is not trusted here: log in with an issuer that is")]
    UnknownIssuer(Quoted),
    #[error("the issuer has no key {0}: the token is older or newer than its keys, so get a fresh one")]
    UnknownKey(Quoted),
    #[error("the token names no key and the issuer has none of that kind: get a fresh one")]
    NoKey,
    #[error("the token does not name its key (kid), as tokens of this issuer must")]
    NoKeyId,
    #[error("the token's signature is not its issuer's")]
    BadSignature,

    // Found by whoever has to ask.
    #[error("this is not a JWT, and here no one issuer is asked about other tokens: send a JWT access token")]
    Opaque,
    #[error(
        "its issuer says that the token is not active: it has expired, was revoked or is another's, so get a fresh one"
    )]
    Inactive,

    // Found in claims whose signature is good, or that the issuer said of the token.
    #[error("the token has no {0} claim")]
    Missing(&'static str),
    #[error("the token's {0} claim has the wrong type or an impossible value")]
    BadClaim(&'static str),
    #[error("the token has expired: get a fresh one")]
    Expired,
    #[error("the token is not valid yet: check the clocks")]
    NotYetValid,
    #[error("the token was issued in the future: check the clocks")]
    IssuedInFuture,
    #[error("the token lives longer than this issuer's tokens may: ask for one with a shorter life")]
    LivesTooLong,
    #[error("this is an ID token, or cannot be told from one: send the access token")]
    IdToken,
    #[error("the token is bound (cnf) in a way that cannot be checked here: ask the issuer for another kind")]
    Bound,
    #[error("the token is not meant for this audience: ask the issuer for one that is")]
    WrongAudience,
    #[error(
        "the token's {0} claim is not what this issuer's access tokens have: send the access token, not another kind"
    )]
    Required(ClaimPath),
    #[error(
        "the token has a {0} claim, which this issuer's access tokens must not: send the access token, not another kind"
    )]
    Forbidden(ClaimPath),
    #[error("the token was given to a client that is not accepted here: log in with one that is")]
    ClientNotAccepted,
    #[error("the token's email address is not verified: verify it with the issuer")]
    UnverifiedEmail,
    #[error(
        "the token only points to where its groups or roles are kept (there are too many): have them filtered at the issuer"
    )]
    ClaimElsewhere,

    // Found in what came with a good token.
    #[error("the token is bound to a key: send it as `Authorization: DPoP` with a proof in the DPoP field")]
    BoundAsBearer,
    #[error("the token is not bound to the key of a DPoP proof: send it as `Authorization: Bearer`")]
    NotDpop,
    #[error(
        "the token is bound to another key than the DPoP proof's: use the one that it was asked for with"
    )]
    WrongKey,
    #[error("the token is bound to a client certificate, and this connection showed none: connect with it")]
    NoCertificate,
    #[error("the token is bound to another client certificate: connect with the one it was asked for with")]
    WrongCertificate,
    #[error(
        "this issuer's tokens must be bound to a key (DPoP, or a client certificate): ask for such a one"
    )]
    NotBound,
    #[error(transparent)]
    Proof(#[from] ProofError),

    /// The token is good, but the service does not take this issuer's tokens (http.md: the service is not visible to its bearer).
    #[error("tokens of issuer {0} are not taken by this service")]
    IssuerNotAccepted(IssuerName),

    /// The issuer is at fault: its keys are neither known nor to be had.
    #[error("the keys of issuer {0} cannot be had at the moment: try again shortly")]
    Unavailable(IssuerName),
    /// The issuer is at fault: it does not say what it thinks of the token.
    #[error("issuer {0} cannot be asked about the token at the moment: try again shortly")]
    Unanswered(IssuerName),
    /// The configuration is at fault: the issuer is asked what it does not answer.
    #[error("issuer {0} does not say whether tokens of this kind are active: tell whoever runs this relay")]
    NotJudged(IssuerName),
}

impl TokenError {
    /// A stable name for metrics and audit.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed(_) => "malformed",
            Self::Algorithm(_) => "algorithm",
            Self::Critical => "critical_extension",
            Self::Type(_) => "wrong_type",
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::UnknownKey(_) | Self::NoKey => "unknown_key",
            Self::NoKeyId => "no_key_id",
            Self::BadSignature => "bad_signature",
            Self::Missing(_) => "missing_claim",
            Self::BadClaim(_) => "bad_claim",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuedInFuture => "issued_in_future",
            Self::LivesTooLong => "lives_too_long",
            Self::IdToken => "id_token",
            Self::Bound => "bound_token",
            Self::BoundAsBearer => "bound_as_bearer",
            Self::NotDpop => "not_dpop_bound",
            Self::WrongKey => "wrong_key",
            Self::NoCertificate => "no_certificate",
            Self::WrongCertificate => "wrong_certificate",
            Self::NotBound => "not_bound",
            Self::Proof(error) => error.code(),
            Self::WrongAudience => "wrong_audience",
            Self::Required(_) => "required_claim",
            Self::Forbidden(_) => "forbidden_claim",
            Self::ClientNotAccepted => "client_not_accepted",
            Self::UnverifiedEmail => "unverified_email",
            Self::ClaimElsewhere => "claim_elsewhere",
            Self::IssuerNotAccepted(_) => "issuer_not_accepted",
            Self::Opaque => "opaque_token",
            Self::Inactive => "inactive",
            Self::Unavailable(_) => "issuer_unavailable",
            Self::Unanswered(_) => "introspection_unavailable",
            Self::NotJudged(_) => "introspection_unsupported",
        }
    }

    /// What its sender may know. Who is asked about what is no JWT, if anyone, differs between services and where there is none.
    pub fn told(&self) -> String {
        if matches!(self, Self::Opaque | Self::Inactive) {
            "the token is not accepted: it is not active, or no issuer trusted here knows it, so get a fresh one"
                .to_owned()
        } else {
            self.to_string()
        }
    }

    /// Whether the issuer, or we, are at fault (503), not the token (401).
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Unanswered(_) | Self::NotJudged(_) | Self::Proof(ProofError::Full)
        )
    }

    /// Whether it speaks against its bearer. An unknown key does even while the issuer is silent: anyone can make one up. What an issuer
    /// does not answer, or we have no room to judge, says nothing; else its outage would lock out whole offices with good tokens.
    pub fn is_failed_authentication(&self) -> bool {
        let is_ours =
            matches!(self, Self::Unanswered(_) | Self::NotJudged(_) | Self::Proof(ProofError::Full));
        !is_ours && !self.is_nonce_wanted()
    }

    /// Whether token and key are good, and only a nonce of ours is wanted.
    pub fn is_nonce_wanted(&self) -> bool {
        matches!(self, Self::Proof(ProofError::NonceWanted))
    }

    /// The error code of a challenge (RFC 6750 3.1, RFC 9449 7.1 and 9).
    pub fn challenge(&self) -> &'static str {
        if self.is_nonce_wanted() {
            "use_dpop_nonce"
        } else if matches!(self, Self::Proof(_)) {
            "invalid_dpop_proof"
        } else {
            "invalid_token"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_who_was_asked() {
        assert_ne!(TokenError::Opaque.to_string(), TokenError::Inactive.to_string());
        assert_eq!(TokenError::Opaque.told(), TokenError::Inactive.told());
        assert_eq!(TokenError::Opaque.challenge(), TokenError::Inactive.challenge());
        assert_eq!(TokenError::Expired.told(), TokenError::Expired.to_string());
    }

    #[test]
    fn what_a_token_said_is_escaped_and_cut() {
        assert_eq!(Quoted::new("a\"\r\nb\u{202e}").to_string(), r#""a\"\r\nb\u{202e}""#);
        let long = Quoted::new(&"x".repeat(9000)).to_string();
        assert_eq!(long, format!("\"{}…\"", "x".repeat(64)));
        assert!(Quoted::new(&"x".repeat(64)).to_string().ends_with("xx\""));
    }
}
