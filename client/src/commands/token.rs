//! `token`: prints an access token, for programs that add it themselves.
//! JSON: `{ token, expires, audience }`; `expires` is null for a `POSTERN_TOKEN`.

use std::time::Duration;

use serde_json::json;

use super::Context;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::session::now;

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
            let found = context.ask(|token| async move { relay.services(&token).await }).await?.services;
            let service =
                found.into_iter().find(|service| service.name.as_str() == name).ok_or_else(|| {
                    Failure::new(Exit::NoSuchService, format!("no service {name:?} that you may use"))
                        .fix("see what there is: postern ls")
                })?;
            service.resource
        }
    };
    let access = context.tokens.access(audience.as_deref(), wanted.min_ttl).await?;
    let left = access.expires.saturating_sub(now());
    // One that was got just now has lost a second already.
    if left.saturating_add(1) < wanted.min_ttl.as_secs() {
        out.warn(&format!("this token lives for {left} s: the issuer gives none for longer now"));
    }
    let token = access.token.0.expose();
    if out.json {
        // Of a POSTERN_TOKEN the end is not known.
        let expires = (access.expires < u64::MAX).then_some(access.expires);
        out.json(&json!({ "token": token, "expires": expires, "audience": audience }));
    } else if wanted.header {
        out.data(&format!("Authorization: Bearer {token}"));
    } else {
        out.data(token);
    }
    Ok(0)
}
