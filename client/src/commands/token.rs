//! `token`: prints an access token, for programs that add it themselves. One that is bound to the session's key is printed too, to be
//! looked at, with the word that it opens nothing by itself: the key is never printed.
//! JSON: `{ token, token_type, expires, audience }`; `expires` is null for a `POSTERN_TOKEN`.

use std::time::Duration;

use serde_json::json;

use super::Context;
use crate::failure::{Exit, Failure};
use crate::output::Output;

pub(super) struct Wanted<'a> {
    pub(super) service: Option<&'a str>,
    pub(super) header: bool,
    pub(super) min_ttl: Duration,
}

pub(super) async fn run(context: &Context, wanted: &Wanted<'_>, out: &Output) -> Result<u8, Failure> {
    let relay = &context.relay;
    let audience = match wanted.service {
        None => None,
        Some(name) => {
            let found = context.ask(|pass| async move { relay.services(&pass).await }).await?.services;
            let service =
                found.into_iter().find(|service| service.name.as_str() == name).ok_or_else(|| {
                    Failure::new(Exit::NoSuchService, format!("no service {name:?} that you may use"))
                        .fix("see what there is: postern ls")
                })?;
            service.resource
        }
    };
    let pass = context.tokens.pass(audience.as_deref(), wanted.min_ttl).await?;
    let left = pass.left().as_secs();
    // One that was got just now has lost a second already.
    if left.saturating_add(1) < wanted.min_ttl.as_secs() {
        out.warn(&format!("this token lives for {left} s: the issuer gives none for longer now"));
    }
    if pass.is_bound() {
        out.warn(
            "this token is bound to a key that stays here (DPoP): without a proof for each request it is refused. To use it: postern curl, postern forward",
        );
    }
    let (token, kind) = (pass.token().expose(), pass.scheme());
    if out.json {
        // Of a POSTERN_TOKEN the end is not known.
        let expires = (pass.expires() < u64::MAX).then(|| pass.expires());
        out.json(&json!({ "token": token, "token_type": kind, "expires": expires, "audience": audience }));
    } else if wanted.header {
        out.data(&format!("Authorization: {kind} {token}"));
    } else {
        out.data(token);
    }
    Ok(0)
}
