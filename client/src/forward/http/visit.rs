//! Takes one connection of a local program; serves its requests, in HTTP/1.1 or (with prior knowledge, as gRPC has it) HTTP/2, and
//! carries the WebSocket that it may become. Refuses slow heads.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use postern_base::sync::lock;

use super::Service;
use super::upstream::FIELDS;
use crate::forward::Stream;
use crate::forward::guard::Door;
use crate::lease::Lease;
use crate::splice::splice;

/// For a request's head, and in HTTP/1.1 for a kept-alive connection to send its next.
const HEAD: Duration = Duration::from_mins(1);
/// What a connection's uploads may have in flight together, so that one that is read slowly holds up only itself.
const WINDOW: u32 = 32 * 1024 * 1024;

/// What the requests of one connection share.
pub(crate) struct Visit {
    service: Arc<Service>,
    /// How the program calls this place.
    pub(super) local: Arc<str>,
    pub(super) door: Door,
    /// Whether the program belongs to this user.
    pub(super) own: bool,
    served: AtomicBool,
    switched: Mutex<Option<Switched>>,
}

/// Both ends of a connection that is to carry raw bytes.
pub(super) struct Switched {
    pub(super) here: OnUpgrade,
    pub(super) there: OnUpgrade,
    pub(super) lease: Option<Lease>,
}

impl Visit {
    pub(crate) fn new(service: Arc<Service>, local: Arc<str>, door: Door, own: bool) -> Self {
        Self { service, local, door, own, served: AtomicBool::new(false), switched: Mutex::default() }
    }

    /// Once the answer that is being given has gone out, the connection belongs to these two.
    pub(super) fn switch(&self, ends: Switched) {
        *lock(&self.switched) = Some(ends);
    }

    /// Serves the connection to its end; says whether it carried a request.
    pub(crate) async fn serve(self, stream: Stream) -> bool {
        let visit = Arc::new(self);
        let theirs = visit.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let visit = theirs.clone();
            visit.served.store(true, Ordering::Relaxed);
            async move { Ok::<_, Infallible>(visit.service.answer(request, &visit).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
        builder.http2().max_header_list_size(FIELDS).initial_connection_window_size(WINDOW);
        // The builder itself waits for ever to learn which protocol it is.
        let silent = async {
            tokio::time::sleep(HEAD).await;
            if visit.served.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = builder.serve_connection_with_upgrades(TokioIo::new(stream), answer) => {
                if let Err(error) = ended {
                    tracing::debug!(error = %*error, "local connection");
                }
            }
            () = silent => {}
        }
        let switched = lock(&visit.switched).take();
        if let Some(Switched { here, there, lease: _lease }) = switched {
            match tokio::try_join!(here, there) {
                Ok((here, there)) => {
                    let (mut here, mut there) = (TokioIo::new(here), TokioIo::new(there));
                    if let Err(error) = splice(&mut here, &mut there, &[]).await {
                        tracing::debug!(%error, "an upgraded connection broke");
                    }
                }
                Err(error) => tracing::debug!(%error, "an upgrade came to nothing"),
            }
        }
        visit.served.load(Ordering::Relaxed)
    }
}
