//! `service add --verify`: takes what is typed and the issuers as the configuration writes them; gives the audience that is the service's own
//! and the lines for agent.toml with which its agent decides again; refuses to guess an audience where there is no one address.

use postern_base::config::{ConfigError, Source};
use postern_base::value::OneOrMany;
use postern_gate::token::settings::IssuerFile;
use serde::Serialize;
use toml_edit::{Array, InlineTable, Value};

use super::{Context, Exit, Failure, ServiceAdd, is_tcp, list_of, one_or_many, rule};
use crate::config::file::RelayFile;
use crate::settings::PublicUrl;

/// What makes a service one that its agent verifies.
pub(super) struct Verify {
    pub(super) audience: String,
    /// What follows `upstream` in agent.toml.
    pub(super) lines: String,
    /// What to know of them, for people.
    pub(super) notes: Vec<String>,
}

/// The part of agent.toml that is written as the relay's.
#[derive(Serialize)]
struct Issuers {
    issuers: Vec<IssuerFile>,
}

impl Verify {
    pub(super) fn new(context: &Context, args: &ServiceAdd, relay: &PublicUrl) -> Result<Self, Failure> {
        let read = || -> Result<RelayFile, ConfigError> { Source::read(&context.config)?.parse() };
        let mut issuers = read().map_err(|e| context.invalid(&[e]))?.issuers;
        issuers.retain(|issuer| args.issuers.is_empty() || args.issuers.contains(&issuer.name));
        let urls = addresses(args, relay);
        let audience = args.audience.clone().or_else(|| Some(urls.first()?.trim_end_matches('/').to_owned()));
        let audience = audience.ok_or_else(|| {
            Failure::new(Exit::Usage, "the service has no one address to be its audience: give --audience A")
        })?;
        let mut notes =
            vec![format!("callers need tokens that are meant for {audience}: make it known to their issuer")];
        let mut verify = InlineTable::new();
        let names = issuers.iter().map(|issuer| issuer.name.to_string());
        for (key, value) in [
            ("issuers", one_or_many(names)),
            ("audience", Some(Value::from(&audience))),
            ("urls", one_or_many(urls.iter().cloned())),
        ] {
            if let Some(value) = value {
                verify.insert(key, value);
            }
        }
        if args.allow.iter().any(|who| who.starts_with("role:")) {
            notes.push(
                "roles are the relay's: without rules of its own the agent takes any good token".to_owned(),
            );
        } else {
            verify.insert("rules", Value::Array(Array::from_iter([rule(args)])));
        }
        if urls.len() < args.hosts.len() {
            notes.push(
                "add to urls each address that a host with \"*\" stands for, for tokens bound to a key"
                    .to_owned(),
            );
        }
        for issuer in &mut issuers {
            let has_files =
                issuer.ca.is_some() || issuer.jwks.as_ref().is_some_and(|jwks| jwks.file.is_some());
            if has_files || issuer.introspect.is_some() {
                let name = &issuer.name;
                notes.push(format!("what issuer {name} names of files and secrets must be at the agent too"));
            }
            // People log in and tokens are exchanged at the relay.
            (issuer.login, issuer.exchange) = (None, None);
            issuer.audience = OneOrMany(vec![audience.clone()]);
        }
        notes.push("leave out an [[issuers]] entry that agent.toml has already".to_owned());
        let issuers = toml::to_string(&Issuers { issuers })?;
        Ok(Self { audience, lines: format!("verify = {verify}\n\n{}", issuers.trim_end()), notes })
    }

    /// What of it belongs into the service's table at the relay.
    pub(super) fn keys(&self) -> [(&'static str, Option<Value>); 2] {
        [("audience", list_of([self.audience.clone()].into_iter())), ("caller_token", Some("agent".into()))]
    }
}

/// Where callers find the service; nothing for hosts that stand for many.
fn addresses(args: &ServiceAdd, relay: &PublicUrl) -> Vec<String> {
    let (origin, name) = (relay.origin(), &args.name);
    if is_tcp(args) {
        return vec![format!("{origin}/.postern/tcp/{name}")];
    }
    if args.hosts.is_empty() {
        return vec![format!("{origin}/{name}/")];
    }
    let exact = args.hosts.iter().filter(|host| !host.starts_with('*'));
    exact
        .map(|host| match relay.port() {
            443 => format!("https://{host}/"),
            port => format!("https://{host}:{port}/"),
        })
        .collect()
}
