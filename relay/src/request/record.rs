//! What becomes of one request: its ids, the decision line, and, when the record is dropped, the line of its end. Dropped early, by a
//! caller that left or a shutdown, it still reports, so nothing that was admitted goes missing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use postern_base::id::{AgentName, DecisionId, RequestId};
use postern_gate::policy::{Denial, Permit, Roles};
use postern_gate::principal::{Principal, TokenId};
use postern_wire::pipe::Counts;

use super::route::{Place, Routed};
use crate::audit::AuditFull;
use crate::audit::record::{Decision, End, Outcome, Shown, Who, now};
use crate::metrics::RequestLabels;
use crate::public::Connection;
use crate::public::admission::RequestSlot;
use crate::public::timers::Serving;
use crate::settings::Service;
use crate::tunnel::registry::Place as ServicePlace;

/// The reasons that a decision line gives.
#[derive(Default)]
struct Why<'a> {
    rule: Option<&'a str>,
    missing: &'a [String],
    reason: Option<&'a str>,
}

/// One request's record.
#[derive(Debug)]
pub struct Record {
    id: RequestId,
    /// The id as a field, and for whoever wants its text.
    id_field: HeaderValue,
    connection: Arc<Connection>,
    started: Instant,
    _serving: Serving,
    slot: Option<RequestSlot>,
    place: Option<ServicePlace>,
    method: Method,
    asked_to_switch: bool,
    routed: Option<Arc<Routed>>,
    token: Option<TokenId>,
    principal: Option<Arc<Principal>>,
    decision: Option<DecisionId>,
    allowed: bool,
    status: Option<StatusCode>,
    ended: &'static str,
    reason: Option<&'static str>,
    agent: Option<AgentName>,
    /// Of body, or of a live stream: up from the caller and down to it.
    pub bytes: Arc<Counts>,
}

impl Record {
    pub fn begin(connection: &Arc<Connection>, method: &Method, has_body: bool) -> Self {
        connection.worker.relay.metrics().in_flight.inc();
        let id = RequestId::random();
        // An id is letters and digits.
        let id_field = HeaderValue::try_from(id.to_string()).unwrap_or(HeaderValue::from_static(""));
        Self {
            id,
            id_field,
            connection: connection.clone(),
            started: Instant::now(),
            _serving: connection.clock.begin(has_body),
            slot: None,
            place: None,
            method: method.clone(),
            asked_to_switch: false,
            routed: None,
            token: None,
            principal: None,
            decision: None,
            allowed: false,
            status: None,
            ended: "cut",
            reason: None,
            agent: None,
            bytes: Arc::default(),
        }
    }

    pub fn id(&self) -> RequestId {
        self.id
    }

    pub fn id_field(&self) -> &HeaderValue {
        &self.id_field
    }

    pub fn shown_id(&self) -> &str {
        self.id_field.to_str().unwrap_or_default()
    }

    pub fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    pub fn decision(&self) -> Option<DecisionId> {
        self.decision
    }

    /// The path suffix of the metadata that a 401 points to: alike whether or not the service exists.
    pub fn metadata_path(&self) -> String {
        let Some(routed) = &self.routed else { return String::new() };
        let path = match &routed.place {
            Place::Own(_) => return String::new(),
            // As alike as own addresses are.
            Place::Unknown if routed.path.as_str().starts_with("/.postern") => return String::new(),
            Place::Unknown => routed.path.as_str(),
            Place::Service(_) => routed.prefix().unwrap_or_default(),
        };
        path.split('/').nth(1).filter(|s| !s.is_empty()).map(|s| format!("/{s}")).unwrap_or_default()
    }

    fn service(&self) -> Option<&Service> {
        match &self.routed.as_ref()?.place {
            Place::Service(service) => Some(service),
            Place::Own(_) | Place::Unknown => None,
        }
    }

    pub fn admitted(&mut self, slot: RequestSlot) {
        self.slot = Some(slot);
    }

    pub fn asked_to_switch(&self) -> bool {
        self.asked_to_switch
    }

    pub fn placed(&mut self, place: Option<ServicePlace>) {
        self.place = place;
    }

    /// Where it leads, and what it is judged as: an extended CONNECT, or whatever comes to a TCP service, stands for another method.
    pub fn routed(&mut self, routed: &Arc<Routed>, method: &Method, asks_to_switch: bool) {
        self.routed = Some(routed.clone());
        self.method = method.clone();
        self.asked_to_switch = asks_to_switch;
    }

    pub fn presented(&mut self, token: TokenId) {
        self.token = Some(token);
    }

    pub fn authenticated(&mut self, principal: &Arc<Principal>) {
        self.token = Some(principal.token_id());
        self.principal = Some(principal.clone());
    }

    /// Queues the decision; without room for it the request must not go on.
    pub fn allowed(&mut self, permit: &Permit) -> Result<(), AuditFull> {
        let roles: Vec<&str> = permit.roles().iter().collect();
        let why = Why { rule: Some(permit.rule()), ..Why::default() };
        self.decide(permit.decision(), Outcome::Allow, &roles, &why)?;
        self.allowed = true;
        Ok(())
    }

    pub fn denied(&mut self, denial: &Denial, roles: &Roles) {
        let roles: Vec<&str> = roles.iter().collect();
        let why = Why { rule: denial.rule(), missing: denial.missing(), reason: None };
        // A refusal goes out with or without its line: refusing is the safe side.
        let _ = self.decide(denial.decision(), Outcome::Deny, &roles, &why);
    }

    /// The relay answers itself, for this reason.
    pub fn refused(&mut self, reason: &'static str) {
        self.reason = Some(reason);
    }

    /// A refusal for want of a good token, or of a service that the caller may know of.
    pub fn refused_unproved(&mut self, reason: &str, detail: &str) {
        if self.decision.is_none() {
            let reason = format!("{reason}: {detail}");
            let why = Why { reason: Some(&reason), ..Why::default() };
            let _ = self.decide(DecisionId::random(), Outcome::Deny, &[], &why);
        }
    }

    fn decide(
        &mut self,
        id: DecisionId,
        outcome: Outcome,
        roles: &[&str],
        why: &Why<'_>,
    ) -> Result<(), AuditFull> {
        self.decision = Some(id);
        self.connection.worker.audit.decision(&Decision {
            time: now(),
            event: "decision",
            request_id: self.id,
            decision_id: id,
            outcome,
            token: self.token.map(Shown),
            who: self.principal.as_deref().map(Who::from),
            roles,
            address: self.connection.peer.ip(),
            service: self.service().map(|service| service.name.as_str()),
            method: self.method.as_str(),
            path: self.routed.as_ref().map_or("", |routed| routed.path.as_str()),
            rule: why.rule,
            missing: why.missing,
            reason: why.reason,
        })
    }

    pub fn through(&mut self, agent: &AgentName) {
        self.agent = Some(agent.clone());
    }

    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Whether hyper will drop the answer's body unread: there is none to send (RFC 9110, 6.4.1).
    pub fn expects_no_body(&self) -> bool {
        let without = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
        self.method == Method::HEAD || self.status.is_some_and(|status| without.contains(&status))
    }

    /// The last byte of the answer was handed over.
    pub fn complete(&mut self) {
        self.ended = "done";
    }

    /// A live stream outlasted its token.
    pub fn expire(&mut self) {
        self.ended = "expired";
    }

    /// HTTP/1.1 callers are told that the connection ends; HTTP/2 has streams for that.
    pub fn close_connection(&self, headers: &mut HeaderMap) {
        if !self.connection.is_http2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let metrics = self.connection.worker.relay.metrics();
        let took = self.started.elapsed();
        let bytes_in = self.bytes.up.load(Ordering::Relaxed);
        let bytes_out = self.bytes.down.load(Ordering::Relaxed);
        let status = self.status.map_or(0, |status| status.as_u16());
        let service = self.service().map(|service| service.name.as_str());
        let labels = RequestLabels { service: service.unwrap_or("-").to_owned(), status };
        metrics.requests.get_or_create(&labels).inc();
        // How long a live stream lasts says nothing of how fast anything is.
        let switched = [StatusCode::SWITCHING_PROTOCOLS, StatusCode::OK].map(Some).contains(&self.status);
        if !(self.asked_to_switch && switched) {
            metrics.duration.observe(took.as_secs_f64());
        }
        metrics.bytes_in.inc_by(bytes_in);
        metrics.bytes_out.inc_by(bytes_out);
        metrics.in_flight.dec();
        let end = End {
            time: now(),
            event: "end",
            request_id: self.id,
            decision_id: self.decision,
            address: self.connection.peer.ip(),
            service,
            status,
            ended: self.ended,
            reason: self.reason,
            bytes_in,
            bytes_out,
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            agent: self.agent.as_ref(),
        };
        self.connection.worker.audit.end(&end, self.allowed);
    }
}
