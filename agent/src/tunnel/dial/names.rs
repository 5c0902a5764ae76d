//! What a relay's name means: takes the resolver's word, or the last one it gave where it is silent now, so that a path which is back is
//! not kept waiting by a resolver that is not. Also starts attempts one after the other.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use postern_base::sync::lock;

use super::{ConnectError, HANDSHAKE};
use crate::settings::RelayAddress;

/// How many of a name's addresses are tried: more than any relay has.
const ADDRESSES: usize = 8;
/// A resolver that answers at all does so by then, where something is known without it.
const PATIENCE: Duration = Duration::from_millis(500);
/// RFC 8305, 5: the next address is tried this long after the one before, while that still goes on.
pub(super) const STAGGER: Duration = Duration::from_millis(250);

/// What one relay's name meant last.
#[derive(Debug, Default)]
pub struct Names(Mutex<Vec<SocketAddr>>);

impl Names {
    pub(super) async fn addresses(&self, relay: &RelayAddress) -> Result<Vec<SocketAddr>, ConnectError> {
        let known = lock(&self.0).clone();
        let patience = if known.is_empty() { HANDSHAKE } else { PATIENCE };
        let lookup = tokio::net::lookup_host((relay.host.as_str(), relay.port));
        let reason = match tokio::time::timeout(patience, lookup).await {
            Ok(Ok(found)) => {
                let found: Vec<_> = found.take(ADDRESSES).collect();
                lock(&self.0).clone_from(&found);
                return Ok(found);
            }
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("no answer within {patience:?}"),
        };
        if known.is_empty() {
            Err(ConnectError::Name { host: relay.host.clone(), reason })
        } else {
            Ok(known)
        }
    }
}

/// Starts each attempt after its delay, or as soon as all before it have failed. Gives the first success, or the first failure: that of
/// the address which the resolver likes best. `None` where there was nothing to try.
pub(super) async fn one_after_another<T, E>(
    attempts: Vec<(Duration, impl Future<Output = Result<T, E>>)>,
) -> Option<Result<T, E>> {
    let mut waiting = attempts.into_iter().peekable();
    let mut running = FuturesUnordered::new();
    let mut failure = None;
    loop {
        if running.is_empty() {
            match waiting.next() {
                Some((_, attempt)) => running.push(attempt),
                None => return failure.map(Err),
            }
        }
        let delay = waiting.peek().map(|(delay, _)| *delay);
        let pause = pin!(tokio::time::sleep(delay.unwrap_or_default()));
        tokio::select! {
            Some(done) = running.next() => match done {
                Ok(done) => return Some(Ok(done)),
                Err(e) => failure = failure.or(Some(e)),
            },
            () = pause, if delay.is_some() => running.extend(waiting.next().map(|(_, attempt)| attempt)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    type Attempt = std::pin::Pin<Box<dyn Future<Output = Result<u8, u8>>>>;

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_the_next() {
        let attempts: Vec<(Duration, Attempt)> =
            vec![(Duration::ZERO, Box::pin(pending())), (STAGGER, Box::pin(ready(Ok(2))))];
        assert_eq!(one_after_another(attempts).await, Some(Ok(2)));
    }

    #[tokio::test]
    async fn after_a_failure_the_next_starts_at_once_and_the_first_failure_is_told() {
        let long = Duration::from_hours(1);
        let attempts = vec![(long, ready(Err(1))), (long, ready(Err(2)))];
        assert_eq!(one_after_another::<u8, _>(attempts).await, Some(Err(1)));
        let attempts = vec![(long, ready(Err(1))), (long, ready(Ok(2)))];
        assert_eq!(one_after_another(attempts).await, Some(Ok(2)));
        let nothing: Vec<(Duration, std::future::Ready<Result<u8, u8>>)> = Vec::new();
        assert_eq!(one_after_another(nothing).await, None);
    }

    #[tokio::test]
    async fn what_a_name_meant_last_is_used_while_it_means_nothing() {
        let names = Names::default();
        let unknown: RelayAddress = "relay.invalid".parse().unwrap();
        assert!(matches!(names.addresses(&unknown).await, Err(ConnectError::Name { .. })));
        let literal: RelayAddress = "127.0.0.1:4433".parse().unwrap();
        let found = names.addresses(&literal).await.unwrap();
        assert_eq!(found, ["127.0.0.1:4433".parse().unwrap()]);
        assert_eq!(names.addresses(&unknown).await.unwrap(), found);
    }
}
