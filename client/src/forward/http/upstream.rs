//! Takes requests for a relay; gives its answers, over connections that all forwards of one process share: HTTP/2 where the relay speaks
//! it. What may become a WebSocket goes over a connection of its own, in HTTP/1.1, which alone can be switched to raw bytes as a whole.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_rustls::builderstates::WantsProtocols1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use postern_base::sync::lock;

use super::upload::Upload;
use crate::dial::{Dial, KEEPALIVE};

/// For an answer to HTTP/2's ping, sent when a connection was silent for [`KEEPALIVE`].
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// Shorter than the relay's own 60 s, so that no request is sent into a connection that the relay is just closing.
const POOL_IDLE: Duration = Duration::from_secs(45);
/// What one answer may have in flight, and all together: much more than one, so that programs that read slowly hold up only themselves.
const STREAM_WINDOW: u32 = 1024 * 1024;
const WINDOW: u32 = 128 * STREAM_WINDOW;
/// The relay decides what fits; this only must not be in its way.
pub(super) const FIELDS: u32 = 256 * 1024;

type Pool = Client<HttpsConnector<Dial>, Upload>;

/// Connections to one relay; clones share them.
#[derive(Clone)]
pub(crate) struct Upstream {
    dial: Dial,
    shared: Arc<Mutex<Pool>>,
    switching: Pool,
}

impl Upstream {
    pub(crate) fn new(dial: &Dial) -> Self {
        let switching = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(https(dial).enable_http1().wrap_connector(dial.clone()));
        Self { dial: dial.clone(), shared: Arc::new(Mutex::new(pool(dial))), switching }
    }

    /// New requests go over new connections: the way that the old ones took may be no more. What runs on those goes on as long as it can.
    pub(crate) fn renew(&self) {
        *lock(&self.shared) = pool(&self.dial);
    }

    /// `switch`: the request asks for an upgrade.
    pub(super) async fn request(
        &self,
        request: Request<Upload>,
        switch: bool,
    ) -> Result<Response<Incoming>, Error> {
        if switch {
            return self.switching.request(request).await;
        }
        let pool = lock(&self.shared).clone();
        pool.request(request).await
    }
}

fn https(dial: &Dial) -> HttpsConnectorBuilder<WantsProtocols1> {
    HttpsConnectorBuilder::new().with_tls_config(dial.tls_config()).https_only()
}

fn pool(dial: &Dial) -> Pool {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(FIELDS)
        .http2_keep_alive_interval(KEEPALIVE)
        .http2_keep_alive_timeout(KEEPALIVE_ANSWER)
        .build(https(dial).enable_http1().enable_http2().wrap_connector(dial.clone()))
}
