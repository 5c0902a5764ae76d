//! `issuer test`: the running relay looks at one of its issuers, and at a token with it.

use std::time::SystemTime;

use http::StatusCode;
use postern_base::secret::Secret;
use postern_gate::token::examine::Examined;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, Call, body, value};
use crate::relay::Relay;
use crate::settings::Settings;

#[derive(Serialize, Deserialize)]
pub(crate) struct IssuerCall {
    pub(crate) name: String,
    pub(crate) token: Option<String>,
}

/// What is said of an issuer that is not there.
pub(crate) fn no_such(name: &str, settings: &Settings) -> String {
    let known: Vec<_> = settings.issuers.iter().map(|issuer| issuer.name.to_string()).collect();
    format!(
        "there is no issuer {name}, but {}: if it is new in relay.toml, run: postern-relay reload",
        known.join(", ")
    )
}

pub(super) async fn test(relay: &Relay, call: &Call) -> Answer {
    let IssuerCall { name, token } = body(call)?;
    let token = token.map(Secret::new);
    let issuers = relay.snapshot().issuers.clone();
    let examined = issuers.examine(&name, token.as_ref().map(Secret::expose), SystemTime::now()).await;
    let Some(examined): Option<Examined> = examined else {
        return Err((StatusCode::CONFLICT, json!({ "error": no_such(&name, &relay.snapshot().settings) })));
    };
    value(&examined)
}
