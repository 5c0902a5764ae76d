//! Joins and recoveries over real QUIC connections.

use postern_base::audit::chain::Chain;
use postern_base::audit::{Destination, LogSettings, Rotate, WhenFull};
use postern_wire::codec::{self, JOIN_LIMIT};
use postern_wire::join::{Question, RecoverRequest};
use postern_wire::link::Link;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use serde_json::Value;

use super::super::join::Served;
use super::recovery::Dc1;
use super::*;
use crate::audit::{self, Audit};
use crate::settings::{AuditSettings, Redact};

/// A relay's end and an agent's end of one join connection.
async fn connected(
    server: &quinn::Endpoint,
    pin: [u8; 32],
) -> Result<(Link, Link, quinn::Endpoint), quinn::ConnectionError> {
    let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = QuicClientConfig::try_from(tls::join_config(pin, tls::ALPN_JOIN).unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let connecting = client.connect_with(config, server.local_addr().unwrap(), "localhost").unwrap();
    let accepting = async { server.accept().await.unwrap().await };
    let (agent, relay) = tokio::join!(connecting, accepting);
    Ok((Link::quic(relay?), Link::quic(agent?), client))
}

async fn ask(agent: &Link, message: &[u8]) -> JoinAnswer {
    let (mut send, mut recv) = agent.open().await.unwrap();
    send.send(&mut [bytes::Bytes::copy_from_slice(message)]).await.unwrap();
    send.finish();
    let answer = recv.message(JOIN_LIMIT).await.unwrap().unwrap();
    codec::decode(&answer).unwrap()
}

/// A relay's join listener with its audit log.
struct Listener {
    endpoint: quinn::Endpoint,
    enrollment: Arc<Enrollment>,
    joins: JoinLimits,
    audit: Audit,
    log: PathBuf,
}

impl Listener {
    fn new(dir: &Path) -> Self {
        let enrollment = Arc::new(enrollment(dir));
        let (chain, key) = enrollment.relay_identity(&"relay".parse().unwrap(), SystemTime::now()).unwrap();
        let identity = Arc::new(tls::Identity::new(chain, key).unwrap());
        let alpns = [tls::ALPN_TUNNEL, tls::ALPN_JOIN];
        let config = tls::relay_config(identity, enrollment.roots().clone(), &alpns).unwrap();
        let config = QuicServerConfig::try_from(config).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(config));
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let log = dir.join("audit.jsonl");
        let rotate = Rotate { size: None, keep_for: None };
        let to = Destination::File(log.clone());
        let settings = LogSettings { to, rotate, reserve: 0, full: WhenFull::Block };
        Chain::create(&audit::chain_path(dir)).unwrap();
        let audit = Audit::open(&AuditSettings { log: settings, redact: Redact::default() }, dir).unwrap();
        Self { endpoint, enrollment, joins: JoinLimits::default(), audit, log }
    }

    /// One exchange; the message may depend on the connection.
    async fn ask(&self, pin: [u8; 32], message: impl AsyncFnOnce(&Link) -> Vec<u8>) -> (Served, JoinAnswer) {
        let (relay, agent, _client) = connected(&self.endpoint, pin).await.unwrap();
        let message = message(&agent).await;
        let served = serve_join(relay, self.enrollment.clone(), &self.joins, &self.audit);
        tokio::join!(served, ask(&agent, &message))
    }

    /// Its audit log behind the file's own first line.
    fn close(self) -> Vec<Value> {
        self.audit.tell_counted(true);
        self.audit.close();
        let lines = std::fs::read_to_string(&self.log).unwrap();
        lines.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn refused(answer: &JoinAnswer) -> u16 {
    let JoinAnswer::Refused { code, .. } = answer else { panic!("{answer:?}") };
    *code
}

#[tokio::test]
async fn joins_over_quic_are_answered_audited_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::new(dir.path());
    let invite = listener.enrollment.invite(&agent("dc1"), None, None, SystemTime::now()).unwrap();
    let strange = connected(&listener.endpoint, [0; 32]).await;
    assert!(strange.is_err(), "a relay with another root is not spoken to");
    let good = codec::encoded(&request(&invite), JOIN_LIMIT).unwrap().to_vec();
    let garbage = vec![0, 0, 0, 3, 0xff, 0xff, 0xff];
    let huge = vec![0, 1, 0, 0];
    let mut answers = Vec::new();
    for message in [good.clone(), good.clone(), garbage, huge] {
        answers.push(listener.ask(invite.pin, async |_| message).await.1);
    }
    assert!(matches!(answers[0], JoinAnswer::Granted { .. }));
    let codes: Vec<_> = answers[1..].iter().map(refused).collect();
    assert_eq!(codes, [refusal::INVALID, refusal::BAD_REQUEST, refusal::BAD_REQUEST]);
    let mut last = 0;
    for _ in 0..30 {
        last = refused(&listener.ask(invite.pin, async |_| good.clone()).await.1);
    }
    assert_eq!(last, refusal::TOO_MANY);

    let events = listener.close();
    let told = events.iter().find(|event| event["event"] == "refused-many").expect("the rest is counted");
    assert_eq!(
        (events.len(), told["count"].as_u64()),
        (27, Some(8)),
        "a line for each join, and of the used ones ten: {told}"
    );
    assert_eq!(events[0]["outcome"], "granted");
    let why = events[1]["reason"].as_str().unwrap();
    assert!(why.contains("used before"), "the operator learns what the agent does not: {why}");
    assert!(!events.iter().any(|event| event.to_string().contains(&invite.to_string())));
}

#[tokio::test]
async fn recoveries_hold_on_their_own_connection_and_an_older_key_suspends() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::new(dir.path());
    let dc1 = Dc1::join(&listener.enrollment);
    let pin = tls::pin(&listener.enrollment.ca.root()).unwrap();
    let question =
        |request: RecoverRequest| codec::encoded(&Question::Recover(request), JOIN_LIMIT).unwrap().to_vec();
    let mut kept = None;
    let (first, answer) = listener
        .ask(pin, async |link| {
            let request = dc1.recover(&dc1.key, &link.exporter());
            kept = Some(request.clone());
            question(request)
        })
        .await;
    assert!(matches!(answer, JoinAnswer::Granted { .. }), "{answer:?}");
    assert_eq!((first.word, first.suspended), ("recovered", None));

    // Whoever saw that message cannot use it on a connection of his own.
    let (again, answer) = listener.ask(pin, async |_| question(kept.unwrap())).await;
    assert_eq!((again.word, refused(&answer)), ("recovery_refused", refusal::BAD_REQUEST));

    // The key that was good a moment ago is an older one now, since the answer above was stored.
    let old = async |link: &Link| question(dc1.recover(&dc1.key, &link.exporter()));
    let (older, answer) = listener.ask(pin, old).await;
    assert_eq!(refused(&answer), refusal::OLD_KEY);
    assert_eq!(older.suspended, Some(dc1.who()), "its tunnels are to be cut");
    let (after, answer) = listener.ask(pin, old).await;
    assert_eq!((after.suspended, refused(&answer)), (None, refusal::SUSPENDED));

    // An agent that is suspended asks for days: it does not use up what an address may fail.
    for _ in 0..30 {
        assert_eq!(refused(&listener.ask(pin, old).await.1), refusal::SUSPENDED);
    }
    let events = listener.close();
    let recoveries: Vec<_> = events.iter().filter(|event| event["event"] == "recovery").collect();
    // Nor does it fill the log.
    let told = events.iter().find(|event| event["event"] == "refused-many").expect("the rest is counted");
    assert_eq!((recoveries.len(), told["count"].as_u64()), (13, Some(21)), "{told}");
    assert!(
        told["reason"].as_str().unwrap().contains("suspended") && told["address"] == "127.0.0.1",
        "{told}"
    );
    for (event, outcome) in recoveries.iter().zip(["granted", "refused", "refused", "refused"]) {
        assert_eq!((&event["outcome"], &event["agent"]), (&outcome.into(), &"dc1".into()), "{event}");
        assert_eq!(event["instance"], dc1.instance.as_str());
    }
    let suspended: Vec<_> = events.iter().filter(|event| event["event"] == "agent-suspended").collect();
    assert_eq!(suspended.len(), 1);
    assert_eq!(suspended[0]["instance"], dc1.instance.as_str());
}

#[tokio::test]
async fn a_stolen_invite_leaves_its_trace_under_a_flood_of_guesses() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::new(dir.path());
    let invite = listener.enrollment.invite(&agent("dc1"), None, None, SystemTime::now()).unwrap();
    let good = codec::encoded(&request(&invite), JOIN_LIMIT).unwrap().to_vec();
    assert!(matches!(listener.ask(invite.pin, async |_| good.clone()).await.1, JoinAnswer::Granted { .. }));
    for _ in 0..5 {
        while listener.audit.take_line("127.0.0.1".parse().unwrap()) {}
        listener.ask(invite.pin, async |_| good.clone()).await;
    }
    let events = listener.close();
    let is_it =
        |event: &&Value| event["reason"].as_str().is_some_and(|reason| reason.contains("used before"));
    assert_eq!(events.iter().filter(is_it).count(), 5, "{events:?}");
}

#[tokio::test]
async fn who_says_nothing_holds_no_place_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut listener = Listener::new(dir.path());
    listener.joins.at_once = tokio::sync::Semaphore::new(1);
    let invite = listener.enrollment.invite(&agent("dc1"), None, None, SystemTime::now()).unwrap();
    let good = codec::encoded(&request(&invite), JOIN_LIMIT).unwrap().to_vec();
    let (relay, _silent, _client) = connected(&listener.endpoint, invite.pin).await.unwrap();
    let waiting = serve_join(relay, listener.enrollment.clone(), &listener.joins, &listener.audit);
    tokio::select! {
        biased;
        served = waiting => panic!("it still reads: {served:?}"),
        (_, answer) = listener.ask(invite.pin, async |_| good.clone()) => {
            assert!(matches!(answer, JoinAnswer::Granted { .. }), "{answer:?}");
        }
    }

    // Where the places are taken, a join is turned away and counted, and is no failure of its address.
    listener.joins.at_once = tokio::sync::Semaphore::new(0);
    while listener.audit.take_line("127.0.0.1".parse().unwrap()) {}
    for _ in 0..30 {
        let (relay, agent, _client) = connected(&listener.endpoint, invite.pin).await.unwrap();
        let asking = async {
            let (mut send, _recv) = agent.open().await.unwrap();
            send.send(&mut [bytes::Bytes::from(good.clone())]).await.unwrap();
            send.finish();
            agent.closed().await;
        };
        let served = serve_join(relay, listener.enrollment.clone(), &listener.joins, &listener.audit);
        assert_eq!(tokio::join!(served, asking).0.word, "busy");
    }
    // Some find a line again meanwhile, as ten a second do.
    assert!(listener.close().last().unwrap()["reasons"]["join-busy"].as_u64() > Some(0));
}
