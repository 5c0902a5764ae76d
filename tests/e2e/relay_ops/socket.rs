//! Another user of the machine gets no word out of an admin socket, even where its file and the way to it were opened to everybody: the
//! kernel says who calls.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use postern_tests::process::{self, Output, command};
use postern_tests::stand::{Stand, say};
use postern_tests::wait;

/// Asks for the status, as oneself or as another user; through sudo where the tests do not run as root.
async fn ask(socket: &Path, is_other: bool) -> Result<Output> {
    let drop_rights = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let socket = socket.display().to_string();
    let curl = ["curl", "-sS", "--max-time", "10", "--unix-socket", &socket, "http://localhost/status"];
    let command = if !is_other {
        command(curl[0], &curl[1..])
    } else if rustix::process::geteuid().is_root() {
        command(drop_rights[0], drop_rights[1..].iter().chain(&curl))
    } else {
        command("sudo", ["-n"].iter().chain(&drop_rights).chain(&curl))
    };
    process::run(command, wait::SOON).await
}

#[tokio::test]
async fn admin_sockets_refuse_other_users() -> Result<()> {
    let mut stand = Stand::start().await?;
    set_permissions(stand.dir(), Permissions::from_mode(0o755))?;
    for who in ["relay", "agent"] {
        say(who);
        set_permissions(stand.path(who), Permissions::from_mode(0o755))?;
        let socket = stand.path(who).join("admin.sock");
        let own = ask(&socket, false).await?.expect_code(0)?;
        ensure!(own.stdout.contains("\"version\""), "{own:?}");
        // Only now: whoever answers has given its socket the mode that it is to have.
        set_permissions(&socket, Permissions::from_mode(0o666))?;
        let other = ask(&socket, true).await?;
        // Hung up on, before, while or after it asked; that it got there the program says below.
        ensure!([7, 52, 55, 56].contains(&other.code) && other.stdout.is_empty(), "{other:?}");
        let program = if who == "relay" { stand.relay()? } else { stand.agent()? };
        program.wait_line("admin socket: refused another user", wait::SOON).await?;
        let own = ask(&socket, false).await?.expect_code(0)?;
        ensure!(own.stdout.contains("\"version\""), "{own:?}");
    }
    stand.passed();
    Ok(())
}
