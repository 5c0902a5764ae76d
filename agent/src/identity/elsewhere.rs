//! An identity that was made elsewhere, as by SPIRE or an operator's own CA: certificate, key and trust bundle in three files. They are read
//! when the agent starts and again when they change; what is not this agent's, or not whole, changes nothing. Nobody renews it here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_base::file;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::proof::{self, Proved};
use super::{AgentIdentity, IdentityError};
use crate::supervisor::Agent;

/// How soon a change is seen. It costs three calls of stat.
const LOOK: Duration = Duration::from_secs(5);

/// Where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The agent's certificate and what lies between it and the bundle, PEM, leaf first.
    pub cert: PathBuf,
    /// Its key, PEM; 0600.
    pub key: PathBuf,
    /// The roots that relays are judged by, PEM.
    pub bundle: PathBuf,
}

/// What they say, proved.
pub(super) struct Read {
    pub(super) proved: Proved,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let pem = fs::read(path).map_err(|source| IdentityError::Io { path: path.to_owned(), source })?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let unfit = |reason: String| IdentityError::Unfit { path: path.to_owned(), reason };
    match read {
        Ok(found) if found.is_empty() => Err(unfit("no certificate is in it".to_owned())),
        Ok(found) => Ok(found),
        Err(e) => Err(unfit(e.to_string())),
    }
}

impl Files {
    pub(super) fn read(&self) -> Result<Read, IdentityError> {
        let (mut chain, roots) = (certificates(&self.cert)?, certificates(&self.bundle)?);
        chain.retain(|certificate| !roots.contains(certificate));
        let io_error = |source| IdentityError::Io { path: self.key.clone(), source };
        file::check_private(&self.key).map_err(io_error)?;
        let pem = Zeroizing::new(fs::read(&self.key).map_err(io_error)?);
        let unfit = |path: &Path, reason: String| IdentityError::Unfit { path: path.to_owned(), reason };
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| unfit(&self.key, e.to_string()))?;
        // One that has ended is said so once it runs: whoever makes them may be late.
        let at = proof::within_life(&chain)?;
        let proved = proof::of(&chain, &roots, at).map_err(|reason| unfit(&self.cert, reason))?;
        Ok(Read { proved, chain, key, roots })
    }

    fn changed(&self) -> [Option<SystemTime>; 3] {
        [&self.cert, &self.key, &self.bundle].map(|path| fs::metadata(path).and_then(|m| m.modified()).ok())
    }
}

/// Takes the files into use whenever they change. Runs for as long as the agent does.
pub(crate) async fn watch(agent: &Arc<Agent>) {
    let Some(files) = agent.identity.files() else { return };
    let mut seen = files.changed();
    let mut said = String::new();
    let mut has_ended = false;
    loop {
        if agent.identity.is_expired(agent.now()) != has_ended {
            has_ended = !has_ended;
            if has_ended {
                let text =
                    "its certificate has ended: have it renewed where it is made (identity in agent.toml)";
                tracing::error!("this agent has no tunnels any more, since {text}");
                agent.failed(text);
            }
        }
        tokio::time::sleep(LOOK).await;
        let now = files.changed();
        if now == seen {
            continue;
        }
        let keeper = agent.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || AgentIdentity::read_again(&keeper.identity)).await
        else {
            continue;
        };
        match read {
            Ok(()) => {
                tracing::info!("the certificate was read again");
                agent.renewals.succeeded();
                (seen, said) = (now, String::new());
            }
            // They are changed one after the other: perhaps the next look finds them whole.
            Err(e) if e.to_string() != said => {
                tracing::warn!(error = %e, "the changed certificate is not taken; the old one stays");
                agent.renewals.failed(&e.to_string(), Duration::ZERO, tokio::time::Instant::now(), 0.0);
                said = e.to_string();
            }
            Err(_) => {}
        }
    }
}
