//! `issuer test`: the running relay looks at one of its issuers, and at a token with it.

use std::time::SystemTime;

use http::StatusCode;
use postern_base::secret::Secret;
use postern_gate::token::examine::Examined;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, Call, body, value};
use crate::relay::Relay;

#[derive(Serialize, Deserialize)]
pub(crate) struct IssuerCall {
    pub(crate) name: String,
    pub(crate) token: Option<String>,
}

pub(super) async fn test(relay: &Relay, call: &Call) -> Answer {
    let IssuerCall { name, token } = body(call)?;
    let token = token.map(Secret::new);
    let issuers = relay.snapshot().issuers.clone();
    let examined = issuers.examine(&name, token.as_ref().map(Secret::expose), SystemTime::now()).await;
    let Some(examined): Option<Examined> = examined else {
        let error =
            format!("there is no issuer {name} in what is in force: if it is new, postern-relay reload");
        return Err((StatusCode::NOT_FOUND, json!({ "error": error })));
    };
    value(&examined)
}
