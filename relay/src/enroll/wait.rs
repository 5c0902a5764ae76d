//! Opens the database where somebody else may hold it for a moment: a command while a relay starts, or the relay before a command. Takes where
//! it is; gives it, or that a relay is at work there; gives up after some seconds.

use std::time::Duration;

use postern_base::admin::socket_path;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::{EnrollError, EnrollSettings, Enrollment};

/// A command holds the database for milliseconds, a starting relay for about a second before it answers.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

impl Enrollment {
    /// As [`open`](Self::open), as soon as nobody else holds the database; `None` where that is a relay, which answers on its socket.
    ///
    /// # Errors
    /// As `open`; that it is held, when it still is after some seconds.
    pub async fn open_when_free(settings: EnrollSettings) -> Result<Option<Self>, EnrollError> {
        let socket = socket_path(&settings.state);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::open(settings.clone()) {
                Err(EnrollError::Held(_)) if UnixStream::connect(&socket).await.is_ok() => return Ok(None),
                Err(EnrollError::Held(_)) if Instant::now() < deadline => sleep(AGAIN).await,
                opened => return opened.map(Some),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enroll::tests::settings;

    #[tokio::test]
    async fn a_database_that_is_held_is_waited_for_and_a_relay_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        Enrollment::init(&settings, std::time::SystemTime::now()).unwrap();
        let held = Enrollment::open(settings.clone()).unwrap();
        let waits = Enrollment::open_when_free(settings.clone());
        let (opened, ()) = tokio::join!(waits, async {
            sleep(AGAIN * 3).await;
            drop(held);
        });
        let held = opened.unwrap().expect("no relay is at work");
        let _relay = tokio::net::UnixListener::bind(socket_path(&settings.state)).unwrap();
        assert!(Enrollment::open_when_free(settings).await.unwrap().is_none());
        drop(held);
    }
}
