//! The live streams as operators see them: whose each is, where it goes and until when it may.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use postern_base::id::{AgentName, IssuerName, ServiceName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Running, Session, lock, seconds};

/// Times are seconds since the epoch.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct StreamView {
    pub request_id: String,
    /// A hash of the lease's id.
    pub lease: String,
    pub service: ServiceName,
    /// `websocket` or `tcp`.
    pub protocol: String,
    pub agent: Option<AgentName>,
    pub issuer: IssuerName,
    pub subject: String,
    pub user: String,
    pub client: Option<String>,
    pub token: String,
    pub address: IpAddr,
    pub since: u64,
    pub until: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Session {
    /// The oldest first.
    pub fn streams(&self) -> Vec<StreamView> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let running: Vec<_> = lock(&shard.leases).values().cloned().collect();
            all.extend(running.iter().filter_map(|running| view(running)));
        }
        all.sort_by(|a, b| (a.since, &a.request_id).cmp(&(b.since, &b.request_id)));
        all
    }
}

fn view(running: &Running) -> Option<StreamView> {
    let principal = running.principal();
    Some(StreamView {
        request_id: running.request_id.to_string(),
        lease: running.lease()?.to_string(),
        service: running.service.name.clone(),
        protocol: running.protocol().to_owned(),
        agent: running.tunnel().map(|tunnel| tunnel.agent.clone()),
        issuer: principal.issuer().clone(),
        subject: principal.subject().to_owned(),
        user: principal.user().to_owned(),
        client: principal.client().map(str::to_owned),
        token: principal.token_id().to_string(),
        address: running.address.to_canonical(),
        since: seconds(running.opened),
        until: running.until(),
        bytes_in: running.bytes.up.load(Ordering::Relaxed),
        bytes_out: running.bytes.down.load(Ordering::Relaxed),
    })
}
