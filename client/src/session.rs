//! Takes what a login gave; keeps it per profile; gives an access token for an audience that lives long enough, renewing it before it
//! ends. Refuses with "login needed" when there is no session, the issuer ended it, or it does not know the program any more.

pub(crate) mod dpop;
pub(crate) mod lock;
pub(crate) mod machine;
pub(crate) mod pass;
pub(crate) mod profile;
pub(crate) mod refresh;
pub(crate) mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_base::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use crate::relay_api::address::RelayUrl;
use dpop::ProofKey;
use machine::Machine;
use profile::Account;

/// A secret that is written down only in the vault.
#[derive(Debug, Clone)]
pub(crate) struct Token(pub(crate) Secret);

impl Token {
    pub(crate) fn new(text: &str) -> Self {
        Self(Secret::new(text))
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

/// An access token and its life, in seconds since the epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Access {
    pub(crate) token: Token,
    pub(crate) issued: u64,
    pub(crate) expires: u64,
    /// To the session's key (RFC 9449): without a proof it is worth nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) bound: bool,
}

/// A token this close to its end is renewed; short-lived ones when three quarters of their life are over.
const RENEW_BEFORE: u64 = 60;

impl Access {
    /// Whether it need not be renewed now, for a use that needs it for `min_ttl` more.
    pub(crate) fn is_fresh(&self, now: u64, min_ttl: Duration) -> bool {
        let margin = RENEW_BEFORE.min(self.expires.saturating_sub(self.issued) / 4);
        self.expires > now.saturating_add(margin.max(min_ttl.as_secs()))
    }
}

/// What is kept of a login. Relay, issuer and client id are pinned: only `login --force` changes them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Session {
    pub(crate) relay: RelayUrl,
    /// What the relay calls the login.
    pub(crate) login: String,
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    pub(crate) token_endpoint: Url,
    pub(crate) revocation_endpoint: Option<Url>,
    /// The relay's audience (RFC 8707); an access token without a service's own audience is for it.
    pub(crate) resource: Option<String>,
    /// The scopes that were asked for.
    pub(crate) scopes: Vec<String>,
    pub(crate) refresh_token: Option<Token>,
    /// A program's session is renewed by asking again, not by a refresh token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) machine: Option<Machine>,
    /// What its tokens are bound to, where the issuer offers that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proof_key: Option<Arc<ProofKey>>,
    /// What the relay called the caller at login, for lists of sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The issuer refused the refresh token that was here.
    #[serde(default)]
    pub(crate) ended: bool,
    /// Access tokens by audience; the relay's own is under the empty name.
    pub(crate) access: BTreeMap<String, Access>,
}

impl Session {
    /// The key of an audience in `access`: what is not a service's own is the relay's.
    pub(crate) fn audience_key<'a>(&self, audience: Option<&'a str>) -> &'a str {
        audience.filter(|a| Some(*a) != self.resource.as_deref()).unwrap_or_default()
    }

    /// Whether it goes on when its access tokens end.
    pub(crate) fn renews(&self) -> bool {
        self.refresh_token.is_some() || self.machine.is_some()
    }
}

/// Seconds since the epoch.
pub(crate) fn now() -> u64 {
    postern_base::clock::seconds(SystemTime::now())
}

/// What to do when the issuer does not take a program for the client that it says it is.
pub(crate) const CLIENT_FIX: &str =
    "compare the client id and its secret, key or token with what the issuer has, then try again";

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("not logged in to {0}")]
    None(Account),
    #[error("the session with {account} is over: {reason}")]
    Over { account: Account, reason: String },
    #[error("the session with {relay} cannot be renewed now: {reason}")]
    Renewal { relay: RelayUrl, reason: String },
    #[error("{issuer} gives no token for {audience}: {reason}")]
    Audience { issuer: String, audience: String, reason: String },
    #[error("{issuer} does not accept this program as {client_id}: {reason}")]
    Client { issuer: String, client_id: String, reason: String },
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    #[error(transparent)]
    Lock(#[from] lock::LockError),
}

impl From<SessionError> for crate::failure::Failure {
    fn from(error: SessionError) -> Self {
        use crate::failure::Exit;
        let message = error.to_string();
        match error {
            SessionError::None(account) | SessionError::Over { account, .. } => {
                Self::new(Exit::LoginNeeded, message).fix(format!("run: {}", account.login())).login_helps()
            }
            SessionError::Renewal { .. } => {
                Self::new(Exit::Other, message).fix("check that the issuer can be reached, then try again")
            }
            SessionError::Audience { .. } => Self::new(Exit::Other, message)
                .fix("the issuer must know this audience and allow it to this client: ask whoever runs it"),
            SessionError::Client { .. } => Self::new(Exit::LoginNeeded, message).fix(CLIENT_FIX),
            SessionError::Vault(error) => error.into(),
            SessionError::Lock(lock::LockError::Held(_)) => {
                Self::new(Exit::Other, message).fix("end the other postern, then try again")
            }
            SessionError::Lock(lock::LockError::Io { source, .. }) => {
                Self::new(Exit::Other, message).fix(vault::disk_fix(&source))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_its_end() {
        let token =
            |life: u64| Access { token: Token::new("t"), issued: 1000, expires: 1000 + life, bound: false };
        let none = Duration::ZERO;
        assert!(token(3600).is_fresh(1000 + 3539, none) && !token(3600).is_fresh(1000 + 3540, none));
        assert!(
            token(20).is_fresh(1014, none) && !token(20).is_fresh(1015, none),
            "a quarter of a short life"
        );
        assert!(!token(300).is_fresh(1000, Duration::from_mins(5)));
        assert!(!token(300).is_fresh(u64::MAX, Duration::MAX));
    }
}
