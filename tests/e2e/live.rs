//! What changes while everything runs: services come to and go from a connected agent by reload alone; and the audit log says truly how
//! each answer ended, with a body or without.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use postern_tests::http::{Http, empty, request};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;

/// In agent.toml from the start; in relay.toml only later, or not at all.
const OFFERED: &str = "[services.late]\nupstream = \"{echo}\"\n";

const LATE: &str = "[services.late]\nagent = \"dc1\"\nrules = [{ allow = \"*\", to = \"* /**\" }]\n";

const INCLUDE: &str = "version = 1\ninclude = [\"services.d/*.toml\"]\n";

/// A stand whose relay.toml includes `services.d/*.toml`, of which there is none yet.
async fn including() -> Result<Stand> {
    let stand = Stand::start_with(Extra { agent_tables: OFFERED.to_owned(), ..Extra::default() }).await?;
    std::fs::create_dir(stand.path("services.d"))?;
    stand.edit("relay.toml", "version = 1\n", INCLUDE)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    Ok(stand)
}

fn include(stand: &Stand, file: &str, text: &str) -> Result<()> {
    Ok(std::fs::write(stand.path("services.d").join(file), text)?)
}

/// The audit lines of tunnels so far.
fn tunnels(stand: &Stand) -> Result<Vec<Value>> {
    let mut lines = stand.audit()?;
    lines.retain(|line| line["event"] == "tunnel-open" || line["event"] == "tunnel-closed");
    Ok(lines)
}

#[tokio::test]
async fn a_reload_gives_and_takes_services_of_a_connected_agent() -> Result<()> {
    let stand = including().await?;
    let token = stand.issuer.token("ada").await?;
    let h2 = Http::h2(stand.pki.roots()?)?;
    let callers = [&stand.http, &h2];
    stand.wait_audit(2, |line| line["event"] == "tunnel-open").await?;
    let before = tunnels(&stand)?;

    say("what the agent offers is not enough");
    for http in callers {
        http.get(&stand.at("/late/x"), Some(&token)).await?.expect_status(404)?;
    }

    say("added: reachable at once, over the tunnels that are there");
    include(&stand, "late.toml", LATE)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    for http in callers {
        http.get(&stand.at("/late/x"), Some(&token)).await?.expect_status(200)?;
    }
    ensure!(tunnels(&stand)? == before, "the agent reconnected: {:?}", tunnels(&stand)?);

    say("given to another agent: 503 at once");
    include(&stand, "late.toml", &LATE.replace("dc1", "dc2"))?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    for http in callers {
        let gone = http.get(&stand.at("/late/taken"), Some(&token)).await?.expect_status(503)?;
        ensure!(!gone.header("retry-after").is_empty(), "{:?}", gone.headers);
        ensure!(gone.json()?["type"] == "urn:postern:no-agent", "{}", gone.text());
    }

    say("and back: 200 at once");
    include(&stand, "late.toml", LATE)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    for http in callers {
        http.get(&stand.at("/late/x"), Some(&token)).await?.expect_status(200)?;
    }

    say("taken out altogether: 404 at once");
    std::fs::remove_file(stand.path("services.d/late.toml"))?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    for http in callers {
        http.get(&stand.at("/late/taken"), Some(&token)).await?.expect_status(404)?;
        http.get(&stand.at("/echo/x"), Some(&token)).await?.expect_status(200)?;
    }
    ensure!(stand.echo.seen_with("/taken").is_empty(), "a request arrived after its service was taken");
    ensure!(tunnels(&stand)? == before, "the agent reconnected: {:?}", tunnels(&stand)?);
    stand.passed();
    Ok(())
}

/// Puts `twice.toml` beside `late.toml`; both commands must refuse with every word, and everything goes on as before.
async fn refuses(stand: &Stand, token: &str, late: &str, twice: &str, words: &[&str]) -> Result<()> {
    include(stand, "late.toml", late)?;
    stand.relay_command(&["reload"]).await?.expect_code(0)?;
    include(stand, "twice.toml", twice)?;
    for command in [&["config", "check"][..], &["reload"]] {
        let refused = stand.relay_command(command).await?.expect_code(3)?;
        // Its first line names the file that was asked for, whatever is wrong.
        let said = format!("{}{}", refused.stdout, refused.stderr);
        let said = said.lines().filter(|line| !line.ends_with("is not good")).collect::<Vec<_>>().join("\n");
        for word in words {
            ensure!(said.contains(word), "{command:?} says nothing of {word:?}: {said}");
        }
    }
    for path in ["/billing/v1/invoices/7", "/echo/x"] {
        stand.http.get(&stand.at(path), Some(token)).await?.expect_status(200)?;
    }
    std::fs::remove_file(stand.path("services.d/twice.toml"))?;
    stand.relay_command(&["reload"]).await?.expect_code(0).map(drop)
}

#[tokio::test]
async fn a_name_given_twice_is_refused_naming_both_files() -> Result<()> {
    let stand = including().await?;
    let token = stand.issuer.token("ada").await?;
    say("a name of the main file");
    let twice = LATE.replace("late", "billing");
    refuses(&stand, &token, LATE, &twice, &["relay.toml", "twice.toml", "billing"]).await?;
    say("a name of another included file");
    refuses(&stand, &token, LATE, LATE, &["late.toml", "twice.toml", "service late"]).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_address_given_twice_is_refused_naming_both_files() -> Result<()> {
    let stand = including().await?;
    let token = stand.issuer.token("ada").await?;
    let twin = |key: &str| LATE.replace("[services.late]", &format!("[services.twin]\n{key}"));
    say("a host of another included file");
    let host = "hosts = [\"late.example.com\"]";
    let late = LATE.replace("[services.late]", &format!("[services.late]\n{host}"));
    refuses(&stand, &token, &late, &twin(host), &["late.example.com", "twice.toml", "late.toml"]).await?;
    say("a path of the main file");
    let path = twin("path = \"/billing\"");
    refuses(&stand, &token, LATE, &path, &["/billing", "twice.toml", "relay.toml"]).await?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn the_audit_log_says_how_answers_without_a_body_ended() -> Result<()> {
    let extra = Extra {
        tables: LATE.replace("late", "files"),
        agent_tables: "[services.files]\nupstream = \"{nginx}\"\n".to_owned(),
        ..Extra::default()
    };
    let stand = Stand::start_with(extra).await?;
    std::fs::write(stand.path("nginx/html/files/empty"), "")?;
    let token = stand.issuer.token("ada").await?;
    let h1 = Http::h1(stand.pki.roots()?)?;
    let h2 = Http::h2(stand.pki.roots()?)?;

    let whole = h1.get(&stand.at("/files/files/1k"), Some(&token)).await?.expect_status(200)?;
    let etag = whole.header("etag");
    let calls = [
        ("HEAD", "/echo/x", 200),
        ("HEAD", "/echo/stream?bytes=100000", 200),
        ("HEAD", "/files/files/1k", 200),
        ("GET", "/echo/status/204", 204),
        ("GET", "/echo/status/304", 304),
        ("GET", "/files/files/1k", 304),
        // Empty by length, and empty only once its end has come.
        ("GET", "/files/files/empty", 200),
        ("GET", "/echo/stream?bytes=0", 200),
        ("DELETE", "/echo/status/204", 204),
        // The relay's own.
        ("HEAD", "/nowhere/x", 404),
        ("HEAD", "/.well-known/postern", 200),
    ];
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    for (http, version) in [(&h1, "HTTP/1.1"), (&h2, "HTTP/2")] {
        for (method, path, status) in calls {
            let mut call = request(method, &stand.at(path), Some(&token));
            if path == "/files/files/1k" && status == 304 {
                call = call.header("if-none-match", etag);
            }
            let what = format!("{version} {method} {path} ({status})");
            let answer = http.send(call.body(empty())?).await?.expect_status(status).context(what.clone())?;
            ensure!(answer.body.is_empty(), "{what}: {}", answer.text());
            told.insert(answer.header("x-request-id").to_owned(), what);
        }
    }

    say("and one that the caller leaves in the middle, so that \"done\" means something");
    let mut left = Vec::new();
    for http in [&h1, &h2] {
        let url = stand.at("/echo/stream?bytes=8000000&step=1000&pause=20");
        let mut answer = http.stream(request("GET", &url, Some(&token)).body(empty())?).await?;
        wait::within("the first piece", wait::SOON, answer.body_mut().frame())
            .await?
            .context("no body")??;
        let id = answer.headers().get("x-request-id").context("no X-Request-Id")?;
        left.push(id.to_str()?.to_owned());
    }

    let ends = stand.wait_audit(1 + told.len() + left.len(), |line| line["event"] == "end").await?;
    let mut wrong = Vec::new();
    for (id, what) in &told {
        let end =
            ends.iter().find(|end| end["request_id"] == **id).with_context(|| format!("no end of {what}"))?;
        if end["ended"] != "done" || end["bytes_out"] != 0 {
            wrong.push(format!("{what}: {} after {} bytes", end["ended"], end["bytes_out"]));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), told.len());
    for id in &left {
        let end =
            ends.iter().find(|end| end["request_id"] == **id).context("no end of the one that was left")?;
        ensure!(end["ended"] == "cut", "{end}");
    }
    stand.passed();
    Ok(())
}
