//! One try over one tunnel: takes a stream of it, the encoded head and the caller's body as far as nobody has read it; gives the head of
//! the answer and what is left to send; or says how far the request got, which decides whether it may be tried elsewhere.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::Full;
use postern_wire::body::{END_FRAME, SendError, push, send_frames};
use postern_wire::codec::{self, CodecError, HEAD_LIMIT};
use postern_wire::head::{ResponseHead, failure};
use postern_wire::link::{RecvStream, SendStream, StreamError};
use tokio::sync::oneshot;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::super::body::{Upload, UploadError};
use super::super::respond::Refusal;
use crate::settings::Service;

/// The largest body that is held, as one piece, until somebody answers for it; well within what a stream takes without being read.
const HELD: usize = 64 * 1024;

/// What is sent behind the head.
#[derive(Debug)]
pub(super) enum Outgoing {
    Empty,
    /// The body, of which nothing has been read.
    Unread(Upload),
    /// All of it, which came in one piece.
    Held(Bytes),
    /// No body: raw bytes follow once the other side agrees.
    Raw,
    /// It was read on another tunnel.
    Gone,
}

/// A request on its way, with what it may need for another try.
pub(super) struct Attempt<'a> {
    pub(super) head: Bytes,
    pub(super) outgoing: Outgoing,
    /// An upstream may see it twice.
    pub(super) may_repeat: bool,
    pub(super) service: &'a Service,
    pub(super) tasks: &'a TaskTracker,
}

/// How a try failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// No upstream has seen it, for this tunnel is no good.
    Unsent(Refusal),
    /// No upstream has seen it: the agent is busy, or does not reach its upstream.
    Declined(Refusal),
    /// An upstream may have seen it, and nothing was answered.
    Unanswered(Refusal),
    /// There is nothing to try again.
    Final(Refusal),
}

/// What the agent answered.
#[derive(Debug)]
pub(super) enum Answer {
    Http { status: StatusCode, fields: HeaderMap },
    Opened,
}

/// What is still to be sent when the answer's head is here.
#[derive(Debug)]
pub(super) enum Sending {
    Done,
    Going(AbortOnDropHandle<()>),
    Raw(SendStream),
}

#[derive(Debug)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    pub(super) receiver: RecvStream,
    pub(super) sending: Sending,
}

type Uploaded = oneshot::Receiver<Result<(), SendError<UploadError>>>;
type Message = Result<Option<Bytes>, StreamError>;

impl Attempt<'_> {
    pub(super) async fn send(
        &mut self,
        (mut sender, mut receiver): (SendStream, RecvStream),
    ) -> Result<Answered, Failed> {
        self.send_head(&mut sender).await?;
        let mut early = None;
        if let Outgoing::Unread(upload) = &mut self.outgoing {
            // An agent that declines at once leaves the body to be sent elsewhere.
            tokio::select! {
                () = upload.begin() => {}
                message = receiver.message(HEAD_LIMIT) => early = Some(message),
            }
        }
        let early = early.map(|message| self.read(message)).transpose()?;
        let is_answered = match &self.outgoing {
            Outgoing::Unread(upload) => Some(upload.answered()),
            Outgoing::Empty | Outgoing::Held(_) | Outgoing::Raw | Outgoing::Gone => None,
        };
        let (sending, uploaded) = self.send_body(sender).await?;
        let answer = match early {
            Some(answer) => answer,
            None => self.read(answered(&mut receiver, uploaded, self.service.first_byte).await?)?,
        };
        if let Some(is_answered) = is_answered {
            is_answered.store(true, Ordering::Relaxed);
        }
        Ok(Answered { answer, receiver, sending })
    }

    async fn send_head(&self, sender: &mut SendStream) -> Result<(), Failed> {
        let end = if matches!(self.outgoing, Outgoing::Empty) { END_FRAME } else { Bytes::new() };
        let mut chunks = [self.head.clone(), end];
        match push::<Infallible>(sender, &mut chunks, self.service.idle).await {
            // A head of which a part is left here is no request to anyone.
            Err(SendError::Stream(_)) if !chunks[0].is_empty() => Err(Failed::Unsent(Refusal::TunnelLost)),
            // An agent that wants no more than the head will say why.
            sent => sent.or_else(|error| taken(&error)),
        }
    }

    /// Sends the body, or has a task send it where it does not come in one piece, so that the answer may come first.
    async fn send_body(&mut self, mut sender: SendStream) -> Result<(Sending, Option<Uploaded>), Failed> {
        let idle = self.service.idle;
        if let Outgoing::Unread(upload) = &mut self.outgoing
            && let Some(whole) = upload.whole(HELD)
        {
            self.outgoing = Outgoing::Held(whole.map_err(|error| Failed::Final(refusal_of(&error)))?);
        }
        match &self.outgoing {
            Outgoing::Raw => return Ok((Sending::Raw(sender), None)),
            Outgoing::Empty => sender.finish(),
            Outgoing::Held(whole) => {
                let sent = send_frames(&mut sender, Full::new(whole.clone()), idle).await;
                sent.or_else(|error| taken(&error))?;
            }
            Outgoing::Unread(_) | Outgoing::Gone => {
                if let Outgoing::Unread(upload) = std::mem::replace(&mut self.outgoing, Outgoing::Gone) {
                    let (told, uploaded) = oneshot::channel();
                    let sending = self.tasks.spawn(async move {
                        // Whoever waited for the answer may be gone; then nobody needs to know.
                        let _ = told.send(send_frames(&mut sender, upload, idle).await);
                    });
                    return Ok((Sending::Going(AbortOnDropHandle::new(sending)), Some(uploaded)));
                }
            }
        }
        Ok((Sending::Done, None))
    }

    /// Understands the head of the answer.
    fn read(&self, message: Message) -> Result<Answer, Failed> {
        let bytes = match message {
            Ok(Some(bytes)) => bytes,
            Err(StreamError::Codec(error)) => return Err(malformed(&error)),
            Ok(None) | Err(StreamError::Peer(_) | StreamError::Lost(_) | StreamError::Truncated) => {
                return Err(Failed::Unanswered(Refusal::TunnelLost));
            }
        };
        match codec::decode(&bytes).map_err(|e| malformed(&e))? {
            ResponseHead::Http { status, fields } => {
                let status = StatusCode::from_u16(status).map_err(|_| Failed::Final(Refusal::TunnelLost))?;
                let fields = fields.into_map(&bytes).map_err(|e| malformed(&e))?;
                Ok(Answer::Http { status, fields })
            }
            ResponseHead::Opened => Ok(Answer::Opened),
            ResponseHead::Failed { stage, code, detail } => {
                let refusal = Refusal::Agent { stage, code, detail: shown(detail) };
                let may_move = matches!(code, failure::BUSY | failure::REFUSED | failure::UNREACHABLE)
                    && !matches!(self.outgoing, Outgoing::Gone);
                Err(if may_move { Failed::Declined(refusal) } else { Failed::Final(refusal) })
            }
        }
    }
}

/// Where the stream takes no more, the answer says why, or nothing does.
fn taken(error: &SendError<Infallible>) -> Result<(), Failed> {
    match error {
        SendError::Stream(_) => Ok(()),
        SendError::Stalled(idle) => Err(Failed::Final(Refusal::Silent("limit.idle", *idle))),
        SendError::Body(never) => match *never {},
    }
}

/// Waits for the answer's head. The clock for the first byte starts when the request is sent whole; until then the caller's own pace is
/// what counts, and a body of theirs that fails is the answer.
async fn answered(
    receiver: &mut RecvStream,
    uploaded: Option<Uploaded>,
    first_byte: Option<Duration>,
) -> Result<Message, Failed> {
    let mut message = std::pin::pin!(receiver.message(HEAD_LIMIT));
    if let Some(uploaded) = uploaded {
        tokio::select! {
            // A body that failed is why the agent failed too, and is known before the agent can have said so: it goes first.
            biased;
            uploaded = uploaded => match uploaded {
                Ok(Err(SendError::Body(error))) => return Err(Failed::Final(refusal_of(&error))),
                Ok(Err(SendError::Stalled(idle))) => {
                    return Err(Failed::Final(Refusal::Silent("limit.idle", idle)));
                }
                // Sent whole, or the agent wants no more of it: the answer comes.
                Ok(Ok(()) | Err(SendError::Stream(_))) | Err(_) => {}
            },
            message = &mut message => return Ok(message),
        }
    }
    let Some(limit) = first_byte else { return Ok(message.await) };
    let in_time = tokio::time::timeout(limit, message).await;
    in_time.map_err(|_| Failed::Final(Refusal::Silent("limit.first_byte", limit)))
}

fn malformed(error: &CodecError) -> Failed {
    tracing::warn!(%error, "an agent sent a malformed answer");
    Failed::Final(Refusal::TunnelLost)
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
    let mut text = String::new();
    for c in detail.chars().take(300) {
        // JSON does the rest, and would escape a quote twice.
        if c.is_control() { text.extend(c.escape_debug()) } else { text.push(c) }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_words_are_bounded_and_harmless() {
        assert_eq!(shown("refused\r\n\u{1b}[31m"), "refused\\r\\n\\u{1b}[31m");
        assert_eq!(shown("the caller's \"agent\""), "the caller's \"agent\"");
        assert!(shown(&"x".repeat(10_000)).len() <= 300);
    }
}
