//! A relay that lies: takes the place of the real one, with its very keys, and says to an agent whatever a test wants. The one double of
//! a relay there is: no real one can be made to do this.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::HeaderMap;
use http_body_util::BodyExt;
use postern_wire::body::{self, FramedBody};
use postern_wire::codec::{self, CONTROL_LIMIT, HEAD_LIMIT};
use postern_wire::control::{AgentMessage, MINOR, RelayMessage};
use postern_wire::head::{CallerInfo, Credential, Fields, OwnedCredential, RequestHead, ResponseHead, Stage};
use postern_wire::link::{Link, RecvStream, SendStream, quic};
use postern_wire::tls::{self, ALPN_TUNNEL};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use crate::agents_ca::{AgentsCa, Side};
use crate::wait;

/// Whoever is to be fooled comes back within its own pace.
const COMES: Duration = Duration::from_secs(40);

/// One tunnel of an agent that believes.
pub struct LyingRelay {
    _endpoint: quinn::Endpoint,
    link: Link,
    control: Arc<Mutex<SendStream>>,
    _acks: AbortOnDropHandle<()>,
    /// What the agent said of its services: name, and whether it wants callers' tokens.
    pub offers: Vec<(String, bool)>,
}

/// What a request came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Answer(u16, String),
    Failed(Stage, String),
}

impl Said {
    /// Whether the agent's own decision was no.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Failed(Stage::Verify, _))
    }
}

/// A live stream that the agent opened.
pub struct LiveStream {
    pub send: SendStream,
    pub recv: RecvStream,
}

/// What a relay may claim of a caller; an agent that verifies cares for none of it.
pub fn claimed() -> CallerInfo<'static> {
    CallerInfo {
        issuer: "corp",
        subject: "root",
        client: None,
        scopes: vec!["invoices:write"],
        roles: vec!["superuser"],
        expires: u64::MAX,
    }
}

impl LyingRelay {
    /// Waits at the real relay's port, with the real relay's authority, until the agent has come; `state` is that relay's directory.
    pub async fn take_over(state: &Path, address: SocketAddr) -> Result<Self> {
        let ca = AgentsCa::of(state)?;
        let identity = ca.identity("spiffe://example.com/relay/relay", Side::Relay)?;
        let config = tls::relay_config(identity, tls::Roots::new(&[ca.root()])?, &[ALPN_TUNNEL])?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
        server.transport_config(quic::transport(1));
        let endpoint = quinn::Endpoint::server(server, address)?;
        let connection = tokio::time::timeout(COMES, async {
            loop {
                let incoming = endpoint.accept().await.context("the endpoint ended")?;
                if let Ok(connection) = incoming.await {
                    return anyhow::Ok(connection);
                }
            }
        });
        let link = Link::quic(connection.await.context("the agent did not come")??);
        let (mut send, mut recv) = link.control().await?;
        let hello = recv.message(CONTROL_LIMIT).await?.context("no hello")?;
        let AgentMessage::Hello { services, .. } = codec::decode(&hello)? else {
            bail!("the first message is no hello")
        };
        let welcome = RelayMessage::Welcome {
            minor: MINOR,
            relay: "relay".to_owned(),
            heartbeat_ms: 1000,
            other_relays: Vec::new(),
            refused: Vec::new(),
        };
        send.message(&welcome, CONTROL_LIMIT).await?;
        let control = Arc::new(Mutex::new(send));
        let acks = AbortOnDropHandle::new(
            tokio::runtime::Handle::current().spawn(acknowledge(control.clone(), recv)),
        );
        let offers = services.into_iter().map(|offer| (offer.name, offer.wants_caller_token)).collect();
        Ok(Self { _endpoint: endpoint, link, control, _acks: acks, offers })
    }

    /// Asks for a path of a service as any caller that the relay likes.
    pub async fn ask(
        &self,
        service: &str,
        (method, path): (&str, &str),
        credential: Option<Credential<'_>>,
    ) -> Result<Said> {
        let mut fields = HeaderMap::new();
        fields.insert("host", "billing.example.com".parse()?);
        fields.insert("x-postern-subject", "root".parse()?);
        fields.insert("x_postern_client", "root-client".parse()?);
        let head = RequestHead::Http {
            request_id: "01JD0000000000000000000000",
            traceparent: "",
            service,
            method,
            path_and_query: path,
            fields: Fields::Map(&fields),
            caller: claimed(),
            credential,
            upgrade: None,
        };
        let (mut send, mut recv) = self.link.open().await?;
        let head = codec::encoded(&head, HEAD_LIMIT)?;
        body::send(&mut send, head, crate::http::empty(), None).await.map_err(|e| anyhow::anyhow!("{e}"))?;
        let bytes =
            tokio::time::timeout(wait::SOON, recv.message(HEAD_LIMIT)).await??.context("no answer")?;
        Ok(match codec::decode::<ResponseHead<'_>>(&bytes)? {
            ResponseHead::Http { status, .. } => {
                let body = FramedBody::new(recv).collect().await?.to_bytes();
                Said::Answer(status, String::from_utf8_lossy(&body).into_owned())
            }
            ResponseHead::Failed { stage, detail, .. } => Said::Failed(stage, detail.to_owned()),
            ResponseHead::Opened => bail!("an HTTP request was opened as TCP"),
        })
    }

    /// Opens a TCP service.
    pub async fn connect(
        &self,
        service: &str,
        request_id: &str,
        credential: Option<Credential<'_>>,
    ) -> Result<Result<LiveStream, Said>> {
        let head = RequestHead::Tcp { request_id, traceparent: "", service, caller: claimed(), credential };
        let (mut send, mut recv) = self.link.open().await?;
        send.message(&head, HEAD_LIMIT).await?;
        let bytes =
            tokio::time::timeout(wait::SOON, recv.message(HEAD_LIMIT)).await??.context("no answer")?;
        Ok(match codec::decode::<ResponseHead<'_>>(&bytes)? {
            ResponseHead::Opened => Ok(LiveStream { send, recv }),
            ResponseHead::Failed { stage, detail, .. } => Err(Said::Failed(stage, detail.to_owned())),
            ResponseHead::Http { .. } => bail!("a TCP service answered as HTTP"),
        })
    }

    /// Says that a caller showed a fresh token for a live stream.
    pub async fn renew(&self, request_id: &str, credential: OwnedCredential) -> Result<()> {
        let message = RelayMessage::Lease { request_id: request_id.to_owned(), credential };
        Ok(self.control.lock().await.message(&message, CONTROL_LIMIT).await?)
    }
}

async fn acknowledge(control: Arc<Mutex<SendStream>>, mut recv: RecvStream) {
    while let Ok(Some(bytes)) = recv.message(CONTROL_LIMIT).await {
        if let Ok(AgentMessage::Heartbeat { seq }) = codec::decode(&bytes) {
            let ack = RelayMessage::HeartbeatAck { seq };
            if control.lock().await.message(&ack, CONTROL_LIMIT).await.is_err() {
                return;
            }
        }
    }
}
