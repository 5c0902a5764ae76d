//! What becomes of one request: its ids, the decision line, and, when the record is dropped, the line of its end. Dropped early, by a
//! caller that left or a shutdown, it still reports, so nothing that was admitted goes missing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use postern_base::audit::now;
use postern_base::id::{AgentName, DecisionId, RequestId};
use postern_gate::principal::{Principal, TokenId};
use postern_gate::token::Scheme;
use postern_wire::pipe::Counts;

use super::authorize::Permitted;
use super::cors::Page;
use super::limit::LimitFields;
use super::route::{Place, Routed};
use crate::audit::record::End;
use crate::metrics::RequestLabels;
use crate::public::Connection;
use crate::public::admission::RequestSlot;
use crate::public::timers::Serving;
use crate::relay::Snapshot;
use crate::session::{self, Admitted, Cut, Running};
use crate::settings::Service;
use crate::tunnel::registry::{ServicePlace, Tunnel};

mod decision;

/// One request's record.
#[derive(Debug)]
pub struct Record {
    id: RequestId,
    /// The id as a field, and for whoever wants its text.
    id_field: HeaderValue,
    connection: Arc<Connection>,
    caller: SocketAddr,
    limits: Option<LimitFields>,
    started: Instant,
    _serving: Serving,
    slot: Option<RequestSlot>,
    place: Option<ServicePlace>,
    /// Its place among all that runs, by which it is found when it is to be cut.
    admitted: Option<Admitted>,
    method: Method,
    asked_to_switch: bool,
    routed: Option<Arc<Routed>>,
    /// The web page that asks, at a service that pages may call.
    pub page: Option<Page>,
    token: Option<TokenId>,
    /// How the token came, and what the answer gives for the next one's proof.
    scheme: Option<Scheme>,
    nonce: Option<HeaderValue>,
    principal: Option<Arc<Principal>>,
    decision: Option<DecisionId>,
    /// Where nobody proved a token: whether it has lines of its own, once that was asked.
    is_whole: Option<bool>,
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
            caller: connection.peer,
            limits: None,
            started: Instant::now(),
            _serving: connection.clock.begin(has_body),
            slot: None,
            place: None,
            admitted: None,
            method: method.clone(),
            asked_to_switch: false,
            routed: None,
            page: None,
            token: None,
            scheme: None,
            nonce: None,
            principal: None,
            decision: None,
            is_whole: None,
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

    /// The caller's address; the connection's own until [`Record::comes_from`] knows better.
    pub fn peer(&self) -> SocketAddr {
        self.caller
    }

    pub fn comes_from(&mut self, caller: SocketAddr) {
        self.caller = caller;
    }

    /// How the rule's limits stand, for the answer.
    pub fn limited(&mut self, fields: Option<LimitFields>) {
        self.limits = fields;
    }

    pub fn take_limits(&mut self) -> Option<LimitFields> {
        self.limits.take()
    }

    pub fn decision(&self) -> Option<DecisionId> {
        self.decision
    }

    /// The path suffix of the metadata that a 401 points to.
    pub fn metadata_path(&self) -> &str {
        self.routed.as_ref().map_or("", |routed| routed.metadata_path())
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

    pub fn showed(&mut self, scheme: Scheme) {
        self.scheme = Some(scheme);
    }

    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// For the answer's DPoP-Nonce (RFC 9449, 8).
    pub fn give_nonce(&mut self, nonce: Option<String>) {
        self.nonce = nonce.and_then(|nonce| HeaderValue::try_from(nonce).ok());
    }

    pub fn take_nonce(&mut self) -> Option<HeaderValue> {
        self.nonce.take()
    }

    pub fn presented(&mut self, token: TokenId) {
        self.token = Some(token);
    }

    pub fn authenticated(&mut self, principal: &Arc<Principal>) {
        self.token = Some(principal.token_id());
        self.principal = Some(principal.clone());
    }

    /// The relay answers itself, for this reason.
    pub fn refused(&mut self, reason: &'static str) {
        self.reason = Some(reason);
    }

    /// It runs from now on, and can be cut; refused where it is locked.
    pub fn enter(
        &mut self,
        snapshot: &Arc<Snapshot>,
        permitted: &Permitted,
        routed: &Arc<Routed>,
        now: SystemTime,
    ) -> Result<Arc<Running>, Cut> {
        let relay = &self.connection.worker.relay;
        let new = session::New {
            request_id: self.id,
            address: self.caller.ip(),
            method: self.method.clone(),
            routed: routed.clone(),
            service: permitted.service().clone(),
            principal: permitted.principal().clone(),
            bytes: self.bytes.clone(),
            now,
            grace: snapshot.settings.limits.lease_grace,
        };
        let admitted = relay.session().admit(relay, snapshot, self.connection.worker.id, new)?;
        Ok(self.admitted.insert(admitted).running().clone())
    }

    /// None before it was permitted.
    pub fn running(&self) -> Option<&Arc<Running>> {
        self.admitted.as_ref().map(Admitted::running)
    }

    /// It becomes a live stream: gives what its caller is told of its lease.
    pub fn lease(&self, token: &str) -> Option<HeaderValue> {
        let lease = self.admitted.as_ref()?.lease(token, SystemTime::now());
        HeaderValue::try_from(lease.told()).ok()
    }

    /// Says whether it may go this way.
    pub fn through(&mut self, tunnel: &Arc<Tunnel>) -> Result<(), Cut> {
        self.agent = Some(tunnel.agent.clone());
        let session = self.connection.worker.relay.session();
        self.running().map_or(Ok(()), |running| session.goes_over(running, tunnel))
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

    /// Whether it has lines of its own: what was refused before anybody proved a token is only counted where there is too much of it.
    fn has_lines(&mut self) -> bool {
        let (audit, address) = (self.connection.worker.relay.audit(), self.caller.ip());
        self.principal.is_some() || *self.is_whole.get_or_insert_with(|| audit.take_line(address))
    }

    /// The line of a cut, before that of the end.
    fn report_cut(&mut self) {
        let Some(running) = self.running() else { return };
        let Some(cut) = running.was_cut() else { return };
        let detail = serde_json::json!({
            "request_id": self.id,
            "lease": running.lease().map(ToString::to_string),
            "service": running.service.name,
            "agent": self.agent,
            "reason": cut.reason(),
            "lock": cut.lock(),
        });
        self.connection.worker.relay.audit().event("cut", detail);
        self.ended = if cut == Cut::Expired { "expired" } else { "cut" };
        self.reason = Some(cut.reason());
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
        self.report_cut();
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
        if !self.has_lines() {
            let what = self.reason.unwrap_or(if status == 0 { "cut" } else { "answered" });
            return self.connection.worker.relay.audit().count(self.caller.ip(), what);
        }
        let service = self.service().map(|service| service.name.as_str());
        let audit = &self.connection.worker.audit;
        let end = End {
            time: now(),
            event: "end",
            request_id: self.id,
            decision_id: self.decision,
            lease: self.running().and_then(|running| running.lease()).map(ToString::to_string),
            address: audit.names().address(self.caller.ip()),
            service,
            status,
            ended: self.ended,
            reason: self.reason,
            bytes_in,
            bytes_out,
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            agent: self.agent.as_ref(),
        };
        audit.end(&end, self.allowed);
    }
}
