//! One answer to one question: a refusal's document, `/.postern/explain`, `postern can` and `postern-relay policy why` say the same, and
//! of a service that a caller must not know of only its operator is told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::http::Answer;
use postern_tests::issuer::{Login, ProofKey};
use postern_tests::process::{self, Output};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::{Value, json};

const TABLES: &str = r#"
[services.vault]
agent = "dc1"
hidden = true
rules = [{ name = "clerks see the vault", allow = "role:clerk", to = "GET /**" }]

[services.fresh]
agent = "dc1"
rules = [{ name = "fresh logins", allow = "*", to = "GET /**", with = { max_age = "1s" } }]

[services.bound]
agent = "dc1"
rules = [{ name = "with a key", allow = "*", to = "GET /**", with = { bound = true } }]

[services.app]
agent = "dc1"
rules = [{ name = "few", allow = "role:clerk", to = "GET /**", quota = "100/day per user" }]
"#;

const AGENT_TABLES: &str = r#"
[services.vault]
upstream = "{echo}"
[services.fresh]
upstream = "{echo}"
[services.bound]
upstream = "{echo}"
[services.app]
upstream = "{echo}"
"#;

/// All four answers to one question.
struct Answers {
    request: Answer,
    explain: Answer,
    can: Output,
    why: Output,
}

async fn ask(stand: &Stand, token: &str, method: &str, target: &str) -> Result<Answers> {
    let file = stand.path("asked.token");
    std::fs::write(&file, token)?;
    let request = stand.http.call(method, &stand.at(&format!("/{target}")), Some(token)).await?;
    let query = format!("/.postern/explain?method={method}&target={target}");
    let explain = stand.http.get(&stand.at(&query), Some(token)).await?;
    let mut command = stand.cli("asks")?.command(&["--json", "can", method, target])?;
    command.env("POSTERN_TOKEN", token).env("POSTERN_RELAY", format!("127.0.0.1:{}", stand.port));
    let can = process::run(command, Duration::from_secs(30)).await?;
    let file = file.display().to_string();
    let args = ["--json", "policy", "why", "--token-file", &file, method, target];
    let why = stand.relay_command(&args).await?;
    Ok(Answers { request, explain, can, why })
}

fn json_of(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

/// What must be the same in all of them.
fn said(told: &Value) -> Value {
    let pick = |key: &str| told.get(key).cloned().unwrap_or(Value::Null);
    json!({
        "allowed": pick("allowed"), "rule": pick("rule"), "detail": pick("detail"), "closest": pick("closest"),
        "service": pick("service"), "method": pick("method"), "path": pick("path"),
    })
}

#[tokio::test]
async fn four_answers_are_one() -> Result<()> {
    let extra =
        Extra { tables: TABLES.to_owned(), agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let (ada, bob) = (stand.issuer.token("ada").await?, stand.issuer.token("bob").await?);
    let strong = stand.issuer.login(&Login::of("ada").acr("mfa")).await?.access;
    stand.wait_status("/app/x", &ada, 200, wait::SOON).await?;

    let refused = |rule: &str, missing: &[&str]| (Value::Null, json!({ "rule": rule, "missing": missing }));
    let nothing = || (Value::Null, Value::Null);
    for (who, token, call, status, (rule, closest)) in [
        ("ada", &ada, "GET billing/v1/invoices/7", 200, (json!("clerks read invoices"), Value::Null)),
        (
            "strong",
            &strong,
            "DELETE billing/v1/invoices/7",
            200,
            (json!("strong logins delete invoices"), Value::Null),
        ),
        ("ada", &ada, "GET vault/x", 200, (json!("clerks see the vault"), Value::Null)),
        ("ada", &ada, "GET app/x", 200, (json!("few"), Value::Null)),
        ("ada", &ada, "GET echo/debug/x", 403, (json!("nobody reaches debug pages"), Value::Null)),
        (
            "bob",
            &bob,
            "GET billing/v1/invoices/7",
            403,
            refused("clerks read invoices", &["role clerk or role batch"]),
        ),
        (
            "ada",
            &ada,
            "PUT billing/v1/invoices/7",
            403,
            refused("clerks change invoices", &["scope invoices:write"]),
        ),
        (
            "ada",
            &ada,
            "DELETE billing/v1/invoices/7",
            401,
            refused("strong logins delete invoices", &["a login with acr mfa"]),
        ),
        ("bob", &bob, "PATCH app/x", 403, refused("few", &["role clerk", "method GET or HEAD"])),
        ("ada", &ada, "PATCH app/x", 405, refused("few", &["method GET or HEAD"])),
        (
            "ada",
            &ada,
            "GET bound/x",
            403,
            refused("with a key", &["a token bound to a key (DPoP or mutual TLS)"]),
        ),
        ("ada", &ada, "GET billing/other", 403, nothing()),
    ] {
        let (method, target) = call.split_once(' ').unwrap_or_default();
        let Answers { request, explain, can, why } = ask(&stand, token, method, target).await?;
        say(&format!("{who}: {call}: {}", request.status));
        let request = request.expect_status(status)?;
        let (explained, asked, told) = (explain.expect_status(200)?.json()?, json_of(&can)?, json_of(&why)?);
        let one = said(&explained);
        ensure!(one == said(&asked), "explain {explained}, can {asked}");
        ensure!(one == said(&told), "explain {explained}, why {told}");
        ensure!(one["rule"] == rule && one["closest"] == closest, "{call}: {explained}");
        let allowed = status == 200;
        ensure!(one["allowed"] == allowed && (can.code, why.code) == if allowed { (0, 0) } else { (5, 5) });
        ensure!(explained["decision_id"].as_str().is_some_and(|id| id.len() == 26), "{explained}");
        for dry in [&asked, &told] {
            ensure!(dry.get("decision_id").is_none(), "nothing that is in no log: {dry}");
        }
        if allowed {
            let id = request.header("x-request-id").to_owned();
            let decided =
                move |line: &Value| line["event"] == "decision" && line["request_id"] == id.as_str();
            let line = stand.wait_audit(1, decided).await?.remove(0);
            ensure!(line["rule"] == rule, "{line}");
            continue;
        }
        let problem = request.json()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (detail, summary) = (text(&problem["detail"]), text(&explained["detail"]));
        let rest = detail.strip_prefix(&summary).with_context(|| format!("{detail:?} and {summary:?}"))?;
        ensure!(rest.is_empty() == closest.is_null(), "{detail:?}");
        ensure!(problem.get("closest").unwrap_or(&Value::Null) == &closest, "{problem}");
        ensure!(problem.get("rule").unwrap_or(&Value::Null) == &rule, "{problem}");
        ensure!(problem["decision_id"].as_str().is_some_and(|id| id.len() == 26), "{problem}");
        if status == 405 {
            ensure!(request.header("allow") == "GET, HEAD", "{:?}", request.headers);
        }
    }

    say("what is not for bob to know of, only the operator is told");
    for target in ["vault/x", "nowhere/x"] {
        let Answers { request, explain, can, .. } = ask(&stand, &bob, "GET", target).await?;
        let (hidden, explained) = (request.expect_status(404)?.json()?, explain.expect_status(404)?.json()?);
        for key in ["type", "title", "detail"] {
            ensure!(hidden[key] == explained[key], "{hidden} {explained}");
        }
        ensure!(can.code == 6 && !format!("{}{}", can.stdout, can.stderr).contains("clerk"), "{can:?}");
    }
    let why = ask(&stand, &bob, "GET", "vault/x").await?.why.expect_code(5)?;
    ensure!(why.stdout.contains("hidden and no rule names this caller"), "{why:?}");
    std::fs::write(stand.path("bob.toml"), "user = \"bob\"\ngroups = [\"staff\"]\n")?;
    let file = stand.path("bob.toml").display().to_string();
    let args = ["--json", "policy", "why", "--as", &file, "GET", "vault/x"];
    let made_up = stand.relay_command(&args).await?.expect_code(5)?;
    ensure!(said(&json_of(&made_up)?) == said(&json_of(&why)?), "{made_up:?} {why:?}");
    let missing = ask(&stand, &bob, "GET", "nowhere/x").await?.why;
    ensure!(missing.code == 6, "{missing:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_bound_token_is_explained_without_a_proof() -> Result<()> {
    let extra =
        Extra { tables: TABLES.to_owned(), agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let key = ProofKey::generate()?;
    let login = Login::of("ada").scope("openid invoices:read");
    let bound = stand.issuer.login_bound(&login, &key).await?.access;
    let plain = stand.issuer.token("ada").await?;
    let why = async |token: &str, target: &str| {
        let file = stand.path("asked.token");
        std::fs::write(&file, token)?;
        let file = file.display().to_string();
        stand.relay_command(&["--json", "policy", "why", "--token-file", &file, "GET", target]).await
    };
    let told = json_of(&why(&bound, "bound/x").await?.expect_code(0)?)?;
    ensure!(told["rule"] == "with a key", "{told}");
    why(&bound, "billing/other").await?.expect_code(5)?;
    // A request with nothing but the token is still none.
    stand.http.get(&stand.at("/bound/x"), Some(&bound)).await?.expect_status(401)?;

    say("where tokens must be bound, a plain one is refused as in a request");
    why(&plain, "app/x").await?.expect_code(0)?;
    stand.edit("relay.toml", "name = \"corp\"\n", "name = \"corp\"\nsender_constrained = \"required\"\n")?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    let refused = why(&plain, "app/x").await?.expect_code(4)?;
    ensure!(refused.stderr.contains("must be bound to a key"), "{refused:?}");
    why(&bound, "bound/x").await?.expect_code(0)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_login_that_became_too_old_is_asked_for_anew() -> Result<()> {
    let extra =
        Extra { tables: TABLES.to_owned(), agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let ada = stand.issuer.token("ada").await?;
    stand.wait_status("/fresh/x", &ada, 401, wait::SOON).await?;
    let refused = stand.http.get(&stand.at("/fresh/x"), Some(&ada)).await?.expect_status(401)?;
    let challenge = refused.header("www-authenticate").to_owned();
    ensure!(challenge.contains("error=\"insufficient_user_authentication\""), "{challenge}");
    ensure!(challenge.contains("max_age=\"1\"") && !challenge.contains("acr_values"), "{challenge}");
    let problem = refused.json()?;
    ensure!(problem["type"] == "urn:postern:step-up", "{problem}");
    ensure!(problem["closest"]["missing"] == json!(["a login within the last 1s"]), "{problem}");
    stand.passed();
    Ok(())
}
