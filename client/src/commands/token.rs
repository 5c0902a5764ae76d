//! `token`: prints an access token, for programs that add it themselves. One that is bound to the session's key is printed too, to be
//! looked at, with the word that it opens nothing by itself: the key is never printed.
//! JSON: [`TokenDocument`].

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::cli::services::Token;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::output::text::escape;

/// `token --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct TokenDocument<'a> {
    token: &'a str,
    /// `Bearer`, or `DPoP` for one that is bound to the session's key.
    token_type: &'static str,
    /// In seconds since the epoch; unknown for a `POSTERN_TOKEN`.
    expires: Option<u64>,
    /// None: the relay's own.
    audience: Option<String>,
}

pub(super) async fn run(context: &Context, args: &Token, out: &Output) -> Result<u8, Failure> {
    let min_ttl = args.min_ttl.map_or(Duration::ZERO, |span| span.0);
    let relay = &context.relay;
    let audience = match &args.service {
        None => None,
        Some(name) => {
            let found = context.ask(|pass| async move { relay.services(&pass).await }).await?.services;
            let service =
                found.into_iter().find(|service| service.name.as_str() == *name).ok_or_else(|| {
                    Failure::new(Exit::NoSuchService, format!("no such service: {}", escape(name)))
                        .fix("see what there is: postern ls")
                })?;
            service.resource
        }
    };
    let pass = context.pass(audience.as_deref(), min_ttl).await?;
    let left = pass.left().as_secs();
    // One that was got just now has lost a second already.
    if left.saturating_add(1) < min_ttl.as_secs() {
        out.warn(&format!("this token lives for {left} s: the issuer gives none for longer now"));
    }
    if pass.is_bound() {
        out.warn(
            "this token is bound to a key that stays here (DPoP): without a proof for each request it is refused. To use it: postern curl, postern forward",
        );
    }
    let (token, token_type) = (pass.token().expose(), pass.scheme());
    if out.json {
        // Of a POSTERN_TOKEN the end is not known.
        let expires = (pass.expires() < u64::MAX).then(|| pass.expires());
        out.json(&TokenDocument { token, token_type, expires, audience });
    } else if args.header {
        out.data(&format!("Authorization: {token_type} {token}"));
    } else {
        out.data(token);
    }
    Ok(0)
}
