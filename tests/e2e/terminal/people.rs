//! The walk of people who come and go: `postern` before the first login, logins, whose session it is, tokens, profiles, and the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use postern_base::file::{Access, write_atomic};

use super::running::Running;
use super::seen::{Look, Seen, Who};
use super::stage::walk;
use Who::{Ada, Bob};

const LOGIN: &str = "login RELAY --device --force";

#[tokio::test]
async fn who_comes_and_goes() -> Result<()> {
    walk("people", async |seen| {
        strangers(seen).await?;
        logins(seen).await?;
        sessions(seen).await?;
        goodbyes(seen).await
    })
    .await
}

async fn strangers(seen: &mut Seen) -> Result<()> {
    seen.text(Ada, "", 0).await?;
    seen.run(Ada, "version", 0).await?;
    seen.run(Ada, "frobnicate", 2).await?;
    seen.run(Ada, "can GET", 2).await?;
    seen.run(Ada, "ls", 4).await?;
    for line in ["ls", "whoami", "show billing", "can GET billing/", "token", "forward billing", "status"] {
        seen.run(Ada, &format!("-r RELAY {line}"), 4).await?;
    }
    seen.run(Ada, "doctor -r RELAY", 4).await?;
    seen.run(Ada, "profile ls", 0).await?;
    seen.run(Ada, "profile use work", 1).await?;
    seen.run(Ada, "logout --all", 0).await?;
    seen.run(Ada, "login nowhere.invalid", 7).await
}

/// Both log in; ada in every way there is to look at it, and all at once: the issuer lets each ask every few seconds.
async fn logins(seen: &mut Seen) -> Result<()> {
    let looks = [(Look::Json, Ada), (Look::Colour, Ada), (Look::Piped, Ada), (Look::Piped, Bob)];
    let mut logins = Vec::new();
    for (look, who) in looks {
        logins.push((who, Running::start(seen, look, who, LOGIN, LOGIN)?));
    }
    for (who, login) in &mut logins {
        let code = login.value("Code: ").await?;
        seen.stand.issuer.approve_device(if *who == Ada { "ada" } else { "bob" }, &code).await?;
    }
    for (_, login) in logins {
        login.ends(seen, 0).await?;
    }
    seen.run(Ada, "login", 0).await
}

async fn sessions(seen: &mut Seen) -> Result<()> {
    for line in ["whoami", "profile ls", "token", "token --header", "status"] {
        seen.run(Ada, line, 0).await?;
    }
    seen.run(Ada, "token --service nothing", 6).await?;
    seen.alone(Ada, "profile use RELAY", 0).await?;
    seen.run(Bob, "whoami", 0).await
}

/// Ends what she has, once for each look: her session lies ready for the next.
async fn goodbyes(seen: &mut Seen) -> Result<()> {
    let dir = seen.ada.state_dir();
    let own = session_file(&dir)?;
    let session = std::fs::read(&own)?;
    let other = dir.join("spare+443.json");
    let put = |path: &Path| write_atomic(path, &session, Access::Private);
    for look in Look::KEPT {
        put(&other)?;
        seen.look(look, Ada, "profile use spare", 0).await?;
        seen.look(look, Ada, "profile ls", 0).await?;
        seen.look(look, Ada, "profile rm spare", 0).await?;
    }
    seen.run(Ada, "profile rm spare", 1).await?;
    for look in Look::KEPT {
        put(&own)?;
        seen.look(look, Ada, "-r RELAY logout", 0).await?;
    }
    seen.run(Ada, "-r RELAY logout", 0).await?;
    for look in Look::KEPT {
        put(&own)?;
        put(&other)?;
        seen.look(look, Ada, "logout --all", 0).await?;
    }
    Ok(())
}

fn session_file(dir: &Path) -> Result<PathBuf> {
    let mut files = std::fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|path| path.extension().is_some_and(|end| end == "json")).context("no session")
}
