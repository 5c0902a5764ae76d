//! Commands against a relay that is made up here.

use serde_json::json;

use std::time::Duration;

use postern_base::http_client::HttpClient;

use super::*;
use crate::session::profile::ProfileName;
use crate::session::vault::{Keyring, Vault};
use crate::testing::{Fake, Seen, json as answer, session, settings};

fn context(dir: &std::path::Path, relay: &Fake, http: HttpClient) -> Context {
    let settings = Settings {
        relay: Some(relay.relay()),
        roots: relay.ca.as_ref().map(|ca| ca.clone().into_bytes()),
        ..settings(dir)
    };
    let vault = Vault::over(&settings, Keyring::Fake(None));
    Context::over(settings, vault, http, &TaskTracker::new(), &Output::new(false, true)).unwrap()
}

#[tokio::test]
async fn without_any_session_one_is_told_to_log_in() {
    let dir = tempfile::tempdir().unwrap();
    let relay = Fake::https(|_| answer(200, &json!({}))).await;
    let failure =
        context(dir.path(), &relay, relay.client()).ask(|_| async { Ok::<(), _>(()) }).await.unwrap_err();
    assert_eq!(failure.exit, Exit::LoginNeeded);
    assert_eq!(failure.fix.unwrap(), format!("run: postern login {}", relay.relay()));
    let nobody = Settings { relay: None, ..settings(dir.path()) };
    let failure = Context::new(nobody, &TaskTracker::new(), &Output::new(false, true)).err().unwrap();
    assert_eq!(failure.exit, Exit::LoginNeeded);
}

#[tokio::test]
async fn a_token_that_the_relay_refuses_is_renewed_once() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Fake::http(|_| {
        answer(200, &json!({ "access_token": "new", "token_type": "Bearer", "expires_in": 60 }))
    })
    .await;
    let relay = Fake::https(|seen: &Seen| match seen.header("authorization") {
        Some("Bearer new") => answer(
            200,
            &json!({ "principal": { "issuer": "corp", "subject": "1", "user": "ada", "expires": 1 }, "services": [] }),
        ),
        _ => answer(401, &json!({ "type": "urn:postern:invalid-token", "title": "Unauthorized", "status": 401, "detail": "revoked" })),
    })
    .await;
    let context = context(dir.path(), &relay, relay.client());
    let vault = Vault::over(&settings(dir.path()), Keyring::Fake(None));
    let mut kept = session(relay.relay(), &issuer.url(""), 3600);
    vault.save(&ProfileName::of(&kept.relay), &kept).unwrap();
    let api = &context.relay;
    let failure = context.ask(|pass| async move { api.services(&pass).await }).await.unwrap_err();
    assert_eq!(
        (failure.exit, failure.message.contains("revoked")),
        (Exit::LoginNeeded, true),
        "a new token: no renewal"
    );
    assert!(issuer.seen().is_empty());
    kept.access.get_mut("").unwrap().issued -= 60;
    vault.save(&ProfileName::of(&kept.relay), &kept).unwrap();
    let context = self::context(dir.path(), &relay, relay.client());
    let api = &context.relay;
    let found = context.ask(|pass| async move { api.services(&pass).await }).await.unwrap();
    assert_eq!(found.principal.user.raw(), "ada");
    assert_eq!(issuer.seen().len(), 1);
}

#[tokio::test]
async fn a_command_that_is_told_to_end_leaves_no_directory() {
    let private = tempfile::tempdir().unwrap();
    let path = private.path().to_owned();
    let command = async move {
        let _private = private;
        std::future::pending::<Result<u8, Failure>>().await
    };
    let told = async {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
    };
    // The command is begun before it is told.
    let both = async { tokio::join!(biased; interruptible(command), told) };
    let (result, ()) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert_eq!(result.unwrap_err().exit, Exit::Interrupted);
    assert!(!path.exists());
}

#[tokio::test]
async fn logout_revokes_and_forgets_even_when_the_issuer_is_gone() {
    for gone in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Fake::http(|_| answer(200, &json!({}))).await;
        let settings = Settings { relay: Some("relay.example.com".parse().unwrap()), ..settings(dir.path()) };
        let vault = Vault::over(&settings, Keyring::Fake(None));
        let kept = session(settings.relay.clone().unwrap(), &issuer.url(""), 60);
        vault.save(&ProfileName::of(&kept.relay), &kept).unwrap();
        let seen = if gone {
            drop(issuer);
            Vec::new()
        } else {
            assert_eq!(logout::run(&settings, false, &Output::new(false, true)).await.unwrap(), 0);
            issuer.seen()
        };
        if gone {
            assert_eq!(logout::run(&settings, true, &Output::new(false, true)).await.unwrap(), 0);
        } else {
            let asked: Vec<_> =
                seen.iter().map(|s| (s.form("token").unwrap(), s.form("token_type_hint").unwrap())).collect();
            assert_eq!(
                asked,
                [
                    ("refresh-0".into(), "refresh_token".into()),
                    ("access-0".to_owned(), "access_token".to_owned())
                ]
            );
            assert_eq!(seen[0].form("client_id").unwrap(), "postern-cli");
        }
        assert!(vault.load(&ProfileName::of(&kept.relay)).unwrap().is_none());
    }
}

#[tokio::test]
async fn a_relay_under_another_name_is_told_as_such_at_login() {
    for status in [401, 404] {
        let relay = Fake::https(move |_| {
            answer(
                status,
                &json!({ "type": "urn:postern:no-token", "title": "A token is needed", "status": status }),
            )
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let settings =
            Settings { roots: relay.ca.as_ref().map(|ca| ca.clone().into_bytes()), ..settings(dir.path()) };
        let to = Some(relay.relay());
        let args = crate::cli::login::Login {
            to,
            issuer: None,
            device: true,
            no_browser: false,
            scopes: Vec::new(),
            force: false,
            client: crate::cli::login::Identity::default(),
        };
        let out = Output::new(false, true);
        let failure = login::run(&settings, args, &TaskTracker::new(), &out).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert_eq!(failure.message, format!("this relay does not answer as {}", relay.relay()));
        assert_eq!(failure.fix.unwrap(), "use the url it was set up with");
    }
}
