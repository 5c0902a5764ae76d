//! One question and one answer on a connection of a join's own: QUIC, and TCP where that does not come about. Takes what the relay is to
//! be proved by; gives its answer. Enrolment and recovery ask through here.

use std::time::Duration;

use postern_base::proxy::Proxy;
use postern_wire::codec::{self, JOIN_LIMIT};
use postern_wire::join::{JoinAnswer, Question};
use postern_wire::link::{Code, Link, StreamError};
use postern_wire::tls::{self, TlsError};
use quinn::{Connection, ConnectionError, Endpoint};
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::config::Transport;
use crate::settings::RelayAddress;
use crate::tunnel::dial::names::Names;
use crate::tunnel::dial::race::{Raced, race};
use crate::tunnel::dial::{ConnectError, HEAD_START, quic, tcp};

/// From the proved relay to the answer (protocol.md).
const EXCHANGE: Duration = Duration::from_secs(10);
/// For the goodbye to leave; the relay would only wait for nothing otherwise.
const LINGER: Duration = Duration::from_secs(1);

/// How the relay is reached.
#[derive(Debug, Default)]
pub struct Way {
    pub transport: Transport,
    pub proxy: Proxy,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Nobody was there over either link.
    #[error("{quic}; {tcp}")]
    Silent { quic: ConnectError, tcp: ConnectError },
    #[error("the relay takes no more joins for now")]
    Overloaded,
    #[error("the relay's answer did not come in full: {0}")]
    NoAnswer(String),
}

impl AskError {
    /// Whether nobody was there.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            Self::Connect(e) => e.is_silence(),
            Self::Silent { .. } => true,
            Self::Overloaded | Self::NoAnswer(_) => false,
        }
    }
}

/// A relay that was proved, and has not been asked yet.
#[derive(Debug)]
pub(crate) struct Proved {
    pub(crate) link: Link,
    /// Where it is QUIC: the connection, which tells how it ended, and its socket.
    quic: Option<(Connection, Endpoint)>,
}

impl Proved {
    /// QUIC, and TCP where that does not come about; `tls` makes the configuration for an ALPN.
    pub(crate) async fn connect(
        relay: &RelayAddress,
        way: &Way,
        tls: impl Fn(&[u8]) -> Result<ClientConfig, TlsError>,
    ) -> Result<Self, AskError> {
        let names = Names::default();
        let over_quic = Box::pin(async {
            // The relay opens no streams on a join.
            let (connection, endpoint) = quic::connect(relay, &names, tls(tls::ALPN_JOIN)?, 0).await?;
            Ok(Self { link: Link::quic(connection.clone()), quic: Some((connection, endpoint)) })
        });
        let over_tcp = Box::pin(async {
            let link = tcp::connect(relay, &names, &way.proxy, tls(tls::ALPN_JOIN_TCP)?).await?;
            Ok(Self { link, quic: None })
        });
        match way.transport {
            Transport::Quic => Ok(over_quic.await?),
            Transport::Tcp => Ok(over_tcp.await?),
            Transport::Auto => {
                let is_final = |e: &ConnectError| matches!(e, ConnectError::Busy(_));
                race(over_quic, over_tcp, HEAD_START, is_final).await.map_err(|raced| match raced {
                    Raced::Final(e)
                    | Raced::Both { quic: e @ ConnectError::Name { .. }, tcp: ConnectError::Name { .. } } => {
                        e.into()
                    }
                    Raced::Both { quic, tcp } if quic.is_silence() && tcp.is_silence() => {
                        AskError::Silent { quic, tcp }
                    }
                    // The more telling one.
                    Raced::Both { quic, tcp } => if quic.is_silence() { tcp } else { quic }.into(),
                })
            }
        }
    }

    /// Asks, and ends the connection.
    pub(crate) async fn ask(self, question: &Question) -> Result<JoinAnswer, AskError> {
        let Self { link, quic } = self;
        let answer = timeout(EXCHANGE, exchange(&link, question)).await;
        let answer = match (answer, quic.as_ref().and_then(|(connection, _)| connection.close_reason())) {
            (Ok(Ok(answer)), _) => Ok(answer),
            (_, Some(ConnectionError::ApplicationClosed(e))) if e.error_code == Code::OVERLOADED.0.into() => {
                Err(AskError::Overloaded)
            }
            (Ok(Err(e)), _) => Err(AskError::NoAnswer(e.to_string())),
            (Err(_), _) => Err(AskError::NoAnswer("nothing came in time".into())),
        };
        link.close(Code::DONE, "");
        if let Some((_, endpoint)) = quic {
            let _ = timeout(LINGER, endpoint.wait_idle()).await;
        }
        answer
    }
}

async fn exchange(link: &Link, question: &Question) -> Result<JoinAnswer, StreamError> {
    let (mut send, mut recv) = link.control().await?;
    send.message(question, JOIN_LIMIT).await?;
    send.finish();
    let answer = recv.message(JOIN_LIMIT).await?.ok_or(StreamError::Truncated)?;
    Ok(codec::decode(&answer)?)
}
