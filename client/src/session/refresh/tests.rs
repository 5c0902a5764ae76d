//! Renewal against an issuer that is made up here: rotation, single flight, failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use postern_base::http_client::HttpClientOptions;
use serde_json::json;

use super::*;
use crate::commands::settle;
use crate::relay_api::address::RelayUrl;
use crate::session::profile::ProfileName;
use crate::session::vault::Keyring;
use crate::testing::{Fake, Held, Seen, json as answer, session, settings, until};

/// An issuer that rotates: each refresh token works once, a second use is reuse.
async fn rotating() -> Fake {
    held(Semaphore::MAX_PERMITS).await.0
}

/// The same, with so many answers until more are let through.
async fn held(answers: usize) -> (Fake, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(answers));
    let at_gate = Held(gate.clone());
    let turn = AtomicUsize::new(0);
    let fake = Fake::http(move |seen: &Seen| {
        let n = turn.load(Ordering::SeqCst);
        if seen.form("refresh_token") != Some(format!("refresh-{n}")) {
            return answer(400, &json!({ "error": "invalid_grant" }));
        }
        turn.store(n + 1, Ordering::SeqCst);
        let (access, refresh) = (format!("access-{}", n + 1), format!("refresh-{}", n + 1));
        let given = json!({ "access_token": access, "token_type": "bearer", "expires_in": 3600, "refresh_token": refresh });
        let mut given = answer(200, &given);
        given.extensions_mut().insert(at_gate.clone());
        given
    })
    .await;
    (fake, gate)
}

struct Bench {
    _dir: tempfile::TempDir,
    vault: Vault,
    relay: RelayUrl,
    http: HttpClient,
}

impl Bench {
    fn new(issuer: &Fake, life: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::over(&settings(dir.path()), Keyring::Fake(None));
        let relay: RelayUrl = "relay.example.com".parse().unwrap();
        let session = session(relay.clone(), issuer.url("").trim_end_matches('/'), life);
        vault.save(&ProfileName::of(&relay), &session).unwrap();
        Self { _dir: dir, vault, relay, http: issuer.client() }
    }

    /// As a process of its own would see it.
    fn tokens(&self) -> Tokens {
        let renewals = TaskTracker::new();
        Tokens::new(Account::of(self.relay.clone()), None, self.vault.clone(), self.http.clone(), renewals)
    }

    /// The token is in its last minute; an issuer that does not answer is given up soon.
    fn ending(issuer: &Fake) -> Self {
        let mut bench = Self::new(issuer, 30);
        let mut session = bench.kept();
        session.access.get_mut("").unwrap().issued -= 3600;
        bench.vault.save(&ProfileName::of(&bench.relay), &session).unwrap();
        let timeout = Duration::from_millis(500);
        let options = HttpClientOptions { allow_private: true, timeout, ..Default::default() };
        bench.http = HttpClient::new(options).unwrap();
        bench
    }

    fn kept(&self) -> Session {
        self.vault.load(&ProfileName::of(&self.relay)).unwrap().unwrap()
    }
}

async fn token(tokens: &Tokens) -> Result<String, SessionError> {
    tokens.pass(None, Duration::ZERO).await.map(|pass| pass.token().expose().to_owned())
}

#[tokio::test]
async fn a_fresh_token_is_used_and_an_ending_one_renewed_and_kept() {
    let issuer = rotating().await;
    assert_eq!(token(&Bench::new(&issuer, 3600).tokens()).await.unwrap(), "access-0");
    assert!(issuer.seen().is_empty());
    let bench = Bench::new(&issuer, 0);
    assert_eq!(token(&bench.tokens()).await.unwrap(), "access-1");
    let asked = &issuer.seen()[0];
    assert_eq!(asked.form("resource").unwrap(), "https://relay.example.com");
    assert_eq!(asked.form("client_id").unwrap(), "postern-cli");
    assert_eq!(bench.kept().refresh_token.unwrap().0.expose(), "refresh-1", "the rotated token is kept");
}

#[tokio::test]
async fn many_tasks_and_many_processes_renew_once() {
    let issuer = rotating().await;
    let bench = Bench::new(&issuer, 0);
    let processes: Vec<_> = (0..4).map(|_| Arc::new(bench.tokens())).collect();
    let mut all = tokio::task::JoinSet::new();
    for process in &processes {
        for _ in 0..5 {
            let process = process.clone();
            all.spawn(async move { token(&process).await.unwrap() });
        }
    }
    let given = all.join_all().await;
    assert!(given.iter().all(|token| token == "access-1"), "{given:?}");
    assert_eq!(issuer.seen().len(), 1);
}

#[tokio::test]
async fn a_renewal_that_nobody_waits_for_any_more_is_kept() {
    let (issuer, gate) = held(0).await;
    let bench = Bench::new(&issuer, 0);
    let tokens = Arc::new(bench.tokens());
    let mut waiters = tokio::task::JoinSet::new();
    let first = tokens.clone();
    waiters.spawn(async move { token(&first).await });
    until("the exchange", || issuer.seen().len() == 1).await;
    waiters.shutdown().await;
    let (here, another) = (tokens.clone(), bench.tokens());
    waiters.spawn(async move { token(&here).await });
    waiters.spawn(async move { token(&another).await });
    gate.add_permits(Semaphore::MAX_PERMITS / 2);
    for given in waiters.join_all().await {
        assert_eq!(given.unwrap(), "access-1");
    }
    assert_eq!(issuer.seen().len(), 1);
}

#[tokio::test]
async fn the_end_of_the_process_waits_for_a_renewal() {
    let (issuer, gate) = held(0).await;
    let bench = Bench::new(&issuer, 0);
    let tokens = bench.tokens();
    let renewals = tokens.renewals.clone();
    let mut waiters = tokio::task::JoinSet::new();
    waiters.spawn(async move { token(&tokens).await });
    until("the exchange", || issuer.seen().len() == 1).await;
    waiters.shutdown().await;
    let mut ending = Box::pin(settle(&renewals));
    assert!(futures_util::poll!(&mut ending).is_pending());
    gate.add_permits(1);
    ending.await;
    assert_eq!(bench.kept().refresh_token.unwrap().0.expose(), "refresh-1");
}

#[tokio::test]
async fn a_silent_issuer_is_asked_once_and_the_token_used_on() {
    let never = Held(Arc::new(Semaphore::new(0)));
    let issuer =
        Fake::http(move |_| Response::builder().extension(never.clone()).body(Bytes::new()).unwrap()).await;
    let bench = Bench::ending(&issuer);
    let tokens = bench.tokens();
    let given = futures_util::future::join_all((0..20).map(|_| token(&tokens))).await;
    assert!(given.iter().all(|given| given.as_ref().unwrap() == "access-0"), "{given:?}");
    assert_eq!(issuer.seen().len(), 1, "asked by one request, not by each in turn");
    tokens.known().resting.get_mut("").unwrap().until = Instant::now();
    assert_eq!(token(&tokens).await.unwrap(), "access-0");
    assert_eq!(issuer.seen().len(), 2, "asked again after a while");
    let none = tokens.pass(Some("https://billing.example.com"), Duration::ZERO).await;
    assert!(matches!(none, Err(SessionError::Renewal { .. })), "{none:?}");
    assert_eq!(issuer.seen().len(), 3, "another audience is another question");
    let again = tokens.pass(Some("https://billing.example.com"), Duration::ZERO).await;
    assert_eq!(again.unwrap_err().to_string(), none.unwrap_err().to_string());
    assert_eq!(issuer.seen().len(), 3, "the last error is given meanwhile");
}

#[tokio::test]
async fn a_service_with_its_own_audience_gets_its_own_token() {
    let issuer = rotating().await;
    let bench = Bench::new(&issuer, 3600);
    let tokens = bench.tokens();
    let own = tokens.pass(Some("https://billing.example.com"), Duration::ZERO).await.unwrap();
    assert_eq!(own.token().expose(), "access-1");
    assert_eq!(issuer.seen()[0].form("resource").unwrap(), "https://billing.example.com");
    assert_eq!(token(&tokens).await.unwrap(), "access-0", "the relay's own stays");
    let same = tokens.pass(Some("https://relay.example.com"), Duration::ZERO).await.unwrap();
    assert_eq!(same.token().expose(), "access-0", "the relay's audience by its name");
}

#[tokio::test]
async fn an_ended_session_needs_a_login_and_keeps_its_pins() {
    let issuer = Fake::http(|_| answer(400, &json!({ "error": "invalid_grant" }))).await;
    let bench = Bench::new(&issuer, 0);
    for time in ["first", "second"] {
        let over = token(&bench.tokens()).await.unwrap_err();
        assert!(matches!(&over, SessionError::Over { reason, .. } if reason == ENDED), "{time}: {over}");
    }
    assert_eq!(issuer.seen().len(), 1, "a dead refresh token is not tried again");
    assert_eq!(bench.kept().client_id, "postern-cli");
}

#[tokio::test]
async fn an_issuer_in_trouble_does_not_take_a_good_token_away() {
    let issuer = Fake::http(|_| Response::builder().status(500).body(Bytes::new()).unwrap()).await;
    let ending = Bench::new(&issuer, 3600);
    let long = ending.tokens().pass(None, Duration::from_hours(2)).await.unwrap();
    assert_eq!(long.token().expose(), "access-0");
    assert!(matches!(token(&Bench::new(&issuer, 0).tokens()).await, Err(SessionError::Renewal { .. })));
}

#[tokio::test]
async fn an_answer_without_a_refresh_token_keeps_the_old_one() {
    let issuer = Fake::http(|_| answer(200, &json!({ "access_token": "a", "token_type": "Bearer" }))).await;
    let bench = Bench::new(&issuer, 0);
    assert_eq!(token(&bench.tokens()).await.unwrap(), "a");
    let kept = bench.kept();
    assert_eq!(kept.refresh_token.unwrap().0.expose(), "refresh-0");
    let life = kept.access[""].expires - kept.access[""].issued;
    assert_eq!(life, 300, "an unsaid life is short");
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_it_has_lived_a_while() {
    let issuer = rotating().await;
    let bench = Bench::new(&issuer, 3600);
    let tokens = bench.tokens();
    let pass = tokens.pass(None, Duration::ZERO).await.unwrap();
    tokens.doubt(&pass);
    assert_eq!(token(&tokens).await.unwrap(), "access-0", "a new token is not asked for again at once");
    let mut old = bench.kept().access.remove("").unwrap();
    old.issued -= 60;
    tokens.doubt(&Pass::new(old, None, &Nonce::default()));
    assert_eq!(token(&tokens).await.unwrap(), "access-1");
}

#[tokio::test]
async fn a_given_token_touches_no_session() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let vault = Vault::over(&settings(&missing), Keyring::Fake(None));
    let issuer = rotating().await;
    let relay: RelayUrl = "relay.example.com".parse().unwrap();
    let account = Account::of(relay);
    let given = Tokens::new(
        account.clone(),
        Some(Secret::new("given")),
        vault.clone(),
        issuer.client(),
        TaskTracker::new(),
    );
    assert_eq!(token(&given).await.unwrap(), "given");
    assert!(!missing.exists());
    assert!(matches!(
        token(&Tokens::new(account, None, vault, issuer.client(), TaskTracker::new())).await,
        Err(SessionError::None(_))
    ));
}
