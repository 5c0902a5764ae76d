//! The signed assertion: an upstream that believes nothing else is told who calls, and nobody without the relay's key tells it anything.
//! The examples of deploy/examples/assertion are run as they are, but for addresses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_tests::http::{empty, request};
use postern_tests::issuer::{Login, forge};
use postern_tests::process::{Program, Signal, command};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

const ASSERTION: &str = "x-postern-assertion";
const DAY: u64 = 24 * 60 * 60;

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// The files of the relay's keys, oldest first, each with the second from which it signs.
fn key_files(stand: &Stand) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(stand.path("relay/assertion"))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a file without a name")?;
        files.push((stem.parse()?, path.clone()));
    }
    files.sort();
    Ok(files)
}

/// Signs as the relay would, with its own key.
fn signed(key: &Path, header: &Value, claims: &Value) -> Result<String> {
    let der = PrivatePkcs8KeyDer::from_pem_file(key)?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())?;
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(&SystemRandom::new(), message.as_bytes())?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The assertion that arrived with the request of this marker.
fn arrived(stand: &Stand, marker: &str) -> Result<String> {
    let seen = stand.echo.seen_with(marker);
    ensure!(seen.len() == 1, "{} requests with {marker}", seen.len());
    Ok(seen[0].header(ASSERTION))
}

#[tokio::test]
async fn the_assertion_says_who_calls_and_for_whom() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    for marker in ["first", "second"] {
        stand.http.get(&stand.at(&format!("/echo/{marker}")), Some(&ada)).await?.expect_status(200)?;
    }
    let assertion = arrived(&stand, "/first")?;
    let (header, claims) = forge::decode(&assertion)?;
    let (_, token) = forge::decode(&ada)?;
    ensure!(header["typ"] == "postern-assertion+jwt" && header["alg"] == "ES256", "{header}");
    ensure!(
        claims["iss"] == stand.url && claims["aud"] == format!("{}/services/echo", stand.url),
        "{claims}"
    );
    ensure!(claims["sub"] == "ada" && claims["issuer"] == stand.issuer.iss(), "{claims}");
    ensure!(claims["client"] == "postern-cli" && claims["roles"] == json!(["clerk"]), "{claims}");
    ensure!(claims["scopes"] == json!(["invoices:read"]), "{claims}");
    let (iat, exp) = (claims["iat"].as_u64().context("iat")?, claims["exp"].as_u64().context("exp")?);
    ensure!(exp <= iat + 300 && exp <= token["exp"].as_u64().context("exp")?, "{claims} {token}");
    ensure!(claims["jti"].as_str().is_some_and(|jti| jti.len() >= 22), "{claims}");

    say("made once for a token and a service, and anew for another of either");
    ensure!(arrived(&stand, "/second")? == assertion, "another one was signed");
    stand.issuer.access_ttl(Duration::from_secs(20)).await?;
    let short = stand.issuer.login(&Login::of("ada")).await?.access;
    stand.http.get(&stand.at("/echo/short"), Some(&short)).await?.expect_status(200)?;
    let (_, theirs) = forge::decode(&arrived(&stand, "/short")?)?;
    ensure!(theirs["jti"] != claims["jti"], "{theirs}");
    ensure!(theirs["exp"] == forge::decode(&short)?.1["exp"], "it outlives its token: {theirs}");

    say("its public key is published, and nothing else of it");
    let published =
        stand.http.get(&stand.at("/.well-known/postern/jwks.json"), None).await?.expect_status(200)?;
    let keys = published.json()?["keys"].as_array().cloned().unwrap_or_default();
    let members: BTreeSet<&str> = keys[0].as_object().context("no key")?.keys().map(String::as_str).collect();
    ensure!(keys.len() == 1 && keys[0]["kid"] == header["kid"], "{keys:?}");
    ensure!(members == BTreeSet::from(["alg", "crv", "kid", "kty", "use", "x", "y"]), "{members:?}");
    let files = key_files(&stand)?;
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&files[0].1)?);
    ensure!(files.len() == 1 && mode & 0o777 == 0o600, "{files:?} {mode:o}");

    say("it is no token: not for the relay, whose key signs nothing else");
    for path in ["/echo/bearer", "/billing/v1/invoices/7", "/.postern/services"] {
        stand.http.get(&stand.at(path), Some(&assertion)).await?.expect_status(401)?;
    }
    let claims = json!({
        "iss": stand.url, "aud": stand.url, "sub": "ada", "client_id": "postern-cli", "scope": "invoices:read",
        "groups": ["finance"], "jti": "x", "iat": now()?, "exp": now()? + 60,
    });
    let forged =
        signed(&files[0].1, &json!({ "alg": "ES256", "typ": "at+jwt", "kid": header["kid"] }), &claims)?;
    stand.http.get(&stand.at("/echo/bearer"), Some(&forged)).await?.expect_status(401)?;
    ensure!(stand.echo.seen_with("/bearer").is_empty());

    say("a key is published days before it signs, and a day after it stopped");
    stand.issuer.access_ttl(Duration::from_mins(5)).await?;
    let ada = stand.issuer.token("ada").await?;
    let mut kids = vec![header["kid"].clone()];
    let ages = [(28 * DAY + 60, 2, 0), (30 * DAY + 120, 2, 1), (31 * DAY + 180, 1, 0)];
    for (age, published, signer) in ages {
        stand.stop_relay(Signal::TERM).await?;
        let files = key_files(&stand)?;
        let oldest = files.first().context("no key")?;
        // As if it had signed for that long; the next one moves along.
        let by = oldest.0 - (now()? - age);
        for (signs_from, path) in &files {
            std::fs::rename(path, path.with_file_name(format!("{}.pem", signs_from - by)))?;
        }
        stand.start_relay().await?;
        let answer = stand.http.get(&stand.at("/.well-known/postern/jwks.json"), None).await?.json()?;
        let keys = answer["keys"].as_array().context("no keys")?;
        kids = keys.iter().map(|key| key["kid"].clone()).collect();
        ensure!(kids.len() == published, "after {age} s: {answer}");
        let marker = format!("/age-{age}");
        stand.wait_status(&format!("/echo{marker}"), &ada, 200, wait::SOON).await?;
        let seen = stand.echo.seen_with(&marker);
        let (header, _) = forge::decode(&seen.last().context("nothing arrived")?.header(ASSERTION))?;
        ensure!(header["kid"] == kids[signer], "after {age} s: {header} {answer}");
    }
    ensure!(kids != [header["kid"].clone()], "the first key is still there");
    stand.passed();
    Ok(())
}

/// An example at work, and the service that it stands before.
struct Example {
    name: &'static str,
    url: String,
    _program: Program,
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/assertion").join(name)
}

async fn listens(port: u16) -> Result<()> {
    wait::until("the example listens", wait::SOON, async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
    })
    .await
}

fn with_environment(mut command: Command, stand: &Stand, service: &str, port: u16) -> Command {
    let ca = stand.pki.ca_file();
    let (port, ca) = (port.to_string(), ca.as_os_str());
    command.env("RELAY", &stand.url).env("SERVICE", service).env("PORT", port);
    // How each of them is told of an authority that the system does not know.
    command.env("SSL_CERT_FILE", ca).env("NODE_EXTRA_CA_CERTS", ca);
    command
}

async fn start(stand: &Stand, name: &'static str, port: u16) -> Result<Example> {
    let dir = stand.path(&format!("example-{name}"));
    std::fs::create_dir_all(dir.join("cache"))?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let command = match name {
        "python" => {
            let python = manifest.join("../target/stacks-venv/bin/python");
            ensure!(python.exists(), "{} is missing: run tests/run", python.display());
            with_environment(command(python, [example("app.py")]), stand, name, port)
        }
        "node" => {
            // Node looks for libraries beside the script.
            std::fs::copy(example("app.mjs"), dir.join("app.mjs"))?;
            std::os::unix::fs::symlink(manifest.join("idp/node_modules"), dir.join("node_modules"))?;
            with_environment(command("node", [dir.join("app.mjs")]), stand, name, port)
        }
        _ => {
            std::fs::copy(example("assertion.js"), dir.join("assertion.js"))?;
            let text = std::fs::read_to_string(example("nginx.conf"))?;
            let here = dir.display().to_string();
            let mut http = text
                .replace("https://relay.example.com", &stand.url)
                .replace("billing", name)
                .replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"))
                .replace("http://127.0.0.1:9000", &stand.echo.url())
                .replace("/etc/ssl/certs/ca-certificates.crt", &stand.pki.ca_file().display().to_string());
            // nginx knows no addresses in certificates.
            http = http.replace("proxy_ssl_server_name on;", "proxy_ssl_name localhost;");
            for place in ["/etc/nginx/njs", "/var/cache/nginx/postern"] {
                ensure!(http.contains(place), "nginx.conf names no {place}");
                http = http.replace(place, &here);
            }
            let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
            let config = dir.join("whole.conf");
            let whole = format!(
                "load_module /usr/lib/nginx/modules/ngx_http_js_module.so;\ndaemon off;\nmaster_process off;\n{user}\n\
                 pid {here}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\nclient_body_temp_path {here}/body;\n\
                 proxy_temp_path {here}/proxy;\nfastcgi_temp_path {here}/fastcgi;\nuwsgi_temp_path {here}/uwsgi;\n\
                 scgi_temp_path {here}/scgi;\n{http}\n}}\n"
            );
            std::fs::write(&config, whole)?;
            let binary = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
            let args = ["-e", "stderr", "-p", &here, "-c"].map(std::ffi::OsString::from);
            command(binary, args.into_iter().chain([config.into_os_string()]))
        }
    };
    let program = Program::start(name, command, &dir.join("log"))?;
    listens(port).await.with_context(|| program.tail())?;
    Ok(Example { name, url: format!("http://127.0.0.1:{port}"), _program: program })
}

#[tokio::test]
async fn the_examples_believe_the_relay_alone() -> Result<()> {
    const NAMES: [&str; 3] = ["python", "node", "nginx"];
    // The agent is ready when its upstreams listen, and they want to know the relay first.
    let held = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let ports = held.iter().map(|held| Ok(held.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    let rule = "rules = [{ allow = \"*\", to = \"* /**\" }]";
    let tables = NAMES.map(|name| format!("[services.{name}]\nagent = \"dc1\"\n{rule}\n")).concat();
    let upstreams = NAMES.iter().zip(&ports);
    let upstreams =
        upstreams.map(|(name, port)| format!("[services.{name}]\nupstream = \"http://127.0.0.1:{port}\"\n"));
    let extra = Extra { tables, agent_tables: upstreams.collect(), ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let ada = stand.issuer.token("ada").await?;
    stand.http.get(&stand.at("/echo/elsewhere"), Some(&ada)).await?.expect_status(200)?;
    let elsewhere = arrived(&stand, "/elsewhere")?;
    let (header, said) = forge::decode(&elsewhere)?;
    let (_, key) = key_files(&stand)?.remove(0);

    drop(held);
    for (name, port) in NAMES.into_iter().zip(ports) {
        let app = start(&stand, name, port).await?;
        say(&format!("{name}: through the relay"));
        let answer = stand.http.get(&stand.at(&format!("/{name}/hello")), Some(&ada)).await?;
        let answer = answer.expect_status(200)?.json()?;
        if name == "nginx" {
            let seen = stand.echo.seen_with("/hello");
            ensure!(seen.len() == 1 && seen[0].header("x-remote-user") == "ada", "{seen:?}");
            ensure!(seen[0].header("x-remote-issuer") == stand.issuer.iss(), "{seen:?}");
        } else {
            ensure!(answer["sub"] == "ada" && answer["issuer"] == stand.issuer.iss(), "{answer}");
            ensure!(answer["roles"] == json!(["clerk"]), "{answer}");
        }
        let mut good = said.clone();
        good["aud"] = json!(format!("{}/services/{name}", stand.url));
        let with = |change: &dyn Fn(&mut Value, &mut Value)| {
            let (mut header, mut claims) = (header.clone(), good.clone());
            change(&mut header, &mut claims);
            signed(&key, &header, &claims)
        };
        // Signed by the right key, so that what is refused below is refused for what it says.
        let genuine = with(&|_, _| {})?;
        app.get(&stand, &[&genuine]).await?.expect_status(200)?;
        let (past, early) = (now()? - 120, now()? + 120);
        let refused = [
            ("for another service", elsewhere.clone()),
            ("expired", with(&|_, claims| claims["exp"] = json!(past))?),
            ("from the future", with(&|_, claims| claims["iat"] = json!(early))?),
            ("of another relay", with(&|_, claims| claims["iss"] = json!("https://relay.example.org"))?),
            ("without an end", with(&|_, claims| drop(claims.as_object_mut().map(|c| c.remove("exp"))))?),
            ("without a subject", with(&|_, claims| drop(claims.as_object_mut().map(|c| c.remove("sub"))))?),
            ("of another type", with(&|header, _| header["typ"] = json!("at+jwt"))?),
            ("with another key's name", with(&|header, _| header["kid"] = json!("another"))?),
            ("by a stranger", forge::by_stranger(&genuine, |_, _| {})?),
            ("changed", forge::tampered(&genuine, |claims| claims["sub"] = json!("bob"))?),
            ("unsigned", forge::unsigned(&genuine)?),
            ("with a secret that everyone has", {
                let jwks = stand.http.get(&stand.at("/.well-known/postern/jwks.json"), None).await?.json()?;
                forge::hmac_with_public_key(&genuine, &jwks)?
            }),
            ("the caller's own token", ada.clone()),
            ("no JWT", "a.b".to_owned()),
            ("empty", String::new()),
        ];
        for (what, assertion) in refused {
            let answer = app.get(&stand, &[&assertion]).await?;
            ensure!(answer.status == 401, "{name}: {what}: {} {}", answer.status, answer.text());
        }
        app.get(&stand, &[]).await?.expect_status(401)?;
        app.get(&stand, &[&genuine, &genuine]).await?.expect_status(401)?;
    }
    let reached: Vec<_> = stand.echo.seen().into_iter().filter(|seen| seen.target == "/direct").collect();
    ensure!(reached.len() == 1, "beside the genuine one {} got past nginx", reached.len());
    stand.passed();
    Ok(())
}

impl Example {
    /// Asks it without the relay.
    async fn get(&self, stand: &Stand, assertions: &[&str]) -> Result<postern_tests::http::Answer> {
        let mut asked = request("GET", &format!("{}/direct", self.url), None);
        for assertion in assertions {
            asked = asked.header(ASSERTION, *assertion);
        }
        stand.http.send(asked.body(empty())?).await.with_context(|| self.name)
    }
}
