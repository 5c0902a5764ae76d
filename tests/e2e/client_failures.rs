//! What a person, and a program, is told when something is missing or broken, with its exit code: each as a file under
//! `tests/golden/client`. And a session outlives everything that must not end it: a full disk, a home that cannot be written, and a
//! hundred times two processes that renew it at once.

mod disk;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use futures_util::future::join;
use postern_tests::client::Cli;
use postern_tests::golden::{self, Names, transcript};
use postern_tests::issuer::forge;
use postern_tests::process::{self, Output, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::wait;
use serde_json::Value;

const TABLES: &str = r#"
[services.vault]
agent = "dc1"
hidden = true
rules = [{ name = "clerks see the vault", allow = "role:clerk", to = "GET /**" }]

[services.few]
agent = "dc1"
rules = [{ name = "once a day", allow = "*", to = "GET /**", quota = "1/day per user" }]
"#;

const AGENT_TABLES: &str = "[services.vault]\nupstream = \"{echo}\"\n[services.few]\nupstream = \"{echo}\"\n";

async fn start() -> Result<Stand> {
    let extra =
        Extra { tables: TABLES.to_owned(), agent_tables: AGENT_TABLES.to_owned(), ..Extra::default() };
    Stand::start_with(extra).await
}

/// What differs from run to run.
fn names(stand: &Stand) -> Names {
    Names::default()
        .with(stand.issuer.iss(), "https://id.example.com")
        .with(stand.issuer.iss().trim_start_matches("https://"), "id.example.com")
        // As long as what it stands for, so that tables keep their widths.
        .with(format!("127.0.0.1:{}", stand.port), "relay.local:443")
        .with(format!("127.0.0.1+{}", stand.port), "relay.local+443")
        .with(stand.path("home-ada").display().to_string(), "/home/ada")
        .with(stand.path("home-bob").display().to_string(), "/home/bob")
        .with(stand.dir().display().to_string(), "/srv")
}

/// Runs of commands, as one file shows them: each as a person sees it, then as a program does.
struct Story<'a> {
    stand: &'a Stand,
    names: Names,
    text: String,
}

impl<'a> Story<'a> {
    fn new(stand: &'a Stand) -> Self {
        Self { stand, names: names(stand), text: String::new() }
    }

    /// Adds a run, whose exit code is known beforehand.
    async fn tell(&mut self, cli: &Cli, args: &[&str], env: &[(&str, &str)], code: i32) -> Result<Output> {
        let mut command = cli.command(args)?;
        command.envs(env.iter().copied());
        let output = process::run(command, Duration::from_secs(40)).await?.expect_code(code)?;
        let set: Vec<_> = env.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        let typed = self.names.apply(&format!("{}postern {}", set.concat(), args.join(" ")));
        self.text.push_str(&transcript(&typed, &output, &self.names));
        Ok(output)
    }

    /// The same twice: for a person, and as JSON, which says the same.
    async fn both(&mut self, cli: &Cli, args: &[&str], code: i32) -> Result<()> {
        let told = self.tell(cli, args, &[], code).await?;
        ensure!(told.stdout.is_empty() && told.stderr.contains("Fix: "), "{told:?}");
        let with_json: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        let output = self.tell(cli, &with_json, &[], code).await?;
        let json = if args.first() == Some(&"curl") { &output.stderr } else { &output.stdout };
        let error = &serde_json::from_str::<Value>(json.trim()).with_context(|| json.clone())?["error"];
        ensure!(error["exit"] == code && error["code"].is_string() && error["fix"].is_string(), "{error}");
        let message = error["message"].as_str().unwrap_or_default();
        let names = &self.names;
        ensure!(names.apply(&told.stderr).contains(&names.apply(message)), "{message:?} and {told:?}");
        Ok(())
    }

    fn check(self, name: &str) -> Result<()> {
        say(&format!("golden {name}"));
        ensure!(!self.text.contains(&self.stand.port.to_string()), "a port is left in {}", self.text);
        golden::check(&format!("client/{name}.txt"), &self.text)
    }
}

/// Waits until the session's token is over.
async fn expired(cli: &Cli) -> Result<()> {
    let token = cli.run(&["token"]).await?.expect_code(0)?.stdout;
    let exp = forge::decode(token.trim())?.1["exp"].as_u64().unwrap_or_default();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    wait::until("the token expires", Duration::from_secs(20), async || (now() > exp).then_some(())).await
}

#[tokio::test]
async fn each_failure_says_what_and_why_and_what_to_do() -> Result<()> {
    let mut stand = start().await?;
    let (ada, bob) = (stand.cli("ada")?, stand.cli("bob")?);
    let relay = format!("127.0.0.1:{}", stand.port);

    let mut story = Story::new(&stand);
    story.both(&ada, &["ls"], 4).await?;
    story.both(&ada, &["ls", "--relay", &relay], 4).await?;
    story.both(&ada, &["whoami", "--profile", "work"], 4).await?;
    story.both(&ada, &["profile", "use", "work"], 1).await?;
    story.tell(&ada, &["ls", "--relay", &relay], &[("POSTERN_TOKEN", "made-up")], 4).await?;
    story.check("not-logged-in")?;

    let mut story = Story::new(&stand);
    story.tell(&ada, &["ls", "--profile", "../x"], &[], 2).await?;
    story.tell(&ada, &["--json", "ls", "--sideways"], &[], 2).await?;
    story.tell(&ada, &["ls"], &[("POSTERN_PROFILE", "A b")], 3).await?;
    story.tell(&ada, &["ls"], &[("POSTERN_KEYRING", "gnome")], 3).await?;
    story.check("usage")?;

    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    bob.login_device(&stand.issuer, "bob", &[]).await?.expect_code(0)?;

    let mut story = Story::new(&stand);
    // The one is not there, the other is hidden from bob: what he is told must not tell which.
    for service in ["nowhere", "vault"] {
        for args in [
            &["show", service][..],
            &["can", "GET", service],
            &["token", "--service", service],
            &["forward", service],
        ] {
            story.both(&bob, args, 6).await?;
        }
        story.both(&bob, &["curl", "-sS", "-o", "/dev/null", &format!("{service}/x")], 6).await?;
    }
    let (first, second) = story.text.split_at(story.text.find("$ postern show vault").context("no vault")?);
    ensure!(first.replace("nowhere", "vault") == second, "a hidden service looks otherwise: {}", story.text);
    story.check("unknown-service")?;

    let mut story = Story::new(&stand);
    story.tell(&bob, &["can", "GET", "billing/v1/invoices/7"], &[], 5).await?;
    story.both(&bob, &["curl", "-sS", "-o", "/dev/null", "billing/v1/invoices/7"], 5).await?;
    story.check("denied")?;

    let mut story = Story::new(&stand);
    story.tell(&bob, &["can", "GET", "few/x"], &[], 0).await?;
    bob.run(&["curl", "-sS", "few/x"]).await?.expect_code(0)?;
    story.tell(&bob, &["can", "GET", "few/x"], &[], 9).await?;
    story.tell(&bob, &["ls", "few"], &[], 0).await?;
    story.tell(&bob, &["show", "few"], &[], 0).await?;
    story.check("used-up")?;

    let mut story = Story::new(&stand);
    let add = ["lock", "add", "--reason", "an incident"];
    let locked = stand.relay_command(&[&add[..], &["--service", "few"]].concat()).await?.expect_code(0)?;
    let of_user = stand.relay_command(&[&add[..], &["--user", "bob"]].concat()).await?.expect_code(0)?;
    story.names = story.names.with(locked.stdout.trim(), "00c0ffee").with(of_user.stdout.trim(), "00decade");
    story.both(&bob, &["can", "GET", "echo/x"], 5).await?;
    story.both(&bob, &["ls"], 5).await?;
    story.tell(&ada, &["can", "GET", "few/x"], &[], 8).await?;
    story.tell(&ada, &["ls", "few"], &[], 0).await?;
    story.tell(&ada, &["show", "few"], &[], 0).await?;
    story.check("locked")?;

    stand.stop_relay(Signal::TERM).await?;
    let mut story = Story::new(&stand);
    story.both(&ada, &["ls"], 7).await?;
    story.both(&ada, &["can", "GET", "echo/x"], 7).await?;
    story.tell(&ada, &["login", &relay, "--force"], &[], 7).await?;
    story.check("relay-gone")?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_session_that_is_over_says_so() -> Result<()> {
    let mut stand = start().await?;
    let (ada, bob) = (stand.cli("ada")?, stand.cli("bob")?);
    let relay = format!("127.0.0.1:{}", stand.port);
    stand.issuer.access_ttl(Duration::from_secs(4)).await?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    bob.login_device(&stand.issuer, "bob", &["--profile", "work"]).await?.expect_code(0)?;

    expired(&ada).await?;
    expired(&bob).await?;
    stand.issuer.stop().await?;
    let mut story = Story::new(&stand);
    story.both(&ada, &["token"], 1).await?;
    story.tell(&ada, &["login", &relay, "--force"], &[], 1).await?;
    story.tell(&ada, &["ls"], &[], 1).await?;
    story.check("issuer-gone")?;

    say("the issuer is back, and has forgotten everybody");
    stand.issuer.start_again().await?;
    let mut story = Story::new(&stand);
    story.both(&ada, &["ls"], 4).await?;
    story.both(&bob, &["whoami"], 4).await?;
    story.tell(&bob, &["profile", "ls"], &[], 0).await?;
    story.check("session-expired")?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn an_opaque_token_serves_until_it_is_revoked() -> Result<()> {
    let introspect =
        "introspect = { client_id = \"relay\", client_secret = { file = \"relay.secret\" }, cache = \"1s\" }";
    let issuer = format!("check = \"auto\"\nsubject_from = [\"sub\", \"client_id\"]\n{introspect}");
    let mut stand = Stand::relay_only(Extra { issuer, ..Extra::default() }).await?;
    // What the client asks for is the first audience at the relay's own address; the issuer gives opaque tokens for that one.
    let url = stand.url.clone();
    stand.edit(
        "relay.toml",
        &format!("audience = [\"{url}\"]"),
        &format!("audience = [\"{url}/opaque\", \"{url}\"]"),
    )?;
    stand.stop_relay(Signal::TERM).await?;
    stand.start_relay().await?;

    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let token = ada.run(&["token"]).await?.expect_code(0)?.stdout.trim().to_owned();
    ensure!(!token.contains('.'), "this is no opaque token: {token}");
    let who: Value = serde_json::from_str(&ada.run(&["whoami", "--json"]).await?.expect_code(0)?.stdout)?;
    ensure!(who["principal"]["user"] == "ada" && who["session"]["renews"] == true, "{who}");
    let renewed = ada.run(&["token", "--min-ttl", "20m"]).await?.expect_code(0)?.stdout;
    ensure!(renewed.trim() != token, "it was not renewed");

    stand.issuer.revoke(&ada.refresh_token()?).await?;
    wait::until("the relay asks about it again", wait::SOON, async || {
        ada.run(&["ls"]).await.ok().filter(|output| output.code == 4)
    })
    .await?;
    let mut story = Story::new(&stand);
    story.both(&ada, &["ls"], 4).await?;
    story.check("token-revoked")?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn without_a_keyring_a_file_does_unless_told_otherwise() -> Result<()> {
    let stand = start().await?;
    let ada = stand.cli("ada")?;
    let relay = format!("127.0.0.1:{}", stand.port);
    let login = async || -> Result<Output> {
        let mut command = ada.command(&["login", &relay, "--device"])?;
        command.env("POSTERN_KEYRING", "");
        let mut login = ada.start_command(command, "login")?;
        let code = login.wait_value("Code: ").await?;
        stand.issuer.approve_device("ada", &code).await?;
        let status = login.wait_exit(Duration::from_secs(40)).await?;
        let names = names(&stand).with(code, "WDJB-MJHT");
        let stderr = names.apply(&login.log_text());
        Ok(Output { code: status.code().unwrap_or(-1), stdout: String::new(), stderr })
    };
    let mut story = Story::new(&stand);
    let no_keyring = [("POSTERN_KEYRING", "os"), ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/bus")];
    story.tell(&ada, &["login", &relay, "--device"], &no_keyring, 3).await?;
    let kept = login().await?.expect_code(0)?;
    story.text.push_str(&transcript("postern login relay.local:443 --device", &kept, &Names::default()));
    story.tell(&ada, &["whoami"], &[("POSTERN_KEYRING", "")], 0).await?;
    story.tell(&ada, &["login", &relay, "--force"], &[("POSTERN_KEYRING", "none")], 3).await?;
    story.check("keyring-absent")?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn a_hundred_times_two_processes_renew_at_once() -> Result<()> {
    let stand = Stand::relay_only(Extra::default()).await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let before = stand.issuer.grant_hits("refresh_token").await?;
    // No token lives that long: each of them must be renewed, and each renewal spends a refresh token.
    let renew = || ada.run(&["token", "--min-ttl", "1h"]);
    for round in 0..100 {
        let (one, other) = join(renew(), renew()).await;
        for output in [one?, other?] {
            ensure!(output.code == 0 && output.stdout.len() > 100, "round {round}: {output:?}");
        }
    }
    let renewed = stand.issuer.grant_hits("refresh_token").await? - before;
    ensure!(renewed == 200, "{renewed} renewals");
    ada.run(&["ls"]).await?.expect_code(0)?;
    stand.passed();
    Ok(())
}
