//! Notes down, as long as the relay runs, which instances hold a tunnel: after a restart, or a crash, operators still see when each was last
//! here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::relay::Relay;

/// After a crash that is how far the last sight may be off.
const EVERY: Duration = Duration::from_mins(5);

/// Runs until dropped.
pub async fn keep(relay: Arc<Relay>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let tunnels = relay.registry().all();
        relay.enrollment().saw(tunnels.iter().map(|tunnel| &tunnel.instance), SystemTime::now());
        let enrollment = relay.enrollment().clone();
        match tokio::task::spawn_blocking(move || enrollment.note_seen()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!(error = %e, "when agents were last seen could not be noted"),
            Err(e) => tracing::warn!(error = %e, "when agents were last seen could not be noted"),
        }
    }
}
