//! Several relays and several identities at one: each session under its profile's name, chosen by option, variable, relay or use; old
//! sessions go on working. And what a person sees of it all, on a terminal and elsewhere, where a session that is over leads to a login.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::client::Cli;
use postern_tests::golden::{self, Names, transcript};
use postern_tests::process::{self, Output, Signal};
use postern_tests::stand::{Extra, Stand, say};
use postern_tests::terminal;
use postern_tests::wait;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(40);

async fn json(cli: &Cli, args: &[&str]) -> Result<Value> {
    let output = cli.run(&[&["--json"], args].concat()).await?.expect_code(0)?;
    serde_json::from_str(&output.stdout).with_context(|| output.stdout)
}

/// Who one is, by these options.
async fn user(cli: &Cli, args: &[&str]) -> Result<(String, String)> {
    let who = json(cli, &[&["whoami"], args].concat()).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&who["principal"]["user"]), text(&who["relay"])))
}

fn pair(user: &str, relay: &str) -> (String, String) {
    (user.to_owned(), relay.to_owned())
}

#[tokio::test]
async fn each_profile_is_its_own_session() -> Result<()> {
    let stand = Stand::start().await?;
    let other = Stand::relay_only(Extra::default()).await?;
    // Both relays are trusted.
    let cas = [stand.pki.ca_file(), other.pki.ca_file()].map(std::fs::read_to_string);
    let ca = stand.path("both.pem");
    std::fs::write(&ca, cas.into_iter().collect::<Result<Vec<_>, _>>()?.concat())?;
    let (here, there) = (format!("127.0.0.1:{}", stand.port), format!("127.0.0.1:{}", other.port));
    let cli = Cli::new(&stand.path("home-ada"), &here, &ca)?;
    let cli_there = Cli::new(&stand.path("home-ada"), &there, &ca)?;

    say("the first login makes a profile named after the relay, in the files of old");
    cli.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let old = cli.state_dir().join(format!("127.0.0.1+{}.json", stand.port));
    let mut kept: Value = serde_json::from_str(&std::fs::read_to_string(&old)?)?;
    ensure!(std::fs::read_to_string(cli.state_dir().join("current"))?.trim() == here);
    // As the version before wrote it.
    kept["session"].as_object_mut().context("no session")?.remove("user").context("no user")?;
    std::fs::write(&old, kept.to_string())?;
    ensure!(user(&cli, &[]).await? == pair("ada", &stand.url));

    say("another identity at the same relay, and another relay");
    let second = cli.login_device(&stand.issuer, "bob", &["--profile", "work"]).await?.expect_code(0)?;
    ensure!(second.stderr.contains(&format!("back to the other: postern profile use {here}")), "{second:?}");
    cli_there.login_device(&other.issuer, "bob", &[]).await?.expect_code(0)?;
    for (args, expected) in [
        (&[][..], pair("bob", &other.url)),
        (&["--profile", "work"], pair("bob", &stand.url)),
        (&["--profile", here.as_str()], pair("ada", &stand.url)),
        (&["--relay", here.as_str()], pair("ada", &stand.url)),
        (&["-r", here.as_str(), "--profile", "work"], pair("bob", &stand.url)),
    ] {
        ensure!(user(&cli, args).await? == expected, "{args:?}");
    }
    let mut by_name = cli.command(&["whoami", "--json"])?;
    by_name.env("POSTERN_PROFILE", "work");
    let by_name = process::run(by_name, LIMIT).await?.expect_code(0)?;
    ensure!(by_name.stdout.contains("\"profile\":\"work\""), "{by_name:?}");
    let wrong = cli.run(&["ls", "--profile", "work", "-r", &there]).await?.expect_code(2)?;
    ensure!(wrong.stderr.contains("profile work is for"), "{wrong:?}");
    let taken = cli.run(&["login", &there, "--profile", "work"]).await?.expect_code(3)?;
    ensure!(taken.stderr.contains("--force"), "{taken:?}");

    say("the list, use, and each session renewed by itself");
    let names = Names::default().with(&here, "relay.example.com").with(&there, "other.example.com");
    let listed = cli.run(&["profile", "ls"]).await?.expect_code(0)?;
    // The widths of columns go with the names.
    let listed: Vec<String> = names
        .apply(&listed.stdout)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let mut expected = vec![
        "PROFILE RELAY USER SESSION".to_owned(),
        "relay.example.com relay.example.com renews itself".to_owned(),
        "* other.example.com other.example.com bob renews itself".to_owned(),
        "work relay.example.com bob renews itself".to_owned(),
    ];
    if other.port < stand.port {
        expected.swap(1, 2);
    }
    ensure!(listed == expected, "{listed:?}");
    cli.run(&["profile", "use", "work"]).await?.expect_code(0)?;
    ensure!(user(&cli, &[]).await? == pair("bob", &stand.url));
    ensure!(user(&cli, &["-r", &here]).await? == pair("bob", &stand.url), "the one in use");
    for profile in ["work", &here] {
        cli.run(&["token", "--min-ttl", "1h", "--profile", profile]).await?.expect_code(0)?;
    }
    ensure!(user(&cli, &["--profile", &here]).await? == pair("ada", &stand.url));

    say("rm and logout --all");
    cli.run(&["profile", "rm", "work"]).await?.expect_code(0)?;
    let rows = json(&cli, &["profile", "ls"]).await?["profiles"].as_array().context("no list")?.clone();
    ensure!(
        rows.len() == 2 && rows.iter().all(|row| row["in_use"] == false && row["kept"] == "file"),
        "{rows:?}"
    );
    cli.run(&["ls"]).await?.expect_code(4)?;
    let revoked = stand.issuer.path_hits("/token/revocation").await?;
    let ended = json(&cli, &["logout", "--all"]).await?;
    let all_revoked = ended["logged_out"]
        .as_array()
        .is_some_and(|all| all.len() == 2 && all.iter().all(|one| one["revoked"] == true));
    ensure!(all_revoked && stand.issuer.path_hits("/token/revocation").await? > revoked, "{ended}");
    ensure!(json(&cli, &["profile", "ls"]).await?["profiles"] == serde_json::json!([]));
    stand.passed();
    other.passed();
    Ok(())
}

/// What differs from run to run.
fn names(stand: &Stand) -> Names {
    Names::default()
        .with(stand.issuer.iss(), "https://id.example.com")
        // As long as what it stands for, so that tables keep their widths.
        .with(format!("127.0.0.1:{}", stand.port), "relay.local:443")
        .with(stand.path("home-ada").display().to_string(), "/home/ada")
}

/// What is on the screen, with its colours written out.
async fn screen(cli: &Cli, args: &[&str], env: &[(&str, &str)], names: &Names) -> Result<String> {
    let mut command = cli.command(args)?;
    command.env_remove("NO_COLOR").envs(env.iter().copied());
    let output = terminal::run(&command, &[], LIMIT).await?;
    let shown = Output { stdout: output.stdout.replace('\u{1b}', "␛"), ..output };
    Ok(transcript(&format!("postern {}", args.join(" ")), &shown, names))
}

#[tokio::test]
async fn what_a_person_sees() -> Result<()> {
    let tables = "[services.wiki]\nabout = \"What everybody should know, and some things that nobody does\"\nagent = \"dc1\"\n\
                  rules = [{ name = \"everybody reads\", allow = \"*\", to = \"GET /**\", rate = \"20/s per user\" }]\n\
                  [services.ledger-db]\nkind = \"tcp\"\nagent = \"dc1\"\n\
                  rules = [{ name = \"clerks connect\", allow = \"role:clerk\", to = \"CONNECT\" }]\n\
                  [services.orphan]\nagent = \"dc2\"\nrules = [{ name = \"anyone\", allow = \"*\", to = \"GET /**\" }]\n";
    let database = TcpListener::bind("127.0.0.1:0")?;
    let agent_tables = format!(
        "[services.wiki]\nupstream = \"{{echo}}\"\n[services.ledger-db]\nupstream = \"tcp://{}\"\n",
        database.local_addr()?
    );
    let extra = Extra { tables: tables.to_owned(), agent_tables, ..Extra::default() };
    let stand = Stand::start_with(extra).await?;
    let (ada, names) = (stand.cli("ada")?, names(&stand));
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;

    let commands: [&[&str]; 11] = [
        &[],
        &["login"],
        &["whoami"],
        &["ls"],
        &["ls", "wiki", "--wide"],
        &["ls", "zzz"],
        &["show", "billing"],
        &["show", "ledger-db"],
        &["show", "orphan"],
        &["can", "GET", "wiki/x"],
        &["can", "GET", "billing/reports"],
    ];
    let (mut plain, mut coloured, mut as_json) = (String::new(), String::new(), String::new());
    for args in commands {
        let typed = format!("postern {}", args.join(" ")).trim_end().to_owned();
        let output = ada.run(args).await?;
        ensure!(!output.stdout.contains('\u{1b}') && !output.stderr.contains('\u{1b}'), "{output:?}");
        let table = output.stdout.lines().all(|line| line.chars().count() <= 80) || args.contains(&"--wide");
        ensure!(table || args.first() == Some(&"can"), "wider than 80 columns: {}", output.stdout);
        plain.push_str(&transcript(&typed, &output, &names));
        coloured.push_str(&screen(&ada, args, &[], &names).await?);
        let uncoloured = screen(&ada, args, &[("NO_COLOR", "1")], &names).await?;
        ensure!(!uncoloured.contains('␛'), "{uncoloured}");
        if !args.is_empty() {
            let output = ada.run(&[&["--json"], args].concat()).await?;
            let document: Value =
                serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())?;
            let pretty = Output { stdout: format!("{document:#}\n"), ..output };
            as_json.push_str(&transcript(&typed.replacen("postern", "postern --json", 1), &pretty, &names));
        }
    }
    golden::check("client/seen.txt", &plain)?;
    golden::check("client/seen-in-colour.txt", &coloured)?;
    golden::check("client/seen-as-json.txt", &as_json)?;
    stand.passed();
    Ok(())
}

#[tokio::test]
async fn on_a_terminal_a_session_that_is_over_leads_to_a_login() -> Result<()> {
    let mut stand = Stand::start().await?;
    let ada = stand.cli("ada")?;
    stand.issuer.access_ttl(Duration::from_secs(2)).await?;
    ada.login_device(&stand.issuer, "ada", &["--profile", "work"]).await?.expect_code(0)?;
    stand.issuer.revoke(&ada.refresh_token()?).await?;
    wait::until("the session is over", wait::SOON, async || {
        ada.run(&["ls"]).await.ok().filter(|output| output.code == 4)
    })
    .await?;

    say("no is no, and the command to type is said");
    let no = terminal::run(&ada.command(&["ls"])?, &[("[Y/n] ", "n\n")], LIMIT).await?.expect_code(4)?;
    ensure!(no.stdout.contains("Log in again now? [Y/n]"), "{no:?}");
    let fix = format!("Fix: run: postern login 127.0.0.1:{} --profile work", stand.port);
    ensure!(no.stdout.contains(&fix), "{no:?}");

    say("no terminal, no question");
    for args in [&["ls"][..], &["--json", "ls"], &["curl", "-sS", "echo/x"], &["forward", "echo"]] {
        let output = ada.run(args).await?.expect_code(4)?;
        ensure!(!output.stderr.contains("[Y/n]") && format!("{output:?}").contains(&fix[5..]), "{output:?}");
    }

    say("yes logs in, and the command goes on");
    let mut command = ada.command(&["curl", "-sS", "echo/hello"])?;
    command.env("BROWSER", ada.browser("ada", false)?).env("DISPLAY", ":99");
    let yes = terminal::run(&command, &[("[Y/n] ", "\n")], LIMIT).await?.expect_code(0)?;
    for words in ["Opening ", "Logged in as ada", "/hello"] {
        ensure!(yes.stdout.contains(words), "{words:?} is missing: {}", yes.stdout);
    }
    ada.run(&["ls", "--profile", "work"]).await?.expect_code(0)?;

    say("the code of a device login counts down");
    let mut login = ada.command(&["login", "--device", "--force"])?;
    login.env_remove("NO_COLOR");
    let waiting = terminal::run(&login, &[("left", "\u{3}")], LIMIT).await?;
    ensure!(waiting.code == 130 && waiting.stdout.contains("waiting, "), "{waiting:?}");
    stand.stop_relay(Signal::TERM).await?;
    stand.passed();
    Ok(())
}
