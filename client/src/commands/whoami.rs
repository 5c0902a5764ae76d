//! `whoami`: who the relay says the caller is. JSON: `{ relay, principal }`, the principal as `/.postern/services` gives it.

use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::output::Output;
use crate::output::text::{Afar, local_clock, table};
use crate::relay_api::Principal;
use crate::relay_api::address::RelayUrl;

pub(super) async fn run(context: &Context, out: &Output) -> Result<u8, Failure> {
    let relay = &context.relay;
    let found = context.ask(|pass| async move { relay.services(&pass).await }).await?;
    if out.json {
        out.json(&json!({ "relay": relay.url.origin(), "principal": found.principal }));
    } else {
        out.data(&card(&relay.url, &found.principal, &local_clock(found.principal.expires)));
    }
    Ok(0)
}

fn card(relay: &RelayUrl, who: &Principal, until: &str) -> String {
    let list = |items: &[Afar]| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let rows = [
        ("user", who.user.to_string()),
        ("relay", relay.to_string()),
        ("issuer", who.issuer.to_string()),
        ("subject", who.subject.to_string()),
        ("client", who.client.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("scopes", list(&who.scopes)),
        ("roles", list(&who.roles)),
        ("groups", list(&who.groups)),
        ("until", until.to_owned()),
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
        let text = card(&"relay.example.com".parse().unwrap(), &who, "18:02");
        insta::assert_snapshot!(text, @r"
        user     ada@example.com
        relay    relay.example.com
        issuer   corp
        subject  8f2
        client   postern-cli
        scopes   invoices:read, openid
        roles    clerk
        until    18:02
        ");
    }
}
