//! Issuers of every kind can be configured, and a configuration says all that it means: the examples are good, what `--expand` prints
//! means the same, keys in a file need no network, and no token is shown to two issuers.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::issuer::Rotation;
use postern_tests::process::{self, Output, binary};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::json;

async fn config_check(file: &Path, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("postern-relay")?);
    command.arg("-c").arg(file).args(["config", "check"]).args(more).env("NO_COLOR", "1");
    process::run(command, Duration::from_secs(30)).await
}

/// An example in three parts: before its issuer, its issuer, and after it.
fn parts(text: &str) -> Result<[&str; 3]> {
    let issuer = text.find("[[issuers]]").context("no [[issuers]]")?;
    let after = text.find("[roles]").context("no [roles]")?;
    Ok([&text[..issuer], &text[issuer..after], &text[after..]])
}

#[tokio::test]
async fn every_example_is_good_and_can_be_written_out() -> Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/issuers");
    let dir = tempfile::tempdir()?;
    let mut seen = 0;
    for entry in std::fs::read_dir(examples)? {
        let file = entry?.path();
        say(&file.display().to_string());
        let text = std::fs::read_to_string(&file)?;
        let [before, issuer, after] = parts(&text)?;
        let checked = config_check(&file, &[]).await?.expect_code(0)?;
        let tests = after.matches("[[tests]]").count();
        ensure!(tests >= 2 && checked.stderr.contains(&format!("{tests} test(s) passed")), "{checked:?}");

        let expanded = config_check(&file, &["--expand"]).await?.expect_code(0)?.stdout;
        ensure!(expanded.starts_with("[[issuers]]\nname = "), "{expanded}");
        for key in
            ["provider", "audience_claim", "discovery", "leeway", "require", "scope_from", "subject_from"]
        {
            ensure!(expanded.contains(key), "no {key} in {expanded}");
        }
        ensure!(issuer.contains("credential =") == expanded.contains("\ncredential = "), "{expanded}");
        let written_out = dir.path().join("relay.toml");
        std::fs::write(&written_out, format!("{before}{expanded}\n{after}"))?;
        config_check(&written_out, &[]).await?.expect_code(0)?;
        let again = config_check(&written_out, &["--expand"]).await?.expect_code(0)?.stdout;
        ensure!(again == expanded, "not the same:\n{expanded}\n{again}");
        let json = config_check(&written_out, &["--expand", "--json"]).await?.expect_code(0)?.stdout;
        let json: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(json["issuers"][0]["leeway"] == "30s", "{json}");
        // These compare redirects exactly, and the client's has a path that nobody can guess.
        let exact = ["auth0", "cognito", "entra", "okta"].map(|name| format!("provider = \"{name}\""));
        let is_exact = exact.iter().any(|provider| issuer.contains(provider));
        let flows = &json["issuers"][0]["login"]["flows"];
        ensure!(!is_exact || *flows == json!(["device"]), "{}: {flows}", file.display());
        seen += 1;
    }
    ensure!(seen == 9, "{seen} examples");
    Ok(())
}

#[tokio::test]
async fn an_opaque_token_goes_to_one_issuer_only() -> Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/issuers");
    let text = std::fs::read_to_string(examples.join("generic-opaque.toml"))?;
    let [before, issuer, after] = parts(&text)?;
    let other =
        issuer.replace("\"partners\"", "\"others\"").replace("partners.example.net", "others.example.net");
    let after = after
        .replace("\"client:", "\"partners/client:")
        .replace("as     = {", "as     = { issuer = \"partners\",");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("relay.toml");
    let both =
        |issuers: &str| after.replace("agent = \"dc1\"", &format!("agent = \"dc1\"\nissuers = {issuers}"));
    let refused = |issuers: &'static str| (file.clone(), format!("{before}{issuer}{other}{}", both(issuers)));

    say("a service may name one of them");
    let (at, text) = refused("[\"partners\"]");
    std::fs::write(&at, text)?;
    config_check(&at, &[]).await?.expect_code(0)?;

    say("and not both");
    let (at, text) = refused("[\"partners\", \"others\"]");
    std::fs::write(&at, text)?;
    let refusal = config_check(&at, &[]).await?.expect_code(3)?;
    ensure!(
        refusal.stderr.contains("services.wiki.issuers: at most one that is asked about tokens")
            && refusal.stderr.contains("issuers = [\"partners\", \"others\"]"),
        "{refusal:?}"
    );
    Ok(())
}

#[tokio::test]
async fn keys_in_a_file_need_no_issuer() -> Result<()> {
    let mut stand = Stand::start().await?;
    let url = stand.at("/billing/v1/invoices/7");
    let keys = stand.path("keys.json");
    let published = stand.issuer.jwks().await?.to_string();
    let token = stand.issuer.token("ada").await?;
    stand.issuer.rotate(Rotation::Hard).await?;
    let (later, rotated) = (stand.issuer.token("ada").await?, stand.issuer.jwks().await?.to_string());
    stand.issuer.stop().await?;

    say("from the address to a file, by a reload, while the issuer is down");
    std::fs::write(&keys, &published)?;
    let login = "login = { client_id = \"postern-cli\" }";
    let by_file = format!("{login}\ndiscovery = \"off\"\njwks = {{ file = \"keys.json\" }}");
    stand.edit("relay.toml", login, &by_file)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    stand.http.get(&url, Some(&token)).await?.expect_status(200)?;
    stand.http.get(&url, Some(&later)).await?.expect_status(401)?;

    say("the file changes: what was signed by the keys before it is worth nothing any more");
    std::fs::write(&keys, &rotated)?;
    wait::until("the new keys", Duration::from_secs(10), async || {
        let answer = stand.http.get(&url, Some(&later)).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    stand.http.get(&url, Some(&token)).await?.expect_status(401)?;

    say("and with half a file the keys before serve on");
    std::fs::write(&keys, "{\"keys\": [")?;
    wait::until("the file was read", Duration::from_secs(10), async || {
        stand.http.get(&url, Some(&later)).await.ok()?.expect_status(200).ok()?;
        stand.relay().ok()?.log_text().contains("is not a key set").then_some(())
    })
    .await?;
    let refusal = stand.relay_command(&["config", "check"]).await?.expect_code(3)?;
    ensure!(refusal.stderr.contains("issuers.0.jwks.file"), "{refusal:?}");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn clients_are_told_what_the_issuer_wants() -> Result<()> {
    let stand = Stand::relay_only(Extra::default()).await?;
    let told = async || -> Result<serde_json::Value> {
        let answer = stand.http.get(&stand.at("/.well-known/postern"), None).await?.expect_status(200)?;
        Ok(answer.json()?["logins"][0].clone())
    };
    let login = told().await?;
    ensure!(login["client_ids"] == json!({ "pkce": "postern-cli", "device": "postern-cli" }), "{login}");
    ensure!(login["resource"] == stand.url.as_str() && login["audience"].is_null(), "{login}");
    let more =
        "{ client_id = \"postern-cli\", device_client_id = \"tv\", resource = false, audience = \"api\" }";
    stand.edit("relay.toml", "{ client_id = \"postern-cli\" }", more)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    let login = told().await?;
    ensure!(login["client_ids"] == json!({ "pkce": "postern-cli", "device": "tv" }), "{login}");
    ensure!(login["resource"].is_null() && login["audience"] == "api", "{login}");
    stand.passed();
    Ok(())
}
