//! Down the tunnel and back: takes a permit and a clean head, gives the upstream's answer as it comes; refuses with 502, 503 or 504.
//! One stream per request. Whatever ends early resets the stream, so that the other side stops at once.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use postern_wire::body::{FramedBody, SendError, send};
use postern_wire::codec::{self, HEAD_LIMIT};
use postern_wire::head::{CallerInfo, Fields, RequestHead, ResponseHead};
use postern_wire::link::{RecvStream, SendStream};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::authorize::Permitted;
use super::body::{Download, ResponseBody, Upload, UploadError};
use super::headers;
use super::record::Record;
use super::respond::Refusal;
use super::route::Routed;
use crate::public::Connection;
use crate::relay::Snapshot;
use crate::tunnel::registry::Occupied;

/// How long a tunnel may take to permit another stream before the next tunnel is tried.
const STREAM_WAIT: Duration = Duration::from_millis(50);
/// Tunnels tried for one request.
const TRIES: usize = 4;

pub async fn forward(
    connection: &Connection,
    snapshot: &Snapshot,
    permitted: &Permitted,
    routed: &Routed,
    mut head: http::request::Parts,
    body: Incoming,
    record: &mut Record,
) -> Result<Response<ResponseBody>, Refusal> {
    let service = permitted.service();
    let (occupied, mut sender, receiver) = open(connection, permitted).await?;
    record.through(&occupied.tunnel().agent);
    let has_body = !body.is_end_stream();
    if !has_body {
        headers::without_body(&mut head.headers);
    }
    let request = request_head(permitted, routed, &mut head, record);
    let stall = snapshot.settings.limits.body_stall;
    let body = Upload::new(body, service.body_limit, stall, record.bytes.clone());
    let (upload, mut uploaded) = if has_body {
        let (told, uploaded) = oneshot::channel();
        let idle = service.idle;
        let sending = connection.worker.tasks.spawn(async move {
            // Whoever waited for the answer may be gone; then nobody needs to know.
            let _ = told.send(send(&mut sender, &request, body, idle).await);
        });
        (Some(AbortOnDropHandle::new(sending)), Some(uploaded))
    } else {
        match send(&mut sender, &request, body, service.idle).await {
            Ok(()) | Err(SendError::Stream(_)) => {}
            Err(SendError::Body(e)) => return Err(refusal_of(&e)),
            Err(SendError::Stalled(idle)) => return Err(Refusal::Silent("limit.idle", idle)),
        }
        (None, None)
    };
    let (answer, receiver) = answer(receiver, &mut uploaded, service.first_byte).await?;
    match answer {
        ResponseHead::Http { status, fields } => {
            let status =
                StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
            let status = status.ok_or(Refusal::TunnelLost)?;
            let mut fields: HeaderMap = fields.0;
            headers::to_caller(status, &mut fields, service, routed);
            let body = FramedBody::new(receiver);
            let download =
                Download::new(body, service.idle, occupied, upload, connection.worker.tasks.clone());
            let mut response = Response::new(ResponseBody::tunnel(download));
            *response.status_mut() = status;
            *response.headers_mut() = fields;
            Ok(response)
        }
        ResponseHead::Failed { stage, detail, .. } => Err(Refusal::Agent { stage, detail: shown(&detail) }),
        // Nothing here asked for an upgrade.
        ResponseHead::Opened => Err(Refusal::TunnelLost),
    }
}

/// A stream on a usable tunnel; a tunnel that gives none in time is passed over for another.
async fn open(
    connection: &Connection,
    permitted: &Permitted,
) -> Result<(Occupied, SendStream, RecvStream), Refusal> {
    let registry = connection.worker.relay.registry();
    let mut tried = Vec::new();
    while tried.len() < TRIES {
        let picked = registry.pick(&permitted.service().name, connection.worker.id, &tried);
        let Some((id, occupied)) = picked else { break };
        if let Ok(Ok((sender, receiver))) =
            tokio::time::timeout(STREAM_WAIT, occupied.tunnel().link.open()).await
        {
            return Ok((occupied, sender, receiver));
        }
        tried.push(id);
    }
    if !tried.is_empty() {
        return Err(Refusal::Overloaded);
    }
    let agents = &permitted.service().agents;
    Err(if registry.has_any_of(agents) { Refusal::NotOffered } else { Refusal::NoAgent })
}

fn request_head(
    permitted: &Permitted,
    routed: &Routed,
    head: &mut http::request::Parts,
    record: &Record,
) -> RequestHead {
    let principal = permitted.principal();
    let path_and_query = match &routed.query {
        Some(query) => format!("{}?{query}", routed.path.as_str()),
        None => routed.path.as_str().to_owned(),
    };
    let trace = head.headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default();
    RequestHead::Http {
        request_id: record.id().to_string(),
        traceparent: trace.to_owned(),
        service: permitted.service().name.to_string(),
        method: head.method.to_string(),
        path_and_query,
        fields: Fields(std::mem::take(&mut head.headers)),
        caller: CallerInfo {
            issuer: principal.issuer().to_string(),
            subject: principal.subject().to_owned(),
            client: principal.client().map(str::to_owned),
            scopes: principal.scopes().to_vec(),
            roles: permitted.permit().roles().iter().map(str::to_owned).collect(),
            expires: principal.expires(),
        },
        credential: None,
        upgrade: None,
    }
}

type Uploaded = oneshot::Receiver<Result<(), SendError<UploadError>>>;

/// Waits for the answer's head. The clock for the first byte starts when the request is sent whole; until then the caller's own pace is
/// what counts, and a body of theirs that fails is the answer.
async fn answer(
    mut receiver: RecvStream,
    uploaded: &mut Option<Uploaded>,
    first_byte: Duration,
) -> Result<(ResponseHead, RecvStream), Refusal> {
    let bytes = {
        let mut message = std::pin::pin!(receiver.message(HEAD_LIMIT));
        let early = match uploaded {
            None => None,
            Some(uploaded) => tokio::select! {
                // A body that failed is why the agent failed too, and is known before the agent can have said so: it goes first.
                biased;
                uploaded = uploaded => match uploaded {
                    Ok(Err(SendError::Body(error))) => return Err(refusal_of(&error)),
                    Ok(Err(SendError::Stalled(idle))) => return Err(Refusal::Silent("limit.idle", idle)),
                    // Sent whole, or the agent wants no more of it: the answer comes.
                    Ok(Ok(()) | Err(SendError::Stream(_))) | Err(_) => None,
                },
                message = &mut message => Some(message),
            },
        };
        match early {
            Some(message) => message,
            None => tokio::time::timeout(first_byte, message)
                .await
                .map_err(|_| Refusal::Silent("limit.first_byte", first_byte))?,
        }
    };
    let bytes = bytes.ok().flatten().ok_or(Refusal::TunnelLost)?;
    let head = codec::decode(&bytes).map_err(|e| {
        tracing::warn!(error = %e, "an agent sent a malformed answer");
        Refusal::TunnelLost
    })?;
    Ok((head, receiver))
}

fn refusal_of(error: &UploadError) -> Refusal {
    match error {
        UploadError::Stalled => Refusal::BodyStalled,
        UploadError::TooLarge(limit) => Refusal::BodyTooLarge(*limit),
        UploadError::Caller(_) => Refusal::BodyBroken,
    }
}

/// An agent's words, made fit for a caller: bounded and without control characters.
fn shown(detail: &str) -> String {
    detail.chars().take(300).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_words_are_bounded_and_harmless() {
        assert_eq!(shown("refused\r\n\u{1b}[31m"), "refused\\r\\n\\u{1b}[31m");
        assert!(shown(&"x".repeat(10_000)).len() <= 300);
    }
}
