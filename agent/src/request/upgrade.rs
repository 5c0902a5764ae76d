//! An upgrade to WebSocket (RFC 6455, 4): takes the caller's handshake, makes it with the upstream over a connection of its own, and
//! passes bytes both ways after a 101 that was made for it. Any other status is an ordinary answer; a 101 that does not fit is refused.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use postern_wire::head::failure;
use postern_wire::link::{RecvStream, SendStream};
use postern_wire::pipe::{Counts, pipe};

use super::failed::Failure;
use super::http::{Asked, back, encoded, request};
use crate::settings::service::Protocol;
use crate::supervisor::Agent;
use crate::upstream::balance::Place;
use crate::upstream::http::Upgraded;
use crate::upstream::{CallError, Route};

/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

pub(super) async fn serve(
    agent: &Agent,
    route: &Route,
    asked: &Asked<'_>,
    receiver: RecvStream,
    sender: &mut SendStream,
) -> Result<(), Failure> {
    let service = &route.upstream.service;
    let mut request = request(route, asked)?;
    if service.protocol == Protocol::Http2 {
        let detail =
            "this service's upstream is HTTP/2, where there are no upgrades: write http:// or https://";
        return Err(Failure::agent(failure::NOT_SUPPORTED, detail));
    }
    let headers = request.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    let key = key(headers)?;
    let failed = |e: CallError| Failure::of(agent, route, &e);
    let place = Place::take(&route.upstream).map_err(failed)?;
    match route.upgrade(request, place).await.map_err(failed)? {
        Upgraded::Refused(answer) => back(route, answer, sender).await,
        Upgraded::Switched { answer, stream, early, _place } => {
            judge(&answer, key.as_bytes()).map_err(|why| {
                Failure::bad_answer(format!("the upstream switched protocols wrongly: {why}"))
            })?;
            let head = encoded(StatusCode::SWITCHING_PROTOCOLS.as_u16(), answer.headers())?;
            // Whoever is gone already has reset the stream, which ends this task.
            if sender.send(&mut [head, early]).await.is_ok() {
                let counts = Counts::default();
                let ended = pipe(stream, sender, receiver, Some(service.limit.idle), &counts).await;
                tracing::debug!(service = %service.name, ?ended, ?counts, "a WebSocket ended");
            }
            Ok(())
        }
    }
}

/// The caller's key; or one of ours, for callers over HTTP/2, who have none (RFC 8441, 5).
fn key(headers: &mut HeaderMap) -> Result<HeaderValue, Failure> {
    if headers.get_all(header::SEC_WEBSOCKET_KEY).iter().count() > 1 {
        return Err(Failure::malformed("Sec-WebSocket-Key"));
    }
    if let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) {
        return Ok(key.clone());
    }
    let own = STANDARD.encode(rand::random::<[u8; 16]>());
    let own = HeaderValue::try_from(own).map_err(|_| Failure::malformed("Sec-WebSocket-Key"))?;
    headers.insert(header::SEC_WEBSOCKET_KEY, own.clone());
    Ok(own)
}

/// RFC 6455, 4.1, "Once the client's opening handshake has been sent": what a 101 must say.
fn judge(answer: &Response<()>, key: &[u8]) -> Result<(), &'static str> {
    let headers = answer.headers();
    let has = |name: HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if !has(header::UPGRADE, "websocket") {
        return Err("its Upgrade is not websocket");
    }
    if !has(header::CONNECTION, "upgrade") {
        return Err("its Connection does not say upgrade");
    }
    let mut accepts = headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    match (accepts.next(), accepts.next()) {
        (Some(accept), None) if accept.as_bytes() == accept_of(key).as_bytes() => Ok(()),
        _ => Err("its Sec-WebSocket-Accept was not made for this request"),
    }
}

fn accept_of(key: &[u8]) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455, 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    #[test]
    fn a_101_must_be_made_for_this_request() {
        assert_eq!(accept_of(KEY.as_bytes()), ACCEPT);
        let judged = |fields: &[(&'static str, &'static str)]| {
            let mut answer = Response::new(());
            for (name, value) in fields {
                answer.headers_mut().append(*name, HeaderValue::from_static(value));
            }
            judge(&answer, KEY.as_bytes())
        };
        let (upgrade, connection) = (("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade"));
        let accept = ("sec-websocket-accept", ACCEPT);
        assert_eq!(judged(&[upgrade, connection, accept]), Ok(()));
        for bad in [
            &[connection, accept][..],
            &[("upgrade", "h2c"), connection, accept],
            &[upgrade, accept],
            &[upgrade, ("connection", "close"), accept],
            &[upgrade, connection],
            &[upgrade, connection, ("sec-websocket-accept", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=")],
            &[upgrade, connection, accept, accept],
        ] {
            assert!(judged(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn callers_without_a_key_get_one() {
        let mut headers = HeaderMap::new();
        let own = key(&mut headers).unwrap();
        assert_eq!(STANDARD.decode(own.as_bytes()).unwrap().len(), 16);
        assert_eq!(key(&mut headers).unwrap(), own, "kept from now on");
        headers.append(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("another"));
        assert!(key(&mut headers).is_err());
    }
}
