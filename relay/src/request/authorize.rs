//! May this caller do this: takes principal and place, gives a [`Permitted`] service; refuses with 401 (step-up), 403, 404 or 405. The
//! decision is in the audit log's queue before anything is forwarded.

use std::sync::Arc;
use std::time::SystemTime;

use http::Method;
use postern_gate::policy::{Context, Denial, DenialKind, Permit, Target};
use postern_gate::principal::Principal;

use super::limit;
use super::record::Record;
use super::respond::Refusal;
use super::route::{Place, Routed};
use crate::public::Connection;
use crate::relay::Snapshot;
use crate::settings::Service;

/// A permit, whose it is and what for: only [`authorize`] makes one, and forwarding needs one.
#[derive(Debug)]
pub struct Permitted {
    permit: Permit,
    principal: Arc<Principal>,
    service: Arc<Service>,
}

impl Permitted {
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }
}

pub fn authorize(
    connection: &Connection,
    snapshot: &Snapshot,
    principal: &Arc<Principal>,
    method: &Method,
    routed: &Routed,
    record: &mut Record,
    now: SystemTime,
) -> Result<Permitted, Refusal> {
    let Place::Service(service) = &routed.place else { return Err(Refusal::NotFound) };
    let target = Target { service: &service.name, method: method.as_str(), path: &routed.path };
    let context = Context { address: record.peer().ip(), now };
    match snapshot.policy.decide(principal, &target, &context) {
        Ok(mut permit) => {
            // Which rule lets it pass depends on which has room. Its line says what policy decided; that there was no room, its end.
            let room = limit::rate(&connection.worker.relay, &mut permit, principal, record);
            record.allowed(&permit).map_err(|_| Refusal::AuditFull)?;
            room?;
            Ok(Permitted { permit, principal: principal.clone(), service: service.clone() })
        }
        Err(denial) => {
            let roles = snapshot.policy.roles_of(principal);
            record.denied(&denial, &roles);
            Err(refusal_of(denial))
        }
    }
}

fn refusal_of(denial: Denial) -> Refusal {
    match denial.kind() {
        DenialKind::NotVisible => Refusal::NotFound,
        DenialKind::DeniedByRule
        | DenialKind::NoRule
        | DenialKind::MissingScope { .. }
        | DenialKind::StepUp { .. }
        | DenialKind::MethodNotAllowed { .. } => Refusal::Denied(denial),
    }
}
