//! Takes an invite; gives the identity that a relay grants for it, as `postern-agent join` does, kept in memory alone.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use postern_base::id::{InstanceId, SpiffeId};
use postern_tests::wait;
use postern_wire::codec::{self, JOIN_LIMIT};
use postern_wire::join::{Invite, JoinAnswer, JoinRequest};
use postern_wire::link::{Code, Link, quic};
use postern_wire::tls::{self, Identity};
use quinn::Endpoint;
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// One enrolled agent.
#[derive(Debug)]
pub(crate) struct Enrolled {
    pub(super) instance: InstanceId,
    /// What it opens tunnels with.
    pub(super) client: quinn::ClientConfig,
}

/// A QUIC client with our transport's settings.
fn client(tls: ClientConfig, streams: u32) -> Result<quinn::ClientConfig> {
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(quic::transport(streams));
    Ok(client)
}

pub(super) async fn join(endpoint: &Endpoint, relay: SocketAddr, invite: &str) -> Result<Enrolled> {
    let invite: Invite = invite.parse()?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let instance = InstanceId::random();
    let request = JoinRequest { secret: invite.secret.to_vec(), csr, instance: instance.to_string() };

    let config = client(tls::join_config(invite.pin, tls::ALPN_JOIN)?, 0)?;
    let connecting = endpoint.connect_with(config, relay, "relay")?;
    let link = Link::quic(wait::within("a join's handshake", wait::SOON, connecting).await??);
    let root = tls::pinned_root(&invite.pin, &link.peer_chain()).cloned().context("no pinned root")?;
    let exchange = async {
        let (mut send, mut recv) = link.control().await?;
        send.message(&request, JOIN_LIMIT).await?;
        send.finish();
        anyhow::Ok(recv.message(JOIN_LIMIT).await?.context("no answer to a join")?)
    };
    let answer = wait::within("a join", wait::SOON, exchange).await??;
    link.close(Code::DONE, "");
    let chain = match codec::decode(&answer)? {
        JoinAnswer::Granted { chain, .. } => chain,
        JoinAnswer::Refused { code, reason } => bail!("join refused ({code}): {reason}"),
    };
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).filter(|one| *one != root).collect();
    let SpiffeId::Agent { domain, instance: granted, .. } =
        tls::spiffe_id(chain.first().context("no leaf")?)?
    else {
        bail!("the leaf is no agent's");
    };
    ensure!(granted == instance, "the leaf is another instance's");
    let identity = Identity::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    let tls = tls::tunnel_config(Arc::new(identity), &[root], domain, 0, tls::ALPN_TUNNEL)?;
    Ok(Enrolled { instance, client: client(tls, quic::STREAMS)? })
}
