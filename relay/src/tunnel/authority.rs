//! What follows from the authority's life: the relay shows a certificate of the one in force, agents are told when it changed, those who are
//! believed no more lose their tunnels, and the log and the metrics say in time what ends. Reads files and clocks; one look every two seconds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use postern_wire::control::RelayMessage;
use postern_wire::link::Code;
use rustls::pki_types::CertificateDer;
use serde_json::json;

use super::registry::Tunnel;
use crate::enroll::EnrollError;
use crate::relay::Relay;

/// A certificate exchanged on disk is in use within this time.
const LOOK: Duration = Duration::from_secs(2);
/// What an operator should do is said again; what is new, at once.
const WARN_AGAIN: Duration = Duration::from_hours(24);
/// Agents whose root is believed no more come back within this, each at its own moment.
const COME_BACK: Duration = Duration::from_secs(5);
/// Whoever has not come back under another by then is cut: it has no certificate that would do.
const PATIENCE: Duration = Duration::from_secs(30);

/// The authority changed: the relay shows its new self, and agents renew. Says how many tunnels were told. Blocks on the disk.
pub fn changed(relay: &Relay, now: SystemTime) -> Result<usize, EnrollError> {
    relay.agents().renew(relay.enrollment(), now)?;
    relay.metrics().authority(&relay.enrollment().ca_report(now));
    if !relay.enrollment().issues() {
        return Ok(0);
    }
    let told = |tunnel: &&Arc<Tunnel>| {
        if relay.enrollment().holds(&tunnel.grounds) {
            // Whoever is behind, or knows no such message, renews at half-life.
            tunnel.try_say(RelayMessage::RenewNow)
        } else {
            // Its own agent has a recorded certificate and is back at once; whoever stole the key of the one before is not.
            tunnel.sever();
            false
        }
    };
    Ok(relay.registry().all().iter().filter(told).count())
}

/// Asks an agent for another tunnel in place of this one, which ends soon.
fn come_anew(tunnel: &Tunnel) {
    let reconnect_after_ms = u32::try_from(COME_BACK.as_millis()).unwrap_or(u32::MAX);
    // Whoever does not hear it is cut later.
    tunnel.try_say(RelayMessage::Draining { reconnect_after_ms });
}

/// Looks after all of it as long as the relay runs.
pub async fn keep(relay: Arc<Relay>) {
    relay.metrics().authority(&relay.enrollment().ca_report(SystemTime::now()));
    let mut keeper = Keeper { trusted: relay.enrollment().trusted(), ..Keeper::default() };
    loop {
        let looking = relay.clone();
        let look = move || {
            keeper.look(&looking, SystemTime::now());
            keeper
        };
        // This runtime answers the watchdog and health checks: nothing on it waits for a disk.
        match tokio::task::spawn_blocking(look).await {
            Ok(looked) => keeper = looked,
            Err(e) => {
                return tracing::error!(error = %e, "the agents' authority is not looked after any more");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What was said and seen at the last look.
#[derive(Default)]
struct Keeper {
    /// When, and of how many things.
    warned: Option<(Instant, usize)>,
    failed: Option<String>,
    trusted: Vec<CertificateDer<'static>>,
    /// Tunnels whose agents are to come back with what is believed, and since when.
    leaving: HashMap<u64, Instant>,
}

impl Keeper {
    fn look(&mut self, relay: &Relay, now: SystemTime) {
        let done = refresh(relay, now).and_then(|()| renew(relay, now));
        let failed = done.err().map(|e| e.to_string());
        if let Some(error) = failed.as_ref().filter(|_| failed != self.failed) {
            tracing::error!(%error, "the agents' authority cannot be taken into use; the one before stays");
        }
        self.failed = failed;
        let warnings = relay.enrollment().ca_warnings(now);
        if self.warned.is_none_or(|(at, said)| warnings.len() > said || at.elapsed() >= WARN_AGAIN) {
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            self.warned = Some((Instant::now(), warnings.len()));
        }
        self.warned = self.warned.map(|(at, said)| (at, said.min(warnings.len())));
        let trusted = relay.enrollment().trusted();
        if trusted != self.trusted {
            self.trusted = trusted;
            self.disbelieve(relay);
        }
        self.cut(relay);
    }

    /// A root may have gone: tunnels that were proved under it alone are to be proved anew.
    fn disbelieve(&mut self, relay: &Relay) {
        for tunnel in relay.registry().all() {
            // At the time of its handshake, since a tunnel outlives the certificate that it began with.
            if relay.enrollment().roots().verify(&tunnel.link.peer_chain(), tunnel.since).is_err() {
                self.leaves(&tunnel);
            }
        }
    }

    fn leaves(&mut self, tunnel: &Tunnel) {
        self.leaving.entry(tunnel.id()).or_insert_with(|| {
            come_anew(tunnel);
            Instant::now()
        });
    }

    fn cut(&mut self, relay: &Relay) {
        if self.leaving.is_empty() {
            return;
        }
        let tunnels = relay.registry().all();
        let stays = |tunnel: &&Arc<Tunnel>| tunnel.is_usable() && !self.leaving.contains_key(&tunnel.id());
        let back: HashSet<_> = tunnels.iter().filter(stays).map(|tunnel| tunnel.instance.clone()).collect();
        self.leaving.retain(|id, since| {
            let Some(tunnel) = tunnels.iter().find(|tunnel| tunnel.id() == *id) else { return false };
            if back.contains(&tunnel.instance) {
                // Nothing new runs on this one, and it ends with what runs on it.
                tunnel.retire();
            }
            if since.elapsed() < PATIENCE {
                return true;
            }
            tracing::warn!(agent = %tunnel.agent, instance = %tunnel.instance, "its root is not believed any more, and it did not come back under another: cut");
            tunnel.link.close(Code::DRAINED, "its root is not believed any more");
            false
        });
    }
}

/// An authority of the operator's may have changed.
fn refresh(relay: &Relay, now: SystemTime) -> Result<(), EnrollError> {
    if relay.enrollment().refresh_ca(now)? {
        let told = changed(relay, now)?;
        let epoch = relay.enrollment().epoch();
        tracing::info!(epoch, told, "the agents' authority changed and is in use");
        relay.audit().event("ca-changed", json!({ "epoch": epoch, "told": told }));
    }
    Ok(())
}

/// The relay's own certificate towards agents is made anew at half-life.
fn renew(relay: &Relay, now: SystemTime) -> Result<(), EnrollError> {
    if relay.enrollment().issues() && relay.agents().is_due(now) {
        relay.agents().renew(relay.enrollment(), now)?;
        tracing::info!("the relay's certificate towards agents was renewed");
    }
    Ok(())
}
