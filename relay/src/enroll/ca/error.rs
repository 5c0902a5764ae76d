//! Why the certificate authority cannot be used or changed: each with what to do about it.

use std::io;
use std::path::PathBuf;

use postern_wire::tls::TlsError;

/// Why the certificate authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("there is no certificate authority in {0}: run: postern-relay init")]
    Missing(PathBuf),
    #[error(
        "{0} is missing: restore it from a backup, or put root.key back beside it and run: postern-relay init"
    )]
    Incomplete(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} cannot be used: {reason}; restore it from a backup, or put a good one in its place")]
    Damaged { path: PathBuf, reason: String },
    #[error("{0} do not belong together: restore both from the same backup")]
    Mismatch(String),
    #[error("{path} is another root's key; give the key of root {root} (KEY in: postern-relay ca show)")]
    OtherRoot { path: PathBuf, root: String },
    #[error("the root's key is not in {0}, and a new issuing CA needs it: give it with --root-key FILE")]
    NoRootKey(PathBuf),
    #[error(
        "{0} is there already, from a rotation that did not end: see which root is in force (postern-relay ca show), then move it away or give it with --root-key"
    )]
    NewKeyThere(PathBuf),
    #[error("the agents' issuing CA has expired: run: postern-relay ca rotate --root-key FILE")]
    Expired,
    #[error("{0} has expired: put a new certificate in its place")]
    OwnExpired(PathBuf),
    #[error("the certificate request is not good: {0}; use an agent of this relay's version")]
    Request(String),
    #[error("the certificate is not one of this authority's: {0}")]
    Foreign(#[from] TlsError),
    #[error("the agents' certificates are made elsewhere (bundle under [agents]): have it done there")]
    Elsewhere,
    #[error(
        "the issuing CA is your own (ca under [agents]): put the new one into its files, they are re-read"
    )]
    Own,
    #[error("the root is being replaced already: end that first with: postern-relay ca rotate --finish")]
    Overlap,
    #[error("no root is being replaced: there is nothing to finish")]
    NoOverlap,
    #[error("the authority changed meanwhile, or the relay was restarted: run the command again")]
    Superseded,
    #[error(
        "the relay asks for epoch {0}, which is far ahead of the time: see whether somebody else is at work on it, and whether its clock is right"
    )]
    Epoch(u64),
    #[error("signing failed: {0}; try again, and if this stays restore the authority from a backup")]
    Signing(#[from] rcgen::Error),
}
