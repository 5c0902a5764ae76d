//! The last touch to a head that goes to an upstream: takes the permit and what the caller showed; says who calls, and adds the token that
//! the service's `caller_token` gives; refuses what does not fit or cannot be had.

use std::time::SystemTime;

use http::request::Parts;
use http::{HeaderName, Method, header};
use postern_gate::token::Scheme;

use super::authenticate::Shown;
use super::authorize::Permitted;
use super::respond::Refusal;
use crate::onward::IdentityError;
use crate::relay::{Relay, Snapshot};
use crate::settings::TokenUse;
use crate::workers::Worker;

const ASSERTION: &str = "x-postern-assertion";

/// Who calls, in the relay's own words.
pub fn identify(
    worker: &Worker,
    snapshot: &Snapshot,
    permitted: &Permitted,
    head: &mut Parts,
    now: SystemTime,
) -> Result<(), Refusal> {
    let (keys, origin) = (&worker.relay.onward().keys, snapshot.settings.url.origin());
    let identity = worker.identities.of(permitted, keys, origin, now);
    let identity = identity.map_err(|e| match e {
        IdentityError::TooLarge(field) => Refusal::IdentityTooLarge(field),
        IdentityError::Unsigned => {
            tracing::error!("no randomness to sign with");
            Refusal::Internal
        }
    })?;
    identity.say(&mut head.headers);
    if head.method == Method::TRACE {
        // Its answer would show the caller what proves to the upstream that a request came through here.
        head.headers.remove(ASSERTION);
    }
    Ok(())
}

/// The token that the upstream gets, if any.
pub async fn credential(
    relay: &Relay,
    snapshot: &Snapshot,
    permitted: &Permitted,
    shown: &Shown,
    head: &mut Parts,
    now: SystemTime,
) -> Result<(), Refusal> {
    let headers = &mut head.headers;
    match &permitted.service().caller_token {
        TokenUse::None | TokenUse::Agent => {}
        // As it came, with its scheme and its proof: a token that is bound to a key is never made a bearer token.
        TokenUse::Upstream => {
            headers.insert(header::AUTHORIZATION, shown.authorization().clone());
            if let (Scheme::Dpop, Some(proof)) = (shown.scheme, shown.proof_field()) {
                headers.insert(HeaderName::from_static("dpop"), proof.clone());
            }
        }
        // The answer to TRACE would show it to the caller.
        TokenUse::Exchange(_) if head.method == Method::TRACE => {}
        TokenUse::Exchange(exchange) => {
            let exchanges = &relay.onward().exchanges;
            let issuers = &snapshot.issuers;
            // Boxed: most services exchange nothing, and their requests would carry its size about.
            let given =
                Box::pin(exchanges.authorization(issuers, permitted, shown.token(), exchange, now)).await;
            let given = given.map_err(|e| {
                let service = &permitted.service().name;
                tracing::warn!(%service, issuer = %permitted.principal().issuer(), error = %e, "no token for the upstream");
                Refusal::NotExchanged(e)
            })?;
            headers.insert(header::AUTHORIZATION, given);
        }
    }
    Ok(())
}
