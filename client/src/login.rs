//! Takes a relay and how to log in; gives a session. Step by step: what the relay publishes, that it is about this very relay, that
//! issuer and client id are the pinned ones, the issuer's metadata, a key where the issuer binds tokens to one, then PKCE in the browser, a
//! device code, or what proves a program.

pub(crate) mod callback;
pub(crate) mod device;
pub(crate) mod discovery;
pub(crate) mod id_token;
pub(crate) mod pkce;

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_base::http_client::{HttpClient, is_loopback_host};
use url::Url;

use crate::failure::{Exit, Failure};
use crate::issuer::{Granted, IssuerError, Prover};
use crate::output::Output;
use crate::output::text::escape;
use crate::relay_api::address::RelayUrl;
use crate::relay_api::{ClientIds, Login, Published};
use crate::session::dpop::{KeyError, ProofKey};
use crate::session::machine::{Asked, Machine};
use crate::session::pass::Nonce;
use crate::session::{CLIENT_FIX, Session, now};

/// Why nobody is logged in. Texts are escaped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("{relay} publishes the settings of another relay: {what} is {url:?}")]
    Foreign { relay: RelayUrl, what: &'static str, url: String },
    #[error("{0} offers no login")]
    NoLogins(RelayUrl),
    #[error("{relay} has several logins: {names}")]
    Choose { relay: RelayUrl, names: String },
    #[error("{relay} has no login {name:?}; it has: {names}")]
    NoSuchLogin { relay: RelayUrl, name: String, names: String },
    #[error("{relay} now says {what} {new}; this machine's session was made with {old}")]
    Changed { relay: RelayUrl, what: &'static str, new: String, old: String },
    #[error("{relay} does not offer this login {with}")]
    NotOffered { relay: RelayUrl, with: &'static str },
    #[error("{issuer}: {reason}")]
    Discovery { issuer: String, reason: String },
    #[error("{0:?} will not be opened: only https is, and http on loopback")]
    NotOpened(String),
    #[error("no port on loopback for the browser to come back to: {0}")]
    Callback(std::io::Error),
    #[error("the answer in the browser is not good: {0}")]
    BadCallback(String),
    #[error("the login was refused: {0}")]
    Denied(String),
    #[error("nobody logged in within {0}")]
    TimedOut(String),
    #[error("the ID token is not good: {0}")]
    IdToken(String),
    #[error("{issuer} does not accept this program as {client_id}: {reason}")]
    Client { issuer: String, client_id: String, reason: IssuerError },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

impl From<LoginError> for Failure {
    fn from(error: LoginError) -> Self {
        let message = error.to_string();
        match error {
            LoginError::Foreign { .. } => Self::new(Exit::Config, message).fix(
                "check the name you typed; if it is right, the relay's `url` or login settings are wrong",
            ),
            LoginError::NoLogins(_) => Self::new(Exit::Config, message)
                .fix("ask whoever runs the relay to set `login` for an issuer"),
            LoginError::Choose { .. } => Self::new(Exit::Usage, message).fix("name one with --issuer NAME"),
            LoginError::NoSuchLogin { .. } => {
                Self::new(Exit::Usage, message).fix("name one of those with --issuer")
            }
            LoginError::Changed { relay, .. } => Self::new(Exit::Config, message).fix(format!(
                "ask whoever runs the relay; if it is meant, run: postern login {relay} --force"
            )),
            LoginError::NotOffered { .. } => {
                Self::new(Exit::Config, message).fix("try the other way: with or without --device")
            }
            LoginError::Discovery { .. } | LoginError::NotOpened(_) => {
                Self::new(Exit::Config, message).fix("ask whoever runs the relay to check this issuer")
            }
            LoginError::Callback(_) => Self::new(Exit::Other, message).fix("use --device"),
            LoginError::Denied(_) | LoginError::TimedOut(_) => {
                Self::new(Exit::LoginNeeded, message).fix("run postern login again")
            }
            LoginError::BadCallback(_) | LoginError::IdToken(_) => Self::new(Exit::Other, message)
                .fix("run postern login again; if it stays so, do not trust that issuer's page"),
            LoginError::Client { .. } => Self::new(Exit::LoginNeeded, message).fix(CLIENT_FIX),
            LoginError::Key(_) => Self::new(Exit::Other, message).fix("try again"),
            LoginError::Issuer(_) => {
                Self::new(Exit::Other, message).fix("check that the issuer can be reached, then try again")
            }
        }
    }
}

/// How to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// PKCE, in a browser that is opened here.
    Browser,
    /// PKCE, in a browser that the person opens.
    PrintedAddress,
    /// A code, entered on any device.
    Device,
}

impl Way {
    /// `env` gives a variable's value. Over SSH and without a display a browser would open where nobody looks.
    pub(crate) fn new(device: bool, no_browser: bool, env: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| env(name).is_some_and(|value| !value.is_empty());
        let desktop = cfg!(target_os = "macos") || set("DISPLAY") || set("WAYLAND_DISPLAY") || set("BROWSER");
        match (device, no_browser) {
            (true, _) => Self::Device,
            (false, true) => Self::PrintedAddress,
            (false, false) if set("SSH_CONNECTION") || !desktop => Self::Device,
            (false, false) => Self::Browser,
        }
    }
}

/// What was asked for on the command line.
pub(crate) struct Wanted<'a> {
    pub(crate) relay: &'a RelayUrl,
    pub(crate) issuer: Option<&'a str>,
    pub(crate) way: Way,
    /// Whether the way was chosen by the person: then no other is taken.
    pub(crate) insist: bool,
    pub(crate) scopes: &'a [String],
    pub(crate) force: bool,
    /// The client that a program is, and how it proves that; none: a person logs in.
    pub(crate) machine: Option<&'a (String, Machine)>,
}

/// One login, once it is settled with whom and how.
pub(crate) struct Plan {
    pub(crate) login: Login,
    pub(crate) client_id: String,
    pub(crate) way: Way,
    pub(crate) scopes: Vec<String>,
    pub(crate) machine: Option<Machine>,
    /// Of the session before: what other processes have open stays good.
    pub(crate) key: Option<Arc<ProofKey>>,
    /// The person is to prove anew who they are.
    pub(crate) anew: bool,
}

/// What a program has no use for: these scopes are about people (OpenID Connect Core 5.4, 11).
const OF_PEOPLE: [&str; 6] = ["openid", "offline_access", "profile", "email", "address", "phone"];

/// Settles who will be asked, and refuses before any browser opens what the relay must not say.
pub(crate) fn plan(
    wanted: &Wanted<'_>,
    published: &Published,
    pinned: Option<&Session>,
) -> Result<Plan, LoginError> {
    let relay = wanted.relay;
    let foreign = |what, url: &str| LoginError::Foreign { relay: relay.clone(), what, url: escape(url) };
    if !relay.is_origin_of(&published.relay) {
        return Err(foreign("its url", &published.relay));
    }
    let login = choose(wanted, &published.logins)?.clone();
    if let Some(resource) = login.resource.as_deref().filter(|resource| !relay.is_origin_of(resource)) {
        return Err(foreign("the login's resource", resource));
    }
    let (client_id, way) = client_id(wanted, &login.client_ids)?;
    if let Some(session) = pinned.filter(|_| !wanted.force) {
        let changed = |what, new: &str, old: &str| LoginError::Changed {
            relay: relay.clone(),
            what,
            new: escape(new),
            old: escape(old),
        };
        if session.issuer != login.issuer {
            return Err(changed("its issuer is", &login.issuer, &session.issuer));
        }
        let ids = [&login.client_ids.pkce, &login.client_ids.device].map(Option::as_deref);
        let ids = if wanted.machine.is_some() { &[Some(client_id.as_str())][..] } else { &ids };
        if !ids.contains(&Some(&session.client_id)) {
            return Err(changed("its client id is", &client_id, &session.client_id));
        }
    }
    let key = pinned.filter(|_| !wanted.force).and_then(|session| session.proof_key.clone());
    let (scopes, machine) = (scopes(wanted, &login), wanted.machine.map(|(_, machine)| machine.clone()));
    Ok(Plan { login, client_id, way, scopes, machine, key, anew: wanted.force })
}

/// A person gets all that the relay names; a program may be allowed less, and then says what.
fn scopes(wanted: &Wanted<'_>, login: &Login) -> Vec<String> {
    let published = login.scopes.iter();
    let mut scopes: Vec<String> = match wanted.machine {
        None => published.cloned().collect(),
        Some(_) if !wanted.scopes.is_empty() => Vec::new(),
        Some(_) => published.filter(|scope| !OF_PEOPLE.contains(&scope.as_str())).cloned().collect(),
    };
    for scope in wanted.scopes {
        if !scopes.contains(scope) {
            scopes.push(scope.clone());
        }
    }
    scopes
}

fn choose<'a>(wanted: &Wanted<'_>, logins: &'a [Login]) -> Result<&'a Login, LoginError> {
    let relay = wanted.relay.clone();
    let names = || logins.iter().map(|login| escape(&login.name)).collect::<Vec<_>>().join(", ");
    match (wanted.issuer, logins) {
        (_, []) => Err(LoginError::NoLogins(relay)),
        (None, [only]) => Ok(only),
        (None, _) => Err(LoginError::Choose { relay, names: names() }),
        (Some(name), _) => logins
            .iter()
            .find(|login| login.name == name)
            .ok_or_else(|| LoginError::NoSuchLogin { relay, name: name.to_owned(), names: names() }),
    }
}

fn client_id(wanted: &Wanted<'_>, ids: &ClientIds) -> Result<(String, Way), LoginError> {
    if let Some((id, _)) = wanted.machine {
        return Ok((id.clone(), wanted.way));
    }
    let not_offered = |with| LoginError::NotOffered { relay: wanted.relay.clone(), with };
    let device = wanted.way == Way::Device;
    let (first, other) = if device { (&ids.device, &ids.pkce) } else { (&ids.pkce, &ids.device) };
    match (first, other) {
        (Some(id), _) => Ok((id.clone(), wanted.way)),
        (None, Some(id)) if !wanted.insist => {
            Ok((id.clone(), if device { Way::PrintedAddress } else { Way::Device }))
        }
        (None, _) => Err(not_offered(if device { "by device code" } else { "in a browser" })),
    }
}

/// Carries the plan out.
pub(crate) async fn log_in(
    relay: &RelayUrl,
    plan: Plan,
    http: &HttpClient,
    out: &Output,
) -> Result<Session, LoginError> {
    let metadata = discovery::discover(&plan.login.issuer, http).await?;
    let key = match &plan.key {
        _ if !metadata.binds_tokens() => None,
        Some(key) => Some(key.clone()),
        None => Some(Arc::new(ProofKey::generate()?)),
    };
    let prover = Prover::new(key.clone(), Nonce::default());
    let granted = match (&plan.machine, plan.way) {
        (Some(machine), _) => program(machine, &plan, &metadata, &prover, http).await?,
        (None, Way::Device) => device::log_in(&plan, &metadata, &prover, http, out).await?,
        (None, Way::Browser | Way::PrintedAddress) => {
            pkce::log_in(&plan, &metadata, &prover, http, out).await?
        }
    };
    Ok(session(relay, plan, metadata, key, granted))
}

async fn program(
    machine: &Machine,
    plan: &Plan,
    metadata: &discovery::Metadata,
    prover: &Prover,
    http: &HttpClient,
) -> Result<Granted, LoginError> {
    let asked = Asked {
        machine,
        client_id: &plan.client_id,
        endpoint: &metadata.token_endpoint,
        scopes: &plan.scopes,
        targets: pkce::targets(plan).collect(),
    };
    asked.grant(http, prover).await.map_err(|reason| match reason {
        reason if reason.is_of_client() => {
            let (issuer, client_id) = (escape(&plan.login.issuer), escape(&plan.client_id));
            LoginError::Client { issuer, client_id, reason }
        }
        other => LoginError::Issuer(other),
    })
}

fn session(
    relay: &RelayUrl,
    plan: Plan,
    metadata: discovery::Metadata,
    key: Option<Arc<ProofKey>>,
    granted: Granted,
) -> Session {
    let access = granted.access(now());
    let refresh_token = granted.refresh_token.filter(|_| plan.machine.is_none());
    Session {
        relay: relay.clone(),
        login: plan.login.name,
        issuer: plan.login.issuer,
        client_id: plan.client_id,
        token_endpoint: metadata.token_endpoint,
        revocation_endpoint: metadata.revocation_endpoint,
        resource: plan.login.resource,
        scopes: plan.scopes,
        refresh_token,
        machine: plan.machine,
        proof_key: key,
        user: None,
        ended: false,
        access: BTreeMap::from([(String::new(), access)]),
    }
}

/// Whether a person may be sent to this address.
fn openable(url: &Url) -> Result<&Url, LoginError> {
    let good =
        url.scheme() == "https" || (url.scheme() == "http" && url.host_str().is_some_and(is_loopback_host));
    if good { Ok(url) } else { Err(LoginError::NotOpened(escape(url.as_str()))) }
}

#[cfg(test)]
mod tests;
