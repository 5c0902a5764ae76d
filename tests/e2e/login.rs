//! A person logs in, by device code and by browser, reaches what policy allows, is told what it does not, and logs out.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use postern_tests::issuer::forge;
use postern_tests::process::Output;
use postern_tests::stand::{Stand, say};

/// Every file under `dir`, with its mode and text.
fn files(dir: &Path) -> Result<Vec<(String, u32, String)>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            found.push((path.display().to_string(), std::fs::metadata(&path)?.mode() & 0o777, text));
        }
    }
    Ok(found)
}

fn says(output: &Output, words: &[&str]) -> Result<()> {
    let all = format!("{}\n{}", output.stdout, output.stderr);
    for word in words {
        ensure!(all.contains(word), "nothing of {word:?} in: {all}");
    }
    Ok(())
}

#[tokio::test]
async fn a_device_login_reaches_what_policy_allows() -> Result<()> {
    let stand = Stand::start().await?;
    let ada = stand.cli("ada")?;

    say("before the login: exit code 4");
    for args in [&["ls"][..], &["token"], &["whoami"], &["curl", "billing/v1/invoices/7"]] {
        says(&ada.run(args).await?.expect_code(4)?, &["postern login"])?;
    }

    say("device login, with one slow_down on the way");
    stand.issuer.slow_down(1).await?;
    let login = ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    says(&login, &["Code: ", "check that you started this login", "Logged in as ada"])?;
    for (path, mode, _) in files(&ada.state_dir())? {
        ensure!(mode.trailing_zeros() >= 6, "{path} has mode {mode:o}");
    }
    let again = ada.run(&["login"]).await?.expect_code(0)?;
    ensure!(!again.stderr.contains("Code:"), "a good session was logged in anew: {}", again.stderr);

    say("whoami, ls, can, token");
    let whoami = ada.run(&["whoami", "--json"]).await?.expect_code(0)?;
    let shown: serde_json::Value = serde_json::from_str(&whoami.stdout)?;
    ensure!(shown.to_string().contains("ada") && shown.to_string().contains("finance"), "{shown}");
    says(&ada.run(&["ls"]).await?.expect_code(0)?, &["billing", "echo", "GET /v1/invoices/**", "up"])?;
    let services: serde_json::Value =
        serde_json::from_str(&ada.run(&["ls", "--json"]).await?.expect_code(0)?.stdout)?;
    ensure!(services.to_string().contains("billing"), "{services}");
    says(
        &ada.run(&["can", "GET", "billing/v1/invoices/7"]).await?.expect_code(0)?,
        &["clerks read invoices"],
    )?;
    says(
        &ada.run(&["can", "GET", "billing/reports"]).await?.expect_code(5)?,
        &["the office sees reports", "address"],
    )?;
    let token = ada.run(&["token"]).await?.expect_code(0)?.stdout.trim().to_owned();
    ensure!(forge::decode(&token)?.1["aud"] == stand.url.as_str());
    let header = ada.run(&["token", "--header"]).await?.expect_code(0)?.stdout;
    ensure!(header.trim() == format!("Authorization: DPoP {token}"), "{header}");

    say("curl: allowed, denied, unknown");
    let allowed = ada.run(&["curl", "-sS", "billing/v1/invoices/7"]).await?.expect_code(0)?;
    says(&allowed, &["\"from\":\"nginx\"", "/v1/invoices/7"])?;
    let seen = stand.nginx.wait_seen("/v1/invoices/7").await?;
    ensure!(seen["subject"] == "ada" && seen["authorization"] == "", "{seen}");
    let denied = ada.run(&["curl", "-sS", "billing/reports"]).await?.expect_code(5)?;
    says(
        &denied,
        &[
            "Denied (403)",
            "decision",
            "Closest: \"the office sees reports\"",
            "postern can GET billing/reports",
        ],
    )?;
    ada.run(&["curl", "-sS", "nowhere/x"]).await?.expect_code(6)?;

    say("logout revokes and forgets");
    let secrets: Vec<String> = files(&ada.state_dir())?.into_iter().map(|(_, _, text)| text).collect();
    ensure!(
        secrets.iter().any(|text| text.contains(&token)),
        "the session is not where this test looks for it"
    );
    ada.run(&["logout"]).await?.expect_code(0)?;
    ensure!(stand.issuer.path_hits("/token/revocation").await? >= 1, "nothing was revoked");
    for (path, _, text) in files(&ada.state_dir())? {
        ensure!(!text.contains(&token), "{path} still has the access token");
    }
    ada.run(&["token"]).await?.expect_code(4)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_browser_login_is_pkce_with_a_loopback_redirect() -> Result<()> {
    let mut stand = Stand::start().await?;

    say("bob says no in the browser");
    let bob = stand.cli("bob")?;
    let refused = bob.login_browser("bob", true).await?;
    ensure!(refused.code != 0, "{refused:?}");
    bob.run(&["token"]).await?.expect_code(4)?;

    say("bob says yes");
    let login = bob.login_browser("bob", false).await?.expect_code(0)?;
    says(&login, &["Opening", stand.issuer.iss(), "Logged in as bob"])?;
    let token = bob.run(&["token"]).await?.expect_code(0)?.stdout;
    let (_, claims) = forge::decode(token.trim())?;
    ensure!(claims["sub"] == "bob" && claims["client_id"] == "postern-cli", "{claims}");

    say("bob is not in finance");
    let denied = bob.run(&["curl", "-sS", "billing/v1/invoices/7"]).await?.expect_code(5)?;
    says(&denied, &["Denied (403)", "clerks read invoices", "clerk"])?;
    let can = bob.run(&["can", "--json", "GET", "billing/v1/invoices/7"]).await?.expect_code(5)?;
    ensure!(
        serde_json::from_str::<serde_json::Value>(&can.stdout)?.to_string().contains("clerk"),
        "{}",
        can.stdout
    );
    bob.run(&["curl", "-sS", "echo/hello"]).await?.expect_code(0)?;
    ensure!(stand.nginx.seen().is_empty(), "a denied call reached nginx");

    say("a relay that is not there: exit code 7");
    stand.stop_relay(postern_tests::process::Signal::TERM).await?;
    bob.run(&["ls"]).await?.expect_code(7)?;
    bob.run(&["curl", "-sS", "echo/hello"]).await?.expect_code(7)?;
    stand.passed();
    Ok(())
}
