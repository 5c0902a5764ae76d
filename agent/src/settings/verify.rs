//! What `verify` and `[[issuers]]` of agent.toml mean: takes them as typed, gives the issuers, the rules of all verifying services compiled
//! into one policy, and each service's public addresses; refuses keys that only a relay can use.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use postern_base::config::Problem;
use postern_base::id::{IssuerName, ServiceName};
use postern_base::proxy::Proxy;
use postern_gate::policy::{CONNECT, Policy, PolicySource, RuleFile, ServiceKind, ServiceRules};
use postern_gate::token::IssuerSettings;
use url::Url;

use super::Service;
use super::service::Protocol;
use crate::config::AgentFile;
use crate::config::service::VerifyFile;

/// All that deciding again needs; nothing secret.
#[derive(Debug, Clone)]
pub struct Verification {
    pub issuers: Vec<IssuerSettings>,
    pub policy: Arc<Policy>,
    pub services: BTreeMap<ServiceName, Arc<Verify>>,
}

/// How one service is verified.
#[derive(Debug)]
pub struct Verify {
    pub kind: ServiceKind,
    /// Whose tokens it takes; none = all of the file.
    pub issuers: Option<Vec<IssuerName>>,
    /// Whom its tokens must be meant for; none = what their issuer's entry says.
    pub audience: Option<Vec<String>>,
    /// What proofs of possession must be made for: what follows one of them is what the upstream is asked for.
    pub urls: Vec<Url>,
}

/// Reads both; `None` where no service verifies. Problems are added to the others.
pub(super) fn verification(
    file: &AgentFile,
    services: &BTreeMap<ServiceName, Arc<Service>>,
    (dir, proxy): (&Path, &Proxy),
    problems: &mut Vec<Problem>,
) -> Option<Verification> {
    let before = problems.len();
    let mut issuers = Vec::new();
    for (at, issuer) in file.issuers.iter().enumerate() {
        let place = |problem: Problem| problem.under(at.to_string()).under("issuers");
        if issuer.login.is_some() {
            problems.push(place(Problem::new("login", "people log in at the relay: leave this out here")));
        }
        if issuer.exchange.is_some() {
            problems.push(place(Problem::new(
                "exchange",
                "tokens are exchanged by the relay: leave this out here",
            )));
        }
        match issuer.clone().settings(dir) {
            Ok(settings) => issuers.push(settings.through(proxy)),
            Err(problem) => problems.push(place(problem)),
        }
    }
    let names: Vec<IssuerName> = issuers.iter().map(|issuer| issuer.name.clone()).collect();
    let (mut verifying, mut rules) = (BTreeMap::new(), BTreeMap::new());
    for (name, file) in &file.services {
        let (Some(file), Some(service)) = (&file.verify, services.get(name)) else { continue };
        let place = |problem: Problem| problem.under("verify").under(name).under("services");
        let is_alone = file_verifies(services) == 1;
        match verify(file, service, &issuers, is_alone) {
            Ok((verify, ours)) => {
                verifying.insert(name.clone(), Arc::new(verify));
                rules.insert(name.clone(), ours);
            }
            Err(problem) => problems.push(place(problem)),
        }
    }
    if verifying.is_empty() {
        if !file.issuers.is_empty() && problems.len() == before {
            let why = "no service has `verify`, so nothing uses these issuers: add it, or leave them out";
            problems.push(Problem::new("issuers", why));
        }
        return None;
    }
    if problems.len() > before {
        return None;
    }
    let source = PolicySource { issuers: names, services: rules, ..PolicySource::default() };
    match Policy::compile(source) {
        Ok(policy) => Some(Verification { issuers, policy: Arc::new(policy), services: verifying }),
        Err(wrong) => {
            problems.extend(wrong.into_iter().map(within_verify));
            None
        }
    }
}

/// The policy knows rules right below their service.
fn within_verify(mut problem: Problem) -> Problem {
    if problem.at.get(2).is_some_and(|key| key == "rules" || key == "issuers") {
        problem.at.insert(2, "verify".to_owned());
    }
    problem
}

fn file_verifies(services: &BTreeMap<ServiceName, Arc<Service>>) -> usize {
    services.values().filter(|service| service.verifies).count()
}

fn verify(
    file: &VerifyFile,
    service: &Service,
    known: &[IssuerSettings],
    is_alone: bool,
) -> Result<(Verify, ServiceRules), Problem> {
    let issuers = &file.issuers.0;
    if known.is_empty() {
        let why = "there is no [[issuers]] entry in this file whose tokens could be verified: add one";
        return Err(Problem::new("", why));
    }
    if issuers.is_empty() && known.len() > 1 {
        return Err(Problem::new("issuers", "there are several [[issuers]]: name those of this service"));
    }
    let is_known = |name: &IssuerName| known.iter().any(|issuer| issuer.name == *name);
    if let Some(unknown) = issuers.iter().find(|name| !is_known(name)) {
        return Err(Problem::new("issuers", format!("there is no [[issuers]] entry named {unknown}")));
    }
    let taken = |issuer: &&IssuerSettings| issuers.is_empty() || issuers.contains(&issuer.name);
    let are_many = known.iter().filter(taken).any(|issuer| issuer.audience.len() > 1);
    if file.audience.0.is_empty() && are_many && !is_alone {
        let why = "several services verify, and the issuer's tokens have several audiences: name this service's own, or a relay \
                   could use one service's tokens at another";
        return Err(Problem::new("audience", why));
    }
    let audience = Some(file.audience.0.clone()).filter(|audience| !audience.is_empty());
    let kind = match service.protocol {
        Protocol::Tcp => ServiceKind::Tcp,
        Protocol::Http1 | Protocol::Http2 => ServiceKind::Http,
    };
    let mut urls = Vec::new();
    for (at, text) in file.urls.0.iter().enumerate() {
        urls.push(public_url(text, kind).map_err(|why| Problem::new(&format!("urls.{at}"), why))?);
    }
    for (at, rule) in file.rules.iter().enumerate() {
        let place = |key: &str, why: &str| Problem::new(&format!("rules.{at}.{key}"), why);
        if !rule.from.0.is_empty() {
            return Err(place(
                "from",
                "an agent does not see whence a caller comes: write this in relay.toml",
            ));
        }
        if rule.rate.is_some() || rule.quota.is_some() {
            let key = if rule.rate.is_some() { "rate" } else { "quota" };
            return Err(place(key, "requests are counted at the relay: write this in relay.toml"));
        }
    }
    let rules = if file.rules.is_empty() { vec![any_good_token(kind)] } else { file.rules.clone() };
    let ours = ServiceRules { kind, issuers: issuers.clone(), hidden: false, rules };
    let issuers = Some(issuers.clone()).filter(|issuers| !issuers.is_empty());
    Ok((Verify { kind, issuers, audience, urls }, ours))
}

/// Without rules a good token is enough.
fn any_good_token(kind: ServiceKind) -> RuleFile {
    let to = match kind {
        ServiceKind::Http => "* /**",
        ServiceKind::Tcp => CONNECT,
    };
    let one = |text: &str| postern_base::value::OneOrMany(vec![text.to_owned()]);
    RuleFile { name: Some("any good token".to_owned()), allow: one("*"), to: one(to), ..RuleFile::default() }
}

/// A service's public address, as callers write it; everything below it is the service's.
fn public_url(text: &str, kind: ServiceKind) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("{text:?} is not a URL: {e}"))?;
    if url.scheme() != "https"
        || url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
    {
        return Err(format!("{text:?} must be an https address without user, query and fragment"));
    }
    if kind == ServiceKind::Http && !url.path().ends_with('/') {
        return Err(format!("{text:?} must end in \"/\": everything below it belongs to this service"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use crate::config::load;

    fn problems(agent: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, format!("version = 1\nrelay = \"relay.example.com\"\nstate = \"s\"\n{agent}"))
            .unwrap();
        match load(&path) {
            Ok(_) => String::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        }
    }

    const ISSUER: &str = "[[issuers]]\nname = \"corp\"\nissuer = \"https://id.example.com\"\naudience = \"https://b.example.com\"\n";

    fn service(verify: &str) -> String {
        format!("[services.b]\nupstream = \"http://127.0.0.1:1\"\nverify = {verify}\n")
    }

    #[test]
    fn what_verifies_is_understood_and_the_rest_is_refused_in_its_place() {
        let good = r#"{ issuers = "corp", urls = "https://b.example.com/", rules = [{ allow = "group:finance", to = "GET /v1/**", with = { bound = true } }] }"#;
        assert_eq!(problems(&format!("{}{ISSUER}", service(good))), "");
        assert_eq!(problems(&format!("{}{ISSUER}", service("{}"))), "");
        for (verify, issuers, told) in [
            ("{}", "", "no [[issuers]] entry"),
            ("{ issuers = \"other\" }", ISSUER, "named other"),
            ("{ urls = \"http://b.example.com/\" }", ISSUER, "must be an https address"),
            ("{ urls = \"https://b.example.com/b\" }", ISSUER, "must end in"),
            (
                "{ rules = [{ allow = \"*\", to = \"* /**\", from = \"10.0.0.0/8\" }] }",
                ISSUER,
                "does not see whence",
            ),
            (
                "{ rules = [{ allow = \"*\", to = \"* /**\", rate = \"1/s per user\" }] }",
                ISSUER,
                "counted at the relay",
            ),
            ("{ rules = [{ allow = \"role:clerk\", to = \"* /**\" }] }", ISSUER, "role"),
            ("{ rules = [{ allow = \"*\", to = \"nonsense\" }] }", ISSUER, "nonsense"),
            ("{ rulez = [] }", ISSUER, "rulez"),
        ] {
            let shown = problems(&format!("{}{issuers}", service(verify)));
            assert!(shown.contains(told), "{verify}: {shown}");
        }
        let unused = problems(&format!("[services.b]\nupstream = \"http://127.0.0.1:1\"\n{ISSUER}"));
        assert!(unused.contains("nothing uses these issuers"), "{unused}");
        let login = format!("{}{ISSUER}login = {{ client_id = \"x\" }}\n", service("{}"));
        assert!(problems(&login).contains("log in at the relay"));
    }
}
