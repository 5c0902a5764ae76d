//! Root puts a backup back for the user that the relay runs as: all of it is that user's afterwards, and secrets are nobody else's.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use postern_tests::process::{Program, Signal, command};
use postern_tests::stand::{Stand, say};
use postern_tests::wait;

/// Nobody's, and a group that is not its own: ids of which no file of the test's has any by chance.
const USER: u32 = 65534;
const GROUP: u32 = 65533;

/// All files and directories there, itself first.
fn tree(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![path.to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        if fs::symlink_metadata(&path)?.is_dir() {
            let entries = fs::read_dir(&path)?.map(|entry| Ok(entry?.path()));
            found.extend(entries.collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(found)
}

/// That all of it is the user's; and whatever may be read by others is a certificate.
fn is_theirs(state: &Path) -> Result<usize> {
    let all = tree(state)?;
    for path in &all {
        let meta = fs::symlink_metadata(path)?;
        let shown = path.display();
        ensure!(
            (meta.uid(), meta.gid()) == (USER, GROUP),
            "{shown} belongs to {}:{}",
            meta.uid(),
            meta.gid()
        );
        let is_open = meta.mode().trailing_zeros() < 6;
        let is_certificate =
            path.extension().is_some_and(|ending| ending == "pem") && !path.ends_with("key.pem");
        ensure!(!is_open || is_certificate, "{shown} has mode {:o}", meta.mode() & 0o7777);
    }
    Ok(all.len())
}

#[tokio::test]
async fn root_restores_for_the_relays_user() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this is about what root does: run this test, or tests/run, as root"
    );
    let mut stand = Stand::start().await?;
    let ada = stand.issuer.token("ada").await?;
    stand.wait_status("/echo/x", &ada, 200, wait::SOON).await?;
    let path = stand.path("backup.tar.gz");
    let file = path.to_str().context("not UTF-8")?;
    stand.relay_command(&["backup", file]).await?.expect_code(0)?;
    stand.stop_relay(Signal::TERM).await?;

    say("a new machine: an empty state directory of the relay's user, and nothing else of Postern's");
    let state = stand.path("relay");
    fs::remove_dir_all(&state)?;
    fs::remove_file(stand.path("audit.jsonl"))?;
    for path in tree(stand.dir())? {
        chown(path, Some(USER), Some(GROUP))?;
    }
    fs::DirBuilder::new().mode(0o700).create(&state)?;
    chown(&state, Some(USER), Some(GROUP))?;
    stand.relay_command(&["restore", file]).await?.expect_code(0)?;
    let files = is_theirs(&state)?;
    ensure!(files > 6, "{files} files");
    let log = fs::metadata(stand.path("audit.jsonl"))?;
    ensure!(
        log.uid() == USER && log.mode().trailing_zeros() >= 6,
        "the audit log: {}:{:o}",
        log.uid(),
        log.mode()
    );

    say("so that the relay comes up as that user, and its agents and callers go on");
    let run = stand.with_config("postern-relay", "relay.toml", &["run"])?;
    // The directories above the program may be closed to that user: it is run by its open file.
    let script = format!(
        "program=$1; shift; exec 9<\"$program\"; exec setpriv --reuid={USER} --regid={GROUP} --clear-groups /proc/self/fd/9 \"$@\""
    );
    let mut own = command("bash", ["-c", &script, "bash"]);
    own.arg(run.get_program()).args(run.get_args()).env("NO_COLOR", "1").env_remove("POSTERN_LOG");
    let mut relay = Program::start("relay of its user", own, &stand.path("relay-own.log"))?;
    relay.wait_value("listening https=").await?;
    let status = fs::read_to_string(format!("/proc/{}/status", relay.pid()))?;
    ensure!(status.contains(&format!("Uid:\t{USER}\t")), "it does not run as that user: {status}");
    stand.wait_status("/echo/x", &ada, 200, wait::SOON * 2).await?;

    say("through the running relay it stays so, whoever asks");
    stand.relay_command(&["restore", file]).await?.expect_code(0)?;
    stand.invite("dc2", &[]).await?;
    is_theirs(&state)?;
    relay.stop(Signal::TERM).await?;

    say("and once more over what is there");
    stand.relay_command(&["restore", file]).await?.expect_code(0)?;
    is_theirs(&state)?;
    stand.passed();
    Ok(())
}
