//! Rules say how often: callers are told what is left, and beyond it refused without reaching the upstream; counts are each caller's own
//! and outlive a reload. The address that rules, limits and audit go by is the caller's, also behind proxies that are trusted.

use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::http::{Answer, empty, request};
use postern_tests::process::{self, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;

const TABLES: &str = r#"
[services.limited]
agent = "dc1"
rules = [
    { name = "slow", allow = "*", to = "GET /slow", rate = "3/m per user" },
    { name = "few", allow = "*", to = "GET /few", quota = "4/day per user" },
    { name = "first", allow = "*", to = "GET /both", quota = "1/day per user" },
    { name = "second", allow = "*", to = "GET /both", quota = "2/h per user", rate = "9/s per user" },
    { name = "together", allow = "*", to = "GET /together", quota = "2/day per service" },
    { name = "from there", allow = "*", to = "GET /there", from = "198.51.100.0/24", quota = "2/day per ip" },
]
"#;

const AGENT_TABLES: &str = "[services.limited]\nupstream = \"{echo}\"\n";

/// `429` or the status, and what is left.
fn told(answer: &Answer) -> (u16, &str) {
    let left = answer.header("ratelimit").split_once("r=").map_or("", |(_, rest)| rest);
    (answer.status.as_u16(), left.split(';').next().unwrap_or_default())
}

async fn stand() -> Result<Stand> {
    let extra =
        Extra { tables: TABLES.to_owned(), agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    Stand::start_with(extra).await
}

#[tokio::test]
async fn rules_are_used_as_often_as_they_say() -> Result<()> {
    let stand = stand().await?;
    let (ada, bob) = (stand.issuer.token("ada").await?, stand.issuer.token("bob").await?);
    let get = async |path: &str, token: &str| stand.http.get(&stand.at(path), Some(token)).await;

    say("a rate: told what is left, refused beyond it, each user alone");
    for left in ["2", "1", "0"] {
        let answer = get("/limited/slow", &ada).await?;
        ensure!(told(&answer) == (200, left), "{:?}", answer.headers);
        ensure!(answer.header("ratelimit-policy") == "\"rate\";q=3;w=60", "{:?}", answer.headers);
        ensure!(answer.header("ratelimit").starts_with("\"rate\";r="), "{:?}", answer.headers);
    }
    let before = stand.echo.seen().len();
    let refused = get("/limited/slow", &ada).await?.expect_status(429)?;
    let wait: u64 = refused.header("retry-after").parse()?;
    ensure!((1..=20).contains(&wait), "one of three a minute: {wait}");
    ensure!(told(&refused) == (429, "0"), "{:?}", refused.headers);
    let problem = refused.json()?;
    ensure!(problem["type"] == "urn:postern:rate-limited", "{problem}");
    ensure!(problem.to_string().contains("3/m per user") && problem["decision_id"].is_string(), "{problem}");
    ensure!(stand.echo.seen().len() == before, "what is refused does not arrive");
    ensure!(told(&get("/limited/slow", &bob).await?) == (200, "2"));
    let lines = stand.wait_audit(1, |line| line["reason"] == "rate-limited").await?;
    ensure!(lines[0]["event"] == "end" && lines[0]["status"] == 429, "{lines:?}");

    say("dry runs tell and take nothing");
    for _ in 0..6 {
        let asked = get("/.postern/explain?method=GET&target=limited/few", &ada).await?.json()?;
        let limits = serde_json::json!([{ "limit": "4/day per user", "left": 4 }]);
        ensure!(asked["allowed"] == true && asked["limits"] == limits, "{asked}");
    }
    let mut can = stand.cli("ada")?.command(&["can", "GET", "limited/few"])?;
    can.env("POSTERN_TOKEN", &ada).env("POSTERN_RELAY", format!("127.0.0.1:{}", stand.port));
    let can = process::run(can, Duration::from_secs(30)).await?.expect_code(0)?;
    ensure!(can.stdout.contains("At most 4/day per user, 4 left"), "{can:?}");
    ensure!(told(&get("/limited/few", &ada).await?) == (200, "3"));
    let asked = get("/.postern/explain?method=GET&target=limited/slow", &ada).await?.json()?;
    ensure!(asked["limits"][0]["left"] == 0, "{asked}");

    say("a rule without room leaves the request to another one");
    let mut rules = Vec::new();
    for _ in 0..3 {
        get("/limited/both", &ada).await?.expect_status(200)?;
    }
    let refused = get("/limited/both", &ada).await?.expect_status(429)?;
    let wait: u64 = refused.header("retry-after").parse()?;
    ensure!((3000..=3600).contains(&wait), "the second rule's hour, not the first one's day: {wait}");
    for line in stand.wait_audit(4, |line| line["event"] == "decision" && line["path"] == "/both").await? {
        rules.push(line["rule"].as_str().unwrap_or_default().to_owned());
    }
    ensure!(rules[..3] == ["first", "second", "second"], "{rules:?}");
    let listed = get("/.postern/services", &ada).await?.json()?.to_string();
    ensure!(listed.contains("9/s per user"), "{listed}");

    say("of a whole service all users together");
    get("/limited/together", &ada).await?.expect_status(200)?;
    get("/limited/together", &bob).await?.expect_status(200)?;
    get("/limited/together", &ada).await?.expect_status(429)?;

    say("a reload does not give back what was used, unless the rule became another");
    stand.edit("relay.toml", "{ name = \"slow\", allow", "{ name = \"slower\", allow")?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    ensure!(told(&get("/limited/few", &ada).await?) == (200, "2"));
    ensure!(told(&get("/limited/slow", &ada).await?) == (200, "2"), "another rule now");
    stand.edit("relay.toml", "4/day per user", "9/day per user")?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    ensure!(told(&get("/limited/few", &ada).await?) == (200, "8"));
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn behind_trusted_proxies_the_callers_own_address_counts() -> Result<()> {
    let mut stand = stand().await?;
    let ada = stand.issuer.token("ada").await?;
    let call = async |stand: &Stand, forwarded: &str| {
        let request = request("GET", &stand.at("/limited/there"), Some(&ada));
        stand.http.send(request.header("x-forwarded-for", forwarded).body(empty())?).await
    };
    say("nobody is trusted unless relay.toml says so");
    call(&stand, "198.51.100.7").await?.expect_status(403)?;

    stand.stop_relay(Signal::TERM).await?;
    stand.edit(
        "relay.toml",
        "[listen]\n",
        "[listen]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n",
    )?;
    stand.start_relay().await?;
    stand.wait_status("/limited/few", &ada, 200, wait::SOON).await?;
    call(&stand, "198.51.100.7").await?.expect_status(200)?;
    let seen = stand.echo.seen();
    let seen = seen.last().map(|seen| (seen.header("x-forwarded-for"), seen.header("forwarded")));
    let (list, node) = seen.unwrap_or_default();
    ensure!(list == "198.51.100.7" && node.contains("for=198.51.100.7"), "{list}; {node}");

    say("the right-most address that is no proxy's, whatever the caller wrote before it");
    call(&stand, "198.51.100.7, 203.0.113.9").await?.expect_status(403)?;
    call(&stand, "203.0.113.9, 198.51.100.7, 10.1.2.3").await?.expect_status(200)?;
    call(&stand, "198.51.100.7, nonsense").await?.expect_status(403)?;

    say("limits and audit go by it too");
    call(&stand, "198.51.100.7").await?.expect_status(429)?;
    call(&stand, "198.51.100.8").await?.expect_status(200)?;
    let of = |address: &'static str| {
        move |line: &serde_json::Value| line["path"] == "/there" && line["address"] == address
    };
    stand.wait_audit(3, of("198.51.100.7")).await?;
    stand.wait_audit(1, of("203.0.113.9")).await?;
    let bad = async |stand: &Stand, forwarded: &str| {
        let request = request("GET", &stand.at("/limited/few"), Some("no.good.token"));
        stand.http.send(request.header("x-forwarded-for", forwarded).body(empty())?).await
    };
    let mut refused = 0;
    let start = std::time::Instant::now();
    while refused == 0 && start.elapsed() < Duration::from_secs(10) {
        refused += u32::from(bad(&stand, "203.0.113.50").await?.status == 429);
    }
    ensure!(refused > 0, "an address that fails too often is refused");
    bad(&stand, "203.0.113.51").await?.expect_status(401)?;
    stand.passed();
    Ok(())
}
