//! The agent decides again: on the caller's own token, by its own rules, whatever the relay says. A relay that was taken over, with all
//! its keys, gets nothing from it but what a caller's own good token, and for bound ones the caller's own proof, is for.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use postern_tests::counting::Counting;
use postern_tests::issuer::ProofKey;
use postern_tests::lying::{LyingRelay, Said};
use postern_tests::mint::Mint;
use postern_tests::process::Signal;
use postern_tests::stand::{Extra, Stand};
use postern_tests::wait;
use postern_wire::head::Credential;
use serde_json::{Value, json};

const AUDIENCE: &str = "https://ledger.example.com";
/// Of the service that shows what it was sent.
const MIRROR: &str = "https://mirror.example.com";
/// Of the TCP service.
const DB: &str = "https://db.example.com";

/// A stand whose agent `dc1` verifies `ledger` (HTTP) and `db` (TCP) by the mint's tokens.
struct Place {
    stand: Stand,
    mint: Mint,
    upstream: Counting,
}

impl Place {
    async fn start() -> Result<Self> {
        let upstream = Counting::start(Ipv4Addr::LOCALHOST.into())?;
        let tables = format!(
            r#"
[services.ledger]
agent = "dc1"
audience = ["{AUDIENCE}"]
caller_token = "agent"
rules = [{{ name = "all pass here", allow = "*", to = "* /**" }}]

[services.mirror]
agent = "dc1"
audience = ["{MIRROR}"]
caller_token = "agent"
rules = [{{ allow = "*", to = "* /**" }}]

[services.db]
agent = "dc1"
kind = "tcp"
audience = ["{DB}"]
caller_token = "agent"
rules = [{{ allow = "*", to = "CONNECT" }}]
"#
        );
        // Where the mint is known only when the stand runs.
        let agent_tables = format!(
            "[services.mirror]\nupstream = \"{{echo}}\"\n\
             [services.ledger]\nupstream = \"{}\"\n[services.db]\nupstream = \"{}\"\n",
            upstream.url(),
            upstream.tcp()
        );
        let mut stand = Stand::start_with(Extra { tables, agent_tables, ..Extra::default() }).await?;
        let mint = Mint::publish(&stand)?;
        mint.replace(&stand).await?;
        let url = stand.url.clone();
        let verify = format!(
            "verify = {{ issuers = \"corp\", audience = \"{AUDIENCE}\", urls = \"{url}/ledger/\", \
             rules = [{{ allow = \"group:finance\", to = \"GET /get/**\" }}] }}\n"
        );
        let at = "[services.mirror]\n";
        stand.edit("agent.toml", at, &format!("{at}verify = {{ audience = \"{MIRROR}\" }}\n"))?;
        let at = format!("[services.ledger]\nupstream = \"{}\"\n", upstream.url());
        stand.edit("agent.toml", &at, &format!("{at}{verify}"))?;
        let at = format!("[services.db]\nupstream = \"{}\"\n", upstream.tcp());
        let issuers = format!(
            "[[issuers]]\nname = \"corp\"\nissuer = \"{}\"\naudience = [\"{AUDIENCE}\", \"{DB}\", \"{MIRROR}\"]\nleeway = \"1s\"\n",
            mint.iss()
        );
        let verify = format!("verify = {{ audience = \"{DB}\", urls = \"{url}/.postern/tcp/db\" }}\n");
        stand.edit("agent.toml", &at, &format!("{at}{verify}{issuers}"))?;
        stand.stop_agent(Signal::TERM).await?;
        stand.start_agent().await?;
        Ok(Self { stand, mint, upstream })
    }

    fn token(&self, more: &Value) -> Result<String> {
        self.living(Duration::from_mins(5), more)
    }

    fn living(&self, life: Duration, more: &Value) -> Result<String> {
        let mut claims = json!({ "aud": AUDIENCE });
        for (name, value) in more.as_object().context("claims are an object")? {
            claims[name] = value.clone();
        }
        self.mint.token("ada", life, &claims)
    }

    /// The lines of the agent's own log about requests.
    fn agent_audit(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.stand.path("agent/audit.jsonl"))?;
        let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        Ok(lines.into_iter().filter(|line| line["event"] == "request").collect())
    }
}

#[tokio::test]
async fn an_agent_that_verifies_has_a_say_of_its_own() -> Result<()> {
    let place = Place::start().await?;
    let stand = &place.stand;
    let good = place.token(&json!({}))?;
    stand.wait_status("/ledger/get/1", &good, 200, wait::SOON).await?;

    // The relay's rule lets everything pass; the agent's do not.
    let other = stand.http.call("DELETE", &stand.at("/ledger/get/2"), Some(&good)).await?;
    let other = other.expect_status(403)?;
    ensure!(other.header("proxy-status").starts_with("agent"), "{}", other.header("proxy-status"));
    ensure!(other.text().contains("verified the call"), "{}", other.text());
    let stranger = place.token(&json!({ "groups": [] }))?;
    stand.http.get(&stand.at("/ledger/get/3"), Some(&stranger)).await?.expect_status(403)?;

    // A token for the relay's other services is none for this one, and the other way round.
    let relays = place.mint.token("ada", Duration::from_mins(5), &json!({}))?;
    stand.http.get(&stand.at("/ledger/get/4"), Some(&relays)).await?.expect_status(401)?;
    stand.http.get(&stand.at("/echo/x"), Some(&relays)).await?.expect_status(200)?;
    stand.http.get(&stand.at("/echo/x"), Some(&good)).await?.expect_status(401)?;

    let arrived = place.upstream.arrived();
    ensure!(arrived.contains_key("1"), "{arrived:?}");
    ensure!(["2", "3", "4"].iter().all(|id| !arrived.contains_key(*id)), "{arrived:?}");
    let refused = wait::until("the agent's own log has it", wait::SOON, async || {
        let lines = place.agent_audit().ok()?;
        let refused =
            lines.into_iter().filter(|line| line["outcome"] == "refused" && line["stage"] == "verify");
        Some(refused.collect::<Vec<_>>()).filter(|refused| refused.len() == 2)
    })
    .await?;
    ensure!(refused[0]["method"] == "DELETE" && refused[0]["path"] == "/get/2", "{refused:?}");
    place.stand.passed();
    Ok(())
}

/// What a relay passes on, or says it does.
fn credential<'a>(
    (scheme, token, proof): (&'a str, &'a str, Option<&'a str>),
    (method, uri): (&'a str, &'a str),
) -> Credential<'a> {
    Credential { scheme, token, proof, method, public_uri: uri, certificate_sha256: None }
}

#[tokio::test]
async fn a_relay_that_lies_gets_nothing_that_the_caller_did_not_ask_for() -> Result<()> {
    let mut place = Place::start().await?;
    let expired = place.living(Duration::from_secs(2), &json!({}))?;
    let issued = SystemTime::now();
    place.stand.stop_relay(Signal::KILL).await?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.stand.port));
    let relay = LyingRelay::take_over(&place.stand.path("relay"), address).await?;
    ensure!(relay.offers.contains(&("ledger".to_owned(), true)), "{:?}", relay.offers);
    ensure!(relay.offers.contains(&("echo".to_owned(), false)), "{:?}", relay.offers);
    let at = |path: &str| format!("{}/ledger{path}", place.stand.url);
    let get = |id: &'static str| ("GET", id);

    // A service that does not verify believes: the double works.
    let believed = relay.ask("echo", ("GET", "/x"), None).await?;
    ensure!(matches!(believed, Said::Answer(200, _)), "{believed:?}");
    // What we say openly: with a plain token of this audience a relay can make any request that the agent's rules allow.
    let plain = place.token(&json!({}))?;
    let uri = at("/get/plain");
    let said = relay
        .ask("ledger", get("/get/plain"), Some(credential(("Bearer", &plain, None), ("GET", &uri))))
        .await?;
    ensure!(matches!(said, Said::Answer(200, _)), "{said:?}");

    // Whoever the relay says it is, the upstream is told whose token it was.
    let for_mirror = place.token(&json!({ "aud": MIRROR }))?;
    let uri = format!("{}/mirror/x", place.stand.url);
    let said = relay
        .ask("mirror", ("GET", "/x"), Some(credential(("Bearer", &for_mirror, None), ("GET", &uri))))
        .await?;
    let Said::Answer(200, shown) = said else { anyhow::bail!("{said:?}") };
    ensure!(shown.contains("sub-of-ada") && !shown.contains("root"), "{shown}");

    // A forged caller, and tokens that are not good here.
    let foreign_audience = place.mint.token("ada", Duration::from_mins(5), &json!({}))?;
    let for_db = place.token(&json!({ "aud": DB }))?;
    let others_iss = place.token(&json!({ "iss": "https://id.example.com" }))?;
    let stranger = place.token(&json!({ "groups": [] }))?;
    let mut forged = plain.clone();
    forged.replace_range(forged.len() - 8.., "AAAAAAAA");
    let none = relay.ask("ledger", get("/get/n0"), None).await?;
    ensure!(none.is_denied(), "{none:?}");
    for (id, token) in [
        ("/get/n1", &foreign_audience),
        ("/get/n2", &others_iss),
        ("/get/n3", &forged),
        ("/get/n4", &stranger),
        ("/get/n5", &"opaque".to_owned()),
        ("/get/n6", &for_db),
    ] {
        let said =
            relay.ask("ledger", get(id), Some(credential(("Bearer", token, None), ("GET", &at(id))))).await?;
        ensure!(said.is_denied(), "{id}: {said:?}");
    }

    // A token bound to a key: the relay has the caller's proof for one request, and may use it for that one, once.
    // What is dated in the second of the agent's start may be older than the agent.
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let started = second();
    wait::until("that second is over", wait::SOON, async || (second() > started).then_some(())).await?;
    let key = ProofKey::generate()?;
    let bound = place.token(&json!({ "cnf": { "jkt": key.thumbprint() } }))?;
    let proof = |method: &str, uri: &str| key.proof(method, uri, Some(&bound), None);
    let uri = at("/get/b");
    let (once, again) = (proof("GET", &uri)?, proof("GET", &uri)?);
    let shown = |proof| Some(credential(("DPoP", &bound, proof), ("GET", &uri)));
    let said = relay.ask("ledger", get("/get/b"), shown(Some(&once))).await?;
    ensure!(matches!(said, Said::Answer(200, _)), "{said:?}");
    let delete_uri = at("/get/d2");
    let for_delete = proof("DELETE", &delete_uri)?;
    let wiki = format!("{}/wiki/get/d5", place.stand.url);
    let for_wiki = proof("GET", &wiki)?;
    let thief = ProofKey::generate()?;
    let stolen_uri = at("/get/d7");
    let by_thief = thief.proof("GET", &stolen_uri, Some(&bound), None)?;
    let lies = [
        // Twice.
        ("GET", "/get/b", credential(("DPoP", &bound, Some(&once)), ("GET", &uri))),
        // For another path: with the truth about the proof, and without.
        ("GET", "/get/d1", credential(("DPoP", &bound, Some(&again)), ("GET", &uri))),
        ("GET", "/get/d1", credential(("DPoP", &bound, Some(&again)), ("GET", &delete_uri))),
        // For another method.
        ("GET", "/get/d2", credential(("DPoP", &bound, Some(&for_delete)), ("DELETE", &delete_uri))),
        ("GET", "/get/d2", credential(("DPoP", &bound, Some(&for_delete)), ("GET", &delete_uri))),
        // Made for another service.
        ("GET", "/get/d5", credential(("DPoP", &bound, Some(&for_wiki)), ("GET", &wiki))),
        // As if it were a plain one, without a proof, or by another key.
        ("GET", "/get/d6", credential(("Bearer", &bound, None), ("GET", &uri))),
        ("GET", "/get/d6", credential(("DPoP", &bound, None), ("GET", &uri))),
        ("GET", "/get/d7", credential(("DPoP", &bound, Some(&by_thief)), ("GET", &stolen_uri))),
    ];
    for (method, path, lie) in lies {
        let said = relay.ask("ledger", (method, path), Some(lie)).await?;
        ensure!(said.is_denied(), "{method} {path}: {said:?}");
    }
    // The proof that no lie spent is still the caller's.
    let said = relay.ask("ledger", get("/get/b"), shown(Some(&again))).await?;
    ensure!(matches!(said, Said::Answer(200, _)), "{said:?}");

    // Good until it was too old. No event tells the end of a token, but its instant is known (life, leeway, the second that `exp` is cut
    // to): only what is left of that is waited for.
    let long_gone = issued + Duration::from_secs(2 + 1 + 1);
    tokio::time::sleep(long_gone.duration_since(SystemTime::now()).unwrap_or_default()).await;
    let uri = at("/get/late");
    let late = credential(("Bearer", &expired, None), ("GET", &uri));
    let said = relay.ask("ledger", get("/get/late"), Some(late)).await?;
    ensure!(said.is_denied(), "{said:?}");

    let arrived = place.upstream.arrived();
    ensure!(arrived.get("b") == Some(&2) && arrived.get("plain") == Some(&1), "{arrived:?}");
    ensure!(arrived.keys().all(|id| ["b", "plain"].contains(&id.as_str())), "{arrived:?}");
    place.stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_live_stream_lives_as_long_as_its_callers_own_tokens() -> Result<()> {
    let mut place = Place::start().await?;
    place.stand.stop_relay(Signal::KILL).await?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.stand.port));
    let relay = LyingRelay::take_over(&place.stand.path("relay"), address).await?;
    let uri = format!("{}/.postern/tcp/db", place.stand.url);
    let lease = format!("{}/.postern/lease", place.stand.url);
    let to_db = json!({ "aud": DB });
    let short = place.living(Duration::from_secs(6), &to_db)?;
    let opened = SystemTime::now();
    let mut streams = Vec::new();
    for id in ["kept", "stolen", "left"] {
        let stream =
            relay.connect("db", id, Some(credential(("Bearer", &short, None), ("GET", &uri)))).await?;
        streams.push(stream.map_err(|said| anyhow::anyhow!("{id}: {said:?}"))?);
    }
    // One is renewed by its caller, one by somebody else's token.
    let fresh = place.living(Duration::from_mins(1), &to_db)?;
    let elses = place.mint.token("bob", Duration::from_mins(1), &to_db)?;
    let renewal = |token| credential(("Bearer", token, None), ("POST", &lease)).owned();
    relay.renew("kept", renewal(&fresh)).await?;
    relay.renew("stolen", renewal(&elses)).await?;
    let mut streams = streams.into_iter();
    let (Some(mut kept), Some(mut stolen), Some(mut left)) = (streams.next(), streams.next(), streams.next())
    else {
        anyhow::bail!("three were opened");
    };
    for (who, stream) in [("stolen", &mut stolen), ("left", &mut left)] {
        let ended = tokio::time::timeout(Duration::from_secs(12), stream.recv.chunk()).await;
        ensure!(ended.context("it goes on")?.is_err(), "{who} ended well");
    }
    ensure!(opened.elapsed()? >= Duration::from_secs(5), "cut before the token's end");
    kept.send.send(&mut [bytes::Bytes::from_static(b"still here\n")]).await?;
    let back = tokio::time::timeout(wait::SOON, kept.recv.chunk()).await??;
    ensure!(back.as_deref() == Some(&b"still here\n"[..]), "{back:?}");
    place.stand.passed();
    Ok(())
}
