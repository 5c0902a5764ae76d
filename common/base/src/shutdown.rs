//! Takes signals; gives the two moments of an orderly end: `drain` (refuse new work, finish what runs) and `cut` (the grace is over).

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Clone it into every task. `drain` fires first; `cut` fires once the grace is over or a second signal came.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    cut: CancellationToken,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves when new work is to be refused.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Resolves when what still runs is to be cut.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Starts the drain; does nothing when it has begun.
    pub fn begin(&self) {
        self.drain.cancel();
    }

    /// Ends the grace at once.
    pub fn end(&self) {
        self.drain.cancel();
        self.cut.cancel();
    }

    /// Runs until the end: waits for SIGTERM or SIGINT (or [`Shutdown::begin`]), then until all is `idle`, the `grace` is over or a
    /// second signal came, and cuts.
    ///
    /// # Errors
    /// The signal handlers could not be installed.
    pub async fn on_signals(
        &self,
        grace: impl FnOnce() -> Duration,
        idle: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("interrupted: draining"),
            () = self.drain.cancelled() => {}
        }
        self.begin();
        tokio::select! {
            () = idle => {}
            _ = terminate.recv() => tracing::warn!("second signal: cutting what still runs"),
            _ = interrupt.recv() => tracing::warn!("second signal: cutting what still runs"),
            () = tokio::time::sleep(grace()) => tracing::warn!("the grace is over: cutting what still runs"),
            () = self.cut.cancelled() => {}
        }
        self.end();
        Ok(())
    }
}
