//! Takes `[[issuers]]` as typed in relay.toml or agent.toml; gives what it means; refuses what cannot work or would be unsafe.
//!
//! A token type `""` means a header without `typ`. What was left out is filled in by `token/presets` first.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use postern_base::config::Problem;
use postern_base::id::IssuerName;
use postern_base::proxy::Proxy;
use postern_base::value::OneOrMany;

use super::claim::ClaimPath;
use super::key::Algorithm;
pub use super::presets::Provider;

mod address;
mod exchange;
mod file;
mod introspect;
mod keys;
mod login;

pub use exchange::{ExchangeFile, ExchangeSettings};
pub use file::{
    Check, Discovery, IntrospectAuth, IntrospectFile, IssuerFile, JwksFile, KidMissing, LoginFile, LoginFlow,
    Plain, SenderConstrained,
};
pub use introspect::{Authentication, IntrospectSettings};
pub(super) use keys::{KeyPlace, KeySource};
pub use login::LoginSettings;

/// An issuer, checked and complete.
#[derive(Debug, Clone, PartialEq)]
pub struct IssuerSettings {
    pub name: IssuerName,
    pub issuer: String,
    pub audience: Vec<String>,
    pub login: Option<LoginSettings>,
    pub check: Check,
    /// Some unless tokens are checked by their signature alone.
    pub introspect: Option<IntrospectSettings>,
    /// Some where tokens can be exchanged for others.
    pub exchange: Option<ExchangeSettings>,
    pub sender_constrained: SenderConstrained,
    pub(super) audience_claim: Vec<ClaimPath>,
    /// None: all.
    pub(super) clients: Option<Vec<String>>,
    pub(super) kid_missing: KidMissing,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) leeway: Duration,
    pub(super) max_lifetime: Duration,
    /// In lower case and without `application/`; the empty one is a header without `typ`.
    pub(super) token_types: Vec<String>,
    pub(super) require: BTreeMap<ClaimPath, Vec<Plain>>,
    pub(super) forbid: Vec<ClaimPath>,
    pub(super) scope_from: Vec<ClaimPath>,
    pub(super) roles_from: Vec<ClaimPath>,
    pub(super) groups_from: Vec<ClaimPath>,
    pub(super) client_from: Vec<ClaimPath>,
    pub(super) subject_from: Vec<ClaimPath>,
    pub(super) user_from: Vec<ClaimPath>,
    pub(super) keys: KeySource,
}

/// How an issuer is reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Reach {
    pub issuer: String,
    /// Other values of `iss` that mean this issuer.
    pub also: Vec<String>,
    pub discovery: Discovery,
    /// PEM of certificates that its own may be signed by, besides the system's.
    pub ca: Option<Vec<u8>>,
    /// Whether its addresses may be private.
    pub private: bool,
    /// The way to it.
    pub proxy: Proxy,
}

/// More would accept tokens long after their expiry (security.md 7).
const MAX_LEEWAY: Duration = Duration::from_mins(1);

impl IssuerFile {
    /// What the entry means; relative paths start at `dir`. Problems are located from the entry on.
    pub fn settings(self, dir: &Path) -> Result<IssuerSettings, Problem> {
        let typed = self.clone();
        let file = self.filled();
        address::issuer(&file.issuer, "issuer")?;
        let also = list(file.also);
        for (at, alias) in also.iter().enumerate() {
            address::issuer(alias, &format!("also.{at}"))?;
        }
        let check = file.check.unwrap_or(Check::Jwt);
        typed.is_consistent(check)?;
        let algorithms = list(file.algorithms);
        let reach = Reach {
            issuer: file.issuer.clone(),
            also,
            discovery: file.discovery.unwrap_or(Discovery::Auto),
            ca: file
                .ca
                .map(|path| address::certificates(&dir.join(path)))
                .transpose()
                .map_err(|message| Problem::new("ca", message))?,
            private: file.private.unwrap_or_default(),
            proxy: Proxy::default(),
        };
        let keys = file.jwks.unwrap_or_default().source(&file.name, &reach, &algorithms, dir);
        let keys = keys.map_err(|problem| problem.under("jwks"))?;
        if reach.discovery == Discovery::Off {
            typed.says_all_endpoints(check, &keys.place)?;
        }
        let exchange = file.exchange.map(|exchange| exchange.settings(reach.clone(), dir)).transpose();
        let introspect = file.introspect.map(|introspect| introspect.settings(reach, dir)).transpose();
        let leeway = file.leeway.map_or(Duration::ZERO, |span| span.0);
        if leeway > MAX_LEEWAY {
            return Err(Problem::new("leeway", "at most 60s: set the clocks right instead"));
        }
        let max_lifetime = file.max_lifetime.map_or(Duration::ZERO, |span| span.0);
        if max_lifetime.is_zero() {
            return Err(Problem::new("max_lifetime", "no token lives for no time: use a longer one"));
        }
        Ok(IssuerSettings {
            name: file.name,
            issuer: file.issuer,
            audience: file.audience.0,
            login: file.login.map(LoginFile::settings).transpose().map_err(|p| p.under("login"))?,
            check,
            introspect: introspect.map_err(|p| p.under("introspect"))?,
            exchange: exchange.map_err(|p| p.under("exchange"))?,
            sender_constrained: file.sender_constrained.unwrap_or(SenderConstrained::Required),
            audience_claim: list(file.audience_claim),
            clients: file.clients.map(|clients| clients.0),
            kid_missing: file.kid_missing.unwrap_or(KidMissing::Refuse),
            algorithms,
            leeway,
            max_lifetime,
            token_types: list(file.token_type).iter().map(|text| normal_type(text)).collect(),
            require: file
                .require
                .unwrap_or_default()
                .into_iter()
                .map(|(path, many)| (path, many.0))
                .collect(),
            forbid: list(file.forbid),
            scope_from: list(file.scope_from),
            roles_from: list(file.roles_from),
            groups_from: list(file.groups_from),
            client_from: list(file.client_from),
            subject_from: list(file.subject_from),
            user_from: list(file.user_from),
            keys,
        })
    }

    /// Nothing is left to be discovered.
    fn says_all_endpoints(&self, check: Check, keys: &KeyPlace) -> Result<(), Problem> {
        let has_introspection =
            self.introspect.as_ref().is_some_and(|introspect| introspect.endpoint.is_some());
        let missing = if check != Check::Introspect && *keys == KeyPlace::Discovered {
            "without discovery, say where the keys are: jwks.uri or jwks.file"
        } else if check != Check::Jwt && !has_introspection {
            "without discovery, say whom to ask: introspect.endpoint"
        } else if self.exchange.as_ref().is_some_and(|exchange| exchange.endpoint.is_none()) {
            "without discovery, say where tokens are exchanged: exchange.endpoint"
        } else {
            return Ok(());
        };
        Err(Problem::new("discovery", missing))
    }

    /// Of what was typed: nothing that means nothing, and no list that says nobody.
    fn is_consistent(&self, check: Check) -> Result<(), Problem> {
        for (key, length) in [
            ("audience", Some(self.audience.0.iter().filter(|one| !one.is_empty()).count())),
            ("algorithms", self.algorithms.as_ref().map(|many| many.0.len())),
            ("token_type", self.token_type.as_ref().map(|many| many.0.len())),
            ("audience_claim", self.audience_claim.as_ref().map(|many| many.0.len())),
            ("subject_from", self.subject_from.as_ref().map(|many| many.0.len())),
            ("clients", self.clients.as_ref().map(|many| many.0.len())),
        ] {
            if length == Some(0) {
                return Err(Problem::new(key, "name at least one, as tokens have it, or leave the key out"));
            }
        }
        if self.audience.0.iter().any(String::is_empty) {
            return Err(Problem::new("audience", "an audience cannot be empty"));
        }
        let empty_require = self.require.iter().flatten().find(|(_, values)| values.0.is_empty());
        if let Some((path, _)) = empty_require {
            let problem = Problem::new("", "name at least one value that the claim may have");
            return Err(problem.under(path).under("require"));
        }
        if check == Check::Introspect {
            let unused = [
                ("jwks", self.jwks.is_some()),
                ("kid_missing", self.kid_missing.is_some()),
                ("algorithms", self.algorithms.is_some()),
                ("token_type", self.token_type.is_some()),
            ];
            if let Some((key, _)) = unused.iter().find(|(_, is_given)| *is_given) {
                let message =
                    "check = \"introspect\" looks at no signature: leave it out, or say check = \"auto\"";
                return Err(Problem::new(key, message));
            }
        }
        match (check, &self.introspect) {
            (Check::Jwt, Some(_)) => Err(Problem::new(
                "introspect",
                "check = \"jwt\" asks nobody: leave it out, or say check = \"introspect\" or \"auto\"",
            )),
            (Check::Introspect | Check::Auto, None) => Err(Problem::new(
                "",
                "tokens of this issuer are asked about: add introspect = { client_id = …, client_secret = { … } }",
            )),
            (Check::Jwt, None) | (Check::Introspect | Check::Auto, Some(_)) => Ok(()),
        }
    }
}

impl IssuerSettings {
    /// The same issuer, reached through a proxy.
    #[must_use]
    pub fn through(mut self, proxy: &Proxy) -> Self {
        self.keys.reach.proxy = proxy.clone();
        if let Some(introspect) = &mut self.introspect {
            introspect.reach.proxy = proxy.clone();
        }
        self
    }

    /// Whether a token's `iss` means this issuer.
    pub fn is_meant_by(&self, iss: &str) -> bool {
        self.issuer == iss || self.keys.reach.also.iter().any(|alias| alias == iss)
    }

    /// Whether these judge every token as others do: all but where people log in, what tokens are exchanged for, and the clocks.
    pub(super) fn judges_like(&self, other: &Self) -> bool {
        let (login, exchange) = (other.login.clone(), other.exchange.clone());
        Self { login, exchange, leeway: other.leeway, ..self.clone() } == *other
    }

    /// Every `iss` of this issuer, and the key that says it.
    pub(super) fn all_iss(&self) -> impl Iterator<Item = (String, &str)> {
        let also =
            self.keys.reach.also.iter().enumerate().map(|(at, iss)| (format!("also.{at}"), iss.as_str()));
        std::iter::once(("issuer".to_owned(), self.issuer.as_str())).chain(also)
    }

    /// Whether JWTs are checked by their signature.
    pub fn has_keys(&self) -> bool {
        self.check != Check::Introspect
    }

    /// Whether what is no JWT is asked about.
    pub fn takes_opaque(&self) -> bool {
        self.check != Check::Jwt
    }
}

/// What is filled in is there; if it were not, nobody would be named by it.
fn list<T>(given: Option<OneOrMany<T>>) -> Vec<T> {
    given.map_or_else(Vec::new, |many| many.0)
}

/// A media type as RFC 7515 4.1.9 compares it: in any case of letters, `application/` left out.
pub(super) fn normal_type(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    lower.strip_prefix("application/").map_or_else(|| lower.clone(), str::to_owned)
}

#[cfg(test)]
mod tests;
