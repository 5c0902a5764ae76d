//! Who calls, as header fields: takes a permit, gives `X-Postern-*`, the fields of `send` and the signed assertion, in no words of the
//! caller's; refuses an identity that does not fit, since half of one is another one. What was made for a caller at a service is kept
//! for the caller's next requests there, so that an ordinary request formats and signs nothing: by each worker for itself, since what
//! workers share costs more than formatting does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use postern_base::clock;
use postern_base::sync::lock;
use postern_gate::policy::Roles;
use postern_gate::principal::Principal;
use postern_wire::fields::encoded;
use serde_json::Value;

use super::assertion;
use super::keys::Keys;
use crate::request::authorize::Permitted;
use crate::settings::Service;

/// The longest field, in bytes: three of them leave most of an ordinary server's 8 KiB to the caller.
const FIELD_LIMIT: usize = 2048;
/// The assertion says what three such fields say, in base64. nginx and others take no field longer than 8 KiB.
const ASSERTION_LIMIT: usize = 6 * 1024;
/// Identities of one generation, of which two are kept; with an assertion each takes some 1.5 KiB. As many as one caller of 10,000 services
/// has: fewer, and a round through all of them signs each anew.
const GENERATION: usize = 12 * 1024;

/// Why an identity does not go on.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{0} does not fit")]
    TooLarge(&'static str),
    #[error("the assertion could not be signed")]
    Unsigned,
}

/// The fields for one caller at one service.
#[derive(Debug)]
pub struct Identity {
    /// Held, so that their addresses stay theirs.
    principal: Arc<Principal>,
    service: Arc<Service>,
    roles: Roles,
    /// Seconds since the epoch after which another assertion is due.
    until: u64,
    fields: Vec<(HeaderName, HeaderValue)>,
}

impl Identity {
    /// Says it in a head from which all that the caller said of itself was removed.
    pub fn say(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.fields {
            headers.insert(name.clone(), value.clone());
        }
    }

    fn is_of(&self, permitted: &Permitted, now: u64) -> bool {
        // Roles change with a reload, and some of them with time.
        now < self.until
            && Arc::ptr_eq(&self.principal, permitted.principal())
            && Arc::ptr_eq(&self.service, permitted.service())
            && self.roles.iter().eq(permitted.permit().roles().iter())
    }
}

/// A principal and a service, by their addresses, which the identity keeps theirs.
type Place = (usize, usize);

/// The identities that one worker lately made.
#[derive(Debug, Default)]
pub struct Identities(Mutex<Generations>);

/// What was not asked for in a whole generation is forgotten: nothing is sorted, and nothing grows.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Place, Arc<Identity>>,
    old: HashMap<Place, Arc<Identity>>,
    /// Seconds since the epoch after which the next generation begins, if this one is not full before.
    until: u64,
}

impl Generations {
    fn find(&mut self, place: Place, permitted: &Permitted, now: u64) -> Option<Arc<Identity>> {
        if let Some(known) = self.young.get(&place) {
            return known.is_of(permitted, now).then(|| known.clone());
        }
        let known = self.old.remove(&place).filter(|known| known.is_of(permitted, now))?;
        self.keep(place, known.clone(), now);
        Some(known)
    }

    fn keep(&mut self, place: Place, identity: Arc<Identity>, now: u64) {
        if now >= self.until || self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.until = now + assertion::USED_FOR;
        }
        self.young.insert(place, identity);
    }
}

impl Identities {
    /// The fields for this caller at this service; `relay` is the relay's own URL.
    pub fn of(
        &self,
        permitted: &Permitted,
        keys: &Keys,
        relay: &str,
        now: SystemTime,
    ) -> Result<Arc<Identity>, IdentityError> {
        let place = (Arc::as_ptr(permitted.principal()).addr(), Arc::as_ptr(permitted.service()).addr());
        let seconds = clock::seconds(now);
        // Never contended: a worker is one thread.
        let generations = || lock(&self.0);
        if let Some(known) = generations().find(place, permitted, seconds) {
            return Ok(known);
        }
        let mut fields = fields(permitted)?;
        let key = keys.signer(now).ok_or(IdentityError::Unsigned)?;
        let signed = assertion::signed(&key, permitted, relay, seconds).ok_or(IdentityError::Unsigned)?;
        fields.push(field("x-postern-assertion", "X-Postern-Assertion", signed, ASSERTION_LIMIT)?);
        let identity = Arc::new(Identity {
            principal: permitted.principal().clone(),
            service: permitted.service().clone(),
            roles: permitted.permit().roles().clone(),
            until: assertion::used_until(permitted.principal(), seconds),
            fields,
        });
        generations().keep(place, identity.clone(), seconds);
        Ok(identity)
    }
}

fn field(
    name: &'static str,
    shown: &'static str,
    value: String,
    limit: usize,
) -> Result<(HeaderName, HeaderValue), IdentityError> {
    Ok((HeaderName::from_static(name), fitting(shown, value, limit)?))
}

fn fitting(shown: &'static str, value: String, limit: usize) -> Result<HeaderValue, IdentityError> {
    // What is encoded is visible ASCII.
    let value = Some(value).filter(|value| value.len() <= limit);
    value.and_then(|value| HeaderValue::try_from(value).ok()).ok_or(IdentityError::TooLarge(shown))
}

fn fields(permitted: &Permitted) -> Result<Vec<(HeaderName, HeaderValue)>, IdentityError> {
    let (send, principal) = (&permitted.service().send, permitted.principal());
    let plain = |name, shown, value| field(name, shown, value, FIELD_LIMIT);
    let one = |text: &str| encoded([text]);
    let roles = encoded(permitted.permit().roles().iter());
    let scopes = encoded(principal.scopes().iter().map(String::as_str));
    let mut fields = vec![
        plain("x-postern-subject", "X-Postern-Subject", one(principal.subject()))?,
        plain("x-postern-issuer", "X-Postern-Issuer", one(principal.iss()))?,
        plain("x-postern-scopes", "X-Postern-Scopes", scopes)?,
        plain("x-postern-roles", "X-Postern-Roles", roles.clone())?,
    ];
    if let Some(client) = principal.client() {
        fields.push(plain("x-postern-client", "X-Postern-Client", one(client))?);
    }
    if let Some(name) = &send.user {
        fields.push((name.clone(), fitting("send.user", one(principal.user()), FIELD_LIMIT)?));
    }
    if let Some(name) = &send.roles {
        fields.push((name.clone(), fitting("send.roles", roles, FIELD_LIMIT)?));
    }
    for (name, claim) in &send.claims {
        if let Some(value) = claim.value(principal.claims()) {
            let text = claim_text(value).ok_or(IdentityError::TooLarge("send.claims"))?;
            fields.push((name.clone(), fitting("send.claims", text, FIELD_LIMIT)?));
        }
    }
    Ok(fields)
}

/// A claim as a field: text, number or truth as it is, and lists of them. An object has no such form.
fn claim_text(claim: &Value) -> Option<String> {
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let values = claim.as_array().map_or(std::slice::from_ref(claim), Vec::as_slice);
    let texts = values.iter().map(plain).collect::<Option<Vec<_>>>()?;
    Some(encoded(texts.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_fields_where_they_can_be() {
        let text = |claim: Value| claim_text(&claim);
        assert_eq!(text(json!("R&D, east")).as_deref(), Some("R&D%2C%20east"));
        assert_eq!(text(json!(["a", 7, true])).as_deref(), Some("a,7,true"));
        assert_eq!(text(json!([])).as_deref(), Some(""));
        assert_eq!(text(json!(-1.5)).as_deref(), Some("-1.5"));
        for none in [json!({ "a": 1 }), json!(["a", ["b"]]), json!([null])] {
            assert_eq!(text(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_never_cut() {
        assert!(fitting("x", "a".repeat(FIELD_LIMIT), FIELD_LIMIT).is_ok());
        let refused = fitting("send.user", "a".repeat(FIELD_LIMIT + 1), FIELD_LIMIT).unwrap_err();
        assert_eq!(refused.to_string(), "send.user does not fit");
    }
}
