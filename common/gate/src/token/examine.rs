//! Looks at one issuer, and at a token with it, for whoever set it up: takes an issuer's name; gives every step that judging its tokens
//! needs, with its outcome, by the very code that judges them. Fetches anew and changes nothing that serves; shows no token and no secret.

use std::time::SystemTime;

use postern_base::clock::seconds;
use postern_base::console::checks::{Check, State};
use postern_base::id::IssuerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Issuers;

mod source;
mod steps;
#[cfg(test)]
mod tests;

/// What was seen of an issuer. Times are seconds since the epoch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Examined {
    pub name: IssuerName,
    /// Its `iss`.
    pub issuer: String,
    /// Whether no check failed.
    pub ok: bool,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// What it says where it is: `token_endpoint` and the like.
    pub endpoints: Vec<Endpoint>,
    /// What it publishes.
    pub keys: Vec<Key>,
    /// By how much its clock is ahead of ours, in milliseconds; its answers say whole seconds.
    pub clock_ahead_ms: Option<i64>,
    /// What the process that was asked has in memory; none of a process that was started for this.
    pub held: Option<Held>,
    /// Each step of judging the token; empty where none was given.
    pub token: Vec<Check>,
}

/// One address of an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    pub name: String,
    pub uri: String,
}

/// One key that an issuer publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Key {
    pub kid: Option<String>,
    /// The algorithm whose signatures are checked with it; none where it is used for none.
    pub algorithm: Option<String>,
    /// What it says of itself: its kind, and what it is for.
    pub says: String,
}

/// The keys with which tokens are judged now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    pub keys: usize,
    pub fetched: Option<u64>,
    /// Until when they serve if the issuer stays silent.
    pub usable_until: Option<u64>,
    /// Why the last fetch or question failed.
    pub error: Option<String>,
}

impl Issuers {
    /// Looks at the issuer of this name; `None` where there is none.
    pub async fn examine(&self, name: &str, token: Option<&str>, now: SystemTime) -> Option<Examined> {
        let issuer = self.all.iter().find(|issuer| issuer.settings.name.as_str() == name)?;
        let settings = &issuer.settings;
        let source::Seen { checks, endpoints, keys, clock_ahead_ms } = source::look(settings).await;
        let health = issuer.health();
        let was_used = health.fetched.is_some() || health.error.is_some();
        let held = was_used.then(|| Held {
            keys: health.keys,
            fetched: health.fetched.map(seconds),
            usable_until: health.usable_until.map(seconds),
            error: health.error,
        });
        let token = match token {
            Some(token) => self.steps(issuer, token, now).await,
            None => Vec::new(),
        };
        let ok = !checks.iter().chain(&token).any(|check| check.state == State::Bad);
        let (name, issuer) = (settings.name.clone(), settings.issuer.clone());
        Some(Examined { name, issuer, ok, checks, endpoints, keys, clock_ahead_ms, held, token })
    }
}
