//! `whoami`: who the relay says the caller is, and what this machine keeps of that.
//! JSON: [`WhoamiDocument`].

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::profile::KeptIn;
use crate::failure::Failure;
use crate::output::Output;
use crate::output::text::{Afar, local_clock, table};
use crate::relay_api::Principal;
use crate::session::profile::{Account, ProfileName};
use crate::session::vault::Place;

/// `whoami --json`; with `POSTERN_TOKEN` there is no profile and no session.
#[derive(Serialize, JsonSchema)]
pub(super) struct WhoamiDocument {
    profile: Option<ProfileName>,
    relay: String,
    principal: Principal,
    session: Option<Session>,
}

#[derive(Serialize, JsonSchema)]
struct Session {
    kept: Option<KeptIn>,
    renews: bool,
    /// Whether its tokens are bound to a key that stays here.
    bound: bool,
}

pub(super) async fn run(context: &Context, out: &Output) -> Result<u8, Failure> {
    let relay = &context.relay;
    let who = context.ask(|pass| async move { relay.services(&pass).await }).await?.principal;
    let bound = context.pass(None, Duration::ZERO).await?.is_bound();
    let kept = Kept {
        place: context.vault.place_of(&context.account.profile)?,
        renews: context.tokens.renews(),
        bound,
    };
    let is_session = context.tokens.may_renew();
    if out.json {
        let session = Session { kept: kept.place.as_ref().map(KeptIn::of), renews: kept.renews, bound };
        out.json(&WhoamiDocument {
            profile: is_session.then(|| context.account.profile.clone()),
            relay: relay.url.origin(),
            principal: who,
            session: is_session.then_some(session),
        });
    } else {
        out.data(&card(&context.account, &who, &local_clock(who.expires), is_session.then_some(&kept)));
    }
    Ok(0)
}

/// What this machine has of the session.
struct Kept {
    place: Option<Place>,
    renews: bool,
    /// Whether its tokens are.
    bound: bool,
}

impl Kept {
    fn words(&self) -> String {
        let renews = if self.renews { "renews itself" } else { "does not renew itself" };
        let place = match self.place {
            Some(Place::Keyring) => " (OS keyring)",
            Some(Place::File(_)) => " (file)",
            None => "",
        };
        let bound = if self.bound { "; tokens bound to this machine (DPoP)" } else { "" };
        format!("{renews}{place}{bound}")
    }
}

fn card(account: &Account, who: &Principal, until: &str, kept: Option<&Kept>) -> String {
    let list = |items: &[Afar]| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let chosen = Some(&account.profile).filter(|profile| **profile != ProfileName::of(&account.relay));
    let rows = [
        ("user", who.user.to_string()),
        ("relay", account.relay.to_string()),
        ("profile", chosen.map(ToString::to_string).unwrap_or_default()),
        ("issuer", who.issuer.to_string()),
        ("subject", who.subject.to_string()),
        ("client", who.client.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("scopes", list(&who.scopes)),
        ("roles", list(&who.roles)),
        ("groups", list(&who.groups)),
        ("until", until.to_owned()),
        ("session", kept.map_or_else(|| "POSTERN_TOKEN".to_owned(), Kept::words)),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    table(&[], &rows, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card() {
        let who: Principal = serde_json::from_value(serde_json::json!({
            "issuer": "corp", "subject": "8f2", "user": "ada@example.com", "client": "postern-cli",
            "scopes": ["invoices:read", "openid"], "roles": ["clerk"], "groups": [], "expires": 1,
        }))
        .unwrap();
        let account =
            Account { profile: "work".parse().unwrap(), relay: "relay.example.com".parse().unwrap() };
        let kept = Kept { place: Some(Place::Keyring), renews: true, bound: true };
        insta::assert_snapshot!(card(&account, &who, "18:02", Some(&kept)), @r"
        user     ada@example.com
        relay    relay.example.com
        profile  work
        issuer   corp
        subject  8f2
        client   postern-cli
        scopes   invoices:read, openid
        roles    clerk
        until    18:02
        session  renews itself (OS keyring); tokens bound to this machine (DPoP)
        ");
        let given = card(&Account::of("relay.example.com".parse().unwrap()), &who, "18:02", None);
        assert!(given.ends_with("session  POSTERN_TOKEN") && !given.contains("profile"), "{given}");
    }
}
