//! Two links over loopback with real certificates: what a finished, a dropped and a cut stream look like at the other side.

use std::net::Ipv4Addr;
use std::pin::Pin;

use http::HeaderMap;
use http_body::{Body, Frame};
use postern_base::id::{SpiffeId, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::body::{FramedBody, SendError, send};
use crate::codec::HEAD_LIMIT;
use crate::head::{Fields, ResponseHead};
use crate::tls::{self, Identity};

fn ca() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn identity(ca: &CertifiedIssuer<'static, KeyPair>, id: &str) -> Arc<Identity> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    let leaf = params.signed_by(&key, ca).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Arc::new(Identity::new(vec![leaf.der().clone(), ca.der().clone()], key).unwrap())
}

const IDLE: Duration = Duration::from_secs(30);
const RELAY: &str = "spiffe://example.com/relay/relay";
const AGENT: &str = "spiffe://example.com/agent/dc1/one";

/// A relay with this identity, and what an agent that trusts `root` makes of it.
async fn connect(
    relay: Arc<Identity>,
    agent: Arc<Identity>,
    root: CertificateDer<'static>,
    domain: &str,
    more: &[&[u8]],
) -> Result<(Link, Link, [quinn::Endpoint; 2]), String> {
    let server = tls::relay_config(relay, root.clone(), &[tls::ALPN_TUNNEL, tls::ALPN_JOIN]).unwrap();
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport(1));
    let listening = quinn::Endpoint::server(server, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let domain: TrustDomain = domain.parse().unwrap();
    let mut client = tls::tunnel_config(agent, &root, domain).unwrap();
    client.alpn_protocols.extend(more.iter().map(|alpn| alpn.to_vec()));
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(client));
    config.transport_config(transport(STREAMS));
    let dialling = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = dialling.connect_with(config, listening.local_addr().unwrap(), "relay").unwrap();
    let accepted = async { listening.accept().await.unwrap().await.map_err(|e| e.to_string()) };
    let (agent_side, relay_side) =
        tokio::join!(async { connecting.await.map_err(|e| e.to_string()) }, accepted);
    let links = (Link::new(relay_side?), Link::new(agent_side?));
    Ok((links.0, links.1, [listening, dialling]))
}

async fn links() -> (Link, Link, [quinn::Endpoint; 2]) {
    let ca = ca();
    connect(identity(&ca, RELAY), identity(&ca, AGENT), ca.der().clone(), "example.com", &[]).await.unwrap()
}

/// A stream from relay to agent, both halves of both sides.
async fn stream(relay: &Link, agent: &Link) -> (SendStream, RecvStream, SendStream, RecvStream) {
    let (mut send, recv) = relay.open().await.unwrap();
    send.message(&"hello".to_owned(), HEAD_LIMIT).await.unwrap();
    let (far_send, mut far_recv) = agent.accept().await.unwrap();
    let bytes = far_recv.message(HEAD_LIMIT).await.unwrap().unwrap();
    assert_eq!(codec::decode::<String>(&bytes).unwrap(), "hello");
    (send, recv, far_send, far_recv)
}

#[tokio::test]
async fn each_side_knows_the_other_by_its_leaf() {
    let (relay, agent, _endpoints) = links().await;
    assert_eq!(relay.alpn(), tls::ALPN_TUNNEL);
    assert_eq!(tls::spiffe_id(&relay.peer_chain()[0]).unwrap().to_string(), AGENT);
    assert!(matches!(tls::spiffe_id(&agent.peer_chain()[0]).unwrap(), SpiffeId::Relay { .. }));
}

#[tokio::test]
async fn a_hello_for_two_kinds_of_peer_is_refused() {
    let ca = ca();
    for more in [tls::ALPN_JOIN, b"h2"] {
        let (relay, agent) = (identity(&ca, RELAY), identity(&ca, AGENT));
        let refused = connect(relay, agent, ca.der().clone(), "example.com", &[more]).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[tokio::test]
async fn an_agent_refuses_a_relay_of_another_root_domain_or_role() {
    let (ours, other) = (ca(), ca());
    for (relay, domain) in [
        (identity(&other, RELAY), "example.com"),
        (identity(&ours, RELAY), "example.net"),
        (identity(&ours, AGENT), "example.com"),
        (identity(&ours, "https://relay.example.com/"), "example.com"),
    ] {
        let agent = identity(&ours, AGENT);
        let refused = connect(relay, agent, ours.der().clone(), domain, &[]).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[tokio::test]
async fn a_finished_stream_ends_well_and_a_dropped_one_is_reset() {
    let (relay, agent, _endpoints) = links().await;
    let (mut send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
    send.send(&mut [Bytes::from_static(b"all of it")]).await.unwrap();
    send.finish();
    assert_eq!(far_recv.chunk().await.unwrap().unwrap(), "all of it");
    assert_eq!(far_recv.chunk().await.unwrap(), None);

    let (send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
    drop(send);
    assert_eq!(far_recv.chunk().await.unwrap_err(), StreamError::Peer(Code::CANCELLED));

    let (_send, recv, far_send, _far_recv) = stream(&relay, &agent).await;
    let stopped = far_send.stopped();
    drop(recv);
    assert_eq!(stopped.await, Some(Code::CANCELLED), "the far side learns that nobody reads any more");
}

#[tokio::test]
async fn a_message_over_its_limit_is_refused_before_it_is_read() {
    let (relay, agent, _endpoints) = links().await;
    let (mut send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
    send.send(&mut [Bytes::from_static(&[0, 2, 0, 1, b'x'])]).await.unwrap();
    let error = far_recv.message(HEAD_LIMIT).await.unwrap_err();
    assert_eq!(error, StreamError::Codec(codec::CodecError::TooLarge { size: 131_073, limit: HEAD_LIMIT }));
}

#[tokio::test]
async fn a_message_in_pieces_survives_a_reader_that_looks_away() {
    let (relay, agent, _endpoints) = links().await;
    let (mut send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
    let messages = [
        codec::encoded(&"one".repeat(50), HEAD_LIMIT).unwrap(),
        codec::encoded(&"two".to_owned(), HEAD_LIMIT).unwrap(),
    ];
    let bytes = Bytes::from(messages.concat());
    for at in 0..bytes.len() {
        send.send(&mut [bytes.slice(at..=at)]).await.unwrap();
        if at < messages[0].len() - 1 {
            // Polled until it has taken what is there, then dropped, as a select does.
            let mut reading = Box::pin(far_recv.message(HEAD_LIMIT));
            let looked = tokio::time::timeout(Duration::from_millis(1), &mut reading).await;
            assert!(looked.is_err(), "no message is whole yet");
        }
    }
    for expected in ["one".repeat(50), "two".to_owned()] {
        let got = far_recv.message(HEAD_LIMIT).await.unwrap().unwrap();
        assert_eq!(codec::decode::<String>(&got).unwrap(), expected);
    }
}

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

fn head() -> ResponseHead {
    ResponseHead::Http { status: 200, fields: Fields::default() }
}

#[tokio::test]
async fn bodies_of_any_length_arrive_whole_with_their_trailers() {
    let (relay, agent, _endpoints) = links().await;
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
            async { send(&mut send_half, &head(), Script(frames.into_iter()), IDLE).await.unwrap() };
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

#[tokio::test]
async fn a_body_cut_short_never_looks_whole() {
    let (relay, agent, _endpoints) = links().await;
    let (mut send_half, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
    let frames = vec![Ok(Frame::data(Bytes::from_static(b"half"))), Err("broke")];
    let sent = send(&mut send_half, &head(), Script(frames.into_iter()), IDLE).await;
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

#[tokio::test]
async fn frames_that_break_the_rules_end_the_body() {
    let (relay, agent, _endpoints) = links().await;
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
