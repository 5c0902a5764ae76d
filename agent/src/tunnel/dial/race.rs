//! QUIC first, then TCP beside it: takes two dials that have not begun, gives the tunnel of the one that comes about.

use std::pin::pin;
use std::time::Duration;

/// Neither came about.
#[derive(Debug, PartialEq, Eq)]
pub enum Raced<E> {
    /// An answer that leaves nothing to try.
    Final(E),
    Both {
        quic: E,
        tcp: E,
    },
}

/// TCP starts once QUIC has failed or had its `head_start`. The first success counts, QUIC's where both have come; a failure that
/// `is_final` ends it.
///
/// # Errors
/// A final failure, or both.
pub async fn race<T, E>(
    quic: impl Future<Output = Result<T, E>>,
    tcp: impl Future<Output = Result<T, E>>,
    head_start: Duration,
    is_final: impl Fn(&E) -> bool,
) -> Result<T, Raced<E>> {
    let (mut quic, mut tcp) = (pin!(quic), pin!(tcp));
    let mut failed = match tokio::time::timeout(head_start, &mut quic).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(e)) if is_final(&e) => return Err(Raced::Final(e)),
        Ok(Err(e)) => Some(e),
        Err(_) => None,
    };
    if failed.is_none() {
        let first = tokio::select! {
            biased;
            quic = &mut quic => Ok(quic),
            tcp = &mut tcp => Err(tcp),
        };
        match first {
            Ok(Ok(done)) | Err(Ok(done)) => return Ok(done),
            Ok(Err(e)) | Err(Err(e)) if is_final(&e) => return Err(Raced::Final(e)),
            Ok(Err(e)) => failed = Some(e),
            Err(Err(tcp)) => {
                return match quic.await {
                    Ok(done) => Ok(done),
                    Err(e) if is_final(&e) => Err(Raced::Final(e)),
                    Err(quic) => Err(Raced::Both { quic, tcp }),
                };
            }
        }
    }
    match (tcp.await, failed) {
        (Ok(done), _) => Ok(done),
        (Err(tcp), Some(quic)) if !is_final(&tcp) => Err(Raced::Both { quic, tcp }),
        (Err(tcp), _) => Err(Raced::Final(tcp)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    const HEAD_START: Duration = Duration::from_millis(50);
    type Outcome = Result<&'static str, &'static str>;

    fn both<T>(quic: &'static str, tcp: &'static str) -> Result<T, Raced<&'static str>> {
        Err(Raced::Both { quic, tcp })
    }

    async fn of(
        quic: impl Future<Output = Outcome>,
        tcp: impl Future<Output = Outcome>,
    ) -> Result<&'static str, Raced<&'static str>> {
        race(quic, tcp, HEAD_START, |e| *e == "removed").await
    }

    /// Two outcomes, the second of which comes after the first.
    fn in_order(
        first: Outcome,
        second: Outcome,
    ) -> (impl Future<Output = Outcome>, impl Future<Output = Outcome>) {
        let (done, seen) = oneshot::channel();
        let first = async move {
            tokio::time::sleep(2 * HEAD_START).await;
            done.send(()).unwrap();
            first
        };
        let second = async move {
            seen.await.unwrap();
            tokio::task::yield_now().await;
            second
        };
        (first, second)
    }

    #[tokio::test]
    async fn quic_is_taken_where_it_works() {
        // Nobody dials over TCP while QUIC has its head start.
        let tcp = async { panic!("TCP began") };
        assert_eq!(of(ready(Ok("quic")), tcp).await, Ok("quic"));
        let (quic, tcp) = in_order(Ok("quic"), Ok("tcp"));
        assert_eq!(of(quic, tcp).await, Ok("quic"));
        let (tcp, quic) = in_order(Err("closed"), Ok("quic"));
        assert_eq!(of(quic, tcp).await, Ok("quic"));
        // Both come at once.
        let late = async {
            tokio::time::sleep(HEAD_START).await;
            Ok("quic")
        };
        assert_eq!(race(late, pending(), Duration::ZERO, |_: &&str| false).await, Ok("quic"));
    }

    #[tokio::test]
    async fn tcp_does_not_wait_for_quic_to_fail() {
        let start = Instant::now();
        assert_eq!(of(pending(), ready(Ok("tcp"))).await, Ok("tcp"));
        assert!(start.elapsed() >= HEAD_START);
        assert_eq!(of(ready(Err("refused")), ready(Ok("tcp"))).await, Ok("tcp"));
        let (quic, tcp) = in_order(Err("refused"), Ok("tcp"));
        assert_eq!(of(quic, tcp).await, Ok("tcp"));
    }

    #[tokio::test]
    async fn failures_are_told_together_unless_one_says_it_all() {
        let (tcp, quic) = in_order(Err("closed"), Err("silent"));
        assert_eq!(of(quic, tcp).await, both("silent", "closed"));
        let (quic, tcp) = in_order(Err("silent"), Err("closed"));
        assert_eq!(of(quic, tcp).await, both("silent", "closed"));
        assert_eq!(of(ready(Err("removed")), pending()).await, Err(Raced::Final("removed")));
        assert_eq!(of(pending(), ready(Err("removed"))).await, Err(Raced::Final("removed")));
        assert_eq!(of(ready(Err("silent")), ready(Err("removed"))).await, Err(Raced::Final("removed")));
        let (tcp, quic) = in_order(Err("closed"), Err("removed"));
        assert_eq!(of(quic, tcp).await, Err(Raced::Final("removed")));
    }
}
