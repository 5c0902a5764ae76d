//! Every decision and every end of a request is one line of the audit log, with what an investigation needs and no secret; metrics and
//! health tell the same story.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use postern_tests::http::{Http, empty, full, request};
use postern_tests::stand::{Stand, say};
use serde_json::Value;

/// The value of the first sample whose name and labels start with `name` and contain all of `labels`.
fn sample(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line =
        metrics.lines().find(|l| l.starts_with(name) && labels.iter().all(|label| l.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn every_request_leaves_one_decision_and_one_end() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    let bob = stand.issuer.token("bob").await?;
    let h2 = Http::h2(stand.pki.roots()?)?;

    // (status, who, method, path): what a caller saw.
    let mut told: BTreeMap<String, u16> = BTreeMap::new();
    let calls = [
        ("GET", "/billing/v1/invoices/7?card=4111-query-secret", Some(&ada), 200),
        ("GET", "/billing/v1/invoices/7?card=4111-query-secret", Some(&bob), 403),
        ("PUT", "/billing/v1/invoices/7", Some(&ada), 403),
        ("PATCH", "/billing/v1/invoices/7", Some(&ada), 405),
        ("GET", "/billing/v1/invoices/7", None, 401),
        ("GET", "/nowhere/x", Some(&ada), 404),
        ("GET", "/nowhere/x", None, 401),
        ("GET", "/echo/a%2Fb", Some(&ada), 400),
        ("GET", "/echo/status/500", Some(&ada), 500),
        ("GET", "/echo/status/204", Some(&ada), 204),
        ("HEAD", "/echo/x", Some(&ada), 200),
    ];
    for http in [&stand.http, &h2] {
        for (method, path, token, status) in calls {
            let answer =
                http.call(method, &stand.at(path), token.map(String::as_str)).await?.expect_status(status)?;
            let id = answer.header("x-request-id");
            ensure!(!id.is_empty(), "{method} {path}: no X-Request-Id");
            ensure!(told.insert(id.to_owned(), status).is_none(), "the id {id} was given twice");
        }
        let post =
            request("POST", &stand.at("/echo/post"), Some(&ada)).header("cookie", "session=cookie-secret");
        let answer = http.send(post.body(full("body-secret"))?).await?.expect_status(200)?;
        told.insert(answer.header("x-request-id").to_owned(), 200);
        let garbage =
            http.get(&stand.at("/echo/x"), Some("garbage-token-secret")).await?.expect_status(401)?;
        told.insert(garbage.header("x-request-id").to_owned(), 401);
    }

    say("one decision and one end each");
    stand.wait_audit(told.len(), |line| line["event"] == "end").await?;
    let lines = stand.audit()?;
    let mut found: BTreeMap<&str, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for line in &lines {
        let Some(id) = line["request_id"].as_str() else { continue };
        match line["event"].as_str() {
            Some("decision") => found.entry(id).or_default().0.push(line),
            Some("end") => found.entry(id).or_default().1.push(line),
            other => anyhow::bail!("an event of a request called {other:?}: {line}"),
        }
    }
    ensure!(found.len() == told.len(), "{} requests in the log, {} made", found.len(), told.len());
    for (id, status) in &told {
        let (decisions, ends) =
            found.get(id.as_str()).with_context(|| format!("{id} ({status}) is not in the log"))?;
        ensure!(ends.len() == 1, "{id}: {ends:?}");
        let end = ends[0];
        ensure!(end["status"] == *status, "{end}");
        ensure!(end["duration_ms"].is_number() && end["bytes_out"].is_number(), "{end}");
        if *status == 400 {
            // Malformed: nothing that could be decided upon.
            ensure!(decisions.is_empty(), "{decisions:?}");
            continue;
        }
        ensure!(decisions.len() == 1, "{id}: {decisions:?}");
        let decision = decisions[0];
        let allowed = decision["outcome"] == "allow";
        ensure!(allowed == matches!(status, 200 | 204 | 500), "{decision}");
        for field in ["time", "address", "method", "path"] {
            ensure!(decision[field].is_string(), "no {field} in {decision}");
        }
        ensure!(!decision["path"].to_string().contains('?'), "{decision}");
        if allowed {
            for field in ["issuer", "subject", "user", "client", "service", "rule", "decision_id"] {
                ensure!(decision[field].is_string(), "no {field} in {decision}");
            }
            ensure!(decision["token"].as_str().is_some_and(|t| t.len() == 16), "{decision}");
            ensure!(end["agent"] == "dc1", "{end}");
        }
        if *status == 403 {
            ensure!(
                !decision["missing"].to_string().is_empty() && decision["subject"].is_string(),
                "{decision}"
            );
        }
    }
    let posted = lines.iter().find(|l| l["event"] == "end" && l["bytes_in"] == "body-secret".len());
    ensure!(posted.is_some(), "the bytes of the body were not counted");

    say("no secret in the file, nor in the programs' logs");
    let audit = std::fs::read_to_string(stand.path("audit.jsonl"))?;
    let logs = format!("{}{}", stand.relay()?.log_text(), stand.agent()?.log_text());
    let signature = |token: &str| token.rsplit('.').next().unwrap_or_default().to_owned();
    for secret in
        ["query-secret", "cookie-secret", "body-secret", "token-secret", &signature(&ada), &signature(&bob)]
    {
        ensure!(!audit.contains(secret), "{secret} is in the audit log");
        ensure!(!logs.contains(secret), "{secret} is in a log");
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(stand.path("audit.jsonl"))?) & 0o777;
    ensure!(mode == 0o600, "the audit log has mode {mode:o}");

    say("metrics and health, on loopback");
    for (name, program) in [("relay", 0), ("agent", 1)] {
        let program = if program == 0 { stand.relay()? } else { stand.agent()? };
        let base = Stand::metrics_url(program).await?;
        for path in ["/healthz", "/readyz"] {
            stand.http.get(&format!("{base}{path}"), None).await?.expect_status(200)?;
        }
        let metrics = stand.http.get(&format!("{base}/metrics"), None).await?.expect_status(200)?.text();
        ensure!(metrics.contains(&format!("postern_{name}_")) && metrics.contains("# TYPE"), "{metrics}");
        if name == "relay" {
            let denied =
                sample(&metrics, "postern_relay_requests_total", &["service=\"billing\"", "status=\"403\""]);
            ensure!(denied.is_some_and(|n| (n - 4.0).abs() < 0.5), "{denied:?} denials in\n{metrics}");
            let running = sample(&metrics, "postern_relay_requests_in_flight", &[]);
            ensure!(running.is_some_and(|n| n.abs() < 0.5), "{running:?} in flight");
        }
        stand
            .http
            .send(request("GET", &format!("{base}/nothing"), None).body(empty())?)
            .await?
            .expect_status(404)?;
    }
    stand.passed();
    Ok(())
}
