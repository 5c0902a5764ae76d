//! The lines of the audit log. No token, cookie, body or query is ever part of one; JSON escapes every control character.

use std::net::IpAddr;

use postern_base::id::{AgentName, DecisionId, RequestId};
use postern_gate::principal::{Principal, TokenId};
use serde::{Serialize, Serializer};

/// UTC, RFC 3339, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Time(jiff::Timestamp);

pub fn now() -> Time {
    Time(jiff::Timestamp::now())
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

/// A token's id in an audit line: 16 hex digits of its SHA-256.
#[derive(Debug)]
pub struct Shown(pub TokenId);

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Who asked, as far as a verified token told.
#[derive(Debug, Serialize)]
pub struct Who<'a> {
    pub issuer: &'a str,
    pub subject: &'a str,
    pub user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<&'a str>,
    pub groups: &'a [String],
    pub scopes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acr: Option<&'a str>,
}

impl<'a> From<&'a Principal> for Who<'a> {
    fn from(principal: &'a Principal) -> Self {
        Self {
            issuer: principal.issuer().as_str(),
            subject: principal.subject(),
            user: principal.user(),
            client: principal.client(),
            groups: principal.groups(),
            scopes: principal.scopes(),
            acr: principal.acr(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Allow,
    Deny,
}

/// Was this caller allowed this target, and why.
#[derive(Debug, Serialize)]
pub struct Decision<'a> {
    pub time: Time,
    pub event: &'static str,
    pub request_id: RequestId,
    pub decision_id: DecisionId,
    pub outcome: Outcome,
    pub token: Option<Shown>,
    #[serde(flatten)]
    pub who: Option<Who<'a>>,
    pub roles: &'a [&'a str],
    pub address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'a str>,
    pub method: &'a str,
    /// As policy saw it; without the query.
    pub path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub missing: &'a [String],
    /// Why a token was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// How a request ended.
#[derive(Debug, Serialize)]
pub struct End<'a> {
    pub time: Time,
    pub event: &'static str,
    pub request_id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<DecisionId>,
    pub address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'a str>,
    pub status: u16,
    /// `done` when the whole answer was handed over, or both sides of a live stream ended; `expired` when a live stream outlasted its
    /// token; `cut` when caller, agent or limit ended it early.
    pub ended: &'static str,
    /// Why the relay answered instead of the service: the type of the problem document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Bytes of body, or of a live stream, from the caller and to the caller.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<&'a AgentName>,
}

/// Anything else worth keeping.
#[derive(Debug, Serialize)]
pub struct Event {
    pub time: Time,
    pub event: &'static str,
    #[serde(flatten)]
    pub detail: serde_json::Value,
}
