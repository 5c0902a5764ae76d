//! Who the caller is, as proved by a token that this process verified. Only the `token` room makes a [`Principal`] for real
//! requests; `policy::test` makes hypothetical ones, which never leave this crate.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use postern_base::id::IssuerName;
use serde_json::{Map, Value};

use crate::policy::Held;
use crate::token::Binding;

/// The first 8 bytes of the token's SHA-256, as 16 hex digits: names a token in logs and audit without revealing it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId(pub(crate) [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In every line of audit: not worth eight turns of the formatter.
        let digits = b"0123456789abcdef";
        let half = |at: usize| self.0[at / 2] >> if at.is_multiple_of(2) { 4 } else { 0 };
        let text: [u8; 16] = std::array::from_fn(|at| digits[usize::from(half(at) & 0xf)]);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl FromStr for TokenId {
    type Err = NoTokenId;

    fn from_str(text: &str) -> Result<Self, NoTokenId> {
        let is_id = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
        id.map(|id| Self(id.to_be_bytes())).ok_or(NoTokenId)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no token's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token's id is 16 hex digits, as audit lines show it")]
pub struct NoTokenId;

/// What the `token` room learned. Crate-private, so that nothing outside can make a [`Principal`].
#[derive(Debug, Clone)]
pub(crate) struct Proved {
    pub(crate) issuer: IssuerName,
    pub(crate) iss: String,
    pub(crate) subject: String,
    pub(crate) user: String,
    pub(crate) client: Option<String>,
    pub(crate) audience: Vec<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) token_roles: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) acr: Option<String>,
    pub(crate) auth_time: Option<u64>,
    pub(crate) expires: u64,
    pub(crate) token_id: TokenId,
    pub(crate) binding: Option<Binding>,
    pub(crate) claims: Map<String, Value>,
}

/// A proved caller: issuer and subject together are the identity; everything else is what the token says of it.
#[derive(Debug)]
pub struct Principal {
    proved: Proved,
    /// None where a signature proved it.
    asked_again_at: Option<SystemTime>,
    /// What the policy of the last decision made of it; `policy` alone reads and writes this.
    pub(crate) held: ArcSwapOption<Held>,
}

impl Principal {
    pub(crate) fn new(proved: Proved) -> Self {
        Self { proved, asked_again_at: None, held: ArcSwapOption::empty() }
    }

    /// For one that its issuer's word proved, which is believed until then.
    pub(crate) fn asked_again_at_latest(self, until: SystemTime) -> Self {
        Self { asked_again_at: Some(until), ..self }
    }

    /// The issuer's name in the configuration.
    pub fn issuer(&self) -> &IssuerName {
        &self.proved.issuer
    }

    /// The token's `iss`, exactly.
    pub fn iss(&self) -> &str {
        &self.proved.iss
    }

    /// The token's `sub` (or what `subject_from` names).
    pub fn subject(&self) -> &str {
        &self.proved.subject
    }

    /// What people call this caller (`user_from`); the subject where nothing else is configured.
    pub fn user(&self) -> &str {
        &self.proved.user
    }

    pub fn client(&self) -> Option<&str> {
        self.proved.client.as_deref()
    }

    /// All audiences of the token; the request's service decides which one is needed.
    pub fn audience(&self) -> &[String] {
        &self.proved.audience
    }

    pub fn scopes(&self) -> &[String] {
        &self.proved.scopes
    }

    /// Roles as the token names them (`roles_from`); the policy's own roles are found by `policy`.
    pub fn token_roles(&self) -> &[String] {
        &self.proved.token_roles
    }

    pub fn groups(&self) -> &[String] {
        &self.proved.groups
    }

    pub fn acr(&self) -> Option<&str> {
        self.proved.acr.as_deref()
    }

    /// When the person last proved who they are, in seconds since the epoch.
    pub fn auth_time(&self) -> Option<u64> {
        self.proved.auth_time
    }

    /// The token's `exp`, in seconds since the epoch.
    pub fn expires(&self) -> u64 {
        self.proved.expires
    }

    pub fn expires_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.proved.expires)
    }

    /// When the issuer has to be asked again whether the token is still good; none where its signature said so. What goes on longer
    /// asks then, by `Issuers::confirm`, but not more often than it can bear: this may be in the past already.
    pub fn asked_again_at(&self) -> Option<SystemTime> {
        self.asked_again_at
    }

    pub fn token_id(&self) -> TokenId {
        self.proved.token_id
    }

    /// The key that the token is bound to; whoever authenticated it had that key.
    pub fn binding(&self) -> Option<&Binding> {
        self.proved.binding.as_ref()
    }

    /// Whether another token is this caller's too: same issuer, by name and by what it calls itself, subject, client and key.
    pub fn is_same_caller(&self, other: &Self) -> bool {
        self.issuer() == other.issuer()
            && self.iss() == other.iss()
            && self.subject() == other.subject()
            && self.client() == other.client()
            && self.binding() == other.binding()
    }

    /// Every claim of the token.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.proved.claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_another_issuer_bears_makes_nobody_the_same() {
        let caller = |iss: &str, subject: &str| {
            Principal::new(Proved {
                issuer: "corp".parse().unwrap(),
                iss: iss.to_owned(),
                subject: subject.to_owned(),
                user: subject.to_owned(),
                client: None,
                audience: Vec::new(),
                scopes: Vec::new(),
                token_roles: Vec::new(),
                groups: Vec::new(),
                acr: None,
                auth_time: None,
                expires: 0,
                token_id: TokenId([0; 8]),
                binding: None,
                claims: Map::new(),
            })
        };
        let ada = caller("https://login.example.com", "ada");
        assert!(ada.is_same_caller(&caller("https://login.example.com", "ada")));
        assert!(!ada.is_same_caller(&caller("https://login.example.com", "bob")));
        assert!(!ada.is_same_caller(&caller("https://login.example.net", "ada")));
    }

    #[test]
    fn token_ids_are_sixteen_digits() {
        let id = TokenId([0, 1, 0x0f, 0x10, 0xab, 0xcd, 0xef, 0xff]);
        assert_eq!(id.to_string(), "00010f10abcdefff");
        assert_eq!("00010F10abcdefff".parse(), Ok(id));
        for bad in ["", "+0010f10abcdefff", "00010f10abcdeff", "00010f10abcdefff0", "x0010f10abcdefff"] {
            assert_eq!(bad.parse::<TokenId>(), Err(NoTokenId), "{bad}");
        }
    }
}
