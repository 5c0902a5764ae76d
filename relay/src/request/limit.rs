//! Limits that a request must keep: before any work those of the whole relay, after the decision those of its service, and what one
//! caller may take of it: of a rule's rates and quotas, and of its places.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use postern_gate::policy::{Allowance, Limit, Permit, Rated, uncounted};
use postern_gate::principal::Principal;

use super::authorize::Permitted;
use super::record::Record;
use super::respond::Refusal;
use crate::relay::Relay;
use crate::settings::{Limits, Service};
use crate::tunnel::registry::Full;

pub mod counts;
mod fields;

pub use fields::LimitFields;

use counts::{CountsFull, Mode, Standing, Standings};
use fields::seconds;

/// No rule that allows a request has room for it now.
#[derive(Debug)]
pub struct OverLimit {
    rule: String,
    limit: String,
    wait: Duration,
}

impl OverLimit {
    /// Whole seconds, at least one.
    pub fn retry_after(&self) -> u32 {
        u32::try_from(seconds(self.wait)).unwrap_or(u32::MAX).max(1)
    }
}

/// For the caller.
impl std::fmt::Display for OverLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rule {:?} lets {}: wait ", self.rule, self.limit)?;
        // In the largest unit that says it well, never less than it is.
        match self.retry_after() {
            seconds @ 0..120 => write!(f, "{seconds} s"),
            seconds @ 120..7200 => write!(f, "{} min", seconds.div_ceil(60)),
            seconds => write!(f, "{} h", seconds.div_ceil(3600)),
        }
    }
}

/// What names, values and separators of all fields take.
fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Relay-wide limits: requests in flight, and the head's size.
pub fn before_work(
    relay: &Relay,
    limits: &Limits,
    head: &http::request::Parts,
    record: &mut Record,
) -> Result<(), Refusal> {
    record.admitted(relay.admission().request().ok_or(Refusal::Overloaded)?);
    if head.headers.len() > limits.fields || size(&head.headers) > limits.headers {
        return Err(Refusal::FieldsTooLarge);
    }
    if !relay.audit().is_healthy() {
        return Err(Refusal::AuditFull);
    }
    Ok(())
}

/// A body that says it is too large is refused before a byte of it is read; one that does not say is counted as it comes.
pub fn body_size(service: &Service, headers: &HeaderMap) -> Result<(), Refusal> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match (service.body_limit, declared) {
        (Some(limit), Some(declared)) if declared > limit => Err(Refusal::BodyTooLarge(limit)),
        _ => Ok(()),
    }
}

/// A place at the service, as long as the request lives.
pub fn place(
    relay: &Relay,
    limits: &Limits,
    permitted: &Permitted,
    record: &mut Record,
) -> Result<(), Refusal> {
    match relay.registry().place(permitted.service(), permitted.principal(), limits.requests) {
        Ok(place) => {
            record.placed(place);
            Ok(())
        }
        Err(Full::Service(limit)) => Err(Refusal::ServiceFull(limit)),
        Err(Full::Share(limit)) => Err(Refusal::ShareTaken(limit)),
    }
}

/// One request of what the permit's rule lets; where it has no room, of the next rule that allows it too.
pub fn rate(
    relay: &Relay,
    permit: &mut Permit,
    principal: &Principal,
    record: &mut Record,
) -> Result<(), Refusal> {
    if permit.rates().is_empty() {
        return Ok(());
    }
    let address = record.peer().ip();
    let found = with_room(relay, permit.rates(), (principal, address), Mode::Take);
    let (index, standings) = found.map_err(|CountsFull| Refusal::CountsFull)?;
    record.limited(LimitFields::of(&standings));
    let Some(over) = over(&standings) else {
        permit.settle(index);
        return Ok(());
    };
    let rule = permit.rates().get(index).map_or_else(String::new, |rated| rated.rule.to_string());
    let limit = over.rate.to_string();
    Err(Refusal::OverLimit(OverLimit { rule, limit, wait: over.wait.unwrap_or_default() }))
}

/// What a dry run tells of limits: settles on the rule that has room, and takes nothing.
pub fn look(relay: &Relay, principal: &Principal, address: IpAddr, permit: &mut Permit) -> Vec<Allowance> {
    match with_room(relay, permit.rates(), (principal, address), Mode::Look) {
        Ok((index, standings)) => {
            permit.settle(index);
            standings.iter().map(told).collect()
        }
        Err(CountsFull) => uncounted(principal, address, permit),
    }
}

fn told(standing: &Standing) -> Allowance {
    Allowance {
        limit: standing.rate.to_string(),
        left: Some(standing.left),
        wait: standing.wait.map(|wait| seconds(wait).max(1)),
    }
}

/// How one rule's limits stand for a caller; takes nothing of them.
pub fn standing(relay: &Relay, principal: &Principal, address: IpAddr, limits: &[Limit]) -> Vec<Allowance> {
    let asked = limits.iter().map(|limit| (limit.kind, limit.rate, limit.whose(principal, address)));
    if let Ok(standings) = relay.counts().ask(asked, Instant::now(), Mode::Look) {
        return standings.iter().map(told).collect();
    }
    let unknown = |limit: &Limit| Allowance { limit: limit.to_string(), left: None, wait: None };
    limits.iter().map(unknown).collect()
}

/// The first rule that has room, and how its limits stand; where none has, the one that is the first to have some.
fn with_room(
    relay: &Relay,
    rates: &[Rated],
    (principal, address): (&Principal, IpAddr),
    mode: Mode,
) -> Result<(usize, Standings), CountsFull> {
    let now = Instant::now();
    let mut soonest: Option<(Duration, usize, Standings)> = None;
    for (index, rated) in rates.iter().enumerate() {
        let limits = rated.limits.iter();
        let limits = limits.map(|limit: &Limit| (limit.kind, limit.rate, limit.whose(principal, address)));
        let standings = relay.counts().ask(limits, now, mode)?;
        let Some(wait) = over(&standings).and_then(|standing| standing.wait) else {
            return Ok((index, standings));
        };
        if soonest.as_ref().is_none_or(|(least, ..)| wait < *least) {
            soonest = Some((wait, index, standings));
        }
    }
    Ok(soonest.map_or((0, Standings::new()), |(_, index, standings)| (index, standings)))
}

/// The limit that must be waited for the longest.
fn over(standings: &[Standing]) -> Option<&Standing> {
    standings.iter().filter(|standing| standing.wait.is_some()).max_by_key(|standing| standing.wait)
}
