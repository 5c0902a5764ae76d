//! Ways around the decision: whatever a caller writes, the upstream sees what policy decided on and the audit log says, or nothing. Each
//! attempt of the table goes to two upstreams with different habits: nginx, which decodes and merges what it gets, and one that takes
//! everything as it comes.

mod table;

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use postern_tests::http::raw::RawAnswer;
use postern_tests::http::{Http, empty, raw, request};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use table::{ATTEMPTS, Attempt, FIELDS, HTTP2_FIELDS, HTTP2_PATHS};

/// Everybody reads what is public; nobody the rest.
const RULES: &str = r#"
rules = [
    { name = "the public part", allow = "*", to = "GET /public/**" },
    { name = "not the secret part", deny = "*", to = "* /public/secret/**" },
]
"#;
const SERVICES: [&str; 2] = ["plain", "files"];

/// What one upstream saw of a request.
struct Arrived {
    request_id: String,
    method: String,
    /// Without the query.
    path: String,
    /// As the upstream itself reads the path.
    decoded: String,
    subject: String,
    host: String,
}

fn arrived(stand: &Stand) -> Vec<Arrived> {
    let plain = stand.echo.seen().into_iter().map(|seen| {
        let path = seen.target.split('?').next().unwrap_or_default().to_owned();
        Arrived {
            request_id: seen.header("x-request-id"),
            method: seen.method.clone(),
            decoded: path.clone(),
            path,
            subject: seen.header("x-postern-subject"),
            host: seen.header("host"),
        }
    });
    let nginx = stand.nginx.seen().into_iter().map(|line| {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        Arrived {
            request_id: text("request_id"),
            method: text("method"),
            path: text("uri").split('?').next().unwrap_or_default().to_owned(),
            decoded: text("decoded"),
            subject: text("subject"),
            host: text("host"),
        }
    });
    plain.chain(nginx).collect()
}

/// Sends bytes under a TLS name and reads to the end.
async fn exchange(stand: &Stand, name: &str, bytes: &[u8]) -> Result<RawAnswer> {
    let mut stream = raw::connect(stand.port, stand.pki.roots()?, name).await?;
    stream.write_all(bytes).await?;
    let mut received = Vec::new();
    let _ = wait::within("the end of the connection", wait::SOON, stream.read_to_end(&mut received)).await?;
    let text = String::from_utf8_lossy(&received).into_owned();
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok()).unwrap_or(0);
    Ok(RawAnswer { status, text })
}

fn written(stand: &Stand, attempt: &Attempt, service: &str, token: &str) -> String {
    let own = format!("127.0.0.1:{}", stand.port);
    let usual = format!("Host: {own}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n");
    attempt
        .1
        .replace("{usual}", &usual)
        .replace("{own}", &own)
        .replace("{port}", &stand.port.to_string())
        .replace("{token}", token)
        .replace("{s}", service)
        .replace('\n', "\r\n")
        .replace("\r\r\n", "\r\n")
}

#[tokio::test]
async fn what_arrives_is_what_was_decided() -> Result<()> {
    let services = SERVICES.map(|name| format!("[services.{name}]\nagent = \"dc1\"\n{RULES}"));
    let extra = Extra {
        limits: "failed_auth = \"100000/s per address\"".to_owned(),
        tables: services.concat(),
        agent_tables: "[services.plain]\nupstream = \"{echo}\"\n[services.files]\nupstream = \"{nginx}\"\n"
            .to_owned(),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    let token = stand.issuer.token("ada").await?;
    ensure!(
        ATTEMPTS.len() + FIELDS.len() + HTTP2_PATHS.len() + HTTP2_FIELDS.len() >= 120,
        "too few attempts"
    );

    let mut passed = 0;
    for attempt in ATTEMPTS {
        for service in SERVICES {
            let before = stand.echo.seen().len();
            let bytes = written(&stand, attempt, service, &token);
            let answer = exchange(&stand, attempt.0, bytes.as_bytes()).await?;
            let line = bytes.lines().next().unwrap_or_default().to_owned();
            let reached = service == "plain" && stand.echo.seen().len() > before;
            say(&format!("{}{line:?}: {}", if reached { "-> " } else { "   " }, answer.status));
            ensure!(
                !reached || answer.status < 300,
                "{line}: arrived, and the caller was told {}",
                answer.status
            );
            ensure!(answer.status < 500, "{line}: {}", answer.text);
            passed += usize::from(answer.status == 200);
        }
    }
    say("fields that some servers take for another method, path, host or caller");
    for field in FIELDS {
        for service in SERVICES {
            let attempt = ("127.0.0.1", "GET /{s}/public/field HTTP/1.1\n{usual}");
            let bytes = format!("{}{field}\r\n\r\n", written(&stand, &attempt, service, &token));
            let bytes = bytes.replace("{token}", &token);
            let answer = exchange(&stand, "127.0.0.1", bytes.as_bytes()).await?;
            ensure!(matches!(answer.status, 200 | 400), "{field}: {}", answer.text);
            passed += usize::from(answer.status == 200);
        }
    }
    say("the same over HTTP/2");
    let h2 = Http::h2(stand.pki.roots()?)?;
    for service in SERVICES {
        for path in HTTP2_PATHS {
            let Ok(asked) =
                request("GET", &stand.at(&format!("/{service}{path}")), Some(&token)).body(empty())
            else {
                continue;
            };
            let answer = h2.send(asked).await?;
            ensure!(answer.status.as_u16() < 500, "{path}: {}", answer.text());
            passed += usize::from(answer.status == 200);
        }
        for (name, value) in HTTP2_FIELDS {
            let asked = request("GET", &stand.at(&format!("/{service}/public/h2")), Some(&token));
            // What the stream is reset for is not answered.
            let answer = h2.send(asked.header(*name, *value).body(empty())?).await;
            passed += usize::from(answer.is_ok_and(|answer| answer.status == 200));
        }
    }

    say("what arrived, beside what was decided");
    let is_end = |line: &Value| line["event"] == "end" && line["status"] == 200;
    stand.wait_audit(passed, is_end).await?;
    let mut decisions: HashMap<String, Vec<Value>> = HashMap::new();
    for line in stand.audit()?.into_iter().filter(|line| line["event"] == "decision") {
        let id = line["request_id"].as_str().context("a decision without a request")?;
        decisions.entry(id.to_owned()).or_default().push(line);
    }
    let all = wait::until("nginx has written its lines", wait::SOON, async || {
        let all = arrived(&stand);
        (all.len() >= passed).then_some(all)
    });
    let all = all.await?;
    ensure!(all.len() == passed && passed > 40, "{} arrived, {passed} callers were told so", all.len());
    let hosts = [format!("127.0.0.1:{}", stand.port)];
    for one in &all {
        let Arrived { request_id, method, path, decoded, subject, host } = one;
        let shown = format!("{request_id}: {method} {path} ({decoded}) for {subject} at {host}");
        let [decision] = &decisions.get(request_id).with_context(|| shown.clone())?[..] else {
            anyhow::bail!("{shown}: several decisions");
        };
        ensure!(decision["outcome"] == "allow", "{shown}: {decision}");
        ensure!(decision["path"] == *path && decision["method"] == *method, "{shown}: {decision}");
        ensure!(decision["rule"] == "the public part", "{shown}: {decision}");
        ensure!(matches!(method.as_str(), "GET" | "HEAD"), "{shown}");
        for path in [path, decoded] {
            let folded = path.to_ascii_lowercase();
            let below = |place: &str| {
                folded.strip_prefix(place).is_some_and(|rest| matches!(rest.as_bytes(), [] | [b'/', ..]))
            };
            ensure!(below("/public") && !below("/public/secret"), "{shown}");
        }
        ensure!(subject == "ada" && hosts.contains(host), "{shown}");
    }
    let allowed = decisions.values().flatten().filter(|line| line["outcome"] == "allow").count();
    ensure!(allowed == all.len(), "{allowed} allowed, {} arrived", all.len());
    stand.passed();
    Ok(())
}
