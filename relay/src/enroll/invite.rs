//! Invites: takes an agent's name, gives a secret, of which a hash is kept; takes a secret, compared in constant time, and gives an enrolled
//! instance. Refuses secrets that are unknown, used or expired, and names that are suspended.

use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use postern_base::id::{AgentName, InstanceId, ServiceName};
use postern_wire::join::{Invite, JoinRequest};
use postern_wire::tls;
use zeroize::Zeroizing;

use super::store::{CertificateRecord, Change, InstanceRecord, InviteRecord, SecretHash, State};
use super::{CaError, EnrollError, Enrollment, JoinRefused, Joined, Who, seconds};

/// Invites that wait at one time; a join compares with each of them.
pub(super) const MAX_INVITES: usize = 1000;
/// Spent invites are kept this long, so that their refusal can say what happened and `agent ls` shows them.
pub(super) const KEEP_SPENT: Duration = Duration::from_hours(7 * 24);

/// 160 bits: more than the 128 that the protocol asks for, and still one line to copy.
const SECRET_BYTES: usize = 20;

impl Enrollment {
    /// A new invite for one instance of `agent`; only a hash of it is kept.
    pub fn invite(
        &self,
        agent: &AgentName,
        services: Option<Vec<ServiceName>>,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<Invite, EnrollError> {
        if !self.ca.issues() {
            return Err(CaError::Elsewhere.into());
        }
        let secret = secret()?;
        let store = self.writing();
        let now = seconds(now);
        let (spent, waiting): (Vec<_>, Vec<_>) = {
            let state = self.state.load();
            let rows =
                state.invites.iter().map(|(hash, invite)| (*hash, invite.used.unwrap_or(invite.expires)));
            rows.partition(|(_, end)| end + KEEP_SPENT.as_secs() < now)
        };
        let is_open = |(hash, _): &&([u8; 32], u64)| {
            self.state
                .load()
                .invites
                .get(hash)
                .is_some_and(|invite| invite.used.is_none() && invite.expires >= now)
        };
        if waiting.iter().filter(is_open).count() >= MAX_INVITES {
            return Err(EnrollError::TooManyInvites);
        }
        let expires = now.saturating_add(ttl.unwrap_or(self.settings.invite_ttl).as_secs());
        let record = InviteRecord { agent: agent.clone(), services, made: now, expires, used: None };
        let mut invites: Vec<_> = spent.into_iter().map(|(hash, _)| (hash, None)).collect();
        invites.push((hash(&secret), Some(record)));
        self.commit(&store, Change { invites, ..Change::default() })?;
        Ok(Invite { pin: tls::pin(&self.ca.root())?, epoch: self.ca.epoch(), secret })
    }

    /// Turns an invite into an enrolled instance; of two that race with one invite exactly one wins. Blocks on the disk.
    pub fn join(&self, request: &JoinRequest, now: SystemTime) -> Result<Joined, JoinRefused> {
        let at = seconds(now);
        // Strangers with a wrong secret cost a comparison, not a turn at the database.
        find(&self.state.load(), &request.secret, at)?;
        let store = self.writing();
        let state = self.state.load_full();
        let (hash, invite) = find(&state, &request.secret, at)?;
        let agent = invite.agent.clone();
        let bad = |why: &str| JoinRefused::BadRequest { agent: agent.clone(), why: why.to_owned() };
        let instance: InstanceId = request.instance.parse().map_err(|_| bad("malformed instance id"))?;
        if state.instances.contains_key(&instance) {
            return Err(bad("this instance id is taken"));
        }
        self.not_suspended(&agent, None)
            .map_err(|why| JoinRefused::Barred { who: Who::instance(&agent, &instance), why })?;
        let issued =
            self.sign(&agent, &instance, &request.csr, now).map_err(|e| JoinRefused::of(&agent, e))?;
        let joined = Joined::new(&agent, &instance, &issued.chain, &self.settings.trust_domain);
        let record = InstanceRecord {
            name: agent.clone(),
            services: invite.services.clone(),
            enrolled: at,
            latest: CertificateRecord::of(&issued),
            previous: None,
            removed: None,
            resumed: None,
            taken: None,
        };
        let invites = vec![(hash, Some(InviteRecord { used: Some(at), ..invite.clone() }))];
        let change = Change { invites, instances: vec![(instance, record)], ..Change::default() };
        self.commit(&store, change)
            .map_err(|e| JoinRefused::Unavailable { agent: Some(agent), why: e.to_string() })?;
        Ok(joined)
    }
}

fn secret() -> Result<Zeroizing<Vec<u8>>, EnrollError> {
    let mut secret = Zeroizing::new(vec![0; SECRET_BYTES]);
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| EnrollError::Random)?;
    Ok(secret)
}

pub(super) fn hash(secret: &[u8]) -> SecretHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    hash
}

/// The unused, unexpired invite with this secret. Every invite is compared, whichever fits.
fn find<'a>(
    state: &'a State,
    secret: &[u8],
    now: u64,
) -> Result<(SecretHash, &'a InviteRecord), JoinRefused> {
    let wanted = hash(secret);
    let mut found = None;
    for (hash, invite) in &state.invites {
        if verify_slices_are_equal(hash, &wanted).is_ok() {
            found = Some((*hash, invite));
        }
    }
    let (hash, invite) = found.ok_or(JoinRefused::Unknown)?;
    let agent = || invite.agent.clone();
    if invite.used.is_some() {
        return Err(JoinRefused::Used { agent: agent() });
    }
    if invite.expires <= now {
        return Err(JoinRefused::Expired { agent: agent() });
    }
    Ok((hash, invite))
}
