//! One join, or recovery, over the wire. Takes a link with the join ALPN; gives one answer and one audit line; refuses what is late, large,
//! malformed, or comes from an address that failed too often. The database is written off the runtime.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use postern_base::id::{AgentName, InstanceId, TrustDomain};
use postern_wire::codec::JOIN_LIMIT;
use postern_wire::join::{JoinAnswer, Question};
use postern_wire::link::{Code, Link, RecvStream, SendStream, StreamError};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout_at;

use super::{Enrollment, JoinRefused, Who, recover, taken};
use crate::audit::Audit;
use crate::public::admission::bucket::Buckets;

/// One exchange is two small messages; whoever needs longer is not an agent (protocol.md).
const EXCHANGE: Duration = Duration::from_secs(10);
/// How long an address that failed too often is given to read so.
const TURNED_AWAY: Duration = Duration::from_secs(1);
/// Joins decided at one time: each costs a signature and a write to the disk (protocol.md).
const AT_ONCE: usize = 64;
/// Failed joins that an address has at once, and in a minute: an operator's typing errors pass, a flood does not.
const FAILURES: u32 = 20;
const MINUTE: Duration = Duration::from_mins(1);

/// A join or a recovery that was granted.
#[derive(Debug)]
pub struct Joined {
    pub agent: AgentName,
    pub instance: InstanceId,
    pub answer: JoinAnswer,
    /// It was granted on a certificate that is not on record.
    pub is_unrecorded: bool,
}

impl Joined {
    pub(super) fn new(
        agent: &AgentName,
        instance: &InstanceId,
        chain: &[CertificateDer<'_>],
        domain: &TrustDomain,
    ) -> Self {
        let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
        let answer = JoinAnswer::Granted { chain, trust_domain: domain.to_string() };
        Self { agent: agent.clone(), instance: instance.clone(), answer, is_unrecorded: false }
    }
}

/// What came of a connection.
#[derive(Debug)]
pub struct Served {
    /// The outcome in one word, for counting.
    pub word: &'static str,
    /// An instance that is suspended from now on; the caller cuts its tunnels.
    pub suspended: Option<Who>,
}

/// What an agent asked, as the audit log calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Join,
    Recovery,
}

/// How many joins may run, and which addresses failed too often. One per relay.
#[derive(Debug)]
pub struct JoinLimits {
    pub(super) at_once: Semaphore,
    failures: Buckets,
}

impl Default for JoinLimits {
    fn default() -> Self {
        Self { at_once: Semaphore::new(AT_ONCE), failures: Buckets::new(MINUTE) }
    }
}

/// Serves one connection whose ALPN is a join's, and closes it.
pub async fn serve_join(
    link: Link,
    enrollment: Arc<Enrollment>,
    joins: &JoinLimits,
    audit: &Audit,
) -> Served {
    let address = link.peer_address().ip().to_canonical();
    let Some((asked, outcome)) = converse(&link, enrollment, joins).await else {
        if audit.take_or_count(address, "join-busy") {
            tracing::warn!(%address, "a join was turned away: too many at once");
        }
        return Served { word: "busy", suspended: None };
    };
    let (event, granted, refused) = match asked {
        Asked::Join => ("join", "granted", "refused"),
        Asked::Recovery => ("recovery", "recovered", "recovery_refused"),
    };
    let (word, suspended) = match outcome {
        Ok(Joined { agent, instance, answer: _, is_unrecorded }) => {
            tracing::info!(%agent, %instance, %address, "{event} granted");
            let detail =
                json!({ "outcome": "granted", "agent": agent, "instance": instance, "address": address });
            audit.event(event, detail);
            if is_unrecorded {
                taken::tell(audit, &agent, &instance, address);
            }
            (granted, None)
        }
        Err(why) => {
            let reason = why.to_string();
            // What nobody proved says what somebody likes.
            let is_told = if why.is_news() {
                audit.take_news(address, event, &reason)
            } else {
                audit.take_or_count(address, event)
            };
            if is_told {
                audit.event(
                    event,
                    json!({
                        "outcome": "refused",
                        "agent": why.agent(),
                        "instance": why.instance(),
                        "reason": reason,
                        "address": address,
                    }),
                );
            }
            let suspended = if let JoinRefused::OldKey(who) = why { Some(who) } else { None };
            (refused, suspended)
        }
    };
    if let Some(who) = &suspended {
        tell_suspended(audit, who, recover::OLD_KEY, address);
    }
    Served { word, suspended }
}

/// Tells that the relay suspended somebody of its own accord.
pub fn tell_suspended(audit: &Audit, who: &Who, reason: &'static str, address: IpAddr) {
    tracing::error!(%who, %address, "suspended: {reason}");
    audit.event(
        "agent-suspended",
        json!({ "agent": who.name, "instance": who.instance, "reason": reason, "address": address }),
    );
}

/// The exchange itself; `None` where the relay was too busy to decide, which is no verdict on the join.
pub(super) async fn converse(
    link: &Link,
    enrollment: Arc<Enrollment>,
    joins: &JoinLimits,
) -> Option<(Asked, Result<Joined, JoinRefused>)> {
    let address = link.peer_address().ip();
    // Counted as failed until it has succeeded, or many at once would all find room.
    let has_room = joins.failures.take(address, FAILURES, Instant::now());
    let deadline = tokio::time::Instant::now() + if has_room { EXCHANGE } else { TURNED_AWAY };
    let late = |_| JoinRefused::Malformed("nothing complete came in time".into());
    let mut asked = Asked::Join;
    let outcome = match timeout_at(deadline, link.control()).await.map_err(late) {
        Ok(Ok((mut send, mut recv))) => {
            let outcome = if has_room {
                match timeout_at(deadline, read(&mut recv)).await.unwrap_or_else(|e| Err(late(e))) {
                    Ok(question) => {
                        if matches!(question, Question::Recover(_)) {
                            asked = Asked::Recovery;
                        }
                        // Taken only now: who says nothing must not hold the places of others.
                        let Ok(_place) = joins.at_once.try_acquire() else {
                            joins.failures.give_back(address, FAILURES);
                            link.close(Code::OVERLOADED, "too many joins at once");
                            return None;
                        };
                        decide(question, link, enrollment).await
                    }
                    Err(refused) => Err(refused),
                }
            } else {
                Err(JoinRefused::TooMany)
            };
            let answer = match &outcome {
                Ok(joined) => joined.answer.clone(),
                Err(refused) => refused.answer(),
            };
            // Whether it arrives changes nothing about the verdict.
            let _ = timeout_at(deadline, send_answer(&mut send, &mut recv, &answer)).await;
            outcome
        }
        Ok(Err(gone)) => Err(JoinRefused::Silent(gone.to_string())),
        Err(late) => Err(late),
    };
    if outcome.as_ref().map_or_else(JoinRefused::is_proved, |_| true) {
        joins.failures.give_back(address, FAILURES);
    }
    link.close(Code::DONE, "");
    Some((asked, outcome))
}

async fn read(recv: &mut RecvStream) -> Result<Question, JoinRefused> {
    let malformed = |e: StreamError| JoinRefused::Malformed(e.to_string());
    let message = recv.message(JOIN_LIMIT).await.map_err(malformed)?;
    let message = message.ok_or_else(|| malformed(StreamError::Truncated))?;
    Question::decode(&message).map_err(|e| malformed(e.into()))
}

/// Not under the exchange's deadline: what is being written to the disk must be reported as it ends.
async fn decide(question: Question, link: &Link, enrollment: Arc<Enrollment>) -> Result<Joined, JoinRefused> {
    let exporter = link.exporter();
    let decided = tokio::task::spawn_blocking(move || match question {
        Question::Join(request) => enrollment.join(&request, SystemTime::now()),
        Question::Recover(request) => enrollment.recover(&request, &exporter, SystemTime::now()),
    });
    decided.await.unwrap_or_else(|e| Err(JoinRefused::Unavailable { agent: None, why: e.to_string() }))
}

/// Sends the answer and waits until it has arrived, since closing the connection would discard it.
async fn send_answer(send: &mut SendStream, recv: &mut RecvStream, answer: &JoinAnswer) {
    if send.message(answer, JOIN_LIMIT).await.is_ok() {
        send.finish();
        tokio::select! {
            _ = send.stopped() => {}
            // A stream that nobody reads would pile up whatever comes.
            () = read_out(recv) => {
                send.stopped().await;
            }
        }
    }
}

/// Throws away what still comes; nothing is expected.
async fn read_out(recv: &mut RecvStream) {
    while let Ok(Some(_)) = recv.chunk().await {}
}
