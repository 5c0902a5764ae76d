//! Takes a relay and how to log in; gives a session. Step by step: what the relay publishes, that it is about this very relay, that
//! issuer and client id are the pinned ones, the issuer's metadata, then PKCE in the browser or a device code.

pub(crate) mod callback;
pub(crate) mod device;
pub(crate) mod discovery;
pub(crate) mod id_token;
pub(crate) mod pkce;

use std::collections::BTreeMap;

use postern_base::http_client::{HttpClient, is_loopback_host};
use url::Url;

use crate::failure::{Exit, Failure};
use crate::issuer::{Granted, IssuerError};
use crate::output::Output;
use crate::output::text::escape;
use crate::relay_api::address::RelayUrl;
use crate::relay_api::{ClientIds, Login, Published};
use crate::session::{Session, now};

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
}

/// One login, once it is settled with whom and how.
pub(crate) struct Plan {
    pub(crate) login: Login,
    pub(crate) client_id: String,
    pub(crate) way: Way,
    pub(crate) scopes: Vec<String>,
}

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
        let ids = [&login.client_ids.pkce, &login.client_ids.device];
        if !ids.iter().any(|id| id.as_deref() == Some(&session.client_id)) {
            return Err(changed("its client id is", &client_id, &session.client_id));
        }
    }
    let mut scopes = login.scopes.clone();
    for scope in wanted.scopes {
        if !scopes.contains(scope) {
            scopes.push(scope.clone());
        }
    }
    Ok(Plan { login, client_id, way, scopes })
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
    let granted = match plan.way {
        Way::Device => device::log_in(&plan, &metadata, http, out).await?,
        Way::Browser | Way::PrintedAddress => pkce::log_in(&plan, &metadata, http, out).await?,
    };
    Ok(session(relay, plan, metadata, granted))
}

fn session(relay: &RelayUrl, plan: Plan, metadata: discovery::Metadata, granted: Granted) -> Session {
    let access = granted.access(now());
    Session {
        relay: relay.clone(),
        login: plan.login.name,
        issuer: plan.login.issuer,
        client_id: plan.client_id,
        token_endpoint: metadata.token_endpoint,
        revocation_endpoint: metadata.revocation_endpoint,
        resource: plan.login.resource,
        scopes: plan.scopes,
        refresh_token: granted.refresh_token,
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
