//! The sending half: takes a body, sends it as frames, and ends the stream well only where the body did; refuses to wait for ever on a
//! peer that takes nothing.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::Body;

use super::{DATA, END_FRAME, TRAILERS, TRAILERS_LIMIT, header};
use crate::codec;
use crate::head::Fields;
use crate::link::{Code, SendStream, StreamError};

/// Which side broke a body off.
#[derive(Debug, thiserror::Error)]
pub enum SendError<E> {
    /// The body itself failed; the stream was reset.
    #[error("the body broke off: {0}")]
    Body(E),
    /// The stream did not take it.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The peer took nothing for the idle limit; the stream was reset.
    #[error("the other side took nothing for {0:?}")]
    Stalled(Duration),
}

/// Sends an encoded head and a whole body, then the good end; a peer that takes nothing for `idle` is given up. A body that fails resets the stream with [`Code::BROKEN_BODY`].
pub async fn send<B>(
    stream: &mut SendStream,
    head: Bytes,
    body: B,
    idle: Option<Duration>,
) -> Result<(), SendError<B::Error>>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.is_end_stream() {
        push(stream, &mut [head, END_FRAME], idle).await?;
        stream.finish();
        return Ok(());
    }
    push(stream, &mut [head], idle).await?;
    send_frames(stream, body, idle).await
}

/// Sends chunks; a peer that takes none of them for `idle` is given up.
pub async fn push<E>(
    stream: &mut SendStream,
    chunks: &mut [Bytes],
    idle: Option<Duration>,
) -> Result<(), SendError<E>> {
    let Some(idle) = idle else { return Ok(stream.send(chunks).await?) };
    let sent = tokio::select! {
        biased;
        sent = stream.send(chunks) => Some(sent),
        // Armed only where the stream did not take everything at once.
        () = tokio::time::sleep(idle) => None,
    };
    if let Some(sent) = sent {
        return Ok(sent?);
    }
    stream.reset(Code::TIMEOUT);
    Err(SendError::Stalled(idle))
}

pub async fn send_frames<B>(
    stream: &mut SendStream,
    mut body: B,
    idle: Option<Duration>,
) -> Result<(), SendError<B::Error>>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        match frame {
            None => {
                push(stream, &mut [END_FRAME], idle).await?;
                stream.finish();
                return Ok(());
            }
            Some(Err(error)) => {
                stream.reset(Code::BROKEN_BODY);
                return Err(SendError::Body(error));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                // The last piece and the End frame leave together, which spares a packet for every short body.
                Ok(data) if body.is_end_stream() => {
                    push(stream, &mut [header(DATA, data.len()), data, END_FRAME], idle).await?;
                    stream.finish();
                    return Ok(());
                }
                Ok(data) => push(stream, &mut [header(DATA, data.len()), data], idle).await?,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let mut payload = codec::encoded(&Fields::Map(&trailers), TRAILERS_LIMIT)
                            .map_err(StreamError::from)?;
                        payload.advance(codec::PREFIX);
                        push(stream, &mut [header(TRAILERS, payload.len()), payload], idle).await?;
                    }
                }
            },
        }
    }
}
