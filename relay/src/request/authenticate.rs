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
    /// The request's public address, without query.
    pub uri: String,
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

    /// The DPoP proof, where the token came with one.
    pub fn proof(&self) -> Option<&str> {
        self.proof.as_ref().and_then(|field| field.to_str().ok())
    }

    /// The same for an agent that judges again.
    pub fn credential(&self) -> Credential<'_> {
        Credential {
            scheme: self.scheme.as_str(),
            token: self.token(),
            proof: self.proof(),
            method: self.method.as_str(),
            public_uri: &self.uri,
            certificate_sha256: self.certificate,
        }
    }

    fn presented(&self) -> Presented<'_> {
        let proof = |jwt| Proof { jwt, method: self.method.as_str(), uri: &self.uri };
        Presented {
            scheme: self.scheme,
            token: self.token(),
            proof: self.proof().map(proof),
            certificate: self.certificate,
        }
    }

    fn of(
        connection: &Connection,
        headers: &HeaderMap,
        method: &Method,
        uri: String,
    ) -> Result<Self, Refusal> {
        let (scheme, authorization, token) = authorization(headers)?;
        let mut proofs = headers.get_all(DPOP).iter();
        let proof = proofs.next();
        if proofs.next().is_some() {
            return Err(Refusal::Malformed("several DPoP fields".into()));
        }
        if proof.is_some_and(|proof| proof.to_str().is_err()) {
            return Err(Refusal::Malformed("the DPoP field is malformed".into()));
        }
        Ok(Self {
            scheme,
            authorization: authorization.clone(),
            token,
            proof: proof.filter(|_| scheme == Scheme::Dpop).cloned(),
            method: method.clone(),
            uri,
            certificate: connection.certificate,
        })
    }
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
    let accept = match &routed.place {
        Place::Service(service) => {
            Accept { audience: service.audience.as_deref(), issuers: service.issuers.as_deref() }
        }
        Place::Own(_) | Place::Unknown => Accept::default(),
    };
    let uri = || routed.public_uri(&snapshot.settings);
    judge(connection, snapshot, (&head.headers, method), uri, accept, record, now).await
}

/// Who calls one of the relay's own addresses, with a token for what `accept` says.
pub async fn verify(
    connection: &Connection,
    snapshot: &Snapshot,
    head: &Parts,
    accept: Accept<'_>,
    record: &mut Record,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let uri = || route::own_uri(&snapshot.settings, head.uri.path());
    judge(connection, snapshot, (&head.headers, &head.method), uri, accept, record, now).await
}

async fn judge(
    connection: &Connection,
    snapshot: &Snapshot,
    (headers, method): (&HeaderMap, &Method),
    uri: impl FnOnce() -> String,
    accept: Accept<'_>,
    record: &mut Record,
    now: SystemTime,
) -> Result<Caller, Refusal> {
    let admission = connection.worker.relay.admission();
    // Before any cryptography or fetch.
    if !admission.may_authenticate(record.peer().ip(), Instant::now()) {
        return Err(Refusal::TooManyFailures);
    }
    let shown = Shown::of(connection, headers, method, uri())?;
    record.showed(shown.scheme);
    if shown.scheme == Scheme::Dpop {
        record.give_nonce(snapshot.issuers.nonce(now));
    }
    let error = match snapshot.issuers.authenticate(&shown.presented(), accept, now).await {
        Ok(principal) => {
            record.authenticated(&principal);
            connection.worker.relay.session().refuses(&principal)?;
            return Ok(Caller { principal, shown });
        }
        Err(error) => error,
    };
    // A principal names its token itself; another hash is for those that were refused.
    record.presented(token::token_id(shown.token()));
    if matches!(error, TokenError::IssuerNotAccepted(_)) {
        // The token is good, only not for this service, of which its bearer then need not know.
        return Err(Refusal::NotFound);
    }
    if error.is_failed_authentication() {
        admission.authentication_failed(record.peer().ip(), Instant::now());
    }
    Err(if error.is_unavailable() { Refusal::IssuerUnavailable(error) } else { Refusal::BadToken(error) })
}

/// The one token of a request: its scheme, the field, and where the token is in it.
fn authorization(headers: &HeaderMap) -> Result<(Scheme, &HeaderValue, (usize, usize)), Refusal> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let Some(field) = fields.next() else { return Err(Refusal::NoToken) };
    if fields.next().is_some() {
        return Err(Refusal::Malformed("several Authorization fields".into()));
    }
    let text =
        field.to_str().map_err(|_| Refusal::Malformed("the Authorization field is malformed".into()))?;
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    let Some(named) = Scheme::named(scheme) else { return Err(Refusal::NoToken) };
    let token = rest.trim_matches(' ');
    if token.contains([',', ' ', '\t']) {
        return Err(Refusal::Malformed("several tokens in the Authorization field".into()));
    }
    if token.is_empty() {
        return Err(Refusal::NoToken);
    }
    let start = text.len() - rest.trim_start_matches(' ').len();
    Ok((named, field, (start, start + token.len())))
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
            authorization(&headers).map(|(scheme, field, (start, end))| {
                format!("{} {}", scheme.as_str(), &field.to_str().unwrap()[start..end])
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
