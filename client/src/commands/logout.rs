//! `logout`: has the issuer revoke the tokens (RFC 7009), and forgets them whether or not it could.
//! JSON: [`LoggedOut`].

use postern_base::http_client::HttpClient;
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;
use crate::issuer::Revoker;
use crate::output::Output;
use crate::relay_api::address::RelayUrl;
use crate::session::profile::{Account, ProfileName};
use crate::session::vault::{Vault, VaultError};
use crate::session::{Session, SessionError};
use crate::settings::Settings;

/// `logout --json`, and `profile rm --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct LoggedOut {
    pub(super) logged_out: Vec<Ended>,
}

/// A session that is no more.
#[derive(Serialize, JsonSchema)]
pub(super) struct Ended {
    profile: ProfileName,
    relay: Option<String>,
    /// Whether its issuer took the tokens back.
    revoked: bool,
}

pub(super) async fn run(settings: &Settings, all: bool, out: &Output) -> Result<u8, Failure> {
    let vault = Vault::new(settings);
    let http = settings.http()?;
    let mut ended = Vec::new();
    if all {
        for profile in vault.profiles()? {
            ended.push(one(&vault, &http, &profile, None, out).await?);
        }
        if ended.is_empty() {
            out.note("No sessions.");
        }
    } else {
        let Account { profile, relay } = vault.account(settings.profile.as_ref(), settings.relay.as_ref())?;
        ended.push(one(&vault, &http, &profile, Some(&relay), out).await?);
    }
    if out.json {
        out.json(&LoggedOut { logged_out: ended });
    }
    Ok(0)
}

/// Ends a profile's session; `relay` is what it is thought to be for.
pub(super) async fn one(
    vault: &Vault,
    http: &HttpClient,
    profile: &ProfileName,
    relay: Option<&RelayUrl>,
    out: &Output,
) -> Result<Ended, Failure> {
    let _lock = vault.lock(profile).await.map_err(SessionError::from)?;
    let place = profile.clone();
    // What cannot be read can be forgotten all the same.
    let session = match vault.with(move |vault| vault.load(&place)).await {
        Err(VaultError::Unreadable(_)) => None,
        other => other?,
    };
    let revoked = match &session {
        Some(session) => revoke(http, session).await,
        None => Err("there was no session that could be read".to_owned()),
    };
    let place = profile.clone();
    vault.with(move |vault| vault.forget(&place)).await?;
    let relay = session.as_ref().map(|session| &session.relay).or(relay);
    let account = relay.map(|relay| Account { profile: profile.clone(), relay: relay.clone() });
    let name = account.as_ref().map_or_else(|| profile.to_string(), Account::to_string);
    // A name of one's own says nothing without its session.
    if relay.is_none_or(|relay| ProfileName::of(relay) != *profile)
        && vault.current().as_ref() == Some(profile)
    {
        vault.unset_current()?;
    }
    match &revoked {
        Ok(()) => out.done(&format!("Logged out of {name}")),
        Err(reason) if session.is_none() => out.note(&format!("Not logged in to {name}: {reason}")),
        Err(reason) => {
            out.done(&format!("Logged out of {name}"));
            out.warn(&format!("the session is forgotten here, but was not revoked: {reason}"));
        }
    }
    let relay = relay.map(RelayUrl::origin);
    Ok(Ended { profile: profile.clone(), relay, revoked: revoked.is_ok() })
}

/// The refresh token, because it makes new ones, then the access tokens. The issuer may know nothing of the latter (JWTs): its refusal
/// there is no failure.
async fn revoke(http: &HttpClient, session: &Session) -> Result<(), String> {
    let endpoint = session.revocation_endpoint.as_ref().ok_or("the issuer offers no revocation")?;
    let revoker = Revoker { endpoint, client_id: &session.client_id, machine: session.machine.as_ref() };
    let mut result = Ok(());
    if let Some(refresh) = &session.refresh_token {
        result = revoker.revoke(http, refresh, "refresh_token").await.map_err(|e| e.to_string());
    }
    for access in session.access.values() {
        if let Err(error) = revoker.revoke(http, &access.token, "access_token").await {
            tracing::debug!(%error, "access token not revoked");
        }
    }
    result
}
