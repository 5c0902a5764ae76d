//! Takes SIGINT, SIGTERM and SIGHUP; gives them one at a time, so that the first ends the demo and a second one hurries it.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the demo: Ctrl-C, a service manager, a closed terminal.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    /// # Errors
    /// The handlers could not be installed.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// Resolves at the next signal.
    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
