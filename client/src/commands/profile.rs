//! `profile ls|use|rm`: the relays and identities that have a session here.
//! JSON: `ls` gives [`Profiles`], `use` [`InUse`], `rm` what `logout` gives.

use schemars::JsonSchema;
use serde::Serialize;

use super::logout::{self, LoggedOut};
use crate::cli::profile::Profile;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::output::text::{Afar, local_clock, table};
use crate::relay_api::address::RelayUrl;
use crate::session::profile::ProfileName;
use crate::session::vault::{Place, Vault, VaultError};
use crate::session::{Session, now};
use crate::settings::Settings;

pub(super) async fn run(settings: &Settings, args: Profile, out: &Output) -> Result<u8, Failure> {
    let vault = Vault::new(settings);
    match args {
        Profile::Ls => ls(&vault, out).await?,
        Profile::Use { name } => {
            let relay = vault.relay_of(&name)?.ok_or_else(|| missing(&name))?;
            vault.set_current(&name)?;
            if out.json {
                out.json(&InUse { in_use: name.clone() });
            }
            out.done(&format!("In use now: profile {name} ({relay})"));
        }
        Profile::Rm { name } => {
            if !vault.profiles()?.contains(&name) {
                return Err(missing(&name));
            }
            let ended = logout::one(&vault, &settings.http()?, &name, None, out).await?;
            if vault.current().as_ref() == Some(&name) {
                vault.unset_current()?;
            }
            if out.json {
                out.json(&LoggedOut { logged_out: vec![ended] });
            }
        }
    }
    Ok(0)
}

fn missing(name: &ProfileName) -> Failure {
    Failure::new(Exit::Other, format!("there is no profile {name}"))
        .fix("see those there are: postern profile ls")
}

/// `profile use --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct InUse {
    in_use: ProfileName,
}

/// `profile ls --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Profiles {
    profiles: Vec<Row>,
}

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum KeptIn {
    Keyring,
    File,
}

impl KeptIn {
    pub(super) fn of(place: &Place) -> Self {
        match place {
            Place::Keyring => Self::Keyring,
            Place::File(_) => Self::File,
        }
    }
}

/// How a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    Renews,
    Over,
    Unreadable,
}

#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Profile")]
struct Row {
    name: ProfileName,
    relay: Option<RelayUrl>,
    user: Option<Afar>,
    issuer: Option<Afar>,
    in_use: bool,
    kept: Option<KeptIn>,
    state: State,
    /// Of the relay's own access token, in seconds since the epoch.
    expires: Option<u64>,
}

impl Row {
    /// `found` is what the vault says of the profile.
    fn new(name: ProfileName, in_use: bool, found: Result<(Session, Place), VaultError>, now: u64) -> Self {
        let Ok((session, place)) = found else {
            let state = State::Unreadable;
            return Self {
                name,
                relay: None,
                user: None,
                issuer: None,
                in_use,
                kept: None,
                state,
                expires: None,
            };
        };
        let expires = session.access.get("").map(|access| access.expires);
        let state = match (session.renews(), expires.is_some_and(|expires| expires > now)) {
            (true, _) => State::Renews,
            (false, true) => State::Good,
            (false, false) => State::Over,
        };
        let (user, issuer) = (session.user.as_deref().map(Afar::from), Afar::from(&*session.issuer));
        Self {
            name,
            relay: Some(session.relay),
            user,
            issuer: Some(issuer),
            in_use,
            kept: Some(KeptIn::of(&place)),
            state,
            expires,
        }
    }

    fn columns(&self, clock: impl Fn(u64) -> String) -> Vec<String> {
        let state = match (self.state, self.expires) {
            (State::Renews, _) => "renews itself".to_owned(),
            (State::Good, Some(expires)) => format!("until {}", clock(expires)),
            (State::Unreadable, _) => "cannot be read".to_owned(),
            (State::Good, None) | (State::Over, _) => "over: log in again".to_owned(),
        };
        let text = |text: Option<String>| text.unwrap_or_default();
        vec![
            (if self.in_use { "*" } else { "" }).to_owned(),
            self.name.to_string(),
            text(self.relay.as_ref().map(ToString::to_string)),
            text(self.user.as_ref().map(ToString::to_string)),
            state,
        ]
    }
}

async fn ls(vault: &Vault, out: &Output) -> Result<(), Failure> {
    let current = vault.current();
    let mut rows = Vec::new();
    for name in vault.profiles()? {
        let profile = name.clone();
        let found = vault.with(move |vault| {
            let missing = || VaultError::Keyring("it has no such entry".into());
            Ok((vault.load(&profile)?.ok_or_else(missing)?, vault.place_of(&profile)?.ok_or_else(missing)?))
        });
        let in_use = current.as_ref() == Some(&name);
        rows.push(Row::new(name, in_use, found.await, now()));
    }
    if out.json {
        out.json(&Profiles { profiles: rows });
    } else if rows.is_empty() {
        out.note("No sessions. To make one: postern login RELAY");
    } else {
        out.data(&listing(&rows, local_clock));
    }
    Ok(())
}

fn listing(rows: &[Row], clock: impl Fn(u64) -> String) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.columns(&clock)).collect();
    table(&["", "PROFILE", "RELAY", "USER", "SESSION"], &rows, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::session;

    #[test]
    fn the_list() {
        let relay: RelayUrl = "relay.example.com".parse().unwrap();
        let row = |name: &str, user: Option<&str>, life: u64, renews: bool| {
            let mut session = session(relay.clone(), "https://id.example.com", life);
            session.user = user.map(str::to_owned);
            session.refresh_token = session.refresh_token.filter(|_| renews);
            Row::new(name.parse().unwrap(), name == "work", Ok((session, Place::Keyring)), now())
        };
        let broken = Row::new("broken".parse().unwrap(), false, Err(VaultError::Nowhere), 0);
        let rows = [
            broken,
            row("relay.example.com", Some("ada@example.com"), 60, true),
            row("short", Some("bob\u{1b}"), 60, false),
            row("work", None, 0, false),
        ];
        let expected = [
            "   PROFILE            RELAY              USER             SESSION",
            "   broken                                                 cannot be read",
            "   relay.example.com  relay.example.com  ada@example.com  renews itself",
            "   short              relay.example.com  bob\\u{1b}        until 18:02",
            "*  work               relay.example.com                   over: log in again",
        ];
        assert_eq!(listing(&rows, |_| "18:02".into()).lines().collect::<Vec<_>>(), expected);
    }
}
