//! Whether a backup belongs to the relay here, and whose authority is the later one. Takes an archive and a state directory; refuses another
//! trust domain, and another relay of the same one, whatever its epochs.

use std::cmp::Ordering;
use std::fs;

use postern_wire::tls;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::{Archive, BackupError, DATABASE, ISSUING, OVERLAP, ROOT, SEED};
use crate::enroll::EnrollSettings;

/// How the backup's authority stands to the one here.
pub(super) enum Authority {
    /// Ours stays.
    Keep,
    Older(u64),
    /// There is none here, or an older one.
    Take {
        ours: Option<u64>,
        theirs: u64,
    },
}

/// Whether this backup belongs here, and whose authority is the newer one.
pub(super) fn check(archive: &Archive, settings: &EnrollSettings) -> Result<Authority, BackupError> {
    let theirs = &archive.manifest().trust_domain;
    if theirs != settings.trust_domain.as_str() {
        let ours = settings.trust_domain.to_string();
        return Err(BackupError::OtherDomain { ours, theirs: theirs.clone() });
    }
    let ours = Marks::of(|name| fs::read(settings.state.join(name)).ok().map(Zeroizing::new));
    let theirs = Marks::of(|name| archive.files().get(name).cloned());
    let other = BackupError::OtherAuthority {
        here: settings.state.join("ca"),
        database: settings.state.join(DATABASE),
    };
    if theirs.are_others(&ours) {
        return Err(other);
    }
    // An authority of the operator's own is not in backups, and what is not here cannot be older.
    let Some(rank) = theirs.rank else { return Ok(Authority::Keep) };
    let Some(our_rank) = ours.rank else {
        return Ok(Authority::Take { ours: None, theirs: rank.issuing });
    };
    match rank.cmp(&our_rank) {
        Ordering::Equal if theirs.roots.first() == ours.roots.first() => Ok(Authority::Keep),
        Ordering::Equal => Err(other),
        Ordering::Less => Ok(Authority::Older(rank.issuing)),
        Ordering::Greater => Ok(Authority::Take { ours: Some(our_rank.issuing), theirs: rank.issuing }),
    }
}

/// What tells one relay's authority from another's, and its earlier days from its later ones.
struct Marks {
    /// The root, and while it is being replaced the one before.
    roots: Vec<CertificateDer<'static>>,
    /// The same through all rotations.
    seed: Option<Zeroizing<Vec<u8>>>,
    rank: Option<Rank>,
}

/// The later, the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Epochs.
    root: u64,
    issuing: u64,
    /// Whether the root before is not believed any more: a new root never comes without an overlap.
    is_alone: bool,
}

impl Marks {
    fn of(read: impl Fn(&str) -> Option<Zeroizing<Vec<u8>>>) -> Self {
        let certificates = |name: &str| -> Vec<_> {
            read(name).map_or_else(Vec::new, |pem| CertificateDer::pem_slice_iter(&pem).flatten().collect())
        };
        let (mut roots, overlap) = (certificates(ROOT), certificates(OVERLAP));
        let rank = roots.first().zip(certificates(ISSUING).first()).map(|(root, issuing)| Rank {
            root: tls::own_epoch(root),
            issuing: tls::own_epoch(issuing),
            is_alone: overlap.is_empty(),
        });
        roots.extend(overlap);
        Self { roots, seed: read(SEED), rank }
    }

    /// Whether both say who they are, and nothing of it is the same.
    fn are_others(&self, ours: &Self) -> bool {
        let both_seeds = self.seed.is_some() && ours.seed.is_some();
        let both_roots = !self.roots.is_empty() && !ours.roots.is_empty();
        let same_seed = both_seeds && self.seed == ours.seed;
        let same_root = self.roots.iter().any(|root| ours.roots.contains(root));
        (both_seeds || both_roots) && !same_seed && !same_root
    }
}
