//! Live streams: takes a connection that is about to switch protocols and its stream through the tunnel; carries bytes both ways until
//! both sides have ended, nothing moves for too long, or it is cut. The request's record ends with it. What is cut is reset on both sides,
//! and never looks like a good end.

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use postern_wire::link::{RecvStream, SendStream};
use postern_wire::pipe::{PipeError, pipe};

use super::record::Record;
use crate::public::Connection;
use crate::tunnel::registry::Occupied;

/// The caller takes the answer that switches within this time.
const SWITCH: Duration = Duration::from_secs(10);

/// What a live stream runs on.
#[derive(Debug)]
pub struct Live {
    pub on: OnUpgrade,
    pub sender: SendStream,
    pub receiver: RecvStream,
    /// Nothing may move for this long; `None`: for as long as TCP's keepalive finds the peers alive.
    pub idle: Option<Duration>,
    /// The request's place on its tunnel.
    pub occupied: Occupied,
    pub connection: Arc<Connection>,
}

/// How a live stream ended before both sides were done.
#[derive(Debug, thiserror::Error)]
enum LiveError {
    #[error("the caller did not take the switch: {0}")]
    Switch(#[from] hyper::Error),
    #[error("the caller did not take the switch in time")]
    SwitchTimedOut(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Pipe(#[from] PipeError),
}

impl Live {
    /// Runs as a task of the caller's worker; the record reports its end.
    pub fn begin(self, record: Record) {
        let tasks = self.connection.worker.tasks.clone();
        tasks.spawn(self.run(record));
    }

    async fn run(self, mut record: Record) {
        let Self { on, mut sender, receiver, idle, occupied, connection } = self;
        let bytes = record.bytes.clone();
        let Some(running) = record.running().cloned() else { return };
        let carried = async {
            let io = TokioIo::new(tokio::time::timeout(SWITCH, on).await??);
            Ok::<_, LiveError>(pipe(io, &mut sender, receiver, idle, &bytes).await?)
        };
        tokio::select! {
            biased;
            cut = running.is_cut() => tracing::debug!(request_id = %record.id(), reason = cut.reason(), "a live stream was cut"),
            () = connection.worker.relay.shutdown().cut() => {}
            () = occupied.tunnel().cut.cancelled() => {}
            carried = carried => match carried {
                Ok(()) => record.complete(),
                Err(error) => tracing::debug!(request_id = %record.id(), %error, "a live stream broke off"),
            },
        }
    }
}
