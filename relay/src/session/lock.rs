//! Locks: an operator's orders that a user, client, issuer, agent, service or token, or everything, is refused from now on. Takes them as
//! typed, with the names of the configuration; gives a hashed table of those in force; refuses names that nothing here bears.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use postern_base::id::{AgentName, IssuerName, ServiceName};
use postern_gate::principal::{Principal, TokenId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// Names a lock: 8 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct LockId(u32);

impl LockId {
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for LockId {
    type Err = LockError;

    fn from_str(text: &str) -> Result<Self, LockError> {
        let is_id = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = u32::from_str_radix(text, 16).ok().filter(|_| is_id);
        id.map(Self).ok_or_else(|| LockError::Id(text.to_owned()))
    }
}

impl TryFrom<String> for LockId {
    type Error = LockError;

    fn try_from(text: String) -> Result<Self, LockError> {
        text.parse()
    }
}

impl From<LockId> for String {
    fn from(id: LockId) -> Self {
        id.to_string()
    }
}

/// Why there is no such lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{0:?} is not a lock's id: see: postern-relay lock ls")]
    Id(String),
    #[error("there is no {kind} {name} in relay.toml: check the name")]
    Unknown { kind: &'static str, name: String },
    #[error("{text:?} names no issuer: the issuer here is {known}; write {known}/{text} if that is the name")]
    NoSuchIssuer { text: String, known: String },
    #[error("{text:?} says no issuer, and there are several: write ISSUER/NAME, with one of {known}")]
    WhichIssuer { text: String, known: String },
    #[error(
        "lock {id} is on {on}, which this file does not name: it would lock nothing; keep the name, or take the lock away: postern-relay lock rm {id}"
    )]
    Void { id: LockId, on: LockOn },
    #[error(
        "lock {id} is on {on}, and this file gives that issuer's name to another: keep the name with its issuer, or take the lock away: postern-relay lock rm {id}"
    )]
    OtherIssuer { id: LockId, on: LockOn },
    /// Does not say what was given: it may be a token.
    #[error("this is not a token's id: give the 16 digits that audit lines show, or --token-file FILE")]
    Token,
    #[error(transparent)]
    Store(#[from] crate::enroll::EnrollError),
}

/// What is locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LockOn {
    /// By what `user_from` gives or by the token's `sub`, whichever is the name.
    User {
        issuer: IssuerName,
        name: String,
    },
    Client {
        issuer: IssuerName,
        name: String,
    },
    Issuer(IssuerName),
    Agent(AgentName),
    Service(ServiceName),
    /// A token's id.
    Token(String),
    All,
}

impl fmt::Display for LockOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { issuer, name } => write!(f, "user {issuer}/{name}"),
            Self::Client { issuer, name } => write!(f, "client {issuer}/{name}"),
            Self::Issuer(name) => write!(f, "issuer {name}"),
            Self::Agent(name) => write!(f, "agent {name}"),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Token(id) => write!(f, "token {id}"),
            Self::All => f.write_str("everything"),
        }
    }
}

/// A lock as it is kept. Times are seconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lock {
    pub id: LockId,
    pub on: LockOn,
    pub reason: String,
    pub made: u64,
    pub expires: Option<u64>,
    /// The uid of whoever made it.
    pub by: u32,
}

impl Lock {
    /// Whether it locks with these settings what it was made for; `before` are those in force until now.
    pub fn fits(&self, settings: &Settings, before: Option<&Settings>) -> Result<(), LockError> {
        let void = || LockError::Void { id: self.id, on: self.on.clone() };
        let is_named = match &self.on {
            LockOn::User { issuer: name, .. }
            | LockOn::Client { issuer: name, .. }
            | LockOn::Issuer(name) => {
                let of = |settings: &Settings| settings.issuers.iter().find(|i| i.name == *name).cloned();
                let now = of(settings).ok_or_else(void)?;
                let is_other = before.and_then(of).is_some_and(|old| !now.is_meant_by(&old.issuer));
                if is_other {
                    return Err(LockError::OtherIssuer { id: self.id, on: self.on.clone() });
                }
                true
            }
            LockOn::Agent(name) => settings.services.values().any(|service| service.agents.contains(name)),
            LockOn::Service(name) => settings.services.contains_key(name.as_str()),
            LockOn::Token(_) | LockOn::All => true,
        };
        is_named.then_some(()).ok_or_else(void)
    }

    pub fn is_over(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// What is to be locked, as typed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    User(String),
    Client(String),
    Issuer(String),
    Agent(String),
    Service(String),
    Token(String),
    All,
}

impl Wanted {
    /// What it means here. A name that nothing bears would lock nothing, and be found out only when it matters.
    pub fn resolve(&self, settings: &Settings) -> Result<LockOn, LockError> {
        let unknown = |kind, name: &str| LockError::Unknown { kind, name: name.to_owned() };
        Ok(match self {
            Self::User(text) => {
                let (issuer, name) = of_issuer(settings, text)?;
                LockOn::User { issuer, name }
            }
            Self::Client(text) => {
                let (issuer, name) = of_issuer(settings, text)?;
                LockOn::Client { issuer, name }
            }
            Self::Issuer(name) => {
                let mut names = settings.issuers.iter().map(|issuer| &issuer.name);
                let found = names.find(|known| known.as_str() == name);
                LockOn::Issuer(found.ok_or_else(|| unknown("issuer", name))?.clone())
            }
            Self::Agent(name) => {
                let mut names = settings.services.values().flat_map(|service| &service.agents);
                let found = names.find(|known| known.as_str() == name);
                LockOn::Agent(found.ok_or_else(|| unknown("agent", name))?.clone())
            }
            Self::Service(name) => {
                let found = settings.services.get(name.as_str());
                LockOn::Service(found.ok_or_else(|| unknown("service", name))?.name.clone())
            }
            Self::Token(id) => {
                let id: TokenId = id.parse().map_err(|_| LockError::Token)?;
                LockOn::Token(id.to_string())
            }
            Self::All => LockOn::All,
        })
    }
}

/// `<issuer>/<name>`, or with one issuer the name alone.
fn of_issuer(settings: &Settings, text: &str) -> Result<(IssuerName, String), LockError> {
    let names = || settings.issuers.iter().map(|issuer| &issuer.name);
    let with_issuer = text.split_once('/').and_then(|(prefix, name)| {
        let issuer = names().find(|known| known.as_str() == prefix)?;
        Some((issuer.clone(), name.to_owned()))
    });
    let is_qualified = text.split_once('/').is_some_and(|(prefix, _)| prefix.parse::<IssuerName>().is_ok());
    let mut all = names();
    match (with_issuer, all.next(), all.next()) {
        (Some(found), ..) => Ok(found),
        // A name with a slash, or another issuer's name misspelt: it would lock nobody, and in silence.
        (None, Some(only), None) if is_qualified => {
            Err(LockError::NoSuchIssuer { text: text.to_owned(), known: only.to_string() })
        }
        (None, Some(only), None) => Ok((only.clone(), text.to_owned())),
        (None, ..) => {
            let known = names().map(IssuerName::as_str).collect::<Vec<_>>().join(", ");
            Err(LockError::WhichIssuer { text: text.to_owned(), known })
        }
    }
}

type OfIssuer = HashMap<IssuerName, HashMap<String, LockId>>;

/// The locks in force, for the hot path: each question is one look into a table or two.
#[derive(Debug, Default)]
pub struct Locks {
    users: OfIssuer,
    clients: OfIssuer,
    issuers: HashMap<IssuerName, LockId>,
    agents: HashMap<AgentName, LockId>,
    services: HashMap<ServiceName, LockId>,
    tokens: HashMap<TokenId, LockId>,
    all: Option<LockId>,
    /// When the first of them is over, in seconds since the epoch.
    pub(super) next_end: Option<u64>,
}

impl Locks {
    /// Those of `all` that are in force.
    pub fn new<'a>(all: impl Iterator<Item = &'a Lock>, now: u64) -> Self {
        let mut locks = Self::default();
        for lock in all.filter(|lock| !lock.is_over(now)) {
            locks.next_end = locks.next_end.into_iter().chain(lock.expires).min();
            let id = lock.id;
            match &lock.on {
                LockOn::User { issuer, name } => {
                    locks.users.entry(issuer.clone()).or_default().insert(name.clone(), id);
                }
                LockOn::Client { issuer, name } => {
                    locks.clients.entry(issuer.clone()).or_default().insert(name.clone(), id);
                }
                LockOn::Issuer(name) => drop(locks.issuers.insert(name.clone(), id)),
                LockOn::Agent(name) => drop(locks.agents.insert(name.clone(), id)),
                LockOn::Service(name) => drop(locks.services.insert(name.clone(), id)),
                // Rows hold ids that were read as such.
                LockOn::Token(text) => drop(text.parse().map(|token| locks.tokens.insert(token, id))),
                LockOn::All => locks.all = Some(id),
            }
        }
        locks
    }

    pub(super) fn is_empty(&self) -> bool {
        let Self { users, clients, issuers, agents, services, tokens, all, next_end: _ } = self;
        users.is_empty()
            && clients.is_empty()
            && issuers.is_empty()
            && agents.is_empty()
            && services.is_empty()
            && tokens.is_empty()
            && all.is_none()
    }

    pub(super) fn token(&self, token: TokenId) -> Option<LockId> {
        self.tokens.get(&token).copied()
    }

    /// By token, user, client or issuer.
    pub(super) fn principal(&self, principal: &Principal) -> Option<LockId> {
        let issuer = principal.issuer();
        let user = || {
            let users = self.users.get(issuer)?;
            users.get(principal.user()).or_else(|| users.get(principal.subject())).copied()
        };
        let client = || self.clients.get(issuer)?.get(principal.client()?).copied();
        self.token(principal.token_id())
            .or_else(|| self.issuers.get(issuer).copied())
            .or_else(user)
            .or_else(client)
    }

    /// The service, or everything.
    pub(super) fn service(&self, service: &ServiceName) -> Option<LockId> {
        self.all.or_else(|| self.services.get(service).copied())
    }

    pub(super) fn agent(&self, agent: &AgentName) -> Option<LockId> {
        self.agents.get(agent).copied()
    }
}

#[cfg(test)]
mod tests;
