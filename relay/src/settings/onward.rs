//! What of a caller goes on to a service, and which web pages may call it: takes `caller_token`, `exchange`, `send`, `strip_request` and
//! `cors` as typed, gives what the walk looks at; refuses names that are not the operator's to give, and a caller's token in hands that
//! could use it elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use postern_base::config::Problem;
use postern_base::id::ServiceName;
use postern_gate::policy::RuleFile;
use postern_gate::token::settings::IssuerFile;
use postern_gate::token::{ClaimPath, IssuerSettings};
use postern_wire::fields::folded;

use super::{Problems, Service};
use crate::config::file::{CallerToken, CorsFile, ExchangeFile, ServiceFile};
use crate::request::headers::is_ours;

/// Where the caller's own token goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenUse {
    None,
    Agent,
    Upstream,
    Exchange(Exchange),
}

/// What the issuer is asked for instead of the caller's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    pub audience: Option<String>,
    pub resource: Option<String>,
    pub scope: Option<String>,
}

/// The fields of `send`.
#[derive(Debug, Clone, Default)]
pub struct Send {
    pub user: Option<HeaderName>,
    pub roles: Option<HeaderName>,
    pub claims: Vec<(HeaderName, ClaimPath)>,
}

impl Send {
    fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.user.iter().chain(&self.roles).chain(self.claims.iter().map(|(name, _)| name))
    }
}

/// Whose pages may call a service, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    origins: Vec<HeaderValue>,
    /// Those that some rule knows; `None` = all.
    pub methods: Option<HeaderValue>,
}

impl Cors {
    pub fn lists(&self, origin: &HeaderValue) -> bool {
        self.origins.contains(origin)
    }
}

/// A header name in a key of its own.
pub(super) fn header(at: &str, text: &str) -> Result<HeaderName, Problem> {
    text.parse().map_err(|_| Problem::new(at, format!("{text:?} is not a header name")))
}

pub(super) fn send(file: &ServiceFile, problems: &mut Problems) -> Send {
    let mut seen = BTreeSet::new();
    let mut name = |at: Vec<String>, text: &str| {
        let refuse = |why: String| Problem { at: at.clone(), message: why };
        let Ok(name) = text.parse::<HeaderName>() else {
            problems.push(refuse(format!("{text:?} is not a header name")));
            return None;
        };
        let is_new = seen.insert(folded(&name).into_owned());
        match (is_ours(&name), is_new) {
            (false, true) => return Some(name),
            (true, _) => {
                problems
                    .push(refuse("the relay sets or removes that field itself; choose another name".into()));
            }
            (false, false) => problems.push(refuse(format!("send has {text} twice: give each its own name"))),
        }
        None
    };
    let sent = &file.send;
    let sent_at = |key: &str| vec!["send".to_owned(), key.to_owned()];
    let user = sent.user.as_deref().and_then(|text| name(sent_at("user"), text));
    let roles = sent.roles.as_deref().and_then(|text| name(sent_at("roles"), text));
    let claims = sent.claims.iter().filter_map(|(text, claim)| {
        let at = vec!["send".to_owned(), "claims".to_owned(), text.clone()];
        Some((name(at, text)?, claim.clone()))
    });
    let claims = claims.collect();
    Send { user, roles, claims }
}

/// The names, folded, that no caller may say to this service: what it wants stripped and what the relay says in its own words.
pub(super) fn removed(strip: &[HeaderName], send: &Send) -> Vec<String> {
    strip.iter().chain(send.names()).map(|name| folded(name).into_owned()).collect()
}

pub(super) fn token_use(file: &ServiceFile, issuers: &[IssuerSettings]) -> Result<TokenUse, Problem> {
    let takes = |issuer: &IssuerSettings| file.issuers.is_empty() || file.issuers.contains(&issuer.name);
    match (file.caller_token, &file.exchange) {
        (CallerToken::Exchange, Some(exchange)) => {
            let exchange = exchange_of(exchange)?;
            let lacks = issuers.iter().find(|issuer| takes(issuer) && issuer.exchange.is_none());
            if let Some(IssuerSettings { name, .. }) = lacks {
                let fix = "exchange = { client_id = \"…\", client_secret = { … } }";
                let why = format!("needs a client of the relay's at issuer {name}: add {fix} there");
                return Err(Problem::new("caller_token", why));
            }
            Ok(TokenUse::Exchange(exchange))
        }
        (CallerToken::Exchange, None) => Err(Problem::new(
            "caller_token",
            "says not what for: add exchange = { audience = \"…\" }, as the issuer calls the upstream",
        )),
        (_, Some(_)) => {
            Err(Problem::new("exchange", "does nothing without caller_token = \"exchange\": add that"))
        }
        (CallerToken::None, None) => Ok(TokenUse::None),
        (CallerToken::Agent, None) => Ok(TokenUse::Agent),
        (CallerToken::Upstream, None) => Ok(TokenUse::Upstream),
    }
}

fn exchange_of(file: &ExchangeFile) -> Result<Exchange, Problem> {
    let ExchangeFile { audience, resource, scope } = file.clone();
    if audience.is_none() && resource.is_none() {
        return Err(Problem::new("exchange", "name the upstream to the issuer: audience or resource"));
    }
    for (key, value) in [("audience", &audience), ("resource", &resource), ("scope", &scope)] {
        if value.as_ref().is_some_and(String::is_empty) {
            return Err(Problem::new(&format!("exchange.{key}"), "is empty: leave it out"));
        }
    }
    if let Some(resource) = &resource
        && !url::Url::parse(resource).is_ok_and(|url| url.fragment().is_none())
    {
        // RFC 8693, 2.1.
        return Err(Problem::new("exchange.resource", "write an absolute URI without a fragment"));
    }
    Ok(Exchange { audience, resource, scope })
}

/// Whether every rule that allows something demands a token bound to a key.
pub(super) fn is_bound(file: &ServiceFile) -> bool {
    let mut allowing = file.rules.iter().filter(|rule| !rule.allow.0.is_empty()).peekable();
    let demands = |rule: &RuleFile| rule.with.as_ref().is_some_and(|with| with.bound);
    allowing.peek().is_some() && allowing.all(demands)
}

/// The relay signs assertions for services; nothing that it signs may be a token here.
pub(super) fn own_issuer(relay: &str, issuer: &IssuerFile) -> Option<Problem> {
    let is_own = |text: &str| {
        let url = url::Url::parse(text).ok();
        url.is_some_and(|url| url.path() == "/" && url.origin().ascii_serialization() == relay)
    };
    let also = issuer.also.iter().flat_map(|also| &also.0).enumerate();
    let also = also.map(|(at, text)| (format!("also.{at}"), text));
    let mut all = std::iter::once(("issuer".to_owned(), &issuer.issuer)).chain(also);
    let (at, _) = all.find(|(_, text)| is_own(text))?;
    Some(Problem::new(
        &at,
        "that is this relay itself, whose assertions are no tokens: name the authorization server",
    ))
}

pub(super) fn cors(file: &CorsFile, service: &ServiceFile) -> Result<Cors, Problem> {
    if file.origins.is_empty() {
        return Err(Problem::new("cors.origins", "name at least one origin, or leave cors out"));
    }
    let mut origins = Vec::new();
    for (index, text) in file.origins.iter().enumerate() {
        let is_origin = url::Url::parse(text).is_ok_and(|url| {
            matches!(url.scheme(), "https" | "http") && url.origin().ascii_serialization() == *text
        });
        let origin = HeaderValue::from_str(text).ok().filter(|_| is_origin);
        origins.push(origin.ok_or_else(|| {
            let why =
                "write an origin as browsers do, such as \"https://app.example.com\": no path, no slash";
            Problem::new(&format!("cors.origins.{index}"), why)
        })?);
    }
    let allowed = service.rules.iter().filter(|rule| !rule.allow.0.is_empty()).flat_map(|rule| &rule.to.0);
    let mut methods: BTreeSet<&str> =
        allowed.filter_map(|to| to.split_once(' ')).flat_map(|(methods, _)| methods.split(',')).collect();
    if methods.contains("GET") {
        methods.insert("HEAD");
    }
    let is_any = methods.contains("*");
    let listed = methods.into_iter().collect::<Vec<_>>().join(", ");
    // What is no method is the policy's to refuse.
    let methods = HeaderValue::try_from(listed).ok().filter(|_| !is_any);
    Ok(Cors { origins, methods })
}

/// Services that hand a caller's token on, where the hands it comes into could use it at other services: it must be worth nothing there,
/// or nothing without a key (http.md).
pub(super) fn handed_on(
    services: &BTreeMap<ServiceName, Arc<Service>>,
    issuers: &[IssuerSettings],
) -> Problems {
    let handing = services.values().filter(|service| {
        matches!(service.caller_token, TokenUse::Agent | TokenUse::Upstream) && !service.is_bound
    });
    let elsewhere = |audience: &String, own: &ServiceName| {
        let issuer = issuers.iter().find(|issuer| issuer.audience.contains(audience));
        let others = || services.values().filter(|other| other.name != *own);
        let other = || others().find(|other| other.audience.as_ref().is_some_and(|a| a.contains(audience)));
        issuer
            .map(|issuer| format!("issuer {}", issuer.name))
            .or_else(|| other().map(|other| format!("service {}", other.name)))
    };
    let problem = |service: &Arc<Service>| {
        let fix = "give the service an audience of its own, or with = { bound = true } in each of its rules";
        let why = match &service.audience {
            None => format!("whoever gets the token could use it at the relay's other services: {fix}"),
            Some(audience) => {
                let (audience, owner) =
                    audience.iter().find_map(|a| Some((a, elsewhere(a, &service.name)?)))?;
                format!("audience {audience:?} is that of {owner} too, where the token would be taken: {fix}")
            }
        };
        Some(Problem::new("caller_token", why).under(&service.name).under("services"))
    };
    handing.filter_map(problem).collect()
}

#[cfg(test)]
mod tests;
