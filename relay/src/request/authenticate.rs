//! Who is calling: takes the Authorization and DPoP fields, gives a proved [`Principal`] and what was shown for it; refuses with 401, 429
//! or 503. The token is judged on every request and comes from Authorization alone, its proof from DPoP alone (RFC 6750, RFC 9449).

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};
use postern_gate::principal::Principal;
use postern_gate::token::{self, Accept, Presented, Proof, Scheme, TokenError};
use postern_wire::head::Credential;

use super::record::Record;
use super::respond::Refusal;
use super::route::{self, Place, Routed};
use crate::public::Connection;
use crate::relay::Snapshot;
use crate::settings::TokenUse;

const DPOP: &str = "dpop";

/// A caller whose token is good here.
#[derive(Debug)]
pub struct Caller {
    pub principal: Arc<Principal>,
    pub shown: Shown,
}

/// What a request said of who sends it, and the request that it was said for. Nothing of it is ever logged.
pub struct Shown {
    pub scheme: Scheme,
    /// The Authorization field; its text is known to be visible ASCII.
    authorization: HeaderValue,
    /// Where the token is in it.
    token: (usize, usize),
    proof: Option<HeaderValue>,
    /// The method as it came, before an upgrade made another of it.
    pub method: Method,
    /// The request's public address, without query, where somebody is to be shown it.
    uri: Option<String>,
    /// SHA-256 of the certificate that the caller's TLS handshake proved.
    pub certificate: Option<[u8; 32]>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown(…)")
    }
}

impl Shown {
    pub fn token(&self) -> &str {
        let text = self.authorization.to_str().unwrap_or_default();
        text.get(self.token.0..self.token.1).unwrap_or_default()
    }

    /// The Authorization field as it came, for whom it is passed on to.
    pub fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }

    /// The DPoP field as it came, where the token came with one.
    pub fn proof_field(&self) -> Option<&HeaderValue> {
        self.proof.as_ref()
    }

    /// The same for an agent that judges again.
    pub fn credential(&self) -> Credential<'_> {
        Credential {
            scheme: self.scheme.as_str(),
            token: self.token(),
            proof: self.proof.as_ref().and_then(|field| field.to_str().ok()),
            method: self.method.as_str(),
            public_uri: self.uri.as_deref().unwrap_or_default(),
            certificate_sha256: self.certificate,
        }
    }
}

/// The one token of a request, in its field.
struct Sent<'h> {
    scheme: Scheme,
    field: &'h HeaderValue,
    token: &'h str,
    /// Where the token begins in the field.
    start: usize,
}

/// What a place takes; by default what the relay itself does, and any place where nothing is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'a> {
    pub accept: Accept<'a>,
    /// Whether who has a token that is good, but for another audience, is told so. Else there is no such service.
    pub is_told: bool,
}

/// Who calls a service, or what may be one. `method` is the request's as it came.
pub async fn authenticate(
    connection: &Connection,
    snapshot: &Snapshot,
    head: &Parts,
    method: &Method,
    routed: &Routed,
    record: &mut Record,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let expected = match &routed.place {
        Place::Service(service) => Expected { accept: service.accept(), is_told: !service.hidden },
        Place::Own(_) | Place::Unknown => Expected::default(),
    };
    let uri = |scheme| {
        let is_wanted = scheme == Scheme::Dpop
            || matches!(&routed.place, Place::Service(service) if service.caller_token == TokenUse::Agent);
        is_wanted.then(|| routed.public_uri(&snapshot.settings))
    };
    judge(connection, snapshot, (&head.headers, method), uri, expected, record, now).await
}

/// Who calls one of the relay's own addresses, with a token for what is expected.
pub async fn verify(
    connection: &Connection,
    snapshot: &Snapshot,
    head: &Parts,
    expected: Expected<'_>,
    record: &mut Record,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let uri = |_| Some(route::own_uri(&snapshot.settings, head.uri.path()));
    judge(connection, snapshot, (&head.headers, &head.method), uri, expected, record, now).await
}

async fn judge(
    connection: &Connection,
    snapshot: &Snapshot,
    (headers, method): (&HeaderMap, &Method),
    uri: impl FnOnce(Scheme) -> Option<String>,
    Expected { accept, is_told }: Expected<'_>,
    record: &mut Record,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let admission = connection.worker.relay.admission();
    // Before any cryptography or fetch.
    if !admission.may_authenticate(record.peer().ip(), Instant::now()) {
        return Err(Refusal::TooManyFailures);
    }
    let Sent { scheme, field, token, start } = authorization(headers)?;
    let proof = proof(headers)?.filter(|_| scheme == Scheme::Dpop);
    record.showed(scheme);
    if scheme == Scheme::Dpop {
        record.give_nonce(snapshot.issuers.nonce(now));
    }
    let uri = uri(scheme);
    let proved = |(_, jwt)| Proof { jwt, method: method.as_str(), uri: uri.as_deref().unwrap_or_default() };
    let certificate = connection.certificate;
    let presented = Presented { scheme, token, proof: proof.map(proved), certificate };
    let error = match snapshot.issuers.authenticate(&presented, accept, now).await {
        Ok(principal) => {
            record.authenticated(&principal);
            connection.worker.relay.session().refuses(&principal)?;
            let shown = Shown {
                scheme,
                authorization: field.clone(),
                token: (start, start + token.len()),
                proof: proof.map(|(field, _)| field.clone()),
                method: method.clone(),
                uri,
                certificate,
            };
            return Ok(Caller { principal, shown });
        }
        Err(error) => error,
    };
    // A principal names its token itself; another hash is for those that were refused.
    record.presented(token::token_id(token));
    let error = if is_of_the_place(&error) && (accept.audience.is_some() || accept.issuers.is_some()) {
        // Perhaps the token is good, only not for this service. It is judged to the end as where there is none, so that the answer is
        // that of there.
        match snapshot.issuers.authenticate(&presented, Accept::default(), now).await {
            Ok(principal) => {
                record.authenticated(&principal);
                connection.worker.relay.session().refuses(&principal)?;
                if !is_told || error != TokenError::WrongAudience {
                    return Err(Refusal::NotFound);
                }
                error
            }
            Err(error) => error,
        }
    } else {
        error
    };
    if error.is_failed_authentication() {
        admission.authentication_failed(record.peer().ip(), Instant::now());
    }
    Err(if error.is_unavailable() { Refusal::IssuerUnavailable(error) } else { Refusal::BadToken(error) })
}

/// Whether another place may take the same token.
fn is_of_the_place(error: &TokenError) -> bool {
    matches!(error, TokenError::IssuerNotAccepted(_) | TokenError::WrongAudience | TokenError::Opaque)
}

/// The one proof of a request: the field and its text.
fn proof(headers: &HeaderMap) -> Result<Option<(&HeaderValue, &str)>, Refusal> {
    let mut fields = headers.get_all(DPOP).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Refusal::Malformed("several DPoP fields".into()));
    }
    let Some(field) = field else { return Ok(None) };
    let text = field.to_str().map_err(|_| Refusal::Malformed("the DPoP field is malformed".into()))?;
    Ok(Some((field, text)))
}

fn authorization(headers: &HeaderMap) -> Result<Sent<'_>, Refusal> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let Some(field) = fields.next() else { return Err(Refusal::NoToken) };
    if fields.next().is_some() {
        return Err(Refusal::Malformed("several Authorization fields".into()));
    }
    let text =
        field.to_str().map_err(|_| Refusal::Malformed("the Authorization field is malformed".into()))?;
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    let Some(scheme) = Scheme::named(scheme) else { return Err(Refusal::NoToken) };
    let token = rest.trim_matches(' ');
    if token.bytes().any(|byte| matches!(byte, b',' | b' ' | b'\t')) {
        return Err(Refusal::Malformed("several tokens in the Authorization field".into()));
    }
    if token.is_empty() {
        return Err(Refusal::NoToken);
    }
    let start = text.len() - rest.trim_start_matches(' ').len();
    Ok(Sent { scheme, field, token, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_in_one_field() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            authorization(&headers).map(|Sent { scheme, field, token, start }| {
                assert_eq!(field.to_str().unwrap()[start..start + token.len()], *token);
                format!("{} {token}", scheme.as_str())
            })
        };
        assert_eq!(of(&["Bearer abc"]).unwrap(), "Bearer abc");
        assert_eq!(of(&["bEARER  abc "]).unwrap(), "Bearer abc");
        assert_eq!(of(&["dpop a.b.c"]).unwrap(), "DPoP a.b.c");
        for none in
            [&[][..], &["Basic abc"], &["Bearer"], &["Bearer "], &["Bearerabc"], &["DPoP"], &["DPoP2 a"]]
        {
            assert!(matches!(of(none), Err(Refusal::NoToken)), "{none:?}");
        }
        for bad in [
            &["Bearer a", "Bearer b"][..],
            &["Bearer a", "DPoP a"],
            &["Bearer a, Bearer b"],
            &["Bearer a b"],
            &["DPoP a, Bearer a"],
        ] {
            assert!(matches!(of(bad), Err(Refusal::Malformed(_))), "{bad:?}");
        }
    }
}
