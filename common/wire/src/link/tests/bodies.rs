//! Framed bodies over both kinds of link: whole, with trailers, cut short, and against the rules.

use std::pin::Pin;

use http::HeaderMap;
use http_body::{Body, Frame};

use super::*;
use crate::body::{FramedBody, SendError, send};
use crate::head::{Fields, ResponseHead};

const IDLE: Option<Duration> = Some(Duration::from_secs(30));

/// A body that yields what it was given, then fails or ends.
struct Script(std::vec::IntoIter<Result<Frame<Bytes>, &'static str>>);

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(self.0.next())
    }
}

async fn collect(body: &mut FramedBody) -> Result<(Vec<u8>, Option<HeaderMap>), StreamError> {
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((data, trailers))
}

fn head() -> Bytes {
    let head = ResponseHead::Http { status: 200, fields: Fields::Map(&HeaderMap::new()) };
    codec::encoded(&head, HEAD_LIMIT).unwrap()
}

#[tokio::test]
async fn bodies_of_any_length_arrive_whole_with_their_trailers() {
    for (relay, agent, _endpoints) in links().await {
        for length in [0usize, 1, 63, 64, 16_383, 16_384, 1_000_000] {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let data = Bytes::from(vec![7u8; length]);
            let (mut send_half, _recv, _far_send, far_recv) = stream(&relay, &agent).await;
            let frames = vec![
                Ok(Frame::data(data.clone())),
                Ok(Frame::data(data.clone())),
                Ok(Frame::trailers(trailers.clone())),
            ];
            let sending =
                async { send(&mut send_half, head(), Script(frames.into_iter()), IDLE).await.unwrap() };
            let receiving = async {
                let mut far_recv = far_recv;
                far_recv.message(HEAD_LIMIT).await.unwrap().unwrap();
                let mut body = FramedBody::new(far_recv);
                let received = collect(&mut body).await.unwrap();
                assert!(body.is_end_stream());
                received
            };
            let ((), (received, got)) = tokio::join!(sending, receiving);
            assert_eq!(received.len(), 2 * length);
            assert!(received.iter().all(|byte| *byte == 7));
            assert_eq!(got, Some(trailers));
        }
    }
}

#[tokio::test]
async fn a_body_cut_short_never_looks_whole() {
    for (relay, agent, _endpoints) in links().await {
        let (mut send_half, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
        let frames = vec![Ok(Frame::data(Bytes::from_static(b"half"))), Err("broke")];
        let sent = send(&mut send_half, head(), Script(frames.into_iter()), IDLE).await;
        assert!(matches!(sent, Err(SendError::Body("broke"))));
        // The reset may overtake what was sent; either way there is an error, and no end.
        let cut = async {
            far_recv.message(HEAD_LIMIT).await?.ok_or(StreamError::Truncated)?;
            collect(&mut FramedBody::new(far_recv)).await
        };
        assert_eq!(cut.await.unwrap_err(), StreamError::Peer(Code::BROKEN_BODY));

        // Finished in the middle of a frame: the transport ended well, the body did not.
        let (mut send_half, _recv, _far_send, far_recv) = stream(&relay, &agent).await;
        send_half.send(&mut [Bytes::from_static(&[0, 9, b'h', b'a'])]).await.unwrap();
        send_half.finish();
        assert_eq!(collect(&mut FramedBody::new(far_recv)).await.unwrap_err(), StreamError::Truncated);
    }
}

#[tokio::test]
async fn frames_that_break_the_rules_end_the_body() {
    for (relay, agent, _endpoints) in links().await {
        for bad in [
            &[9u8, 0][..],
            &[2, 1, 0],
            &[2, 0, 0],
            &[1, 0xc0, 0, 0, 0, 0, 0xff, 0xff, 0xff],
            &[1, 2, 7, 7, 2, 0],
            &[1, 1, 0, 0, 0],
        ] {
            let (mut send_half, _recv, _far_send, far_recv) = stream(&relay, &agent).await;
            send_half.send(&mut [Bytes::copy_from_slice(bad)]).await.unwrap();
            let error = collect(&mut FramedBody::new(far_recv)).await.unwrap_err();
            assert!(matches!(error, StreamError::Codec(_)), "{bad:?}: {error:?}");
        }
    }
}
