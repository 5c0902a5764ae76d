//! A disk that is full, and one that cannot be written: what is good is used, and no refresh token is spent for nothing. And output that
//! is lost is an error, unless its reader has seen enough.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::client::Cli;
use postern_tests::disk::Disk;
use postern_tests::process;
use postern_tests::stand::say;

use super::{Story, expired, start};

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_nobody_the_session() -> Result<()> {
    let stand = start().await?;
    let ada = stand.cli("ada")?;
    let relay = format!("127.0.0.1:{}", stand.port);
    let disk = Disk::mount(&ada.state_dir(), "size=64k,mode=0700").await?;
    stand.issuer.access_ttl(Duration::from_secs(4)).await?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    expired(&ada).await?;

    say("full: a token is renewed only when there is room for the new one");
    disk.fill()?;
    let before = stand.issuer.grant_hits("refresh_token").await?;
    let mut story = Story::new(&stand);
    story.both(&ada, &["token"], 1).await?;
    story.tell(&ada, &["ls"], &[], 1).await?;
    ensure!(stand.issuer.grant_hits("refresh_token").await? == before, "a refresh token was spent");
    story.check("disk-full")?;
    disk.clear()?;
    stand.issuer.access_ttl(Duration::from_mins(10)).await?;
    ada.run(&["token"]).await?.expect_code(0)?;

    say("read-only: what is good is used");
    disk.remount("ro").await?;
    let mut story = Story::new(&stand);
    story.tell(&ada, &["can", "GET", "echo/x"], &[], 0).await?;
    story.both(&ada, &["token", "--service", "nowhere"], 6).await?;
    // Nothing can be kept, and the token at hand is good: it is given, with a word.
    let short = ada.run(&["token", "--min-ttl", "1h"]).await?.expect_code(0)?;
    ensure!(short.stderr.contains("the issuer gives none for longer now"), "{short:?}");
    story.tell(&ada, &["logout"], &[], 1).await?;
    disk.remount("rw").await?;
    stand.issuer.access_ttl(Duration::from_secs(2)).await?;
    ada.run(&["token", "--min-ttl", "1h"]).await?.expect_code(0)?;
    expired(&ada).await?;
    disk.remount("ro").await?;
    story.both(&ada, &["token"], 1).await?;
    // Nobody logs in for a session that cannot be kept.
    story.tell(&ada, &["login", "--device", "--force"], &[], 1).await?;
    story.check("home-read-only")?;
    disk.remount("rw").await?;
    ada.run(&["token"]).await?.expect_code(0)?;
    ada.run(&["login", &relay]).await?.expect_code(0)?;
    stand.passed();
    Ok(())
}

/// A run whose stdout the shell sends elsewhere; its exit code is the client's.
fn sent(cli: &Cli, args: &[&str], elsewhere: &str) -> Result<Command> {
    let run = cli.command(args)?;
    let script = format!("set -o pipefail; \"$0\" \"$@\" {elsewhere}");
    let mut shell = Command::new("bash");
    shell.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.args(["-c", &script]).arg(run.get_program()).args(run.get_args());
    Ok(shell)
}

#[tokio::test]
async fn output_that_is_lost_is_an_error() -> Result<()> {
    let stand = start().await?;
    let ada = stand.cli("ada")?;
    ada.login_device(&stand.issuer, "ada", &[]).await?.expect_code(0)?;
    let limit = Duration::from_secs(40);
    for args in [
        &["token"][..],
        &["ls"],
        &["--json", "ls"],
        &["whoami"],
        &["status"],
        &["show", "billing"],
        &["can", "GET", "echo/x"],
        &["profile", "ls"],
        &["doctor"],
        &["man"],
        &["--help"],
    ] {
        say(&args.join(" "));
        let lost = process::run(sent(&ada, args, "> /dev/full")?, limit).await?.expect_code(1)?;
        ensure!(lost.stderr.contains("the output was lost: No space left on device"), "{args:?}: {lost:?}");
        let left = process::run(sent(&ada, args, "| :")?, limit).await?.expect_code(0)?;
        ensure!(!left.stderr.contains('✗'), "{args:?}: {left:?}");
    }
    stand.passed();
    Ok(())
}
