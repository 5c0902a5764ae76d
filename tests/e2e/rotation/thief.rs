//! A stolen issuing key that is used before anybody knows: the tunnel that it opened is a tunnel like any other, until the rotation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postern_tests::agents_ca::{AgentsCa, Side};
use postern_tests::http::Http;
use postern_tests::stand::{Stand, say};
use postern_tests::wait;
use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{AgentMessage, MINOR, RelayMessage, ServiceKind, ServiceOffer};
use postern_wire::link::{Link, RecvStream, SendStream};
use postern_wire::tls;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{Load, PATH, all_moved, count, rotate, stand, steal};

/// A promise of `ca rotate`, which ends with its answer.
const CUT: Duration = Duration::from_secs(1);

/// An agent that nobody enrolled, with another's name and a key of its own.
pub(crate) struct Thief {
    _endpoint: quinn::Endpoint,
    link: Link,
    /// Requests that came down its tunnel.
    taken: Arc<AtomicUsize>,
    _work: JoinSet<()>,
}

/// A tunnel that the relay has welcomed.
struct Welcomed {
    endpoint: quinn::Endpoint,
    link: Link,
    send: SendStream,
    recv: RecvStream,
}

impl Welcomed {
    /// Dials, and is in; or the relay's words.
    async fn as_instance(stand: &Stand, ca: &AgentsCa, instance: &str) -> Result<Self> {
        let forged = ca.identity(&format!("spiffe://example.com/agent/dc1/{instance}"), Side::Agent)?;
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
        let config = tls::tunnel_config(forged, &[ca.root()], "example.com".parse()?, 0, tls::ALPN_TUNNEL)?;
        let config = quinn::crypto::rustls::QuicClientConfig::try_from(config)?;
        let config = quinn::ClientConfig::new(Arc::new(config));
        let address = ([127, 0, 0, 1], stand.port).into();
        let link = Link::quic(endpoint.connect_with(config, address, "relay")?.await?);
        let (mut send, recv) = link.control().await?;
        let offer = |name: &str| ServiceOffer {
            name: name.to_owned(),
            kind: ServiceKind::Http,
            healthy: true,
            wants_caller_token: false,
        };
        let hello = AgentMessage::Hello {
            minor: MINOR,
            version: "0".to_owned(),
            instance: instance.to_owned(),
            services: vec![offer("billing"), offer("echo")],
        };
        send.message(&hello, CONTROL_LIMIT).await?;
        let mut welcomed = Self { endpoint, link, send, recv };
        let said = welcomed.hears().await?;
        if !matches!(said, RelayMessage::Welcome { .. }) {
            bail!("{said:?}");
        }
        Ok(welcomed)
    }

    async fn hears(&mut self) -> Result<RelayMessage> {
        let said = wait::within("the relay's word", wait::SOON, self.recv.message(CONTROL_LIMIT)).await??;
        Ok(codec::decode(&said.context("the relay is silent")?)?)
    }
}

impl Thief {
    async fn enters(stand: &Stand, ca: &AgentsCa, instance: &str) -> Result<Self> {
        let Welcomed { endpoint, link, send, recv } = Welcomed::as_instance(stand, ca, instance).await?;
        let taken = Arc::new(AtomicUsize::new(0));
        let mut work = JoinSet::new();
        work.spawn(talk(send, recv));
        let (serving, counted) = (link.clone(), taken.clone());
        work.spawn(async move {
            while serving.accept().await.is_ok() {
                // The request is in its hands; it answers nothing.
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { _endpoint: endpoint, link, taken, _work: work })
    }

    /// The same, but what it wants is a certificate that is on record, for a key of its own.
    pub(crate) async fn renews(stand: &Stand, ca: &AgentsCa, instance: &str) -> Result<()> {
        let mut welcomed = Welcomed::as_instance(stand, ca, instance).await?;
        let csr = rcgen::CertificateParams::default().serialize_request(&rcgen::KeyPair::generate()?)?;
        let renew = AgentMessage::Renew { csr: csr.der().to_vec() };
        welcomed.send.message(&renew, CONTROL_LIMIT).await?;
        for _ in 0..10 {
            let said = welcomed.hears().await?;
            if matches!(said, RelayMessage::Renewed { .. }) {
                return Ok(());
            }
            if matches!(said, RelayMessage::RenewRefused { .. }) {
                bail!("{said:?}");
            }
        }
        bail!("the relay says everything but that")
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Heartbeats, so that the tunnel is a good one; what the relay says is not obeyed.
async fn talk(mut send: SendStream, mut recv: RecvStream) {
    let mut beats = tokio::time::interval(Duration::from_millis(500));
    let mut seq = 0;
    loop {
        tokio::select! {
            _ = beats.tick() => {
                seq += 1;
                if send.message(&AgentMessage::Heartbeat { seq }, CONTROL_LIMIT).await.is_err() {
                    return;
                }
            }
            said = recv.message(CONTROL_LIMIT) => if !matches!(said, Ok(Some(_))) {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_thiefs_open_tunnel_ends_with_the_rotation() -> Result<()> {
    let stand = stand("1h").await?;
    let list = stand.relay_command(&["agent", "ls", "--json"]).await?.expect_code(0)?;
    let list: Value = serde_json::from_str(&list.stdout)?;
    let instance = list["agents"][0]["instance"].as_str().context("no instance")?.to_owned();
    let token = stand.issuer.token("ada").await?;

    say("the stolen key opens a tunnel, and callers' requests go down it");
    let stolen = steal(&stand)?;
    let url = stand.at(PATH);
    let thief = Thief::enters(&stand, &stolen, &instance).await?;
    wait::until("the thief has a request", wait::SOON, async || {
        // Each on a connection of its own, so that every thread of the relay has some. The thief answers nothing.
        let http = Http::h1(stand.pki.roots().ok()?).ok()?;
        let call = http.get(&url, Some(&token));
        let _ = tokio::time::timeout(Duration::from_millis(500), call).await;
        (thief.taken() > 0).then_some(())
    })
    .await?;
    ensure!(!thief.link.is_closed());

    say("the rotation cuts it, and nobody else");
    let opened = count(&stand, "tunnel-open")?;
    rotate(&stand, &[]).await?.expect_code(0)?;
    let rotated = Instant::now();
    wait::within("the thief's tunnel is cut", CUT, thief.link.closed()).await?;
    say(&format!("cut {:?} after the rotation's end", rotated.elapsed()));
    let closed = stand.wait_audit(1, |line| line["event"] == "tunnel-closed").await?;
    let reason = closed[0]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("authority") && closed[0]["instance"] == *instance, "{closed:?}");

    say("the real agent goes on; the thief stays out");
    let load = Load::start(&stand).await?;
    all_moved(&stand).await?;
    for _ in 0..3 {
        let again = Thief::enters(&stand, &stolen, &instance).await;
        ensure!(again.is_err(), "the thief is in again");
    }
    let refused = |line: &Value| {
        line["event"] == "tunnel-refused"
            && line["reason"].as_str().is_some_and(|why| why.contains("replaced"))
    };
    stand.wait_audit(1, refused).await?;
    load.end().await?;
    ensure!(count(&stand, "tunnel-open")? == opened, "the agent's own tunnels were cut");
    ensure!(count(&stand, "tunnel-closed")? == 1 && count(&stand, "join")? == 1);
    stand.passed();
    Ok(())
}
