//! Who is calling: takes the Authorization field, gives a proved [`Principal`]; refuses with 401, 429 or 503. The token is judged on
//! every request and comes from Authorization alone.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, header};
use postern_gate::principal::Principal;
use postern_gate::token::{self, Accept, Presented, TokenError};

use super::record::Record;
use super::respond::Refusal;
use super::route::{Place, Routed};
use crate::public::Connection;
use crate::relay::Snapshot;

pub async fn authenticate(
    connection: &Connection,
    snapshot: &Snapshot,
    headers: &HeaderMap,
    routed: &Routed,
    record: &mut Record,
    now: SystemTime,
) -> Result<Arc<Principal>, Refusal> {
    let accept = match &routed.place {
        Place::Service(service) => {
            Accept { audience: service.audience.as_deref(), issuers: service.issuers.as_deref() }
        }
        Place::Own(_) | Place::Unknown => Accept { audience: None, issuers: None },
    };
    verify(connection, snapshot, headers, accept, record, now).await
}

/// Judges the request's token for what `accept` says.
pub async fn verify(
    connection: &Connection,
    snapshot: &Snapshot,
    headers: &HeaderMap,
    accept: Accept<'_>,
    record: &mut Record,
    now: SystemTime,
) -> Result<Arc<Principal>, Refusal> {
    let admission = connection.worker.relay.admission();
    // Before any cryptography or fetch.
    if !admission.may_authenticate(connection.peer.ip(), Instant::now()) {
        return Err(Refusal::TooManyFailures);
    }
    let token = bearer(headers)?;
    let error = match snapshot.issuers.authenticate(&Presented::bearer(token), accept, now).await {
        Ok(principal) => {
            record.authenticated(&principal);
            return Ok(principal);
        }
        Err(error) => error,
    };
    // A principal names its token itself; another hash is for those that were refused.
    record.presented(token::token_id(token));
    if matches!(error, TokenError::IssuerNotAccepted(_)) {
        // The token is good, only not for this service, of which its bearer then need not know.
        return Err(Refusal::NotFound);
    }
    // An unknown key while the issuer is silent counts too: anyone can make one up.
    admission.authentication_failed(connection.peer.ip(), Instant::now());
    Err(if error.is_unavailable() { Refusal::IssuerUnavailable(error) } else { Refusal::BadToken(error) })
}

/// The one bearer token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let Some(field) = fields.next() else { return Err(Refusal::NoToken) };
    if fields.next().is_some() {
        return Err(Refusal::Malformed("several Authorization fields".into()));
    }
    let text =
        field.to_str().map_err(|_| Refusal::Malformed("the Authorization field is malformed".into()))?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::NoToken);
    }
    let token = token.trim_matches(' ');
    if token.contains([',', ' ', '\t']) {
        return Err(Refusal::Malformed("several tokens in the Authorization field".into()));
    }
    if token.is_empty() { Err(Refusal::NoToken) } else { Ok(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_token_in_one_field() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of(&["Bearer abc"]).unwrap(), "abc");
        assert_eq!(of(&["bEARER  abc "]).unwrap(), "abc");
        for none in [&[][..], &["Basic abc"], &["Bearer"], &["Bearer "], &["Bearerabc"]] {
            assert!(matches!(of(none), Err(Refusal::NoToken)), "{none:?}");
        }
        for bad in [&["Bearer a", "Bearer b"][..], &["Bearer a, Bearer b"], &["Bearer a b"]] {
            assert!(matches!(of(bad), Err(Refusal::Malformed(_))), "{bad:?}");
        }
    }
}
