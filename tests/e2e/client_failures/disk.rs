//! A disk that is full, and one that cannot be written: what is good is used, and no refresh token is spent for nothing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::process::{self, command};
use postern_tests::stand::say;
use postern_tests::wait;

use super::{Story, expired, start};

/// A file system of its own; it goes when dropped.
struct Disk(PathBuf);

impl Disk {
    /// None, with a word, where mounting is not allowed.
    async fn mount(at: &Path) -> Result<Option<Self>> {
        std::fs::create_dir_all(at)?;
        let text = at.to_str().context("the directory's name is not text")?;
        let mount = command("mount", ["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", text]);
        let done = process::run(mount, wait::SOON).await?;
        if done.code != 0 {
            say(&format!(
                "NOT RUN: no file system can be mounted here ({}): run this as root",
                done.stderr.trim()
            ));
            return Ok(None);
        }
        Ok(Some(Self(at.to_owned())))
    }

    /// Takes all that is left.
    fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::create(self.0.join("filler"))?;
        while file.write_all(&[b'x'; 1024]).is_ok() {}
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("filler"))?)
    }

    async fn remount(&self, how: &str) -> Result<()> {
        let mut mount = command("mount", ["-o", &format!("remount,{how}")]);
        mount.arg(&self.0);
        process::run(mount, wait::SOON).await?.expect_code(0).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open keeps nothing mounted.
        let _ = std::process::Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_nobody_the_session() -> Result<()> {
    let stand = start().await?;
    let ada = stand.cli("ada")?;
    let relay = format!("127.0.0.1:{}", stand.port);
    let Some(disk) = Disk::mount(&ada.state_dir()).await? else { return Ok(()) };
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
