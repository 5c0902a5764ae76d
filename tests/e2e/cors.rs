//! Web pages of other origins: those that a service lists may call it and read its answers, refusals too; all others, and all services
//! that list none, are as if CORS did not exist.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::request::Builder;
use postern_tests::http::{Answer, Http, empty, request};
use postern_tests::process::{self, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;

const RULES: &str = r#"
rules = [
    { allow = "*", to = "GET,PUT /**" },
    { deny = "*", to = "DELETE /**" },
    { name = "not the private part", deny = "*", to = "* /private/**" },
]
"#;

async fn stand(origin: &str) -> Result<Stand> {
    let tables = format!(
        "[services.app]\nagent = \"dc1\"\ncors = {{ origins = [\"{origin}\"] }}\n{RULES}\n\
         [services.closed]\nagent = \"dc1\"\n{RULES}"
    );
    let agent_tables = "[services.app]\nupstream = \"{echo}\"\n[services.closed]\nupstream = \"{echo}\"\n";
    Stand::start_with(Extra { tables, agent_tables: agent_tables.to_owned(), ..Extra::default() }).await
}

async fn send(http: &Http, asked: Builder) -> Result<Answer> {
    http.send(asked.body(empty())?).await
}

fn preflight(url: &str, origin: &str, method: &str) -> Builder {
    request("OPTIONS", url, None)
        .header("origin", origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "authorization,x-mine,x-postern-subject")
}

#[tokio::test]
async fn only_listed_origins_get_a_preflight_answered() -> Result<()> {
    const LISTED: &str = "https://app.example.com";
    let stand = stand(LISTED).await?;
    let ada = stand.issuer.token("ada").await?;
    let h2 = Http::h2(stand.pki.roots()?)?;
    for http in [&stand.http, &h2] {
        let (app, closed) = (stand.at("/app/x"), stand.at("/closed/x"));
        let answer = send(http, preflight(&app, LISTED, "PUT")).await?.expect_status(204)?;
        ensure!(answer.header("access-control-allow-origin") == LISTED, "{:?}", answer.headers);
        ensure!(answer.header("access-control-allow-methods") == "GET, HEAD, PUT", "{:?}", answer.headers);
        let fields = answer.header("access-control-allow-headers");
        ensure!(fields == "authorization, dpop, content-type, x-mine", "{fields}");
        ensure!(!answer.header("access-control-max-age").is_empty(), "{:?}", answer.headers);
        let varies: Vec<_> = answer.headers.get_all("vary").iter().filter_map(|v| v.to_str().ok()).collect();
        ensure!(varies.join(",").contains("Origin"), "{varies:?}");
        ensure!(answer.header("access-control-allow-credentials").is_empty());

        for (what, asked) in [
            ("another origin", preflight(&app, "https://evil.example.com", "PUT")),
            ("a longer origin", preflight(&app, "https://app.example.com.evil.example.com", "PUT")),
            ("no origin", preflight(&app, "null", "PUT")),
            ("two origins", preflight(&app, LISTED, "PUT").header("origin", LISTED)),
            ("a service without cors", preflight(&closed, LISTED, "PUT")),
            ("no service", preflight(&stand.at("/nowhere/x"), LISTED, "PUT")),
            ("the relay itself", preflight(&stand.at("/.postern/services"), LISTED, "PUT")),
            ("no preflight", request("OPTIONS", &app, None).header("origin", LISTED)),
            ("another method", {
                let asked = request("GET", &app, None).header("origin", LISTED);
                asked.header("access-control-request-method", "PUT")
            }),
        ] {
            let answer = send(http, asked).await?;
            ensure!(matches!(answer.status.as_u16(), 401 | 405), "{what}: {}", answer.status);
            ensure!(answer.header("access-control-allow-methods").is_empty(), "{what}: {:?}", answer.headers);
            let is_listed = matches!(what, "no preflight" | "another method");
            let origin = answer.header("access-control-allow-origin");
            ensure!((origin == LISTED) == is_listed, "{what}: {:?}", answer.headers);
        }

        say("what the upstream says of it has no say where the relay has one, and stays where it has none");
        let asked = |url: &str, origin: &str| request("GET", url, Some(&ada)).header("origin", origin);
        let answer = send(http, asked(&stand.at("/app/open"), LISTED)).await?.expect_status(200)?;
        let origins: Vec<_> = answer.headers.get_all("access-control-allow-origin").iter().collect();
        ensure!(
            origins == [LISTED] && answer.header("access-control-expose-headers") == "*",
            "{:?}",
            answer.headers
        );
        ensure!(answer.header("access-control-allow-credentials").is_empty(), "{:?}", answer.headers);
        let answer = send(http, asked(&stand.at("/app/open"), "https://evil.example.com"))
            .await?
            .expect_status(200)?;
        ensure!(answer.header("access-control-allow-origin").is_empty(), "{:?}", answer.headers);
        ensure!(answer.headers.get_all("vary").iter().any(|vary| vary == "Origin"), "{:?}", answer.headers);
        let answer = send(http, asked(&stand.at("/closed/open"), LISTED)).await?.expect_status(200)?;
        ensure!(answer.header("access-control-allow-origin") == "*", "{:?}", answer.headers);
    }
    let preflights = stand.echo.seen().into_iter().filter(|seen| seen.method == "OPTIONS").count();
    ensure!(preflights == 0, "{preflights} preflights arrived");
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_page_of_a_listed_origin_calls_from_a_browser() -> Result<()> {
    let port = wait::free_port()?;
    let stand = stand(&format!("http://127.0.0.1:{port}")).await?;
    let ada = stand.issuer.token("ada").await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/cors.mjs");
    ensure!(
        script.with_file_name("node_modules").exists(),
        "tests/browser has no node_modules: run tests/run"
    );
    let profile = tempfile::tempdir_in(stand.dir())?;
    let (port, profile) = (port.to_string(), profile.path().to_owned());
    let args = [script.as_os_str(), stand.url.as_ref(), ada.as_ref(), port.as_ref(), profile.as_os_str()];
    let run = process::run(command("node", args), Duration::from_mins(1)).await?.expect_code(0)?;
    let results: Value = serde_json::from_str(run.stdout.lines().last().context("no result")?)?;
    say(&format!("{results:#}"));

    let (listed, other) = (&results["127.0.0.1"], &results["localhost"]);
    ensure!(listed["get"]["status"] == 200 && listed["put"]["status"] == 200, "{listed}");
    ensure!(!listed["get"]["fields"]["x-request-id"].is_null(), "{listed}");
    let readable = |name: &str, status: u16, word: &str| {
        let call = &listed[name];
        let text = call["text"].as_str().unwrap_or_default();
        ensure!(call["status"] == status && text.contains(word), "{name}: {call}");
        Ok(())
    };
    readable("denied", 403, "not the private part")?;
    readable("bad token", 401, "invalid-token")?;
    ensure!(!listed["bad token"]["fields"]["www-authenticate"].is_null(), "{listed}");
    for name in ["unknown method", "no cors", "credentials"] {
        ensure!(listed[name]["failed"].is_string(), "{name}: {listed}");
    }
    for (name, call) in other.as_object().context("no calls")? {
        ensure!(call["failed"].is_string(), "a page of another origin: {name}: {call}");
    }
    let arrived: Vec<String> =
        stand.echo.seen().into_iter().map(|s| format!("{} {}", s.method, s.target)).collect();
    let expected = ["GET /cors-get", "PUT /cors-put"];
    ensure!(arrived.iter().all(|one| expected.contains(&one.as_str())), "{arrived:?}");
    stand.passed();
    Ok(())
}
