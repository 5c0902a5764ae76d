//! `[agents]`: what agents are called, how long their certificates live, and whose authority signs these.

use std::path::Path;
use std::time::Duration;

use postern_base::config::Problem;
use postern_base::id::TrustDomain;

use crate::config::file::AgentsFile;
use crate::enroll::CaSource;

/// Short enough that a stolen certificate is soon worthless, long enough to survive a night without the relay.
pub const CERT_TTL: Duration = Duration::from_hours(24);
/// Time to copy an invite to another machine, not to lose it in a mailbox.
pub const INVITE_TTL: Duration = Duration::from_mins(15);
/// A week's holiday.
pub const RECOVER: Duration = Duration::from_hours(7 * 24);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentsSettings {
    pub trust_domain: TrustDomain,
    pub cert_ttl: Duration,
    pub invite_ttl: Duration,
    /// Zero where no agent recovers.
    pub recover: Duration,
    pub ca: CaSource,
}

impl AgentsSettings {
    pub(super) fn new(file: &AgentsFile, dir: &Path) -> Result<Self, Problem> {
        for (key, span) in [("cert_ttl", file.cert_ttl), ("invite_ttl", file.invite_ttl)] {
            if span.0.is_zero() {
                return Err(Problem::new(key, "must be longer than nothing"));
            }
        }
        let ca = match (&file.ca, &file.bundle, &file.identity) {
            (None, None, None) => CaSource::Ours,
            (Some(ca), None, None) => CaSource::Own { cert: dir.join(&ca.cert), key: dir.join(&ca.key) },
            (None, Some(bundle), Some(own)) => CaSource::Elsewhere {
                bundle: dir.join(bundle),
                cert: dir.join(&own.cert),
                key: dir.join(&own.key),
            },
            (None, Some(_), None) => {
                return Err(Problem::new(
                    "bundle",
                    "needs identity = { cert, key } beside it: the relay's own certificate, made there too",
                ));
            }
            (None, None, Some(_)) => {
                return Err(Problem::new(
                    "identity",
                    "needs bundle beside it: the roots under which agents are believed",
                ));
            }
            (Some(_), _, _) => {
                return Err(Problem::new(
                    "ca",
                    "either the relay signs certificates with ca, or bundle and identity say that they are made elsewhere: keep one of the two",
                ));
            }
        };
        Ok(Self {
            trust_domain: file.trust_domain.clone(),
            cert_ttl: file.cert_ttl.0,
            invite_ttl: file.invite_ttl.0,
            recover: file.recover.0,
            ca,
        })
    }
}
