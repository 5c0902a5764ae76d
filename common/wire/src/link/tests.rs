//! Two links over loopback with real certificates, by QUIC and by TCP: what a finished, a dropped and a cut stream look like at the other
//! side.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use postern_base::id::{SpiffeId, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::codec::{CodecError, HEAD_LIMIT};
use crate::tls::{self, Identity};

mod bodies;

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
    let server = tls::relay_config(
        relay,
        tls::Roots::new(std::slice::from_ref(&root)).unwrap(),
        &[tls::ALPN_TUNNEL, tls::ALPN_JOIN],
    )
    .unwrap();
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(quic::transport(1));
    let listening = quinn::Endpoint::server(server, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let domain: TrustDomain = domain.parse().unwrap();
    let mut client = tls::tunnel_config(agent, &[root], domain, 0, tls::ALPN_TUNNEL).unwrap();
    client.alpn_protocols.extend(more.iter().map(|alpn| alpn.to_vec()));
    let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(client));
    config.transport_config(quic::transport(quic::STREAMS));
    let dialling = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = dialling.connect_with(config, listening.local_addr().unwrap(), "relay").unwrap();
    let accepted = async { listening.accept().await.unwrap().await.map_err(|e| e.to_string()) };
    let (agent_side, relay_side) =
        tokio::join!(async { connecting.await.map_err(|e| e.to_string()) }, accepted);
    let links = (Link::quic(relay_side?), Link::quic(agent_side?));
    Ok((links.0, links.1, [listening, dialling]))
}

/// The same over TCP.
async fn connect_tcp(ca: &CertifiedIssuer<'static, KeyPair>) -> (Link, Link) {
    let (relay, agent, root) = (identity(ca, RELAY), identity(ca, AGENT), ca.der().clone());
    let server = Arc::new(
        tls::relay_config(
            relay,
            tls::Roots::new(std::slice::from_ref(&root)).unwrap(),
            &[tls::ALPN_TUNNEL_TCP],
        )
        .unwrap(),
    );
    let domain = "example.com".parse().unwrap();
    let client = Arc::new(tls::tunnel_config(agent, &[root], domain, 0, tls::ALPN_TUNNEL_TCP).unwrap());
    let listening = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listening.local_addr().unwrap();
    let accepted = async {
        let (stream, peer) = listening.accept().await.unwrap();
        let stream = tokio_rustls::TlsAcceptor::from(server).accept(stream).await.unwrap();
        tcp::accepted(stream, peer).await.unwrap()
    };
    let dialled = async {
        let stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let name = "relay".try_into().unwrap();
        let stream = tokio_rustls::TlsConnector::from(client).connect(name, stream).await.unwrap();
        tcp::dialled(stream, at).await.unwrap()
    };
    tokio::join!(accepted, dialled)
}

/// Relay's and agent's side of a link of each kind, and what keeps them alive.
async fn links() -> [(Link, Link, Vec<quinn::Endpoint>); 2] {
    let ca = ca();
    let root = ca.der().clone();
    let quic = connect(identity(&ca, RELAY), identity(&ca, AGENT), root, "example.com", &[]).await.unwrap();
    let tcp = connect_tcp(&ca).await;
    [(quic.0, quic.1, quic.2.into()), (tcp.0, tcp.1, Vec::new())]
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
    for (relay, agent, _endpoints) in links().await {
        let alpn = if relay.kind() == LinkKind::Quic { tls::ALPN_TUNNEL } else { tls::ALPN_TUNNEL_TCP };
        assert_eq!(relay.alpn(), alpn);
        assert_eq!(tls::spiffe_id(&relay.peer_chain()[0]).unwrap().to_string(), AGENT);
        assert!(matches!(tls::spiffe_id(&agent.peer_chain()[0]).unwrap(), SpiffeId::Relay { .. }));
    }
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
    for (relay, agent, _endpoints) in links().await {
        let (mut send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
        send.send(&mut [Bytes::from_static(b"all of it")]).await.unwrap();
        send.finish();
        assert_eq!(far_recv.chunk().await.unwrap().unwrap(), "all of it");
        assert_eq!(far_recv.chunk().await.unwrap(), None);

        let (send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
        drop(send);
        assert_eq!(far_recv.chunk().await.unwrap_err(), StreamError::Peer(Code::CANCELLED));

        let (send, recv, far_send, _far_recv) = stream(&relay, &agent).await;
        let stopped = far_send.stopped();
        drop(recv);
        // Over TCP one half cannot end badly alone.
        let kept = (relay.kind() == LinkKind::Quic).then_some(send);
        assert_eq!(stopped.await, Some(Code::CANCELLED), "the far side learns that nobody reads any more");
        drop(kept);
    }
}

#[tokio::test]
async fn a_message_over_its_limit_is_refused_before_it_is_read() {
    for (relay, agent, _endpoints) in links().await {
        let (mut send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
        send.send(&mut [Bytes::from_static(&[0, 2, 0, 1, b'x'])]).await.unwrap();
        let error = far_recv.message(HEAD_LIMIT).await.unwrap_err();
        assert_eq!(error, StreamError::Codec(CodecError::TooLarge { size: 131_073, limit: HEAD_LIMIT }));
    }
}

#[tokio::test]
async fn a_message_in_pieces_survives_a_reader_that_looks_away() {
    for (relay, agent, _endpoints) in links().await {
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
}

#[tokio::test]
async fn a_closed_link_ends_its_streams_at_both_sides() {
    for (relay, agent, _endpoints) in links().await {
        let (_send, mut recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
        relay.close(Code::REVOKED, "removed");
        assert!(relay.is_closed());
        assert!(matches!(relay.closed().await, StreamError::Lost(_)));
        assert!(matches!(agent.closed().await, StreamError::Lost(_)));
        assert!(recv.chunk().await.is_err() && far_recv.chunk().await.is_err());
        assert!(relay.open().await.is_err() && agent.accept().await.is_err());
    }
}

#[tokio::test]
async fn the_control_stream_is_one_and_the_agent_speaks_first() {
    for (relay, agent, _endpoints) in links().await {
        let said = async {
            let (mut send, recv) = agent.control().await.unwrap();
            send.message(&"hello".to_owned(), HEAD_LIMIT).await.unwrap();
            (send, recv)
        };
        let heard = async {
            let (send, mut recv) = relay.control().await.unwrap();
            let bytes = recv.message(HEAD_LIMIT).await.unwrap().unwrap();
            assert_eq!(codec::decode::<String>(&bytes).unwrap(), "hello");
            (send, recv)
        };
        let _streams = tokio::join!(said, heard);
    }
}

#[tokio::test]
async fn a_reader_that_stops_holds_its_writer_back_and_nobody_else() {
    for (relay, agent, _endpoints) in links().await {
        let (mut stalled, _recv, _far_send, _unread) = stream(&relay, &agent).await;
        let piece = Bytes::from(vec![0u8; 64 * 1024]);
        let mut accepted = 0;
        while tokio::time::timeout(Duration::from_millis(300), stalled.send(&mut [piece.clone()]))
            .await
            .is_ok()
        {
            accepted += piece.len();
            assert!(accepted < 32 << 20, "the writer is never held back");
        }
        let (mut send, _recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
        send.send(&mut [Bytes::from_static(b"passes")]).await.unwrap();
        assert_eq!(far_recv.chunk().await.unwrap().unwrap(), "passes");
    }
}

#[tokio::test]
async fn a_permit_bounds_the_streams_that_are_open_at_once() {
    let [(relay, agent, _endpoints), _tcp] = links().await;
    let mut open = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), relay.open()).await {
        open.push(stream.unwrap());
    }
    assert_eq!(open.len(), quic::STREAMS as usize);
    agent.permit(quic::STREAMS * 2);
    tokio::time::timeout(Duration::from_secs(5), relay.open()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pipe_carries_both_ways_half_closes_and_breaks() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::pipe::{Counts, PipeError, pipe};
    for (relay, agent, _endpoints) in links().await {
        let (mut send, recv, far_send, far_recv) = stream(&relay, &agent).await;
        let (mut near, behind) = tokio::io::duplex(4096);
        let (mut far, beyond) = tokio::io::duplex(4096);
        let (counts, far_counts) = (Counts::default(), Counts::default());
        let mut far_send = far_send;
        let one = pipe(behind, &mut send, recv, None, &counts);
        let other = pipe(beyond, &mut far_send, far_recv, None, &far_counts);
        let talk = async {
            near.write_all(&vec![1; 100_000]).await.unwrap();
            near.shutdown().await.unwrap();
            assert_eq!(near.read_u8().await.unwrap(), b'!');
        };
        let answer = async {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), 100_000, "the near side's end came through");
            far.write_all(b"!").await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (one, other, (), ()) = tokio::join!(one, other, talk, answer);
        assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
        let load = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((load(&counts.up), load(&counts.down)), (100_000, 1));
        assert_eq!((load(&far_counts.up), load(&far_counts.down)), (1, 100_000));

        let (mut send, recv, _far_send, mut far_recv) = stream(&relay, &agent).await;
        let (_near, silent) = tokio::io::duplex(64);
        let idle = Some(Duration::from_millis(40));
        let broke = pipe(silent, &mut send, recv, idle, &Counts::default()).await;
        assert!(matches!(broke, Err(PipeError::Idle(_))), "{broke:?}");
        assert_eq!(far_recv.chunk().await.unwrap_err(), StreamError::Peer(Code::TIMEOUT));
    }
}
