//! The doctor before relays that are made up here.

use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::*;
use crate::session::vault::{Keyring, Vault};
use crate::settings::Settings;
use crate::testing::{Fake, Pki, Seen, json as answer, session, settings};

/// What is seen of a relay that answers so, by someone who is logged in to it; without its port.
async fn seen(relay: &Fake, service: Option<&str>) -> (String, u8) {
    let dir = tempfile::tempdir().unwrap();
    let roots = relay.ca.as_ref().map(|ca| ca.clone().into_bytes());
    seen_with(Settings { relay: Some(relay.relay()), roots, ..settings(dir.path()) }, relay, service).await
}

async fn seen_with(settings: Settings, relay: &Fake, service: Option<&str>) -> (String, u8) {
    let vault = Vault::over(&settings, Keyring::Fake(None));
    let out = Output::new(false, true);
    let context = Context::over(settings, vault, relay.client(), &TaskTracker::new(), &out).unwrap();
    let session = session(relay.relay(), "http://localhost:9", 3600);
    context.vault.save(&context.account.profile, &session).unwrap();
    let service = service.map(|name| name.parse().unwrap());
    let mut found = Found::default();
    look(&context, service.as_ref(), &mut found, &out).await.unwrap();
    (found.text().replace(&relay.address.port().to_string(), "443"), found.code())
}

fn healthy(seen: &Seen, ahead: i64) -> Value {
    let port = seen.head.uri.port_u16().or_else(|| seen.header("host")?.rsplit_once(':')?.1.parse().ok());
    let service = |name: &str, more: Value| {
        let mut service = json!({
            "name": name, "kind": "http", "up": true, "agents": ["dc1"], "may": ["GET /v1/**"],
            "url": format!("https://localhost:{}/{name}/", port.unwrap()),
        });
        service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        service
    };
    match seen.head.uri.path() {
        "/.well-known/postern" => {
            let time = u64::try_from(jiff::Timestamp::now().as_millisecond() + ahead).unwrap();
            json!({ "relay": "r", "logins": [], "time": time })
        }
        "/.postern/services" => json!({
            "principal": { "issuer": "corp", "subject": "1", "user": "ada", "expires": now() + 2529 },
            "services": [
                service("billing", json!({})),
                service("shut", json!({})),
                service("quiet", json!({ "may": ["POST /v1/**"] })),
                service("wiki", json!({ "up": false, "agents": [], "down_since": now() - 1200 })),
                service("ledger-db", json!({ "kind": "tcp", "may": ["CONNECT"] })),
            ],
        }),
        _ => Value::Null,
    }
}

fn relayed(seen: &Seen, ahead: i64) -> http::Response<bytes::Bytes> {
    let problem = |status: u16, kind: &str, detail: &str| {
        answer(
            status,
            &json!({ "type": format!("urn:postern:{kind}"), "title": "Down", "status": status, "detail": detail }),
        )
    };
    match seen.head.uri.path() {
        "/shut/v1/" => problem(
            502,
            "upstream-unreachable",
            "service shut behind agent dc1: connection refused: start the service, or correct its upstream in agent.toml",
        ),
        "/.postern/tcp/ledger-db" => problem(503, "no-agent", "no agent serves this now"),
        "/.postern/explain" => problem(404, "no-such-service", "no such service"),
        _ => answer(200, &healthy(seen, ahead)),
    }
}

#[tokio::test]
async fn what_is_well_is_one_line() {
    let relay = Fake::https(|seen| relayed(seen, 0)).await;
    let (text, code) = seen(&relay, Some("billing")).await;
    let text = text.replace("-0.", "+0.");
    let Some((line, offset)) = text.split_once("clock +0.") else { panic!("{text}") };
    assert_eq!(line, "✓ DNS  ✓ TCP 443  ✓ TLS  ✓ token 42 min  ✓ ");
    assert!(offset.ends_with("s  ✓ agent  ✓ upstream") && code == 0, "{text}");
    let harmless =
        relay.seen().into_iter().filter(|seen| seen.target().starts_with("/billing")).collect::<Vec<_>>();
    assert_eq!(harmless.len(), 1);
    assert_eq!((harmless[0].head.method.as_str(), harmless[0].target()), ("GET", "/billing/v1/".into()));
    let (all, code) = seen(&relay, None).await;
    assert!(
        all.contains("! services: 4 up, down: wiki\n  Fix: try: postern doctor wiki") && code == 0,
        "{all}"
    );
}

#[tokio::test]
async fn each_cause_has_its_words_and_its_code() {
    let relay = Fake::https(|seen| relayed(seen, 0)).await;
    for (service, code, words) in [
        (
            "shut",
            8,
            "✓ agent  ✗ upstream: connection refused (agent dc1)\n  Fix: start the service behind agent dc1, or look at `postern-agent status` there",
        ),
        ("quiet", 0, "- upstream: not tried, no rule lets you GET anything"),
        ("wiki", 8, "✗ agent: none serves it for 20 min"),
        ("ledger-db", 8, "✗ upstream: no agent serves this now (agent dc1)"),
        ("nothing", 6, "✗ service: "),
    ] {
        let (text, found) = seen(&relay, Some(service)).await;
        assert!(text.contains(words) && found == code, "{service}: {found} {text}");
    }
    let refusing = Fake::https(|seen| match seen.head.uri.path() {
        "/.postern/services" => {
            answer(401, &json!({ "type": "urn:postern:invalid-token", "title": "The token is not accepted", "status": 401 }))
        }
        _ => relayed(seen, 0),
    })
    .await;
    let (text, code) = seen(&refusing, None).await;
    assert!(text.contains("✗ token: Refused (401)") && text.contains("✓ clock") && code == 4, "{text}");
    let other = Fake::https(|_| answer(200, &json!({ "hello": 1 }))).await;
    let (text, code) = seen(&other, None).await;
    assert!(text.contains("✓ TLS  ✗ relay: ") && code == 1, "{text}");
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_by_how_much() {
    for (ahead, words, code) in [(-12_000, "! clock: +12.", 0), (90_000, "✗ clock: -", 1)] {
        let relay = Fake::https(move |seen| relayed(seen, ahead)).await;
        let (text, found) = seen(&relay, None).await;
        assert!(text.contains(words) && text.contains("set this machine's clock") && found == code, "{text}");
    }
}

#[tokio::test]
async fn a_way_that_is_closed_ends_there() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    let relay = Fake::start(0, Some(&pki), std::sync::Arc::new(|_: &Seen| answer(200, &json!({})))).await;
    let untrusted = Settings { relay: Some(relay.relay()), ..settings(dir.path()) };
    let (text, code) = seen_with(untrusted, &relay, None).await;
    assert!(
        text.starts_with("✓ DNS  ✓ TCP 443  ✗ TLS: ") && text.contains("--ca FILE") && code == 7,
        "{text}"
    );
    let plain = Fake::http(|_| answer(200, &json!({}))).await;
    let url = format!("https://127.0.0.1:{}", plain.address.port()).parse().unwrap();
    let (text, code) = seen_with(Settings { relay: Some(url), ..settings(dir.path()) }, &relay, None).await;
    assert!(text.starts_with("✓ TCP ") && text.contains("does not speak TLS") && code == 7, "{text}");
    // Bound, so that nobody else takes it, but not listening.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("https://{}", closed.local_addr().unwrap()).parse().unwrap();
    let (text, code) = seen_with(Settings { relay: Some(url), ..settings(dir.path()) }, &relay, None).await;
    assert!(text.starts_with("✗ TCP ") && text.contains("is the relay running") && code == 7, "{text}");
}
