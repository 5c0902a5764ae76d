//! Leases against a relay and an issuer that are made up here. Time does not pass: a lease is made due.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderValue, Response};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::*;
use crate::session::now;
use crate::testing::{Fake, Seen, json as answer, session, until};

/// Of the first token, and of each that the issuer gives, in seconds.
const LEFT: u64 = 30;
const LIFE: u64 = 60;

struct Bench {
    relay: Fake,
    issuer: Fake,
    leases: Arc<Leases>,
}

fn asked(seen: &Seen) -> Vec<String> {
    let body: Value = serde_json::from_str(&seen.body).unwrap();
    body["leases"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn renewing(seen: &Seen) -> Response<bytes::Bytes> {
    let renewed = |id: String| {
        if id.starts_with("no") {
            json!({ "id": id, "renewed": false, "reason": "no such lease of yours" })
        } else {
            json!({ "id": id, "renewed": true, "expires": now() + LIFE })
        }
    };
    answer(200, &json!({ "leases": asked(seen).into_iter().map(renewed).collect::<Vec<_>>() }))
}

impl Bench {
    /// The session's first token ends in `left` seconds; each that the issuer gives lives for a second longer than the one before.
    async fn new(left: u64, relay: fn(&Seen) -> Response<bytes::Bytes>) -> Self {
        let turn = AtomicU64::new(0);
        let issuer = Fake::http(move |_| {
            let turn = turn.fetch_add(1, Ordering::SeqCst);
            let token = format!("access-{}", turn + 1);
            answer(200, &json!({ "access_token": token, "token_type": "Bearer", "expires_in": LIFE + turn }))
        })
        .await;
        let relay = Fake::https(relay).await;
        let kept = session(relay.relay(), issuer.url("").trim_end_matches('/'), left);
        let tokens = Arc::new(Tokens::in_memory(kept, issuer.client(), TaskTracker::new()));
        let leases = crate::testing::leases(&relay, &tokens);
        Self { relay, issuer, leases }
    }

    async fn hold(&self, id: &str, audience: Option<&str>) -> Lease {
        let pass = self.leases.tokens.pass(None, Duration::ZERO).await.unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(lease::LEASE, HeaderValue::from_str(&format!("{id:A<22}")).unwrap());
        self.leases.hold(&headers, &"ledger-db".parse().unwrap(), audience, &pass).unwrap()
    }

    fn make_due(&self) {
        for held in self.leases.live().held.values_mut() {
            held.due = held.due.map(|_| SystemTime::now());
        }
    }

    fn due_in(&self, lease: &Lease) -> Option<u64> {
        let due = self.leases.live().held[&lease.number].due?;
        Some(due.duration_since(SystemTime::now()).unwrap_or_default().as_secs())
    }

    /// Lets it work until the relay or the issuer has been asked so often.
    async fn work(&self, relay: usize, issuer: usize) {
        let enough =
            until("the requests", || self.relay.seen().len() >= relay && self.issuer.seen().len() >= issuer);
        let settled = async {
            enough.await;
            // The answer is worked in before the next wait begins.
            until("the answer", || self.leases.due(SystemTime::now()).is_empty()).await;
        };
        tokio::select! {
            () = settled => {}
            never = self.leases.keep() => match never {},
        }
        assert_eq!((self.relay.seen().len(), self.issuer.seen().len()), (relay, issuer));
    }
}

#[tokio::test]
async fn all_of_an_audience_are_renewed_together_with_one_new_token() {
    let bench = Bench::new(LEFT, renewing).await;
    let (one, two) = (bench.hold("one", None).await, bench.hold("two", None).await);
    assert!(bench.due_in(&one).is_some_and(|due| (LEFT / 2 - 3..=LEFT / 2).contains(&due)), "half-way");
    let first = one.expires();
    bench.make_due();
    bench.work(1, 1).await;
    let seen = &bench.relay.seen()[0];
    assert_eq!((seen.head.method.as_str(), seen.target().as_str()), ("POST", "/.postern/lease"));
    assert_eq!(seen.header("authorization"), Some("Bearer access-1"));
    assert_eq!(asked(seen), [format!("{:A<22}", "one"), format!("{:A<22}", "two")]);
    assert!(one.expires() >= first && bench.due_in(&two).is_some_and(|due| due > 0));
    drop(two);
    bench.make_due();
    bench.work(2, 2).await;
    assert_eq!(asked(&bench.relay.seen()[1]).len(), 1, "what has ended is not renewed");
}

#[tokio::test]
async fn a_service_with_its_own_audience_has_a_renewal_and_a_token_of_its_own() {
    let bench = Bench::new(LEFT, renewing).await;
    let _relays = bench.hold("one", None).await;
    let _own = bench.hold("two", Some("https://billing.example.com")).await;
    bench.make_due();
    bench.work(2, 2).await;
    let mut tokens: Vec<_> =
        bench.relay.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    tokens.sort();
    assert_eq!(tokens, ["Bearer access-1", "Bearer access-2"]);
    let mut resources: Vec<_> =
        bench.issuer.seen().iter().map(|seen| seen.form("resource").unwrap()).collect();
    resources.sort();
    assert_eq!(resources, ["https://billing.example.com", "https://relay.example.com"]);
}

#[tokio::test]
async fn what_the_relay_refuses_is_not_asked_again_and_the_rest_goes_on() {
    let bench = Bench::new(LEFT, renewing).await;
    let (refused, good) = (bench.hold("no", None).await, bench.hold("yes", None).await);
    bench.make_due();
    bench.work(1, 1).await;
    assert!(bench.due_in(&refused).is_none() && bench.due_in(&good).is_some());
    bench.make_due();
    bench.work(2, 2).await;
    assert_eq!(asked(&bench.relay.seen()[1]), [format!("{:A<22}", "yes")]);
}

#[tokio::test]
async fn a_relay_that_fails_is_asked_again_before_the_end() {
    let failing =
        |_: &Seen| answer(503, &json!({ "type": "urn:postern:overloaded", "title": "Busy", "status": 503 }));
    let bench = Bench::new(LEFT, failing).await;
    let lease = bench.hold("one", None).await;
    let end = lease.expires();
    bench.make_due();
    bench.work(1, 1).await;
    assert_eq!(lease.expires(), end, "nothing was renewed");
    assert!(bench.due_in(&lease).is_some_and(|due| due <= LEFT / 2));
    let told = bench.leases.live().held[&lease.number].told;
    assert!(!told, "what passes is not told");
}

#[tokio::test]
async fn a_token_that_the_relay_does_not_take_is_told_once_and_tried_on() {
    let refusing =
        |_: &Seen| answer(401, &json!({ "type": "urn:postern:invalid-token", "title": "No", "status": 401 }));
    let bench = Bench::new(LEFT, refusing).await;
    let lease = bench.hold("one", None).await;
    bench.make_due();
    bench.work(1, 1).await;
    let told = bench.leases.live().held[&lease.number].told;
    assert!(told && bench.due_in(&lease).is_some());
}

#[tokio::test]
async fn a_given_token_and_an_answer_without_a_lease_have_none() {
    let bench = Bench::new(LEFT, renewing).await;
    let pass = bench.leases.tokens.pass(None, Duration::ZERO).await.unwrap();
    let service = "ledger-db".parse().unwrap();
    assert!(bench.leases.hold(&HeaderMap::new(), &service, None, &pass).is_none());
    drop(bench.hold("one", None).await);
    assert!(bench.leases.live().held.is_empty());
}

#[test]
fn no_time_is_beyond_all_times() {
    assert!(at(u64::MAX) > SystemTime::now());
    let mut held = Held {
        id: String::new(),
        service: "x".parse().unwrap(),
        audience: None,
        token: at(0),
        expires: at(0),
        due: None,
        told: true,
    };
    let now = SystemTime::now();
    held.until(at(u64::MAX), None, now);
    assert!(held.due.is_some() && !held.told);
    let (long, short) = (now + Duration::from_mins(1), now + Duration::from_secs(20));
    for (said, expected) in [(short, short), (at(1), long), (at(u64::MAX), long)] {
        held.until(long, Some(said), now);
        assert_eq!((held.token, held.expires), (long, expected), "the stricter word, if it can be one");
    }
    held.expires = at(0);
    held.later(SystemTime::now());
    assert!(held.due.is_none(), "long over");
}
