//! The way to one relay: its name, UDP by a QUIC handshake, TCP by a TLS handshake (through the proxy, where there is one), both with the
//! pinned root and this agent's certificate; and what the relay says to this agent. Nothing is offered over it, so nothing is ever sent.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use postern_base::console::checks::Check;
use postern_wire::codec::{self, CONTROL_LIMIT};
use postern_wire::control::{AgentMessage, MINOR, RelayMessage, refusal};
use postern_wire::link::{Code, Link, RecvStream};
use postern_wire::tls;
use quinn::Endpoint;
use rustls::ClientConfig;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::admin::status::Status;
use crate::config::Transport;
use crate::identity::AgentIdentity;
use crate::settings::{RelayAddress, Settings};
use crate::tunnel::dial::names::Names;
use crate::tunnel::dial::{ConnectError, quic, tcp};

/// For the name; as long as a dial gives it.
const LOOKUP: Duration = Duration::from_secs(4);
/// Hello and welcome.
const GREETING: Duration = Duration::from_secs(4);
/// A relay says what time it is right after its welcome; an older one does not.
const TIME: Duration = Duration::from_secs(1);
/// For the goodbye to leave.
const LINGER: Duration = Duration::from_secs(1);

/// What was seen.
pub(super) struct Looked {
    pub(super) checks: Vec<Check>,
    /// By how many milliseconds our clock is ahead of the relay's.
    pub(super) clock: Option<i64>,
}

/// As whom the relay is asked.
#[derive(Clone, Copy)]
enum As<'a> {
    Agent(&'a AgentIdentity),
    /// Its certificate has ended.
    Ended(&'a AgentIdentity),
    /// It has not joined: any answer shows that the relay is there.
    Nobody,
}

impl As<'_> {
    fn tls(self, tunnel: &[u8], join: &[u8]) -> Result<ClientConfig, ConnectError> {
        Ok(match self {
            Self::Agent(id) => {
                tls::tunnel_config(id.tls(), &id.roots(), id.domain().clone(), id.floor(), tunnel)?
            }
            Self::Ended(id) => tls::recover_config(&id.roots(), id.domain().clone(), id.floor(), join)?,
            Self::Nobody => tls::join_config([0; 32], join)?,
        })
    }

    /// How a handshake that was done, or came far enough, reads.
    fn proved(self) -> &'static str {
        match self {
            Self::Agent(_) => "its root and this agent's certificate are good",
            Self::Ended(_) => "its root is good",
            Self::Nobody => "it answers; this agent has not joined, so it is not known whose it is",
        }
    }
}

/// A handshake that was done.
struct Reached {
    link: Option<(Link, Option<Endpoint>)>,
    took: Duration,
}

pub(super) async fn look(
    relay: &RelayAddress,
    settings: &Settings,
    identity: Option<&AgentIdentity>,
    status: Option<&Status>,
) -> Looked {
    let is_proxied = settings.proxy.towards(&relay.host, relay.port).is_some();
    let mut checks = vec![name(relay, is_proxied).await];
    let who = match identity {
        Some(identity) if identity.is_expired(SystemTime::now()) => As::Ended(identity),
        Some(identity) => As::Agent(identity),
        None => As::Nobody,
    };
    let names = Names::default();
    let began = Instant::now();
    let udp = async {
        if settings.transport == Transport::Tcp {
            return None;
        }
        let dialled = async {
            let tls = who.tls(tls::ALPN_TUNNEL, tls::ALPN_JOIN)?;
            // The relay opens none.
            let (connection, endpoint) = quic::connect(relay, &names, tls, 0).await?;
            Ok((Link::quic(connection), Some(endpoint)))
        };
        Some(judged(dialled.await, who, began))
    };
    let tcp = async {
        if settings.transport == Transport::Quic {
            return None;
        }
        let dialled = async {
            let tls = who.tls(tls::ALPN_TUNNEL_TCP, tls::ALPN_JOIN_TCP)?;
            Ok((tcp::connect(relay, &names, &settings.proxy, tls).await?, None))
        };
        Some(judged(dialled.await, who, began))
    };
    let (udp, tcp) = tokio::join!(udp, tcp);
    let (has_udp, has_tcp) = (matches!(udp, Some(Ok(_))), matches!(tcp, Some(Ok(_))));
    checks.push(link(("UDP", relay), udp.as_ref(), who, has_tcp));
    checks.push(link(("TCP", relay), tcp.as_ref(), who, has_udp));

    let mut clock = None;
    let links = [udp, tcp].into_iter().flatten().flatten().filter_map(|reached| reached.link);
    let mut greeted = None;
    for (link, endpoint) in links {
        // A running agent's own tunnels say it better.
        let is_known = status.is_some_and(|status| {
            status.tunnels.iter().any(|tunnel| tunnel.usable && tunnel.relay == relay.to_string())
        });
        if let (As::Agent(identity), None, false) = (who, &greeted, is_known) {
            let said = timeout(GREETING + TIME, hello(&link, identity)).await;
            let said = said.unwrap_or_else(|_| Err((None, "no answer to the hello".to_owned())));
            clock = said.as_ref().ok().and_then(|welcome| welcome.clock);
            greeted = Some(said);
        }
        leave(&link, endpoint).await;
    }
    if let (As::Agent(identity), Some(said)) = (who, greeted) {
        checks.push(taken(relay, identity, said));
    }
    Looked { checks, clock }
}

async fn name(relay: &RelayAddress, is_proxied: bool) -> Check {
    let name = format!("DNS {}", relay.host);
    if relay.host.parse::<IpAddr>().is_ok() {
        return Check::good(name, "an address");
    }
    let found = timeout(LOOKUP, lookup_host((relay.host.as_str(), relay.port))).await;
    let error = match found {
        Ok(Ok(found)) => {
            let addresses: Vec<String> = found.map(|address| address.ip().to_string()).collect();
            return Check::good(name, addresses.join(", "));
        }
        Ok(Err(e)) => e.to_string(),
        Err(_) => format!("no answer within {LOOKUP:?}"),
    };
    if is_proxied {
        return Check::warn(
            name,
            error,
            "nothing to do for TCP, for which the proxy knows the name; UDP needs it here",
        );
    }
    Check::bad(name, error, "correct `relay` in agent.toml, or this machine's DNS")
}

fn judged(
    dialled: Result<(Link, Option<Endpoint>), ConnectError>,
    who: As<'_>,
    began: Instant,
) -> Result<Reached, ConnectError> {
    let took = began.elapsed();
    match (dialled, who) {
        (Ok(link), _) => Ok(Reached { link: Some(link), took }),
        // It showed a certificate for our ALPN, which is all that can be asked without a root.
        (Err(ConnectError::Foreign(..)), As::Nobody) => Ok(Reached { link: None, took }),
        (Err(e), _) => Err(e),
    }
}

/// `has_other`: the other kind of link works.
fn link(
    (kind, relay): (&str, &RelayAddress),
    found: Option<&Result<Reached, ConnectError>>,
    who: As<'_>,
    has_other: bool,
) -> Check {
    let name = format!("{kind} {relay}");
    match found {
        None => Check::skipped(name, "tunnel.transport in agent.toml leaves it out"),
        Some(Ok(reached)) => {
            Check::good(name, format!("handshake in {} ms, {}", reached.took.as_millis(), who.proved()))
        }
        Some(Err(e)) if has_other && e.is_silence() => {
            let fix = if kind == "UDP" {
                "let UDP to that port out, and answers in: tunnels over QUIC are faster; until then they run over TCP"
            } else {
                "let TCP to that port out too: it is what is left when UDP is blocked"
            };
            Check::warn(name, e.to_string(), fix)
        }
        Some(Err(e)) => Check::bad(name, e.to_string(), fix(e)),
    }
}

fn fix(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Name { .. } => "correct `relay` in agent.toml, or this machine's DNS",
        ConnectError::Foreign(..) => {
            "check `relay` and this machine's clock; if the relay was made anew, join it again (postern-agent join RELAY --force); else somebody is in between"
        }
        ConnectError::Unspoken(..) => {
            "something else answers there: give the relay's own port, and have balancers pass UDP and TCP through untouched"
        }
        ConnectError::Proxy(_) => {
            "see the message; `proxy` in agent.toml, or HTTPS_PROXY, says which proxy is used"
        }
        ConnectError::SilentUdp(_) | ConnectError::SilentTcp(_) | ConnectError::Unreachable(..) => {
            "check that the relay runs, and let UDP or TCP to that port out"
        }
        ConnectError::Busy(_) | ConnectError::Handshake(..) | ConnectError::Tls(_) => {
            "look at the relay's log, and at postern-relay doctor there"
        }
    }
}

struct Welcome {
    relay: String,
    clock: Option<i64>,
}

/// Offers nothing, and hears what the relay says of this agent; a refusal has its code.
async fn hello(link: &Link, identity: &AgentIdentity) -> Result<Welcome, (Option<u16>, String)> {
    let broken = |e: &dyn std::fmt::Display| (None, e.to_string());
    let (mut send, mut recv) = link.control().await.map_err(|e| broken(&e))?;
    let hello = AgentMessage::Hello {
        minor: MINOR,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: identity.instance().to_string(),
        services: Vec::new(),
    };
    send.message(&hello, CONTROL_LIMIT).await.map_err(|e| broken(&e))?;
    let first = next(&mut recv).await?;
    if let RelayMessage::Refused { code, reason, .. } = first {
        return Err((Some(code), reason));
    }
    let RelayMessage::Welcome { relay, .. } = first else {
        return Err((None, "it broke the protocol: its first message was no welcome".to_owned()));
    };
    let clock = timeout(TIME, time(&mut recv, link)).await.ok().flatten();
    // What the relay sends now finds nobody.
    let _ = send.message(&AgentMessage::Draining, CONTROL_LIMIT).await;
    send.finish();
    Ok(Welcome { relay, clock })
}

async fn next(recv: &mut RecvStream) -> Result<RelayMessage, (Option<u16>, String)> {
    let bytes = recv.message(CONTROL_LIMIT).await.map_err(|e| (None, e.to_string()))?;
    let bytes = bytes.ok_or_else(|| (None, "it said nothing".to_owned()))?;
    codec::decode(&bytes).map_err(|e| (None, format!("it broke the protocol: {e}")))
}

async fn time(recv: &mut RecvStream, link: &Link) -> Option<i64> {
    loop {
        if let RelayMessage::Time { unix_ms } = next(recv).await.ok()? {
            let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
            let theirs =
                Duration::from_millis(unix_ms).saturating_add(link.round_trip().unwrap_or_default() / 2);
            let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
            return Some(millis(ours).saturating_sub(millis(theirs)));
        }
    }
}

fn taken(
    relay: &RelayAddress,
    identity: &AgentIdentity,
    said: Result<Welcome, (Option<u16>, String)>,
) -> Check {
    let name = format!("relay {relay}");
    let (code, reason) = match said {
        Ok(welcome) => return Check::good(name, format!("it takes this agent ({})", welcome.relay)),
        Err(refused) => refused,
    };
    let mut detail = "it does not take this agent: ".to_owned();
    // Writing to a String does not fail.
    let _ = write!(detail, "{}", reason.escape_debug());
    let resume = format!("at the relay: postern-relay agent resume {}", identity.name());
    let fix = match code {
        Some(refusal::NOT_ENROLLED) => {
            "it was removed, or belongs to another relay: ask for an invite and run: postern-agent join RELAY --force"
        }
        Some(refusal::SUSPENDED) => &resume,
        Some(refusal::DRAINING) => "the relay is shutting down: look there, and try again",
        Some(refusal::REPLACED) => {
            "its certificate is of an authority that was replaced: ask for an invite and run: postern-agent join RELAY --force"
        }
        _ => "look at the relay's log",
    };
    Check::bad(name, detail, fix)
}

async fn leave(link: &Link, endpoint: Option<Endpoint>) {
    link.close(Code::DONE, "doctor");
    match endpoint {
        Some(endpoint) => drop(timeout(LINGER, endpoint.wait_idle()).await),
        None => drop(timeout(LINGER, link.closed()).await),
    }
}
