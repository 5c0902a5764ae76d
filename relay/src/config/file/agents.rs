//! `[agents]` as it is typed.

use std::path::PathBuf;

use postern_base::id::TrustDomain;
use postern_base::value::Span;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::settings;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentsFile {
    pub trust_domain: TrustDomain,
    /// How long an agent's certificate lives; renewed at half-life.
    #[serde(default = "AgentsFile::cert_ttl")]
    pub cert_ttl: Span,
    /// How long an invite is good, unless `agent invite --ttl` says otherwise.
    #[serde(default = "AgentsFile::invite_ttl")]
    pub invite_ttl: Span,
    /// For how long after its certificate's end an agent that was off comes back by itself, by proving its newest key; `0s` = never. After
    /// that it needs a new invite.
    #[serde(default = "AgentsFile::recover")]
    pub recover: Span,
    /// An issuing CA of your own in place of the one that `init` makes. `cert` holds its certificate, then those above it, up to and with the
    /// root, which agents pin; further self-signed certificates in it are roots before that one, believed as long as they are there. Both
    /// files are re-read when they change.
    pub ca: Option<PairFile>,
    /// The roots under which agents are believed, where certificates are made elsewhere, with SPIFFE names as Postern writes them: whoever shows
    /// one is enrolled, unless suspended or removed. Re-read when it changes.
    pub bundle: Option<PathBuf>,
    /// With `bundle`: this relay's own certificate, with what stands between it and the root, and its key. Re-read when they change.
    pub identity: Option<PairFile>,
}

/// PEM files. The key's must be readable by its owner alone.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PairFile {
    /// The certificate and its chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl AgentsFile {
    fn cert_ttl() -> Span {
        Span(settings::CERT_TTL)
    }
    fn invite_ttl() -> Span {
        Span(settings::INVITE_TTL)
    }
    fn recover() -> Span {
        Span(settings::RECOVER)
    }
}
