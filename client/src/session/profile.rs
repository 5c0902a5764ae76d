//! Names sessions, so that there can be several relays, and several identities at one. A profile that nobody named has its relay's own
//! name. Takes what was named, a profile or a relay or neither; gives the account that is meant, or says why none is.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::vault::{Vault, VaultError};
use crate::failure::{Exit, Failure};
use crate::relay_api::address::RelayUrl;

/// Longer than any host name with its port.
const LONGEST: usize = 260;

/// A name that is a relay's (`relay.example.com:8443`) or was chosen: small letters, digits and `.-_`, a port's colon, and what IPv6
/// addresses are written with. It is a part of a file's name, so it holds no slash, and no `+`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub(crate) struct ProfileName(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a profile's name: use small letters, digits, dots, dashes and underscores, such as work"
)]
pub(crate) struct BadName(String);

impl ProfileName {
    /// The profile of a relay for which nobody chose a name.
    pub(crate) fn of(relay: &RelayUrl) -> Self {
        Self(relay.to_string().into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What its files are called: for a relay's own profile `host+port`, which tells two relays apart whatever they are called.
    pub(super) fn stem(&self) -> String {
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match self.0.rsplit_once(':').filter(|(_, port)| is_port(port)) {
            Some((host, port)) => format!("{host}+{port}"),
            None => format!("{}+443", self.0),
        }
    }

    /// The name whose files are called so.
    pub(super) fn of_stem(stem: &str) -> Option<Self> {
        let (host, port) = stem.rsplit_once('+')?;
        let name = if port == "443" { host.to_owned() } else { format!("{host}:{port}") };
        name.parse::<Self>().ok().filter(|name| name.stem() == stem)
    }
}

impl FromStr for ProfileName {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let plain = |b: u8| {
            b.is_ascii_lowercase()
                || b.is_ascii_digit()
                || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')
        };
        let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'[';
        let good = text.len() <= LONGEST
            && text.bytes().next().is_some_and(first)
            && text.bytes().all(plain)
            // Written with its port it would be another name for the same files.
            && !text.ends_with(":443");
        if good { Ok(Self(text.into())) } else { Err(BadName(text.to_owned())) }
    }
}

impl TryFrom<String> for ProfileName {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom a command acts as: a profile, at its relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) profile: ProfileName,
    pub(crate) relay: RelayUrl,
}

impl Account {
    /// Of a relay for whose profile nobody chose a name.
    pub(crate) fn of(relay: RelayUrl) -> Self {
        Self { profile: ProfileName::of(&relay), relay }
    }

    /// What to type to log in to it.
    pub(crate) fn login(&self) -> String {
        let relay = &self.relay;
        if self.profile == ProfileName::of(relay) {
            format!("postern login {relay}")
        } else {
            format!("postern login {relay} --profile {}", self.profile)
        }
    }
}

/// The relay, and the profile where its name says more.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.profile == ProfileName::of(&self.relay) {
            self.relay.fmt(f)
        } else {
            write!(f, "{} as {}", self.relay, self.profile)
        }
    }
}

/// Why it is not known whom a command is to act as.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    #[error("not logged in to any relay")]
    Nobody,
    #[error("there is no profile {0}")]
    Missing(ProfileName),
    #[error("profile {} is for {}, not for {relay}", .account.profile, .account.relay)]
    Elsewhere { account: Account, relay: RelayUrl },
    #[error("there are several profiles for {relay}: {names}")]
    Several { relay: RelayUrl, names: String },
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        let message = error.to_string();
        match error {
            ProfileError::Nobody => Self::new(Exit::LoginNeeded, message).fix("run: postern login RELAY"),
            ProfileError::Missing(name) => Self::new(Exit::LoginNeeded, message).fix(format!(
                "see those there are: postern profile ls; or make it: postern login RELAY --profile {name}"
            )),
            ProfileError::Elsewhere { .. } => {
                Self::new(Exit::Usage, message).fix("leave --relay out, or name another profile")
            }
            ProfileError::Several { .. } => Self::new(Exit::Usage, message).fix("name one with --profile"),
            ProfileError::Vault(error) => error.into(),
        }
    }
}

impl Vault {
    /// Whom a command acts as that names this profile, this relay, both or neither. Nothing says that there is a session.
    ///
    /// # Errors
    /// Nothing is known of the profile, it is another relay's, or it is one of several.
    pub(crate) fn account(
        &self,
        profile: Option<&ProfileName>,
        relay: Option<&RelayUrl>,
    ) -> Result<Account, ProfileError> {
        match (profile, relay) {
            (Some(profile), relay) => {
                let its = self.relay_of(profile)?;
                match (its, relay) {
                    (Some(its), Some(relay)) if its != *relay => {
                        let account = Account { profile: profile.clone(), relay: its };
                        Err(ProfileError::Elsewhere { account, relay: relay.clone() })
                    }
                    (Some(its), _) => Ok(Account { profile: profile.clone(), relay: its }),
                    (None, Some(relay)) => Ok(Account { profile: profile.clone(), relay: relay.clone() }),
                    (None, None) => Err(ProfileError::Missing(profile.clone())),
                }
            }
            (None, Some(relay)) => self.at(relay),
            (None, None) => {
                let profile = self.current().ok_or(ProfileError::Nobody)?;
                let its = self.relay_of(&profile)?;
                // After a logout only the name is left, which may be the relay's.
                let relay = its.or_else(|| profile.as_str().parse().ok()).ok_or(ProfileError::Nobody)?;
                Ok(Account { profile, relay })
            }
        }
    }

    /// The profile of a relay: the one in use, or the one that is called like it, or the only one.
    fn at(&self, relay: &RelayUrl) -> Result<Account, ProfileError> {
        let account = |profile| Account { profile, relay: relay.clone() };
        // What cannot be read is no reason not to use another.
        let is_here =
            |profile: &ProfileName| self.relay_of(profile).is_ok_and(|its| its.as_ref() == Some(relay));
        let own = ProfileName::of(relay);
        if let Some(found) = self.current().into_iter().chain([own.clone()]).find(is_here) {
            return Ok(account(found));
        }
        let mut there = self.profiles().unwrap_or_default();
        there.retain(is_here);
        match &there[..] {
            [] => Ok(account(own)),
            [only] => Ok(account(only.clone())),
            several => {
                let names: Vec<_> = several.iter().map(ProfileName::as_str).collect();
                Err(ProfileError::Several { relay: relay.clone(), names: names.join(", ") })
            }
        }
    }
}

#[cfg(test)]
mod tests;
