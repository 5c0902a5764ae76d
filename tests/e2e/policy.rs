//! Policy allows and denies by scope, role, group, client, method, path, address and strength of login; a refusal names the rule that
//! came closest and what is missing, and the denied call never arrives.

use anyhow::{Result, ensure};
use postern_tests::http::{Answer, empty, raw, request};
use postern_tests::issuer::Login;
use postern_tests::stand::{Extra, Stand, say};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TABLES: &str = r#"
[services.vault]
agent = "dc1"
hidden = true
rules = [{ name = "clerks see the vault", allow = "role:clerk", to = "GET /**" }]

[services.web]
agent = "dc1"
hosts = ["web.example.com"]
rules = [
    { name = "the finance department", allow = "*", to = "GET /finance", with = { "claims.department" = ["finance", "audit"] } },
    { name = "fresh logins", allow = "*", to = "GET /fresh", with = { max_age = "1h" } },
]

[[tests]]
name = "clerks cannot delete without a strong login"
as = { issuer = "corp", groups = ["finance"], scope = ["invoices:read"], ip = "127.0.0.1" }
call = "DELETE billing/v1/invoices/7"
expect = "deny"
"#;

const AGENT_TABLES: &str = r#"
[services.vault]
upstream = "{echo}"

[services.web]
upstream = "{echo}"
"#;

/// What a refusal must have besides its status.
fn problem(answer: &Answer, words: &[&str]) -> Result<Value> {
    ensure!(answer.header("content-type") == "application/problem+json", "{:?}", answer.headers);
    let problem = answer.json()?;
    for field in ["type", "title", "status", "detail", "request_id", "decision_id"] {
        ensure!(!problem[field].is_null(), "no {field} in {problem}");
    }
    ensure!(problem["status"] == answer.status.as_u16(), "{problem}");
    for word in words {
        ensure!(problem.to_string().contains(word), "nothing of {word:?} in {problem}");
    }
    Ok(problem)
}

struct Calls<'a> {
    stand: &'a Stand,
}

impl Calls<'_> {
    async fn expect(
        &self,
        who: &str,
        token: &str,
        call: &str,
        status: u16,
        words: &[&str],
    ) -> Result<Answer> {
        let (method, path) = call.split_once(' ').unwrap_or_default();
        let answer = self.stand.http.call(method, &self.stand.at(path), Some(token)).await?;
        say(&format!("{who}: {call}: {}", answer.status));
        let answer = answer.expect_status(status)?;
        if status >= 400 {
            problem(&answer, words)?;
        }
        Ok(answer)
    }
}

#[tokio::test]
async fn policy_allows_and_denies_and_says_why() -> Result<()> {
    let extra =
        Extra { tables: TABLES.to_owned(), agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let issuer = &stand.issuer;
    let calls = Calls { stand: &stand };
    let ada = issuer.token("ada").await?;
    let bob = issuer.token("bob").await?;
    let writer = issuer.login(&Login::of("ada").scope("openid invoices:read invoices:write")).await?.access;
    let scopeless = issuer.login(&Login::of("ada").scope("openid")).await?.access;
    let strong = issuer.login(&Login::of("ada").acr("mfa")).await?.access;
    let batch = issuer.batch("invoices:read").await?;

    // Role by group, and scope.
    calls.expect("ada", &ada, "GET /billing/v1/invoices/7?page=2", 200, &[]).await?;
    let seen = stand.nginx.wait_seen("/v1/invoices/7?page=2").await?;
    ensure!(
        seen["subject"] == "ada" && seen["client"] == "postern-cli" && seen["roles"] == "clerk",
        "{seen}"
    );
    ensure!(seen["scopes"].as_str().is_some_and(|s| s.contains("invoices:read")), "{seen}");
    ensure!(seen["issuer"] == issuer.iss() && seen["authorization"] == "", "{seen}");
    calls.expect("ada", &ada, "HEAD /billing/v1/invoices", 200, &[]).await?;
    calls.expect("bob", &bob, "GET /billing/v1/invoices/7", 403, &["clerks read invoices", "clerk"]).await?;
    let refused =
        calls.expect("scopeless", &scopeless, "GET /billing/v1/invoices/7", 403, &["invoices:read"]).await?;
    let challenge = refused.header("www-authenticate");
    ensure!(
        challenge.contains("insufficient_scope") && challenge.contains("scope=\"invoices:read\""),
        "{challenge}"
    );

    // Role by client.
    calls.expect("batch", &batch, "GET /billing/v1/invoices/7", 200, &[]).await?;
    calls.expect("batch", &batch, "PUT /billing/v1/invoices/7", 403, &["clerks change invoices"]).await?;

    // Method and path.
    calls
        .expect("ada", &ada, "PUT /billing/v1/invoices/7", 403, &["clerks change invoices", "invoices:write"])
        .await?;
    calls.expect("writer", &writer, "PUT /billing/v1/invoices/7", 200, &[]).await?;
    calls.expect("writer", &writer, "PUT /billing/v1/invoices/7/lines", 403, &[]).await?;
    calls.expect("ada", &ada, "GET /billing/v1/customers", 403, &[]).await?;
    calls.expect("ada", &ada, "GET /billing/V1/invoices/7", 403, &[]).await?;
    let refused = calls.expect("ada", &ada, "PATCH /billing/v1/invoices/7", 405, &[]).await?;
    let allow = refused.header("allow");
    ensure!(allow.contains("GET") && allow.contains("DELETE") && !allow.contains("PATCH"), "Allow: {allow}");

    // Strength of login: a step-up, RFC 9470.
    let refused = calls.expect("ada", &ada, "DELETE /billing/v1/invoices/7", 401, &[]).await?;
    let challenge = refused.header("www-authenticate");
    ensure!(challenge.contains("insufficient_user_authentication"), "{challenge}");
    ensure!(challenge.contains("acr_values=\"mfa\""), "{challenge}");
    calls.expect("strong", &strong, "DELETE /billing/v1/invoices/7", 200, &[]).await?;

    // Address.
    calls.expect("bob", &bob, "GET /billing/status", 200, &[]).await?;
    calls.expect("bob", &bob, "GET /billing/reports", 403, &["the office sees reports"]).await?;

    // Deny wins, whatever else allows, in any case of letters.
    calls.expect("ada", &ada, "GET /echo/debug/vars", 403, &["nobody reaches debug pages"]).await?;
    calls.expect("ada", &ada, "GET /echo/DeBuG", 403, &["nobody reaches debug pages"]).await?;
    calls.expect("ada", &ada, "GET /echo/debugger", 200, &[]).await?;

    // What does not exist, and what is not to be seen.
    calls.expect("ada", &ada, "GET /nowhere/x", 404, &[]).await?;
    calls.expect("bob", &bob, "GET /vault/x", 404, &[]).await?;
    calls.expect("ada", &ada, "GET /vault/x", 200, &[]).await?;

    // Hosts of their own, claims, age of the login.
    let web = |path: &str| format!("https://web.example.com:{}{path}", stand.port);
    stand.http.get(&web("/finance"), Some(&ada)).await?.expect_status(200)?;
    stand.http.get(&web("/fresh"), Some(&ada)).await?.expect_status(200)?;
    problem(&stand.http.get(&web("/finance"), Some(&bob)).await?.expect_status(403)?, &["department"])?;
    let stale = stand.http.get(&web("/fresh"), Some(&batch)).await?;
    ensure!(matches!(stale.status.as_u16(), 401 | 403), "no auth_time at all: {}", stale.status);
    let mut other = raw::connect(stand.port, stand.pki.roots()?, "web.example.com").await?;
    let head = format!(
        "GET /finance HTTP/1.1\r\nHost: relay.example.com\r\nAuthorization: Bearer {ada}\r\nConnection: close\r\n\r\n"
    );
    other.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    let _ = other.read_to_string(&mut answer).await;
    ensure!(answer.starts_with("HTTP/1.1 421 "), "TLS name and Host disagree: {answer}");

    // What of all that nginx saw: the allowed ones and nothing else.
    let arrived: Vec<String> =
        stand.nginx.seen().iter().map(|l| format!("{} {}", l["method"], l["uri"]).replace('"', "")).collect();
    let expected = [
        "GET /v1/invoices/7?page=2",
        "HEAD /v1/invoices",
        "GET /v1/invoices/7",
        "PUT /v1/invoices/7",
        "DELETE /v1/invoices/7",
        "GET /status",
    ];
    ensure!(arrived == expected, "{arrived:?}");

    // A preflight needs a token like any other request, since no service here says otherwise.
    let preflight = request("OPTIONS", &stand.at("/echo/x"), None)
        .header("origin", "https://app.example.com")
        .header("access-control-request-method", "GET");
    stand.http.send(preflight.body(empty())?).await?.expect_status(401)?;

    // The operator asks the same questions on the command line.
    let token_file = stand.path("ada.token");
    std::fs::write(&token_file, &ada)?;
    let file = token_file.display().to_string();
    let why = stand
        .relay_command(&["policy", "why", "--token-file", &file, "GET", "billing/v1/invoices/7"])
        .await?;
    ensure!(why.code == 0 && why.stdout.contains("clerks read invoices"), "{why:?}");
    let why = stand
        .relay_command(&["policy", "why", "--token-file", &file, "PUT", "billing/v1/invoices/7"])
        .await?;
    ensure!(why.code == 5 && format!("{}{}", why.stdout, why.stderr).contains("invoices:write"), "{why:?}");
    stand.relay_command(&["policy", "test"]).await?.expect_code(0)?;
    stand.relay_command(&["config", "check"]).await?.expect_code(0)?;
    stand.passed();
    Ok(())
}
