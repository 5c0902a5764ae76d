//! The lines of the audit log. No token, cookie, body or query is ever part of one; JSON escapes every control character.

use std::borrow::Cow;

use postern_base::audit::Time;
use postern_base::id::{AgentName, DecisionId, RequestId};
use postern_gate::principal::{Principal, TokenId};
use postern_gate::token::Binding;
use serde::{Serialize, Serializer};

use super::pseudonym::{Address, Pseudonyms};

/// A token's id in an audit line: 16 hex digits of its SHA-256.
#[derive(Debug)]
pub struct LoggedToken(pub TokenId);

impl Serialize for LoggedToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Who asked, as far as a verified token told.
#[derive(Debug, Serialize)]
pub struct Who<'a> {
    /// The issuer's name in relay.toml.
    pub issuer: &'a str,
    /// What the issuer knows the caller by.
    pub subject: Cow<'a, str>,
    /// What people call the caller (`user_from`).
    pub user: Cow<'a, str>,
    /// The OAuth client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<&'a str>,
    /// As the token names them.
    pub groups: &'a [String],
    /// As the token names them.
    pub scopes: &'a [String],
    /// Roles as the token names them.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub token_roles: &'a [String],
    /// How strong the login was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acr: Option<&'a str>,
    /// When the person logged in, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<u64>,
    /// What the token is bound to: `none`, `dpop` or `mtls`.
    pub binding: &'static str,
}

impl<'a> Who<'a> {
    pub fn new(principal: &'a Principal, names: &Pseudonyms) -> Self {
        Self {
            issuer: principal.issuer().as_str(),
            subject: names.person(principal.subject()),
            user: names.person(principal.user()),
            client: principal.client(),
            groups: principal.groups(),
            scopes: principal.scopes(),
            token_roles: principal.token_roles(),
            acr: principal.acr(),
            auth_time: principal.auth_time(),
            binding: match principal.binding() {
                None => "none",
                Some(Binding::Key(_)) => "dpop",
                Some(Binding::Certificate(_)) => "mtls",
            },
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
#[allow(clippy::struct_field_names, reason = "they are the names in the line")]
pub struct Decision<'a> {
    pub time: Time,
    pub event: &'static str,
    /// What caller, relay, agent and upstream know the request by (`X-Request-Id`).
    pub request_id: RequestId,
    /// What a refusal tells its caller.
    pub decision_id: DecisionId,
    /// `allow` or `deny`.
    pub outcome: Outcome,
    /// 16 hex digits of the token's SHA-256; null where none was shown.
    pub token: Option<LoggedToken>,
    #[serde(flatten)]
    pub who: Option<Who<'a>>,
    /// The policy's roles of the caller.
    pub roles: &'a [&'a str],
    /// Whence the caller came.
    pub address: Address,
    /// Left out where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'a str>,
    /// As policy saw it; `CONNECT` for TCP services.
    pub method: &'a str,
    /// As policy saw it; without the query.
    pub path: &'a str,
    /// The rule that allows or denies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// What the closest rule asks for beyond what the caller has.
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
    /// That of its decision.
    pub request_id: RequestId,
    /// Left out where policy was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<DecisionId>,
    /// Of a live stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Whence the caller came.
    pub address: Address,
    /// Left out where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<&'a str>,
    /// 0 where no answer was sent.
    pub status: u16,
    /// `done` when the whole answer was handed over, or both sides of a live stream ended; `expired` when a live stream outlasted its
    /// token; `cut` when caller, agent or limit ended it early.
    pub ended: &'static str,
    /// Why the relay answered instead of the service: the type of the problem document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Bytes of body, or of a live stream, from the caller.
    pub bytes_in: u64,
    /// The same to the caller.
    pub bytes_out: u64,
    /// From the head to the end.
    pub duration_ms: u64,
    /// The last one that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<&'a AgentName>,
}

/// Anything else worth keeping.
#[derive(Debug, Serialize)]
#[allow(clippy::struct_field_names, reason = "they are the names in the line")]
pub struct Event {
    pub time: Time,
    pub event: &'static str,
    #[serde(flatten)]
    pub detail: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use postern_base::audit::now;

    use super::*;

    /// The line, with what differs from run to run taken out.
    fn shown(record: &impl Serialize, changing: &[String]) -> String {
        let mut line = serde_json::to_string(record).unwrap();
        for text in changing {
            line = line.replace(text, "*");
        }
        let time = line.find("\"time\":\"").unwrap() + 8;
        line.replace_range(time..time + 24, "*");
        line
    }

    #[test]
    fn lines_do_not_change() {
        let (request_id, decision_id) = (RequestId::random(), DecisionId::random());
        let ids = [request_id.to_string(), decision_id.to_string()];
        let address = || Address::Plain(Ipv4Addr::LOCALHOST.into());
        let (groups, scopes) = (["finance".to_owned()], ["invoices:read".to_owned()]);
        let mut decision = Decision {
            time: now(),
            event: "decision",
            request_id,
            decision_id,
            outcome: Outcome::Allow,
            token: None,
            who: Some(Who {
                issuer: "corp",
                subject: "7".into(),
                user: "ada".into(),
                client: Some("postern-cli"),
                groups: &groups,
                scopes: &scopes,
                token_roles: &[],
                acr: Some("mfa"),
                auth_time: Some(7),
                binding: "dpop",
            }),
            roles: &["clerk"],
            address: address(),
            service: Some("billing"),
            method: "GET",
            path: "/v1/invoices/7",
            rule: Some("clerks read invoices"),
            missing: &[],
            reason: None,
        };
        assert_eq!(
            shown(&decision, &ids),
            r#"{"time":"*","event":"decision","request_id":"*","decision_id":"*","outcome":"allow","token":null,"issuer":"corp","subject":"7","user":"ada","client":"postern-cli","groups":["finance"],"scopes":["invoices:read"],"acr":"mfa","auth_time":7,"binding":"dpop","roles":["clerk"],"address":"127.0.0.1","service":"billing","method":"GET","path":"/v1/invoices/7","rule":"clerks read invoices"}"#
        );
        let missing = ["role billing-admin".to_owned()];
        decision = Decision {
            outcome: Outcome::Deny,
            who: None,
            roles: &[],
            rule: None,
            missing: &missing,
            reason: Some("a\nb"),
            ..decision
        };
        assert_eq!(
            shown(&decision, &ids),
            r#"{"time":"*","event":"decision","request_id":"*","decision_id":"*","outcome":"deny","token":null,"roles":[],"address":"127.0.0.1","service":"billing","method":"GET","path":"/v1/invoices/7","missing":["role billing-admin"],"reason":"a\nb"}"#
        );
        let agent: AgentName = "dc1".parse().unwrap();
        let end = End {
            time: now(),
            event: "end",
            request_id,
            decision_id: Some(decision_id),
            lease: Some("l".to_owned()),
            address: Address::Veiled("~x".to_owned()),
            service: Some("billing"),
            status: 200,
            ended: "done",
            reason: Some("agent-busy"),
            bytes_in: 1,
            bytes_out: 2,
            duration_ms: 3,
            agent: Some(&agent),
        };
        assert_eq!(
            shown(&end, &ids),
            r#"{"time":"*","event":"end","request_id":"*","decision_id":"*","lease":"l","address":"~x","service":"billing","status":200,"ended":"done","reason":"agent-busy","bytes_in":1,"bytes_out":2,"duration_ms":3,"agent":"dc1"}"#
        );
    }
}
