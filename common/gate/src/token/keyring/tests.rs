mod sources;
mod wycheproof;

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::json;

use super::*;
use crate::token::Algorithm;
use crate::token::tests::support::{FakeIssuer, Signer, at, settings};

const DOCUMENT: &str = "/.well-known/openid-configuration";

fn keyring(issuer: &str, more: &str) -> Arc<Keyring> {
    Arc::new(Keyring::new(settings(issuer, more).keys))
}

fn signer(kid: &'static str) -> Signer {
    Signer::new(Algorithm::Es256, kid)
}

fn kids(set: Option<&Arc<KeySet>>) -> Vec<&str> {
    set.map(|set| set.keys.iter().filter_map(Key::kid).collect()).unwrap_or_default()
}

/// Waits for what a fetch in the background brings about.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn how_long_keys_live_can_be_said() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "jwks = { min_ttl = \"30s\", max_ttl = \"1m\", stale = \"2m\" }");
    keyring.keys(at(0.0)).await.unwrap();
    keyring.newest(at(29.9)).await;
    assert_eq!(issuer.asked("/keys"), 1);
    keyring.newest(at(30.0)).await.unwrap();
    assert_eq!(issuer.asked("/keys"), 2, "30 s after the first");
    assert_eq!(keyring.generation(at(90.0)), Some(1));
    assert_eq!(issuer.asked("/keys"), 2, "not older than a minute");
    keyring.generation(at(90.1));
    eventually("fetched again", || issuer.asked("/keys") == 3 && keyring.lock().running_since.is_none())
        .await;
    issuer.page("/keys", 503, "");
    assert!(keyring.keys(at(90.1 + 120.0)).await.is_some());
    eventually("what was tried has ended", || keyring.lock().running_since.is_none()).await;
    assert!(keyring.keys(at(90.1 + 121.0)).await.is_none());
}

#[tokio::test]
async fn however_many_ask_one_fetch_in_five_seconds() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "");
    join_all((0..200).map(|_| keyring.keys(at(0.0))))
        .await
        .iter()
        .for_each(|set| assert_eq!(kids(set.as_ref()), ["k"]));
    assert_eq!(issuer.asked("/keys"), 1);
    for tenth in 0..50 {
        let now = at(f64::from(tenth) / 10.0);
        assert!(join_all((0..10).map(|_| keyring.newest(now))).await.iter().all(Option::is_some));
    }
    assert_eq!(issuer.asked("/keys"), 1, "within 5 s of the first");
    join_all((0..200).map(|_| keyring.newest(at(5.0)))).await;
    assert_eq!(issuer.asked("/keys"), 2);
    for second in 6..=60 {
        keyring.newest(at(f64::from(second))).await;
    }
    assert_eq!(issuer.asked("/keys"), 2 + 11, "at 10, 15, … 60");
}

#[tokio::test]
async fn callers_on_other_threads_share_the_fetch() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "");
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let keyring = Arc::clone(&keyring);
            tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(keyring.keys(at(0.0))).is_some()
            })
        })
        .collect();
    assert!(join_all(workers).await.into_iter().all(Result::unwrap));
    assert_eq!(issuer.asked("/keys"), 1);
}

#[tokio::test]
async fn failures_back_off_from_a_fifth_of_a_second_to_five() {
    let issuer = FakeIssuer::start().await;
    let keyring = keyring(&issuer.url, "");
    for tenth in 0..200 {
        assert!(keyring.keys(at(f64::from(tenth) / 10.0)).await.is_none());
    }
    // At 0, 0.2, 0.6, 1.4, 3.0, 6.2, 11.2 and 16.2, each a little late.
    let fetches = issuer.asked(DOCUMENT);
    assert!((7..=8).contains(&fetches), "{fetches}");
    assert!(keyring.health().error.is_some());
}

#[tokio::test]
async fn a_failure_does_not_spend_the_five_seconds() {
    let (old, new) = (signer("old"), signer("new"));
    let issuer = FakeIssuer::with_keys(&[&old]).await;
    let keyring = keyring(&issuer.url, "");
    keyring.keys(at(0.0)).await.unwrap();
    issuer.page("/keys", 500, "");
    assert!(keyring.newest(at(5.0)).await.is_none(), "the issuer does not answer");
    assert!(keyring.newest(at(5.1)).await.is_none(), "and is not asked at once again");
    assert_eq!(issuer.asked("/keys"), 2);
    issuer.publish(&[&new]);
    assert_eq!(kids(keyring.newest(at(6.0)).await.as_ref()), ["new"]);
    assert_eq!(keyring.health().error, None);
}

#[tokio::test]
async fn keys_grow_stale_and_then_serve_no_more() {
    let key = signer("k");
    let issuer = FakeIssuer::with_keys(&[&key]).await;
    let keyring = keyring(&issuer.url, "jwks = { stale = \"1h\" }");
    keyring.keys(at(0.0)).await.unwrap();
    issuer.page("/keys", 503, "");
    for minute in 1..=60 {
        assert!(keyring.keys(at(f64::from(minute) * 60.0)).await.is_some(), "minute {minute}");
        eventually("what was tried has ended", || keyring.lock().running_since.is_none()).await;
    }
    assert_eq!(issuer.asked("/keys"), 1 + 50, "each minute from the eleventh on");
    assert_eq!(keyring.generation(at(3600.1)), None);
    assert!(keyring.keys(at(3660.0)).await.is_none());
    issuer.publish(&[&key]);
    assert!(keyring.keys(at(3700.0)).await.is_some(), "back as soon as the issuer is");
    assert_eq!(keyring.generation(at(3700.0)), Some(1), "with the keys that it had");
}

#[tokio::test]
async fn old_keys_serve_while_they_are_fetched_again() {
    let (old, new) = (signer("old"), signer("new"));
    let issuer = FakeIssuer::with_keys(&[&old]).await;
    let keyring = keyring(&issuer.url, "");
    keyring.keys(at(0.0)).await.unwrap();
    assert_eq!(keyring.generation(at(600.0)), Some(1));
    issuer.publish(&[&new]);
    issuer.hold(true);
    assert_eq!(kids(keyring.keys(at(600.1)).await.as_ref()), ["old"], "without waiting");
    issuer.hold(false);
    eventually("the new keys are there", || keyring.generation(at(600.2)) == Some(2)).await;
    assert_eq!(issuer.asked("/keys"), 2);
    issuer.page("/keys", 200, "{\"keys\":[]}");
    assert_eq!(kids(keyring.newest(at(700.0)).await.as_ref()), [""; 0], "withdrawn keys are gone at once");
}

#[tokio::test]
async fn a_clock_set_back_does_not_stop_fetches() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "");
    keyring.keys(at(86_400.0)).await.unwrap();
    keyring.newest(at(0.0)).await.unwrap();
    assert_eq!(issuer.asked("/keys"), 2);
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_end_the_fetch() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "");
    issuer.hold(true);
    assert!(timeout(Duration::from_millis(50), keyring.keys(at(0.0))).await.is_err());
    let waiting = keyring.keys(at(0.1));
    issuer.hold(false);
    assert_eq!(kids(waiting.await.as_ref()), ["k"]);
    assert_eq!(issuer.asked("/keys"), 1);
}

/// Starts a fetch that is held, in a runtime of its own.
async fn fetch_elsewhere(keyring: &Arc<Keyring>) -> tokio::runtime::Runtime {
    let keyring = Arc::clone(keyring);
    let runtime = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let cut_short = async { timeout(Duration::from_millis(50), keyring.keys(at(0.0))).await.is_err() };
        assert!(runtime.block_on(cut_short));
        runtime
    });
    runtime.await.unwrap()
}

#[tokio::test]
async fn a_runtime_that_ends_takes_no_one_with_it() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "");
    issuer.hold(true);
    let runtime = fetch_elsewhere(&keyring).await;
    let began = Instant::now();
    let (keys, ()) = tokio::join!(keyring.keys(at(0.1)), async { runtime.shutdown_background() });
    assert!(keys.is_none() && began.elapsed() < HTTP_CLIENT_TIMEOUT, "told at once");
    assert_eq!(keyring.health().error.unwrap(), "was cut off");
    issuer.hold(false);
    assert!(keyring.keys(at(1.0)).await.is_some());
}

#[tokio::test]
async fn a_runtime_that_stands_still_is_given_up() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "");
    issuer.hold(true);
    let runtime = fetch_elsewhere(&keyring).await;
    issuer.hold(false);
    assert!(keyring.keys(at(15.0)).await.is_some());
    runtime.shutdown_background();
    assert_eq!((keyring.health().error, keyring.health().keys), (None, 1), "and its end is no news");
}

#[tokio::test]
async fn a_keyring_that_nobody_holds_ends_with_its_fetch() {
    let issuer = FakeIssuer::with_keys(&[&signer("k")]).await;
    let keyring = keyring(&issuer.url, "");
    issuer.hold(true);
    keyring.start(at(0.0)).unwrap();
    let left = Arc::downgrade(&keyring);
    drop(keyring);
    issuer.hold(false);
    eventually("it is gone", || left.upgrade().is_none()).await;
}

#[test]
fn keys_are_chosen_by_name_and_else_tried() {
    let signers: Vec<Signer> = ["a", "b"].into_iter().map(signer).collect();
    let rsa = Signer::new(Algorithm::Rs256, "a");
    let set = |named: bool| {
        let jwks = signers.iter().chain([&rsa]).map(Signer::jwk).map(|mut jwk| {
            if !named {
                jwk.as_object_mut().unwrap().remove("kid");
            }
            jwk
        });
        let keys = jwks.filter_map(|jwk| Key::new(&jwk, &[Algorithm::Es256, Algorithm::Rs256])).collect();
        KeySet { generation: 1, fetched: at(0.0), keys }
    };
    let verdict = |signer: &Signer, kid: Option<&str>, named| {
        let token = signer.token_with(&json!({ "kid": kid }), &json!({}));
        let token = if kid.is_none() { signer.token_with(&json!({}), &json!({})) } else { token };
        set(named).verify(&Jws::parse(&token).unwrap())
    };
    let seen: HashSet<usize> = [set(true).keys.len(), set(false).keys.len()].into();
    assert_eq!(seen, HashSet::from([3]));
    assert_eq!(verdict(&signers[0], Some("a"), true), Verdict::Good);
    assert_eq!(verdict(&signers[0], Some("b"), true), Verdict::Forged);
    assert_eq!(verdict(&signers[0], Some("c"), true), Verdict::NoKey);
    assert_eq!(verdict(&rsa, Some("b"), true), Verdict::NoKey, "that name is of another kind");
    assert_eq!(verdict(&signers[1], None, true), Verdict::Good);
    assert_eq!(verdict(&signers[1], None, false), Verdict::Good);
    assert_eq!(verdict(&signers[1], Some("any"), false), Verdict::Good);
    assert_eq!(verdict(&signer("a"), None, true), Verdict::NoKey);
    assert_eq!(verdict(&signer("a"), Some("any"), false), Verdict::NoKey);
}
