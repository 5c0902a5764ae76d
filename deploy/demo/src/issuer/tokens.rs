//! Takes a grant; gives the token endpoint's answer: a signed access token (RFC 9068), an ID token where `openid` was asked for, and a
//! refresh token where there is one.

use std::time::Duration;

use serde_json::{Value, json};

use super::CLIENT_ID;
use super::codes::{Grant, Redeemed, Time};
use super::keys::{Key, base64url, hash, unguessable};
use super::params::Refusal;

/// Short, so that a person who plays with the demo sees a renewal.
const LIFE: Duration = Duration::from_mins(10);

/// `resource` is the audience of the access token.
pub(super) fn answer(
    now: Time,
    key: &Key,
    issuer: &str,
    resource: &str,
    redeemed: Redeemed,
) -> Result<Value, Refusal> {
    let (grant, refresh) = redeemed;
    let access_token = key.sign("at+jwt", &access_claims(now, issuer, resource, &grant))?;
    let mut answer = json!({
        "access_token": access_token, "token_type": "Bearer", "expires_in": LIFE.as_secs(), "scope": grant.scope,
    });
    if grant.has("openid") {
        answer["id_token"] = key.sign("JWT", &id_claims(now, issuer, &access_token, &grant))?.into();
    }
    if let Some(refresh) = refresh {
        answer["refresh_token"] = refresh.into();
    }
    Ok(answer)
}

fn access_claims(now: Time, issuer: &str, resource: &str, grant: &Grant) -> Value {
    let mut claims = common_claims(now, issuer, resource, grant);
    claims["jti"] = unguessable().into();
    claims["client_id"] = CLIENT_ID.into();
    claims["scope"] = grant.scope.clone().into();
    claims["groups"] = grant.person.groups.into();
    claims
}

fn id_claims(now: Time, issuer: &str, access_token: &str, grant: &Grant) -> Value {
    let mut claims = common_claims(now, issuer, CLIENT_ID, grant);
    // OpenID Connect Core 3.1.3.6: the left half of the hash.
    claims["at_hash"] = base64url(&hash(access_token.as_bytes())[..16]).into();
    if let Some(nonce) = &grant.nonce {
        claims["nonce"] = nonce.clone().into();
    }
    claims
}

fn common_claims(now: Time, issuer: &str, audience: &str, grant: &Grant) -> Value {
    json!({
        "iss": issuer, "sub": grant.person.name, "aud": audience,
        "iat": now.as_secs(), "exp": (now + LIFE).as_secs(), "auth_time": grant.at.as_secs(),
        "email": grant.person.email, "email_verified": true,
    })
}
