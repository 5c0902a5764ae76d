//! Token exchange (RFC 8693): takes a caller's token and what another one is wanted for; gives the issuer's answer; refuses answers that
//! are not a bearer token for that, and to ask an issuer that shows that asking makes things worse. No answer is remembered here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, Uri};
use postern_base::id::IssuerName;
use postern_base::secret::Secret;
use serde_json::Value;
use tokio::time::Instant;

use super::breaker::Breaker;
use super::discovery::Endpoint;
use super::error::Quoted;
use super::introspection::{AskError, Asker, CredentialsError};
use super::settings::ExchangeSettings;
use super::{Issuers, json};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// Some issuers call the access token that they give by its form (RFC 8693, 3).
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// What another token is wanted for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub audience: Option<&'a str>,
    pub resource: Option<&'a str>,
    pub scope: Option<&'a str>,
}

/// A token that the issuer gave.
#[derive(Debug, Clone)]
pub struct Exchanged {
    pub token: Secret,
    /// From the answer on.
    pub expires_in: Option<Duration>,
}

/// Why there is no other token. What callers are shown; the rest is logged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExchangeError {
    #[error("the token's issuer does not answer: try again")]
    Unavailable,
    #[error("the token's issuer refuses to exchange it ({0}): ask whoever runs this service")]
    Refused(Quoted),
    #[error("the token's issuer answered wrongly, {0}: ask whoever runs this service")]
    Malformed(&'static str),
}

/// Whom to ask, as which client, and whether to ask at all.
pub(super) struct Exchanger {
    asker: Asker,
    breaker: Breaker,
}

impl Exchanger {
    pub(super) fn new(settings: &ExchangeSettings) -> Self {
        let endpoints = [Endpoint::Token, Endpoint::MtlsToken];
        let asker = Asker::new(&settings.reach, &settings.auth, settings.endpoint.as_ref(), endpoints);
        Self { asker, breaker: Breaker::new() }
    }

    /// Whether secrets, keys and certificates that prove who asks can be read, and fit.
    pub(super) fn check(&self) -> Result<(), CredentialsError> {
        self.asker.check()
    }

    /// What the issuer answers, whatever that is; `None` while nobody is to ask.
    async fn ask(&self, form: &[(&str, &str)]) -> Option<Result<(Arc<Uri>, Response<Bytes>), AskError>> {
        let leave = self.breaker.leave(Instant::now())?;
        let answer = self.asker.post(form).await;
        match &answer {
            Ok((_, answer)) if answer.status().is_server_error() => leave.failed(Instant::now()),
            Ok(_) => leave.answered(),
            Err(error) if error.is_overload() => leave.failed(Instant::now()),
            Err(error) if error.is_answer() => leave.answered(),
            // It cost nobody's time, and shows nothing.
            Err(_) => {}
        }
        Some(answer)
    }
}

impl Issuers {
    /// Asks `issuer` once to exchange `token`, which is known to be good.
    pub async fn exchange(
        &self,
        issuer: &IssuerName,
        token: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Exchanged, ExchangeError> {
        let found = self.all.iter().find(|one| one.settings.name == *issuer);
        let exchanger = found.and_then(|issuer| issuer.exchanger.as_ref());
        // Settings see to it that there is one; a reload in between may not.
        let exchanger = exchanger.ok_or(ExchangeError::Unavailable)?;
        let mut form = vec![
            ("grant_type", GRANT),
            ("subject_token", token),
            ("subject_token_type", ACCESS_TOKEN),
            ("requested_token_type", ACCESS_TOKEN),
        ];
        let asked = [("audience", wanted.audience), ("resource", wanted.resource), ("scope", wanted.scope)];
        form.extend(asked.into_iter().filter_map(|(name, value)| Some((name, value?))));
        match exchanger.ask(&form).await {
            // Said when it began.
            None => Err(ExchangeError::Unavailable),
            Some(Ok((uri, answer))) => given(&answer).inspect_err(|_| {
                tracing::warn!(%issuer, %uri, status = answer.status().as_u16(), "no token in exchange");
            }),
            Some(Err(error)) => {
                tracing::warn!(%issuer, %error, "cannot ask the issuer to exchange a token");
                Err(ExchangeError::Unavailable)
            }
        }
    }
}

/// RFC 8693, 2.2.
fn given(answer: &Response<Bytes>) -> Result<Exchanged, ExchangeError> {
    let members = json::object(answer.body()).unwrap_or_default();
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::TOO_MANY_REQUESTS => return Err(ExchangeError::Unavailable),
        status if status.is_server_error() => return Err(ExchangeError::Unavailable),
        _ => {
            let malformed = ExchangeError::Malformed("it neither gives nor refuses");
            return Err(text("error").map_or(malformed, |code| ExchangeError::Refused(Quoted::new(code))));
        }
    }
    let token = text("access_token").filter(|token| !token.is_empty());
    let token = token.ok_or(ExchangeError::Malformed("it gives no token"))?;
    // Any other kind would need a key that the upstream does not have.
    if !text("token_type").is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
        return Err(ExchangeError::Malformed("it gives no bearer token"));
    }
    if !text("issued_token_type").is_some_and(|kind| kind == ACCESS_TOKEN || kind == JWT) {
        return Err(ExchangeError::Malformed("it gives no access token"));
    }
    let expires_in = members.get("expires_in").and_then(Value::as_u64).map(Duration::from_secs);
    Ok(Exchanged { token: Secret::new(token), expires_in })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::token::tests::support::{FakeIssuer, settings};

    fn answered(status: u16, body: &Value) -> Result<Exchanged, ExchangeError> {
        given(&Response::builder().status(status).body(body.to_string().into()).unwrap())
    }

    fn good() -> Value {
        json!({
            "access_token": "t", "token_type": "bearer", "issued_token_type": ACCESS_TOKEN, "expires_in": 60,
        })
    }

    #[tokio::test]
    async fn an_issuer_that_goes_on_failing_is_left_alone_for_a_while() {
        let issuer = FakeIssuer::start().await;
        issuer.page("/token", 500, "");
        let this = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let table = format!(
            "exchange = {{ client_id = \"relay\", client_secret = {{ file = \"{this}\" }}, endpoint = \"{}/token\" }}",
            issuer.url
        );
        let settings = settings(&issuer.url, &table);
        let name = settings.name.clone();
        let issuers = Issuers::new(vec![settings]).unwrap();
        let wanted = Wanted { audience: Some("billing"), resource: None, scope: None };
        for _ in 0..8 {
            let refused = issuers.exchange(&name, "token", &wanted).await.unwrap_err();
            assert!(matches!(refused, ExchangeError::Unavailable), "{refused}");
        }
        assert_eq!(issuer.asked("/token"), 5, "the breaker opened");
    }

    #[test]
    fn a_bearer_access_token_is_taken_and_nothing_else() {
        let exchanged = answered(200, &good()).unwrap();
        assert_eq!((exchanged.token.expose(), exchanged.expires_in), ("t", Some(Duration::from_mins(1))));
        for (member, value) in [
            ("access_token", json!("")),
            ("access_token", json!(7)),
            ("token_type", json!("DPoP")),
            ("token_type", json!("N_A")),
            ("issued_token_type", json!("urn:ietf:params:oauth:token-type:id_token")),
            ("issued_token_type", Value::Null),
        ] {
            let mut bad = good();
            bad[member] = value;
            assert!(matches!(answered(200, &bad), Err(ExchangeError::Malformed(_))), "{bad}");
        }
        assert!(matches!(answered(302, &good()), Err(ExchangeError::Malformed(_))));
    }

    #[test]
    fn a_refusal_names_its_code_and_an_outage_is_one() {
        let refused = answered(400, &json!({ "error": "invalid_target", "error_description": "secret" }));
        let shown = refused.unwrap_err().to_string();
        assert!(shown.contains("invalid_target") && !shown.contains("secret"), "{shown}");
        for status in [429, 500, 503] {
            assert!(matches!(answered(status, &json!({})), Err(ExchangeError::Unavailable)), "{status}");
        }
    }
}
