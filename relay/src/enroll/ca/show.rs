//! What an authority is made of, and what an operator should do about it: for `ca show`, `doctor`, the log and the metrics.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use postern_base::id::{AgentName, InstanceId};
use postern_wire::tls;
use rustls::pki_types::CertificateDer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Ca, CaSource, Hand, make};
use crate::enroll::seconds;

/// From here on the log asks for a new issuing CA, or for a certificate of the relay's.
const ISSUING_WARN: Duration = Duration::from_hours(14 * 24);
/// A new root needs agents to move, and some may be away for weeks.
const ROOT_WARN: Duration = Duration::from_hours(180 * 24);

/// Whose the authority is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Root and issuing CA are Postern's.
    Ours,
    /// The issuing CA is the operator's (`ca` under `[agents]`).
    Own,
    /// Certificates are made elsewhere (`bundle` under `[agents]`).
    Elsewhere,
}

/// What a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Bearer {
    /// What agents are to believe.
    Root,
    /// A root that is believed still, until the overlap ends.
    OldRoot,
    /// What signs agents' certificates.
    Issuing,
    /// The relay's own certificate towards agents, where it is made elsewhere.
    Relay,
}

impl Bearer {
    /// In metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::OldRoot => "old_root",
            Self::Issuing => "issuing",
            Self::Relay => "relay",
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::OldRoot => "old root",
            Self::Issuing => "issuing CA",
            Self::Relay => "relay",
        }
    }
}

/// One certificate of the authority. Times are seconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRow {
    pub what: Bearer,
    pub name: String,
    /// Rises with each rotation; 0 where it bears none.
    pub epoch: u64,
    /// SHA-256 of its public key, hexadecimal: what invites pin, of a root.
    pub key: String,
    pub not_before: u64,
    pub not_after: u64,
}

/// An instance whose latest certificate is of an authority before the one in force.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BehindRow {
    pub agent: AgentName,
    pub instance: InstanceId,
    pub epoch: u64,
    pub not_after: u64,
}

/// The authority as `ca show --json` prints it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CaReport {
    pub source: Standing,
    /// Of the issuing CA in force.
    pub epoch: u64,
    pub certificates: Vec<CertificateRow>,
    /// Whether a root is being replaced, and the one before is believed still.
    pub overlap: bool,
    /// The root's key, if it lies beside the relay.
    pub root_key: Option<PathBuf>,
    /// Instances that are enrolled here and can still come back by themselves.
    pub instances: usize,
    /// Which of them have not moved to the authority in force.
    pub behind: Vec<BehindRow>,
    /// What an operator should do.
    pub warnings: Vec<String>,
}

impl Ca {
    /// All but the instances, which enrolment knows.
    pub(in crate::enroll) fn report(&self, now: SystemTime) -> CaReport {
        let current = self.current.load();
        let source = match self.source {
            CaSource::Ours => Standing::Ours,
            CaSource::Own { .. } => Standing::Own,
            CaSource::Elsewhere { .. } => Standing::Elsewhere,
        };
        let roots = current.trusted.iter().enumerate().map(|(at, root)| match source {
            Standing::Ours | Standing::Own if at > 0 => (Bearer::OldRoot, root),
            Standing::Ours | Standing::Own | Standing::Elsewhere => (Bearer::Root, root),
        });
        let hand = match &current.hand {
            Hand::Signs { .. } => current.above.first().map(|issuing| (Bearer::Issuing, issuing)),
            Hand::Shows { leaf, .. } => Some((Bearer::Relay, leaf)),
        };
        let certificates: Vec<_> = roots.chain(hand).filter_map(|(what, one)| row(what, one)).collect();
        let root_key = (source == Standing::Ours).then(|| make::root_key_beside(&self.dir)).flatten();
        let mut warnings: Vec<_> =
            certificates.iter().filter_map(|row| row.ends_soon(source, seconds(now))).collect();
        warnings.extend(root_key.as_ref().map(|path| {
            format!("the root's key lies beside the relay ({}): move it to a safe place", path.display())
        }));
        let overlap = source != Standing::Elsewhere && current.trusted.len() > 1;
        let (instances, behind) = (0, Vec::new());
        CaReport {
            source,
            epoch: current.epoch,
            certificates,
            overlap,
            root_key,
            instances,
            behind,
            warnings,
        }
    }
}

impl CertificateRow {
    fn ends_soon(&self, source: Standing, now: u64) -> Option<String> {
        let lead = match self.what {
            Bearer::OldRoot => return None,
            Bearer::Root => ROOT_WARN,
            Bearer::Issuing | Bearer::Relay => ISSUING_WARN,
        };
        // What lives for an hour need not be spoken of for all of it.
        let lead = lead.as_secs().min(self.not_after.saturating_sub(self.not_before) / 4);
        let left = self.not_after.saturating_sub(now);
        let fix = match (source, self.what) {
            (Standing::Ours, Bearer::Root) => "run: postern-relay ca rotate --root --root-key FILE",
            (Standing::Ours, _) => "run: postern-relay ca rotate --root-key FILE",
            (Standing::Own, _) => "put a new one into the files that ca under [agents] names",
            (Standing::Elsewhere, Bearer::Root) => "put the next one into the bundle",
            (Standing::Elsewhere, _) => "put a new one into the files that identity under [agents] names",
        };
        let when = match left {
            0 => "has expired".to_owned(),
            left if left < 2 * 86400 => format!("ends in {} min", left.div_ceil(60)),
            left => format!("ends in {} days", left / 86400),
        };
        (left < lead).then(|| format!("the agents' {} ({}) {when}: {fix}", self.what.word(), self.name))
    }
}

fn row(what: Bearer, certificate: &CertificateDer<'_>) -> Option<CertificateRow> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let common = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let time = |at: i64| u64::try_from(at).unwrap_or(0);
    let name = match (what, tls::spiffe_id(certificate)) {
        (Bearer::Relay, Ok(id)) => id.to_string(),
        _ => common.map_or_else(|| parsed.subject().to_string(), str::to_owned),
    };
    Some(CertificateRow {
        what,
        name,
        epoch: tls::own_epoch(certificate),
        key: tls::hex(&tls::pin(certificate).ok()?),
        not_before: time(parsed.validity().not_before.timestamp()),
        not_after: time(parsed.validity().not_after.timestamp()),
    })
}
