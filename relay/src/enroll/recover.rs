//! Recovery: an instance whose certificate ended while it was off proves its newest key and is given the next certificate, within
//! `agents.recover`. Takes its last chain, a key and a signature by it over this very connection; refuses whoever was removed or suspended
//! and keys that are not the instance's. An older key of its own suspends it: somebody else may have a copy.

use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use postern_base::id::SpiffeId;
use postern_base::value::Span;
use postern_wire::join::RecoverRequest;
use postern_wire::tls;
use rustls::pki_types::CertificateDer;

use super::store::{Change, InstanceRecord, Store};
use super::{Barred, CaError, Enrollment, JoinRefused, Joined, Shown, Who, seconds};

/// Why such an instance is suspended.
pub(super) const OLD_KEY: &str =
    "a recovery proved an older key of it, so somebody may have a copy of its state";

/// Which key of an instance somebody proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// Until when its certificate is good, in seconds since the epoch.
    Newest(u64),
    Older,
    Unknown,
}

impl Enrollment {
    /// Gives an instance that was off its next certificate. `exporter` is of the connection that the request came on. Blocks on the disk.
    pub fn recover(
        &self,
        request: &RecoverRequest,
        exporter: &[u8; 32],
        now: SystemTime,
    ) -> Result<Joined, JoinRefused> {
        if !self.ca.issues() {
            return Err(JoinRefused::Unavailable { agent: None, why: CaError::Elsewhere.to_string() });
        }
        let chain: Vec<CertificateDer<'_>> = request.chain.iter().map(|der| der.as_slice().into()).collect();
        let malformed = |what: String| JoinRefused::Malformed(what);
        let leaf = chain.first().ok_or_else(|| malformed("no certificate".to_owned()))?;
        let ended = tls::not_after(leaf).map_err(|e| malformed(e.to_string()))?;
        let ended = Duration::from_secs(u64::try_from(ended).unwrap_or(0));
        let vouched = self.ca.vouches(&chain, SystemTime::UNIX_EPOCH + ended);
        let vouched = vouched.map_err(|e| JoinRefused::Foreign(e.to_string()))?;
        let (name, instance) = match &vouched.id {
            SpiffeId::Agent { domain, name, instance } if *domain == self.settings.trust_domain => {
                (name.clone(), instance.clone())
            }
            other @ (SpiffeId::Agent { .. } | SpiffeId::Relay { .. }) => {
                return Err(JoinRefused::Foreign(format!("it is {other}'s")));
            }
        };
        let signed = RecoverRequest::signed(exporter, &request.csr);
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &request.key);
        let who = Who::instance(&name, &instance);
        if key.verify(&signed, &request.signature).is_err() {
            return Err(JoinRefused::Unproved(who));
        }

        let store = self.writing();
        let barred = |why| JoinRefused::Barred { who: who.clone(), why };
        let record = self.state.load().instances.get(&instance).cloned();
        let record = record.filter(|record| record.name == name && record.removed.is_none());
        let record = record.ok_or_else(|| barred(Barred::NotEnrolled(name.clone())))?;
        let key = tls::hex(&tls::fingerprint(&request.key));
        let shown = &vouched.shown;
        let is_displaced = record.is_displaced(&key, now);
        let proved =
            if is_displaced { Key::Older } else { which(&record, shown, &key, self.ca.is_current(shown)) };
        if proved == Key::Unknown {
            return Err(JoinRefused::UnknownKey(who));
        }
        self.not_suspended(&name, Some(&instance)).map_err(barred)?;
        let recover = self.settings.recover;
        let Key::Newest(ended) = proved else {
            // One that ended long ago, or was looked into already, is no sign of anything new, and whoever has it is not to put others out.
            let is_resumed = record.resumed.is_some_and(|since| shown.not_before < since);
            if is_resumed || seconds(now) > shown.not_after.saturating_add(recover.as_secs()) {
                return Err(JoinRefused::UnknownKey(who));
            }
            return Err(self.old_key(&store, who, now));
        };
        if recover.is_zero() || seconds(now) > ended.saturating_add(recover.as_secs()) {
            return Err(JoinRefused::TooLate { who, recover: Span(recover) });
        }
        self.may_have_one(&instance).map_err(|_| JoinRefused::TooOften(who))?;
        let issued = self.sign(&name, &instance, &request.csr, now).map_err(|e| JoinRefused::of(&name, e))?;
        let is_unrecorded =
            record.latest.key.as_ref().is_some_and(|latest| *latest != key) && !record.is_theirs(&key);
        let record = if is_unrecorded { record.taken_by(shown, now) } else { record };
        let is_theirs = record.is_theirs(&key);
        let record = if is_theirs { record.given_to_them(&issued, now) } else { record.given(&issued) };
        let joined = Joined::new(&name, &instance, &issued.chain, &self.settings.trust_domain);
        let joined = Joined { is_unrecorded, ..joined };
        let instances = vec![(instance, record)];
        let done = self.commit(&store, Change { instances, ..Change::default() });
        done.map_err(|e| JoinRefused::Unavailable { agent: Some(name), why: e.to_string() })?;
        Ok(joined)
    }

    /// Suspends the instance, since it cannot be told who of the two is the right one.
    fn old_key(&self, store: &Store, who: Who, now: SystemTime) -> JoinRefused {
        let name = who.name.clone();
        match self.suspend_by_relay(store, who, OLD_KEY, now) {
            Ok(who) => JoinRefused::OldKey(who),
            Err(e) => JoinRefused::Unavailable { agent: Some(name), why: e.to_string() },
        }
    }
}

/// Which key of the instance `key` is, the fingerprint of the one that was proved. What a replaced authority signed says nothing by itself,
/// since its key may be in other hands: only what is recorded counts then.
fn which(record: &InstanceRecord, shown: &Shown, key: &str, is_current: bool) -> Key {
    let latest = &record.latest;
    if latest.key.as_deref() == Some(key) {
        return Key::Newest(latest.not_after);
    }
    if shown.key != key {
        return Key::Unknown;
    }
    let previous = record.previous.as_ref().filter(|previous| shown.is(previous));
    if let Some(previous) = previous {
        // Without a key on record this is its serial, which anybody could have signed who had the key of a replaced authority.
        return if is_current || previous.key.is_some() { Key::Older } else { Key::Unknown };
    }
    if shown.is(latest) {
        Key::Newest(latest.not_after)
    } else if !is_current {
        Key::Unknown
    } else if shown.is_after(latest) {
        // Given before the relay's state was put back to an earlier day.
        Key::Newest(shown.not_after)
    } else {
        Key::Older
    }
}
