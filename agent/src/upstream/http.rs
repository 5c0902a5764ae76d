//! Sends a finished request to an upstream: takes a place, finds an address that takes a connection, gives the answer as soon as its head
//! is there. What fails before anything was sent moves on to the next address; what was sent is for the caller of this room to judge.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use tokio_util::task::AbortOnDropHandle;

use super::answer::{AnswerBody, Source};
use super::balance::Place;
use super::connect::Stream;
use super::own::Own;
use super::pool::Lease;
use super::{CallError, Route};
use crate::request::body::{Broken, Uploaded, UpstreamBody};
use crate::settings::Service;
use crate::settings::service::Protocol;

impl Route {
    /// Sends a request; `upload` tells when its body was sent. `is_fresh` goes past connections that were used before.
    pub(crate) async fn call(
        &self,
        request: Request<UpstreamBody>,
        mut upload: Option<Uploaded>,
        is_fresh: bool,
    ) -> Result<Response<AnswerBody>, CallError> {
        let mut place = Place::take(&self.upstream)?;
        let (lease, member) = self.lease(&mut place, is_fresh).await?;
        let limit = &self.upstream.service.limit;
        let (answer, source) = match lease {
            Lease::Own(mut own) => {
                let answer = in_time(own.exchange(request), &mut upload, limit.first_byte).await;
                if let Err(error @ CallError::Unanswered(_)) = &answer
                    && own.is_new()
                {
                    // Something takes connections there, and serves none.
                    self.upstream.out_of_reach(member, error);
                }
                let answer = answer?;
                let source = if upload.is_none() {
                    Source::Own { own: Some(own), home: self.pool.clone(), member }
                } else {
                    let task = AbortOnDropHandle::new(self.pool.tasks.spawn(own.drive()));
                    Source::Driven { _task: task, upload }
                };
                (answer, source)
            }
            Lease::Shared(mut sender, stream) => {
                let exchange = async { sender.send_request(request).await.map_err(|e| broken(&e)) };
                let answer = in_time(exchange, &mut upload, limit.first_byte).await?;
                (answer, Source::Shared { _stream: stream, upload })
            }
        };
        self.upstream.answered();
        Ok(answer.map(|body| AnswerBody::new(body, source, limit.idle, place)))
    }

    /// Asks for another protocol over a connection of its own.
    pub(crate) async fn upgrade(
        &self,
        request: Request<UpstreamBody>,
        mut place: Place,
    ) -> Result<Upgraded, CallError> {
        let limit = &self.upstream.service.limit;
        let (stream, member) = self.open(&mut place).await?;
        let mut own = Own::over(stream).await?;
        let answer = in_time(own.exchange(request), &mut None, limit.first_byte).await?;
        let (parts, body) = answer.into_parts();
        if parts.status != StatusCode::SWITCHING_PROTOCOLS {
            let source = Source::Own { own: Some(own), home: self.pool.clone(), member };
            let body = AnswerBody::new(body, source, limit.idle, place);
            return Ok(Upgraded::Refused(Response::from_parts(parts, body)));
        }
        // hyper lets go of the connection together with the head.
        let ended = tokio::time::timeout(limit.first_byte, own.ended()).await;
        ended.map_err(|_| CallError::Silent(limit.first_byte))?;
        let (stream, early) = own.into_stream();
        Ok(Upgraded::Switched { answer: Response::from_parts(parts, ()), stream, early, _place: place })
    }

    async fn lease(&self, place: &mut Place, is_fresh: bool) -> Result<(Lease, usize), CallError> {
        let mut tried = 0;
        let mut last = None;
        while let Some(member) = place.choose(tried) {
            match self.pool.lease(&self.upstream, member, is_fresh).await {
                Ok(lease) => return Ok((lease, member)),
                Err(error) => {
                    self.upstream.out_of_reach(member, &error);
                    last = Some(error);
                }
            }
            tried |= 1 << member;
        }
        Err(last.unwrap_or(CallError::Refused))
    }
}

/// What became of a wish for another protocol.
pub(crate) enum Upgraded {
    Refused(Response<AnswerBody>),
    /// `early` is what the upstream sent right behind its head.
    Switched {
        answer: Response<()>,
        stream: Stream,
        early: Bytes,
        _place: Place,
    },
}

/// Waits for the answer; its clock starts when the request is sent whole. `upload` is left where that has not happened yet.
async fn in_time<T>(
    answering: impl Future<Output = Result<T, CallError>>,
    upload: &mut Option<Uploaded>,
    limit: Duration,
) -> Result<T, CallError> {
    let mut answering = std::pin::pin!(answering);
    if let Some(uploaded) = upload {
        let early = tokio::select! {
            biased;
            answer = &mut answering => Some(answer),
            () = uploaded.whole() => None,
        };
        if early.is_none() || uploaded.is_whole() {
            *upload = None;
        }
        if let Some(answer) = early {
            return answer;
        }
    }
    tokio::time::timeout(limit, answering).await.unwrap_or(Err(CallError::Silent(limit)))
}

/// Where a request goes, as its protocol writes it: the host in a field of its own, or in the address.
pub(crate) fn target(
    service: &Service,
    host: HeaderValue,
    path: PathAndQuery,
    headers: &mut HeaderMap,
) -> Result<Uri, http::Error> {
    if service.protocol != Protocol::Http2 {
        headers.insert(header::HOST, host);
        return Ok(Uri::from(path));
    }
    headers.remove(header::HOST);
    let scheme = if service.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path).build()
}

/// What hyper's error means for the caller.
pub(crate) fn broken(error: &hyper::Error) -> CallError {
    if let Some(ours) = sources(error).find_map(|cause| cause.downcast_ref::<Broken>()) {
        return CallError::Answer(ours.to_string());
    }
    let text = sources(error).last().map(ToString::to_string).unwrap_or_default();
    let is_unanswered = error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
        || sources(error).any(is_of_the_connection);
    if is_unanswered { CallError::Unanswered(text) } else { CallError::Answer(text) }
}

/// The connection broke, or the upstream left it, before it had looked at the request.
fn is_of_the_connection(cause: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(io) = cause.downcast_ref::<io::Error>() {
        return matches!(io.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    }
    cause.downcast_ref::<h2::Error>().is_some_and(|e| {
        e.is_go_away() && e.is_remote() || e.is_io() || e.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}
