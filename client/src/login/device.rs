//! Takes a plan and the issuer's metadata; shows the person a code and an address (RFC 8628) and gives what the issuer granted once the
//! code was entered. Bears the deviations of real providers (see [`mend`]).

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use http::StatusCode;
use openidconnect::core::{
    CoreClient, CoreDeviceAuthorizationResponse, CoreJsonWebKeySet, CoreTokenResponse,
};
use openidconnect::{
    ClientId, DeviceAuthorizationUrl, HttpRequest, HttpResponse, IssuerUrl, Scope, TokenUrl,
};
use postern_base::http_client::HttpClient;
use serde_json::Value;
use tokio::time::Instant;

use super::discovery::Metadata;
use super::pkce::targets;
use super::{LoginError, Plan, id_token, openable};
use crate::issuer::{self, Granted, IssuerError, Prover, Sending};
use crate::output::Output;
use crate::output::text::escape;

/// Codes that the issuer lets live longer are given up all the same.
const PATIENCE: Duration = Duration::from_mins(30);
/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(120);

pub(crate) async fn log_in(
    plan: &Plan,
    metadata: &Metadata,
    prover: &Prover,
    http: &HttpClient,
    out: &Output,
) -> Result<Granted, LoginError> {
    let code = ask(plan, metadata, http).await?;
    let address = escape(openable(code.verification_uri().url())?.as_str());
    let user_code = escape(code.user_code().secret());
    out.warn(&format!("Code: {user_code}   (check that you started this login)"));
    let patience = code.expires_in().min(PATIENCE);
    let waiting = out.waiting(&format!("  Open {address}"));
    let until = Instant::now() + patience;
    let turning = async {
        loop {
            waiting.turn(until.saturating_duration_since(Instant::now()));
            tokio::time::sleep(TURN).await;
        }
    };
    let send = issuer::sender(http, prover);
    let polling = poll(plan, metadata, &code, send, patience, tokio::time::sleep);
    let answer = tokio::select! {
        answer = polling => answer?,
        never = turning => { let never: Infallible = never; match never {} }
    };
    drop(waiting);
    id_token::check(&answer, None, plan, metadata, http).await?;
    Ok(Granted::new(&answer, prover)?)
}

async fn ask(
    plan: &Plan,
    metadata: &Metadata,
    http: &HttpClient,
) -> Result<CoreDeviceAuthorizationResponse, LoginError> {
    let endpoint = metadata.device_authorization_endpoint.clone().ok_or_else(|| LoginError::Discovery {
        issuer: escape(&metadata.issuer),
        reason: "its metadata names no device_authorization_endpoint".into(),
    })?;
    let client =
        client(plan, metadata)?.set_device_authorization_url(DeviceAuthorizationUrl::from_url(endpoint));
    let mut request = client.exchange_device_code().add_scopes(plan.scopes.iter().cloned().map(Scope::new));
    for (name, value) in targets(plan) {
        request = request.add_extra_param(name, value);
    }
    // What it gives is no token, so there is nothing to bind.
    let send = issuer::sender(http, &Prover::default());
    Ok(request.request_async(&send).await.map_err(IssuerError::from)?)
}

/// Asks until there is an answer. The library polls: at the issuer's interval (5 s where it names none), 5 s slower after each
/// `slow_down`, and on through failures of the network. `sleep` comes from the caller so that tests need not wait.
async fn poll<S, F>(
    plan: &Plan,
    metadata: &Metadata,
    code: &CoreDeviceAuthorizationResponse,
    send: impl Fn(HttpRequest) -> Sending,
    patience: Duration,
    sleep: S,
) -> Result<CoreTokenResponse, LoginError>
where
    S: Fn(Duration) -> F,
    F: Future<Output = ()>,
{
    let client = client(plan, metadata)?.set_token_uri(TokenUrl::from_url(metadata.token_endpoint.clone()));
    let mended = |request| {
        let answer = send(request);
        async move { answer.await.map(mend) }
    };
    let mut request = client.exchange_device_access_token(code);
    for (name, value) in targets(plan) {
        request = request.add_extra_param(name, value);
    }
    let answer = request.request_async(&mended, sleep, Some(patience)).await;
    answer.map_err(|error| {
        let error = IssuerError::from(error);
        if let IssuerError::Refused { code, description } = &error {
            if code == "expired_token" {
                return LoginError::TimedOut(format!("{} minutes", patience.as_secs() / 60));
            }
            if code == "access_denied" {
                return LoginError::Denied(format!("{code}{description}"));
            }
        }
        LoginError::Issuer(error)
    })
}

type TokenClient = CoreClient<openidconnect::EndpointNotSet, openidconnect::EndpointNotSet>;

fn client(plan: &Plan, metadata: &Metadata) -> Result<TokenClient, LoginError> {
    let issuer = IssuerUrl::new(metadata.issuer.clone()).map_err(|e| IssuerError::Nonsense(e.to_string()))?;
    Ok(CoreClient::new(ClientId::new(plan.client_id.clone()), issuer, CoreJsonWebKeySet::default())
        .disable_openid_scope())
}

/// Turns what providers answer to a poll into what RFC 8628 says: an error counts by its code, at any status (Google: 428, others even
/// 200); an empty 4xx and any 5xx mean "not yet", until the code expires.
fn mend(mut answer: HttpResponse) -> HttpResponse {
    let has_error = serde_json::from_slice::<Value>(answer.body())
        .is_ok_and(|v| v.get("error").is_some_and(Value::is_string));
    let not_yet = answer.status().is_server_error() && !has_error
        || answer.status().is_client_error() && answer.body().iter().all(u8::is_ascii_whitespace);
    if not_yet {
        *answer.body_mut() = br#"{"error":"authorization_pending"}"#.to_vec();
    }
    if not_yet || has_error {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
    }
    answer
}

#[cfg(test)]
mod tests;
