//! What makes a chain this agent's: that it ends in a root, may be used to dial, and whom it speaks for. Dates are judged as if the clock
//! were right where it is off by no more than is tolerated.

use std::sync::Arc;
use std::time::Duration;

use postern_base::id::{AgentName, InstanceId, SpiffeId, TrustDomain};
use postern_wire::tls::{self, TlsError};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;

use super::IdentityError;
use crate::tunnel::clock::TOLERATED;

/// Leaf, issuing CA, cross certificate, new root and old; a longer chain is not one of ours.
const MAX_CHAIN: usize = 6;

/// Whom a chain speaks for.
#[derive(Debug)]
pub(super) struct Proved {
    pub(super) domain: TrustDomain,
    pub(super) name: AgentName,
    pub(super) instance: InstanceId,
}

pub(super) fn parsed(chain: Vec<Vec<u8>>) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    if chain.len() > MAX_CHAIN {
        return Err(IdentityError::Foreign(format!("a chain of {} certificates", chain.len())));
    }
    Ok(chain.into_iter().map(CertificateDer::from).collect())
}

/// What is shown in handshakes: the other side has the roots already, and needs nothing that bears a root's key.
pub(super) fn without_roots(
    chain: Vec<CertificateDer<'static>>,
    roots: &[&CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    let keys: Vec<_> = roots.iter().filter_map(|root| tls::pin(root).ok()).collect();
    let is_root = |certificate: &_| tls::pin(certificate).is_ok_and(|key| keys.contains(&key));
    chain.into_iter().filter(|certificate| !is_root(certificate)).collect()
}

/// The leaf's first and last second, since the epoch.
pub(super) fn dates(chain: &[CertificateDer<'static>]) -> Result<(u64, u64), TlsError> {
    let leaf = chain.first().ok_or_else(|| TlsError::Certificate("there is none".to_owned()))?;
    // Dates before 1970 do not occur in certificates that were made today.
    let seconds = |date: i64| u64::try_from(date).unwrap_or(0);
    Ok((seconds(tls::not_before(leaf)?), seconds(tls::not_after(leaf)?)))
}

/// The time of the leaf's life that is nearest to now: for what was proved before, and may have ended since.
pub(super) fn within_life(chain: &[CertificateDer<'static>]) -> Result<UnixTime, TlsError> {
    nearest(chain, Duration::MAX)
}

/// The same, but no further from now than is tolerated: for what comes from a relay.
pub(super) fn about_now(chain: &[CertificateDer<'static>]) -> Result<UnixTime, TlsError> {
    nearest(chain, TOLERATED)
}

fn nearest(chain: &[CertificateDer<'static>], tolerated: Duration) -> Result<UnixTime, TlsError> {
    let at = near(dates(chain)?, UnixTime::now().as_secs(), tolerated.as_secs());
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(at)))
}

fn near((start, end): (u64, u64), now: u64, tolerated: u64) -> u64 {
    let within = now.max(start).min(end);
    if within.abs_diff(now) <= tolerated { within } else { now }
}

/// That `chain` ends in one of `roots`, may be used to dial, and speaks for an agent; gives which.
pub(super) fn of(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    at: UnixTime,
) -> Result<Proved, String> {
    let (leaf, intermediates) = chain.split_first().ok_or("it is empty")?;
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|e| e.to_string())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), tls::provider());
    let verifier = verifier.build().map_err(|e| e.to_string())?;
    verifier.verify_client_cert(leaf, intermediates, at).map_err(|e| e.to_string())?;
    match tls::spiffe_id(leaf).map_err(|e| e.to_string())? {
        SpiffeId::Agent { domain, name, instance } => Ok(Proved { domain, name, instance }),
        SpiffeId::Relay { .. } => Err("it belongs to a relay".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_by_five_minutes_passes_and_by_more_does_not() {
        let (start, end) = (10_000, 20_000);
        let cases = [(9_700, start), (9_699, 9_699), (15_000, 15_000), (20_300, end), (20_301, 20_301)];
        for (now, at) in cases {
            assert_eq!(near((start, end), now, TOLERATED.as_secs()), at, "{now}");
        }
        assert_eq!(near((start, end), 0, u64::MAX), start);
        assert_eq!(near((20, 10), 15, 300), 10, "dates the wrong way round end in no panic");
    }
}
