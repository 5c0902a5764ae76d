//! The test issuer gives what tests of bound tokens, of machines and of introspection rely on, without any program of ours.

use anyhow::{Result, ensure};
use postern_tests::issuer::{Issuer, Login, Machine, OTHER_RESOURCE, ProofKey, forge};
use postern_tests::pki::Pki;
use serde_json::json;

const RESOURCE: &str = "https://relay.example.com";
const SCOPE: &str = "invoices:read";

#[tokio::test]
async fn the_issuer_binds_tokens_and_knows_machines() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pki = Pki::create(dir.path())?;
    let issuer = Issuer::start(dir.path(), &pki, RESOURCE).await?;

    // Bound to a key, without and with nonces.
    let key = ProofKey::generate()?;
    for nonces in [false, true] {
        issuer.demand_nonces(nonces).await?;
        let bound = issuer.login_bound(&Login::of("ada"), &key).await?.access;
        ensure!(forge::decode(&bound)?.1["cnf"] == json!({ "jkt": key.thumbprint() }), "nonces: {nonces}");
    }
    issuer.demand_nonces(false).await?;

    // Bound to a certificate.
    let certificate = pki.client("ada's laptop")?;
    let bound = issuer.login_certified(&Login::of("ada"), &certificate).await?.access;
    ensure!(forge::decode(&bound)?.1["cnf"]["x5t#S256"].is_string());

    // Machines, by each way to prove themselves.
    for (machine, client) in [
        (Machine::Basic, "nightly-batch"),
        (Machine::Post, "nightly-post"),
        (Machine::Assertion, "nightly-jwt"),
        (Machine::Certificate, "nightly-tls"),
    ] {
        let (_, claims) = forge::decode(&issuer.machine(machine, SCOPE, RESOURCE).await?)?;
        ensure!(claims["client_id"] == client, "{claims}");
        ensure!(claims["cnf"].is_object() == (machine == Machine::Certificate), "{claims}");
    }

    // Exchange: the same person, another audience, no more than there was, and only for a good token.
    let ada = issuer.token("ada").await?;
    let answer = issuer.exchange(&ada, OTHER_RESOURCE).await?.expect_status(200)?.json()?;
    let (_, claims) = forge::decode(answer["access_token"].as_str().unwrap_or_default())?;
    ensure!(claims["aud"] == OTHER_RESOURCE && claims["sub"] == "ada", "{claims}");
    ensure!(claims["act"] == json!({ "sub": "relay-exchange" }) && claims["scope"] == SCOPE, "{claims}");
    let tampered = forge::tampered(&ada, |claims| claims["sub"] = json!("bob"))?;
    issuer.exchange(&tampered, OTHER_RESOURCE).await?.expect_status(400)?;
    let unknown = issuer.exchange(&ada, "https://nowhere.example.com").await?.expect_status(400)?;
    ensure!(unknown.text().contains("invalid_target"), "{}", unknown.text());

    // Opaque tokens end when they are revoked.
    let opaque = issuer.login(&Login::of("ada").resource(&format!("{RESOURCE}/opaque"))).await?.access;
    issuer.exchange(&opaque, OTHER_RESOURCE).await?.expect_status(200)?;
    issuer.revoke(&opaque).await?;
    issuer.exchange(&opaque, OTHER_RESOURCE).await?.expect_status(400)?;
    Ok(())
}
