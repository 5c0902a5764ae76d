//! The requests of one tunnel: serves every stream that the relay opens, each in a task of its own, and sees when all have ended.

use std::sync::Arc;
use std::time::Duration;

use postern_wire::link::{Link, StreamError};
use tokio_util::task::TaskTracker;

use super::super::permits::Permits;
use crate::audit::AuditQueue;
use crate::request;
use crate::supervisor::Agent;
use crate::upstream::Upstreams;

/// After our goodbye the relay ends the tunnel, as soon as it has everything. One that does not, because streams that it opened before are
/// still on their way, is not waited for longer than this after the last request.
const LAST_STREAMS: Duration = Duration::from_secs(2);

/// Resolves when nothing has run for a while; the caller looks once more.
pub(super) async fn quiet(requests: &TaskTracker) {
    requests.wait().await;
    tokio::time::sleep(LAST_STREAMS).await;
}

/// Serves every stream that the relay opens, until the link ends.
pub(super) async fn accept(
    agent: Arc<Agent>,
    upstreams: Arc<Upstreams>,
    (link, audit): (Link, AuditQueue),
    requests: TaskTracker,
    permits: Arc<Permits>,
) -> StreamError {
    let audit = Arc::new(audit);
    loop {
        match link.accept().await {
            Ok((send, recv)) => {
                let (agent, upstreams, audit) = (agent.clone(), upstreams.clone(), audit.clone());
                requests.spawn(async move { request::serve(&agent, &upstreams, &audit, send, recv).await });
                permits.opened(requests.len(), &link);
            }
            Err(e) => return e,
        }
    }
}
