//! `login`: makes a session with a relay, unless there is a good one, and its profile the one in use.
//! JSON: [`LoggedIn`].

use postern_base::http_client::HttpClient;
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::program;
use crate::cli::login::{Identity, Login};
use crate::failure::{Exit, Failure};
use crate::login::{self, Wanted, Way};
use crate::output::Output;
use crate::output::text::{Afar, escape, local_clock};
use crate::relay_api::address::RelayUrl;
use crate::relay_api::{Relay, RelayError};
use crate::session::machine::Machine;
use crate::session::pass::{Nonce, Pass};
use crate::session::profile::{Account, ProfileName};
use crate::session::refresh::Tokens;
use crate::session::vault::{Place, Vault, VaultError};
use crate::session::{Session, SessionError};
use crate::settings::{Keep, Settings};

pub(super) async fn run(
    settings: &Settings,
    args: Login,
    renewals: &TaskTracker,
    out: &Output,
) -> Result<u8, Failure> {
    let vault = Vault::new(settings);
    if settings.keep == Keep::Nowhere {
        return Err(VaultError::Nowhere.into());
    }
    if settings.token.is_some() {
        return Err(Failure::new(Exit::Config, "POSTERN_TOKEN is set: a session would not be used")
            .fix("unset POSTERN_TOKEN, then log in"));
    }
    let typed = args.to.as_ref().or(settings.relay.as_ref());
    let account = match (&settings.profile, typed) {
        // It may be new, or be about to become this relay's.
        (Some(profile), Some(relay)) => Account { profile: profile.clone(), relay: relay.clone() },
        (profile, relay) => vault.account(profile.as_ref(), relay)?,
    };
    let machine = program::machine(&args.client, settings)?;
    let http = settings.http()?;
    let pinned = pinned(&vault, &account, args.force).await?;
    let before = vault.current();
    if let Some(session) =
        pinned.as_ref().filter(|session| !args.force && covers(session, &args, machine.as_ref()))
        && let Some((user, expires)) = still_good(&account, &vault, &http, renewals).await?
    {
        vault.set_current(&account.profile)?;
        tell(&Told { account: &account, session, user, expires, kept: None, before }, out);
        return Ok(0);
    }
    let wanted = wanted(&account.relay, &args, machine.as_ref());
    let (session, expires, kept) = make(settings, &account, &wanted, pinned.as_ref(), out).await?;
    vault.set_current(&account.profile)?;
    let user = Afar::from(session.user.as_deref().unwrap_or_default());
    tell(&Told { account: &account, session: &session, user, expires, kept: Some(kept), before }, out);
    Ok(0)
}

/// The person at the terminal logs in once more, as before, to the account that a command is about to use. The profile in use stays.
pub(super) async fn again(settings: &Settings, account: &Account, out: &Output) -> Result<(), Failure> {
    let pinned = pinned(&Vault::new(settings), account, false).await?;
    let issuer = pinned.as_ref().map(|session| session.login.clone());
    let scopes = pinned.as_ref().map(|session| session.scopes.clone()).unwrap_or_default();
    let args = Login {
        to: None,
        issuer,
        device: false,
        no_browser: false,
        scopes,
        force: false,
        client: Identity::default(),
    };
    let wanted = wanted(&account.relay, &args, None);
    let (session, expires, kept) = make(settings, account, &wanted, pinned.as_ref(), out).await?;
    let user = Afar::from(session.user.as_deref().unwrap_or_default());
    let told = Told { account, session: &session, user, expires, kept: Some(kept), before: None };
    out.done(&line(&told, &local_clock(expires)));
    Ok(())
}

/// The session whose relay, issuer and client id are not to change unless that is meant.
async fn pinned(vault: &Vault, account: &Account, force: bool) -> Result<Option<Session>, Failure> {
    let Account { profile, relay } = account.clone();
    let found = match vault.with(move |vault| vault.load(&profile)).await {
        Err(VaultError::Unreadable(_)) if force => None,
        other => other?,
    };
    match found {
        Some(session) if session.relay != relay && !force => {
            let failure = format!("profile {} is for {}, not for {relay}", account.profile, session.relay);
            Err(Failure::new(Exit::Config, failure)
                .fix("choose another name with --profile; to give this one to the other relay: --force"))
        }
        found => Ok(found.filter(|session| session.relay == relay)),
    }
}

/// Logs in, shows the relay what it got, and keeps it.
async fn make(
    settings: &Settings,
    account: &Account,
    wanted: &Wanted<'_>,
    pinned: Option<&Session>,
    out: &Output,
) -> Result<(Session, u64, Place), Failure> {
    let (vault, profile) = (Vault::new(settings), account.profile.clone());
    let room = vault.with(move |vault| vault.ready(&profile)).await?;
    let http = settings.http()?;
    let mut session = log_in(wanted, pinned, &http, out).await?;
    let (user, expires) = introduce(&Relay::new(account.relay.clone(), http), &mut session).await?;
    session.user = Some(user.raw().to_owned());
    drop(room);
    let lock = vault.lock(&account.profile).await.map_err(SessionError::from)?;
    let kept = vault.save_locked(&account.profile, session.clone(), lock).await?;
    if let Place::File(path) = &kept
        && settings.keep == Keep::Best
    {
        out.warn(&format!("no OS keyring here: the session is kept in {} (0600)", path.display()));
    }
    Ok((session, expires, kept))
}

fn wanted<'a>(relay: &'a RelayUrl, args: &'a Login, machine: Option<&'a (String, Machine)>) -> Wanted<'a> {
    Wanted {
        relay,
        issuer: args.issuer.as_deref(),
        way: Way::new(args.device, args.no_browser, |name| std::env::var(name).ok()),
        insist: args.device || args.no_browser,
        scopes: &args.scopes,
        force: args.force,
        machine,
    }
}

/// Whether the session has all that is asked for now.
fn covers(session: &Session, args: &Login, machine: Option<&(String, Machine)>) -> bool {
    let same = |(id, machine): &(String, Machine)| {
        session.client_id == *id && session.machine.as_ref() == Some(machine)
    };
    machine.is_none_or(same)
        && args.scopes.iter().all(|scope| session.scopes.contains(scope))
        && args.issuer.as_ref().is_none_or(|name| *name == session.login)
}

/// Who one is and until when, if the session can still be used (or renewed) and the relay accepts it.
async fn still_good(
    account: &Account,
    vault: &Vault,
    http: &HttpClient,
    renewals: &TaskTracker,
) -> Result<Option<(Afar, u64)>, Failure> {
    let tokens = Tokens::new(account.clone(), None, vault.clone(), http.clone(), renewals.clone());
    let pass = match tokens.pass(None, std::time::Duration::ZERO).await {
        Ok(pass) => pass,
        Err(
            SessionError::None(_)
            | SessionError::Over { .. }
            | SessionError::Renewal { .. }
            | SessionError::Client { .. },
        ) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match Relay::new(account.relay.clone(), http.clone()).services(&pass).await {
        Ok(found) => Ok(Some((found.principal.user, found.principal.expires))),
        Err(error) if error.is_unauthorized() && !error.is_locked() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A session that neither the relay has seen nor anybody has kept yet.
pub(super) async fn log_in(
    wanted: &Wanted<'_>,
    pinned: Option<&Session>,
    http: &HttpClient,
    out: &Output,
) -> Result<Session, Failure> {
    let relay = wanted.relay;
    let api = Relay::new(relay.clone(), http.clone());
    let published = api.published().await.map_err(|error| match error {
        // A relay always publishes its logins, but only under its own name.
        RelayError::Refused { status: 401 | 404, .. } => {
            Failure::new(Exit::Config, format!("this relay does not answer as {relay}"))
                .fix("use the url it was set up with")
        }
        error @ (RelayError::Refused { .. }
        | RelayError::Unreachable { .. }
        | RelayError::NotPostern { .. }
        | RelayError::Pass(_)) => error.into(),
    })?;
    let plan = login::plan(wanted, &published, pinned)?;
    if pinned.is_none() || wanted.force {
        out.note(&format!(
            "Relay   {relay}\nIssuer  {} ({})",
            escape(&plan.login.issuer),
            escape(&plan.login.name)
        ));
    }
    Ok(login::log_in(relay, plan, http, out).await?)
}

/// Shows the new token to the relay: a session that it refuses is no use. What it knows of the token's end is better than a guess.
pub(super) async fn introduce(api: &Relay, session: &mut Session) -> Result<(Afar, u64), Failure> {
    let Some(access) = session.access.get_mut("") else {
        return Err(Failure::new(Exit::Other, "the issuer gave no access token"));
    };
    let pass = Pass::new(access.clone(), session.proof_key.as_ref(), &Nonce::default());
    match api.services(&pass).await {
        Ok(found) => {
            access.expires = found.principal.expires;
            Ok((found.principal.user, found.principal.expires))
        }
        Err(RelayError::Refused { status: 401, problem, .. }) if !problem.is_locked() => {
            let said = problem.detail.as_ref().unwrap_or(&problem.title);
            Err(Failure::new(
                Exit::Config,
                format!("{} does not accept what the issuer gave: {said}", api.url),
            )
            .fix(
                "ask whoever runs the relay to compare the issuer's audience and token type with relay.toml",
            ))
        }
        Err(error) => Err(error.into()),
    }
}

/// `login --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct LoggedIn<'a> {
    profile: &'a ProfileName,
    relay: String,
    issuer: &'a str,
    user: &'a Afar,
    /// The end of the token at hand, in seconds since the epoch.
    expires: u64,
    renews: bool,
    /// Whether this was a login: false where the session was there already.
    new: bool,
}

struct Told<'a> {
    account: &'a Account,
    session: &'a Session,
    user: Afar,
    expires: u64,
    /// `None`: the session was there already.
    kept: Option<Place>,
    /// The profile that was in use.
    before: Option<ProfileName>,
}

fn tell(told: &Told<'_>, out: &Output) {
    let Account { profile, relay } = told.account;
    if out.json {
        out.json(&LoggedIn {
            profile,
            relay: relay.origin(),
            issuer: &told.session.issuer,
            user: &told.user,
            expires: told.expires,
            renews: told.session.renews(),
            new: told.kept.is_some(),
        });
    }
    out.done(&line(told, &local_clock(told.expires)));
    if let Some(before) = told.before.as_ref().filter(|before| *before != profile) {
        out.note(&format!(
            "  In use now: profile {profile} (back to the other: postern profile use {before})"
        ));
    }
    out.note("  Next: postern ls");
}

fn line(told: &Told<'_>, until: &str) -> String {
    let head = if told.kept.is_some() { "Logged in" } else { "Already logged in" };
    let renewal = if told.session.renews() { "; renews itself" } else { "" };
    let place = match &told.kept {
        Some(Place::Keyring) => " (OS keyring)",
        Some(Place::File(_)) => " (file)",
        None => "\n  (--force logs in anew; --profile NAME for another person beside)",
    };
    format!("{head} as {} until {until}{renewal}{place}", told.user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::session;

    #[test]
    fn the_line_says_who_until_when_and_where() {
        let session = session("https://relay.example.com".parse().unwrap(), "https://id.example.com", 60);
        let account = Account::of(session.relay.clone());
        let mut told = Told {
            account: &account,
            session: &session,
            user: "ada@example.com".into(),
            expires: 0,
            kept: Some(Place::Keyring),
            before: None,
        };
        assert_eq!(
            line(&told, "18:02"),
            "Logged in as ada@example.com until 18:02; renews itself (OS keyring)"
        );
        told.kept = None;
        assert_eq!(
            line(&told, "18:02"),
            "Already logged in as ada@example.com until 18:02; renews itself\n  \
             (--force logs in anew; --profile NAME for another person beside)"
        );
    }
}
