//! Tokens that are bound to a key of the caller's (DPoP, RFC 9449): whoever has the token alone, or a proof alone, has nothing. A proof is
//! for one request at one address by one method, and for once.

mod certificates;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use postern_tests::http::switch::{Many, Once};
use postern_tests::http::{Answer, Http, empty, request};
use postern_tests::issuer::{Login, ProofKey};
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::json;

const TABLES: &str = r#"
[services.vault]
agent = "dc1"
rules = [{ name = "bound tokens alone", allow = "*", to = "GET /**", with = { bound = true } }]
"#;
const MORE: &str = r#"
[services.db]
kind = "tcp"
agent = "dc1"
rules = [{ allow = "*", to = "CONNECT" }]

[services.apart]
agent = "dc1"
audience = ["https://apart.example.com"]
rules = [{ allow = "*", to = "GET /**" }]
"#;
const AGENT_TABLES: &str = "[services.vault]\nupstream = \"{echo}\"\n";
/// Failures are what is tested here; their limit is tested elsewhere.
const LIMITS: &str = "failed_auth = \"1000/s per address\"";

async fn stand(tables: &str, agent_tables: &str) -> Result<Stand> {
    let extra = Extra {
        tables: format!("{TABLES}{tables}"),
        agent_tables: format!("{AGENT_TABLES}{agent_tables}"),
        limits: LIMITS.to_owned(),
        ..Extra::default()
    };
    Stand::start_with(extra).await
}

async fn send(http: &Http, method: &str, url: &str, token: &str, proof: &str) -> Result<Answer> {
    let builder = request(method, url, None).header("authorization", format!("DPoP {token}"));
    http.send(builder.header("dpop", proof).body(empty())?).await
}

/// All challenges of a refusal.
fn challenges(answer: &Answer) -> Vec<&str> {
    answer.headers.get_all("www-authenticate").iter().filter_map(|field| field.to_str().ok()).collect()
}

/// A refusal whose one challenge is DPoP's, for this reason.
fn refused(name: &str, answer: &Answer, error: &str) -> Result<()> {
    say(&format!("{name}: {} {}", answer.status, answer.text()));
    let challenges = challenges(answer);
    ensure!(answer.status == 401, "{name}: {} {}", answer.status, answer.text());
    let [challenge] = challenges[..] else { anyhow::bail!("{name}: {challenges:?}") };
    ensure!(challenge.starts_with("DPoP "), "{name}: {challenge}");
    for part in
        [&format!("error=\"{error}\""), "algs=\"ES256 EdDSA RS256 PS256\"", "resource_metadata=\"https://"]
    {
        ensure!(challenge.contains(part), "{name}: no {part} in {challenge}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_without_its_key_is_worth_nothing() -> Result<()> {
    let stand = stand("", "").await?;
    let (key, thief) = (ProofKey::for_relay(&stand.http, &stand.url).await?, ProofKey::generate()?);
    let login = Login::of("ada").scope("openid invoices:read invoices:write");
    let token = stand.issuer.login_bound(&login, &key).await?.access;
    let plain = stand.issuer.token("ada").await?;
    let url = stand.at("/billing/v1/invoices/7");
    let good = || key.proof("GET", &url, Some(&token), None);
    let changed = |name: &str, value: serde_json::Value| {
        key.proof_with("GET", &url, Some(&token), |_, claims| claims[name] = value)
    };
    let age = |seconds: i64| {
        key.proof_with("GET", &url, Some(&token), |_, claims| {
            claims["iat"] = json!(claims["iat"].as_i64().unwrap_or_default() - seconds);
        })
    };

    say("without a token, both schemes are offered");
    let none = stand.http.get(&url, None).await?.expect_status(401)?;
    let offered = challenges(&none);
    ensure!(offered.len() == 2 && offered[0].starts_with("Bearer resource_metadata="), "{offered:?}");
    ensure!(
        offered[1].starts_with("DPoP algs=\"ES256 EdDSA RS256 PS256\", resource_metadata="),
        "{offered:?}"
    );
    let metadata = stand.http.get(&stand.at("/.well-known/oauth-protected-resource"), None).await?.json()?;
    ensure!(
        metadata["dpop_signing_alg_values_supported"] == json!(["ES256", "EdDSA", "RS256", "PS256"]),
        "{metadata}"
    );
    ensure!(metadata["tls_client_certificate_bound_access_tokens"] == json!(false), "{metadata}");

    say("each request with a proof of its own, over HTTP/1.1 and HTTP/2");
    let h2 = Http::h2(stand.pki.roots()?)?;
    for http in [&stand.http, &h2, &stand.http] {
        send(http, "GET", &url, &token, &good()?).await?.expect_status(200)?;
    }
    let odd = key.proof("GET", &format!("{}?x=1#y", url.replace("/7", "/./%37")), Some(&token), None)?;
    send(&stand.http, "GET", &format!("{url}?page=2"), &token, &odd).await?.expect_status(200)?;
    let posted = key.proof("POST", &url, Some(&token), None)?;
    send(&stand.http, "POST", &url, &token, &posted).await?.expect_status(200)?;

    let used = good()?;
    send(&stand.http, "GET", &url, &token, &used).await?.expect_status(200)?;
    let elsewhere = stand.at("/billing/v1/invoices/8");
    for (name, proof, error) in [
        ("replayed", used.clone(), "invalid_dpop_proof"),
        ("for another method", key.proof("POST", &url, Some(&token), None)?, "invalid_dpop_proof"),
        ("for another path", key.proof("GET", &elsewhere, Some(&token), None)?, "invalid_dpop_proof"),
        ("for the upstream", changed("htu", json!("http://127.0.0.1/v1/invoices/7"))?, "invalid_dpop_proof"),
        (
            "for another host",
            changed("htu", json!("https://relay.example.com/billing/v1/invoices/7"))?,
            "invalid_dpop_proof",
        ),
        ("of another token", key.proof("GET", &url, Some(&plain), None)?, "invalid_dpop_proof"),
        ("of no token", key.proof("GET", &url, None, None)?, "invalid_dpop_proof"),
        ("stale", age(61)?, "invalid_dpop_proof"),
        ("from the future", age(-90)?, "invalid_dpop_proof"),
        ("without an id", changed("jti", json!(null))?, "invalid_dpop_proof"),
        (
            "of another type",
            key.proof_with("GET", &url, Some(&token), |header, _| header["typ"] = json!("JWT"))?,
            "invalid_dpop_proof",
        ),
        ("of another key", thief.proof("GET", &url, Some(&token), None)?, "invalid_token"),
        ("that is the token", token.clone(), "invalid_dpop_proof"),
        ("that is nothing", "x".to_owned(), "invalid_dpop_proof"),
    ] {
        refused(&format!("a proof {name}"), &send(&stand.http, "GET", &url, &token, &proof).await?, error)?;
    }
    let without = request("GET", &url, None).header("authorization", format!("DPoP {token}"));
    refused("no proof", &stand.http.send(without.body(empty())?).await?, "invalid_dpop_proof")?;
    let twice = request("GET", &url, None).header("authorization", format!("DPoP {token}"));
    let twice = twice.header("dpop", good()?).header("dpop", good()?);
    stand.http.send(twice.body(empty())?).await?.expect_status(400)?;

    say("each token under its own scheme");
    refused("an unbound token", &send(&stand.http, "GET", &url, &plain, &good()?).await?, "invalid_token")?;
    for proof in [None, Some(good()?)] {
        let builder = request("GET", &url, Some(&token));
        let builder = proof.into_iter().fold(builder, |builder, proof| builder.header("dpop", proof));
        let bearer = stand.http.send(builder.body(empty())?).await?.expect_status(401)?;
        let told = challenges(&bearer);
        ensure!(told.len() == 2 && told[0].contains("Bearer error=\"invalid_token\""), "{told:?}");
        ensure!(told[1].starts_with("DPoP algs="), "{told:?}");
    }
    stand.http.get(&url, Some(&plain)).await?.expect_status(200)?;
    let seen = || stand.nginx.seen().len();
    wait::until("nginx has seen all good ones", wait::SOON, async || (seen() >= 7).then_some(())).await?;
    ensure!(
        seen() == 7,
        "five good proofs, the used one once, the plain token, and nothing else: {:?}",
        stand.nginx.seen()
    );

    say("a rule may demand a bound token");
    let vault = stand.at("/vault/x");
    send(&stand.http, "GET", &vault, &token, &key.proof("GET", &vault, Some(&token), None)?)
        .await?
        .expect_status(200)?;
    let denied = stand.http.get(&vault, Some(&plain)).await?.expect_status(403)?;
    ensure!(denied.text().contains("bound"), "{}", denied.text());
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn proofs_are_for_every_kind_of_request() -> Result<()> {
    // Where connections wait to be taken: whether one is asked for is all that matters here.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let db = format!("[services.db]\nupstream = \"tcp://{}\"\n", listener.local_addr()?);
    let stand = stand(MORE, &db).await?;
    let key = ProofKey::for_relay(&stand.http, &stand.url).await?;
    let token = stand.issuer.login_bound(&Login::of("ada"), &key).await?.access;
    let proof = |method: &str, path: &str| key.proof(method, &stand.at(path), Some(&token), None);

    say("the relay's own addresses, also where one token is judged twice");
    let services = stand.at("/.postern/services");
    let listed = send(&stand.http, "GET", &services, &token, &proof("GET", "/.postern/services")?).await?;
    ensure!(listed.expect_status(200)?.json()?["principal"]["user"] == "ada", "the list of services");
    let explain = stand.at("/.postern/explain?method=GET&target=vault/x");
    let told = send(&stand.http, "GET", &explain, &token, &proof("GET", "/.postern/explain")?).await?;
    told.expect_status(200)?;
    let apart = stand.at("/.postern/explain?method=GET&target=apart/x");
    let hidden = send(&stand.http, "GET", &apart, &token, &proof("GET", "/.postern/explain")?).await?;
    hidden.expect_status(404).context("a service of another audience")?;
    let foreign = send(&stand.http, "GET", &services, &token, &proof("GET", "/.postern/explain")?).await?;
    refused("for another own address", &foreign, "invalid_dpop_proof")?;

    say("upgrades: the method is that on the wire, GET over HTTP/1.1 and CONNECT over HTTP/2");
    let path = "/.postern/tcp/db";
    let asking = |proof: String| {
        let builder = request("GET", path, None).header("host", format!("127.0.0.1:{}", stand.port));
        let builder = builder.header("authorization", format!("DPoP {token}")).header("dpop", proof);
        builder.header("connection", "Upgrade").header("upgrade", "postern-tcp").body(empty())
    };
    let (port, roots) = (stand.port, || stand.pki.roots());
    let passed = Once::send(port, roots()?, asking(proof("GET", path)?)?).await?;
    ensure!(passed.answer.status() == StatusCode::SWITCHING_PROTOCOLS, "{:?}", passed.answer);
    let wrong = Once::send(port, roots()?, asking(proof("CONNECT", path)?)?).await?;
    ensure!(wrong.answer.status() == StatusCode::UNAUTHORIZED, "{:?}", wrong.answer);
    let mut h2 = Many::connect(port, roots()?).await?;
    let bearer = format!("DPoP {token}");
    for (method, expected) in [("CONNECT", StatusCode::OK), ("GET", StatusCode::UNAUTHORIZED)] {
        let proof = proof(method, path)?;
        let fields = [("authorization", bearer.as_str()), ("dpop", proof.as_str())];
        let answer = h2.ask("postern-tcp", path, &fields).await?;
        ensure!(answer.status() == expected, "{method}: {answer:?}");
    }
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn nonces_are_given_and_wanted_back() -> Result<()> {
    // The usual limit of failures: whoever lacks only a nonce has not failed.
    let extra = Extra {
        tables: format!("{TABLES}[dpop]\nnonce = \"required\"\nalgorithms = \"ES256\"\n"),
        agent_tables: AGENT_TABLES.to_owned(),
        issuer: "sender_constrained = \"required\"".to_owned(),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    let key = ProofKey::generate()?;
    let token = stand.issuer.login_bound(&Login::of("ada"), &key).await?.access;
    let url = stand.at("/vault/x");
    let with = |nonce: Option<&str>| key.proof("GET", &url, Some(&token), nonce);
    let mut nonces = BTreeSet::new();
    for _ in 0..40 {
        let asked = send(&stand.http, "GET", &url, &token, &with(None)?).await?.expect_status(401)?;
        let told = challenges(&asked);
        ensure!(
            told.len() == 1
                && told[0].contains("DPoP error=\"use_dpop_nonce\"")
                && told[0].contains("algs=\"ES256\""),
            "{told:?}"
        );
        nonces.insert(asked.header("dpop-nonce").to_owned());
    }
    let nonce = nonces.last().context("no nonce")?;
    ensure!(nonces.len() <= 2 && nonce.len() == 22, "{nonces:?}");
    for _ in 0..3 {
        let answer = send(&stand.http, "GET", &url, &token, &with(Some(nonce))?).await?.expect_status(200)?;
        ensure!(
            answer.header("dpop-nonce").len() == 22,
            "the next nonce comes with the answer: {:?}",
            answer.headers
        );
    }
    for wrong in ["", "AAAAAAAAAAAAAAAAAAAAAA", &nonce[1..]] {
        send(&stand.http, "GET", &url, &token, &with(Some(wrong))?).await?.expect_status(401)?;
    }
    let proof = with(Some(nonce))?;
    send(&stand.http, "GET", &url, &token, &proof).await?.expect_status(200)?;
    let again = send(&stand.http, "GET", &url, &token, &proof).await?.expect_status(401)?;
    ensure!(challenges(&again)[0].contains("invalid_dpop_proof"), "{:?}", challenges(&again));

    say("an issuer whose tokens must all be bound");
    let plain = stand.issuer.token("ada").await?;
    let refused = stand.http.get(&stand.at("/echo/x"), Some(&plain)).await?.expect_status(401)?;
    ensure!(refused.text().contains("must be bound"), "{}", refused.text());
    ensure!(refused.header("dpop-nonce").is_empty(), "nonces are for proofs: {:?}", refused.headers);
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn neither_reload_nor_restart_makes_a_proof_new() -> Result<()> {
    let mut stand = stand("", "").await?;
    let key = ProofKey::for_relay(&stand.http, &stand.url).await?;
    let token = stand.issuer.login_bound(&Login::of("ada"), &key).await?.access;
    let url = stand.at("/vault/x");
    let used = key.proof("GET", &url, Some(&token), None)?;
    send(&stand.http, "GET", &url, &token, &used).await?.expect_status(200)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    refused("after a reload", &send(&stand.http, "GET", &url, &token, &used).await?, "invalid_dpop_proof")?;
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let made = second();
    wait::until("the proof's second is over", wait::SOON, async || (second() > made).then_some(())).await?;
    stand.stop_relay(Signal::KILL).await?;
    stand.start_relay().await?;
    let asked = send(&stand.http, "GET", &url, &token, &used).await?;
    refused("after a restart", &asked, "use_dpop_nonce")?;
    let nonce = asked.header("dpop-nonce").to_owned();
    wait::until("the agent is back", Duration::from_secs(10), async || {
        let fresh = key.proof("GET", &url, Some(&token), Some(&nonce)).ok()?;
        let answer = send(&stand.http, "GET", &url, &token, &fresh).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    stand.passed();
    Ok(())
}
