//! What the relay's own addresses say, as typed values. What a newer relay says besides is left alone.

use std::fmt;

use postern_base::console::wait;
use postern_base::id::ServiceName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Closest;
use crate::output::text::Afar;

/// `/.well-known/postern`: all that a client needs to know before it logs in.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Published {
    /// The relay's public URL, by its own word.
    pub(crate) relay: String,
    #[serde(default)]
    pub(crate) version: Option<Afar>,
    /// Its clock, in milliseconds since the epoch.
    #[serde(default)]
    pub(crate) time: Option<u64>,
    pub(crate) logins: Vec<Login>,
}

/// One way to log in.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Login {
    pub(crate) name: String,
    pub(crate) issuer: String,
    pub(crate) client_ids: ClientIds,
    #[serde(default)]
    pub(crate) scopes: Vec<String>,
    /// RFC 8707: sent with every request for a token when present.
    #[serde(default)]
    pub(crate) resource: Option<String>,
    #[serde(default)]
    pub(crate) audience: Option<String>,
}

/// The client id per flow; a flow without one is not offered.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ClientIds {
    #[serde(default)]
    pub(crate) pkce: Option<String>,
    #[serde(default)]
    pub(crate) device: Option<String>,
}

/// `/.postern/services`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Catalogue {
    pub(crate) principal: Principal,
    pub(crate) services: Vec<Service>,
}

/// Who the relay says the caller is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Principal {
    pub(crate) issuer: Afar,
    pub(crate) subject: Afar,
    pub(crate) user: Afar,
    #[serde(default)]
    pub(crate) client: Option<Afar>,
    #[serde(default)]
    pub(crate) scopes: Vec<Afar>,
    #[serde(default)]
    pub(crate) roles: Vec<Afar>,
    #[serde(default)]
    pub(crate) groups: Vec<Afar>,
    /// The token's end, in seconds since the epoch.
    pub(crate) expires: u64,
}

/// A service that the caller may use.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    pub(crate) kind: Afar,
    #[serde(default)]
    pub(crate) about: Option<Afar>,
    /// Where an HTTP service is called; none for TCP, and where its hosts are a pattern.
    #[serde(default)]
    pub(crate) url: Option<String>,
    /// Its own hosts: exact, or `*.` before a suffix.
    #[serde(default)]
    pub(crate) hosts: Vec<Afar>,
    /// The service's own audience: its tokens are asked for with it (RFC 8707).
    #[serde(default)]
    pub(crate) resource: Option<String>,
    #[serde(default)]
    pub(crate) may: Vec<Afar>,
    #[serde(default)]
    pub(crate) rules: Vec<Rule>,
    #[serde(default)]
    pub(crate) agents: Vec<Afar>,
    pub(crate) up: bool,
    /// Seconds since the epoch.
    #[serde(default)]
    pub(crate) down_since: Option<u64>,
    /// The lock that keeps everybody out.
    #[serde(default)]
    pub(crate) locked: Option<Afar>,
}

impl Service {
    /// Whether every rule that lets the caller do something was used as often as it lets.
    pub(crate) fn is_used_up(&self) -> bool {
        let is_used_up = |rule: &Rule| rule.limits.iter().any(|limit| limit.wait.is_some());
        !self.rules.is_empty() && self.rules.iter().all(is_used_up)
    }
}

/// A rule that lets the caller do something.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Rule {
    pub(crate) name: Afar,
    #[serde(default)]
    pub(crate) to: Vec<Afar>,
    #[serde(default)]
    pub(crate) needs: Vec<Afar>,
    #[serde(default)]
    pub(crate) limits: Vec<Allowance>,
}

/// `/.postern/explain`: what policy would say. The decision's id is left out: nothing was done, so that no log has it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Explained {
    pub(crate) allowed: bool,
    pub(crate) service: ServiceName,
    pub(crate) method: Afar,
    pub(crate) path: Afar,
    #[serde(default)]
    pub(crate) rule: Option<Afar>,
    #[serde(default)]
    pub(crate) detail: Option<Afar>,
    #[serde(default)]
    pub(crate) closest: Option<Closest>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) limits: Vec<Allowance>,
    /// What holds an allowed call up now.
    #[serde(default)]
    pub(crate) held: Option<Held>,
}

/// What policy has no say in.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "lowercase")]
pub(crate) enum Held {
    /// An operator's order.
    Lock { lock: Afar },
    /// The rule was used as often as it lets; in seconds.
    Limit { retry_after: u64 },
    /// No agent serves it; since when, in seconds since the epoch, and whether because operators keep its agents out.
    Down {
        since: Option<u64>,
        #[serde(default)]
        suspended: bool,
    },
    /// A newer relay's word.
    #[serde(other)]
    Other,
}

impl Explained {
    /// What policy says, in words.
    pub(crate) fn verdict(&self) -> String {
        self.detail.as_ref().map_or_else(|| "no rule allows it".to_owned(), ToString::to_string)
    }
}

/// How often the rule lets it, and what is left of that.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(from = "ToldAllowance")]
pub(crate) struct Allowance {
    pub(crate) limit: Afar,
    pub(crate) left: Option<u32>,
    /// Seconds until there is room for another; none where there is.
    pub(crate) wait: Option<u64>,
}

/// Relays before 0.5 list limits in words.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum ToldAllowance {
    Words(Afar),
    Counted { limit: Afar, left: Option<u32>, wait: Option<u64> },
}

impl From<ToldAllowance> for Allowance {
    fn from(told: ToldAllowance) -> Self {
        match told {
            ToldAllowance::Words(limit) => Self { limit, left: None, wait: None },
            ToldAllowance::Counted { limit, left, wait } => Self { limit, left, wait },
        }
    }
}

/// `20/s per user, 17 left`
impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, left, wait: until } = self;
        match (until, left) {
            (Some(seconds), _) => write!(f, "{limit}, used up: wait {}", wait(*seconds)),
            (None, Some(left)) => write!(f, "{limit}, {left} left"),
            (None, None) => limit.fmt(f),
        }
    }
}
