//! The pages on packages and upgrades, followed on a Debian machine with systemd: the packages are built and installed, relay and agent run
//! as their units say, somebody logs in and calls, and an upgrade refuses nobody.

use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use postern_tests::book::{ROOT, Run};
use postern_tests::machine::Machine;
use postern_tests::pki::Pki;
use postern_tests::process::{binary, script};
use postern_tests::stand::say;
use postern_tests::wait;

use super::reader::{Codes, Reader, follow};

/// The pages that are followed here.
pub(super) const PACKAGES: &str = "docs/operations/packages.md";
pub(super) const UPGRADE: &str = "docs/operations/upgrade.md";

/// What an operator makes of the examples: the relay's issuer is the demo's, and the agent has one service and needs no issuer.
const EDITOR: &str = r#"#!/bin/sh
for file in "$@"; do
    # sudoedit hands a copy over, whose name begins like the file's.
    case "$file" in
        *relay*) sed -i -e 's|^issuer .*|issuer = "http://127.0.0.1:9500"|' -e '/^provider /d' "$file" ;;
        *agent*) sed -i '/^\[services.billing\]/,/^\[tunnel\]/{/^\[tunnel\]/!d}' "$file" ;;
        *) exit 1 ;;
    esac
done
"#;

/// The machine's names, the issuer, a service; `cargo` as in [`Reader::with_cargo`].
const SETTING: &str = r#"
echo "127.0.0.1 localhost relay.example.com $(hostname)" > /etc/hosts
mkdir -p /etc/postern/tls site
rm -f /var/lib/man-db/auto-update
cp relay.pem /etc/postern/tls/fullchain.pem
cp relay.key /etc/postern/tls/key.pem
echo "hello from the wiki" > site/index.html
export DPKG_DEB_COMPRESSOR_LEVEL=0 SUDO_EDITOR="$PWD/editor" POSTERN_CA="$PWD/ca.pem" POSTERN_KEYRING=file PATH="$PWD/tools:$PATH"
@DEMO@ --as issuer 127.0.0.1:9500 https://relay.example.com > issuer.log 2>&1 &
python3 -m http.server 8080 --bind 127.0.0.1 --directory site > site.log 2>&1 &
"#;

/// The same program as a later version.
const LATER: &str = r"
dpkg-deb -R out/postern-relay_@VERSION@_@ARCH@.deb later
sed -i 's/^Version: .*/Version: @LATER@/' later/DEBIAN/control
dpkg-deb --root-owner-group -Zgzip -z1 -b later out/postern-relay_@LATER@_@ARCH@.deb
";

/// A caller who does not stop asking, each time on a connection of its own; every refusal is written down. Asked is what the relay answers
/// by itself: that the upgrade refuses nobody is said of the relay's port, while the agent takes a moment to come back.
const CALLERS: &str = r"
(
    until [ -e enough ]; do
        curl -sSf --max-time 10 --cacert ca.pem -o /dev/null https://relay.example.com/.well-known/postern 2>>refused && echo >>answered
    done
    touch ended
) &
";

async fn told(machine: &Machine, line: &str) -> Result<String> {
    Ok(machine.run(line).await?.expect_code(0)?.stdout.trim().to_owned())
}

#[tokio::test]
async fn packages_are_installed_and_upgraded_as_shown() -> Result<()> {
    let machine = Machine::boot().await?;
    let dir = machine.shared();
    for name in ["deploy", "LICENSE-APACHE", "LICENSE-MIT", "CHANGELOG.md"] {
        symlink(Path::new(ROOT).canonicalize()?.join(name), dir.join(name))?;
    }
    Pki::create(&dir)?.server("relay", &["relay.example.com", "*.example.com"])?;
    script(&dir.join("editor"), EDITOR)?;
    let mut reader = Reader::new(machine.shell().await?, Vec::new(), Codes::On(&machine));
    reader.with_cargo(&dir).await?;
    let demo = binary("postern-demo")?.display().to_string();
    let set = reader.shell.run(&SETTING.replace("@DEMO@", &demo)).await?;
    ensure!(set.code == 0, "{}", set.printed);
    for port in [9500, 8080] {
        let open = format!("bash -c '</dev/tcp/127.0.0.1/{port}'");
        wait::until(&open, wait::SOON, async || machine.run(&open).await.ok().filter(|run| run.code == 0))
            .await?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let arch = told(&machine, "dpkg --print-architecture").await?;
    let later = "99.0.0";
    // In this order: the second is no part of the first.
    for (page, here) in [("0.1.1", later), ("0.1.0", version), ("amd64", &arch)] {
        reader.replaced.push((page.to_owned(), here.to_owned()));
    }

    let steps = follow(&mut reader, Path::new(PACKAGES), Run::Machine, async |_, _| Ok(())).await?;
    ensure!(steps >= 12, "{steps} steps");
    say("relay and agent run as their units say, under the users that systemd made up");
    for (unit, user) in [("postern-relay", "postern"), ("postern-agent", "postern-agent")] {
        let shown =
            told(&machine, &format!("systemctl show {unit} -P DynamicUser -P SubState | xargs")).await?;
        ensure!(shown == "yes running", "{unit}: {shown}");
        let runs = told(&machine, &format!("stat -c %u /proc/$(systemctl show {unit} -P MainPID)")).await?;
        let named = told(&machine, &format!("systemctl show {unit} -P User")).await?;
        ensure!(runs != "0" && named == user, "{unit} runs as {runs}, {named}");
    }
    let called = reader.shell.run("postern curl -sSf wiki/").await?;
    ensure!(called.printed.contains("hello from the wiki"), "{}", called.printed);

    say("an upgrade, while somebody asks");
    let pid = told(&machine, "systemctl show postern-relay -P MainPID").await?;
    let make = LATER.replace("@VERSION@", version).replace("@LATER@", later).replace("@ARCH@", &arch);
    told(&machine, &format!("{{ {make} }}")).await?;
    let asking = reader.shell.run(CALLERS).await?;
    ensure!(asking.code == 0);
    let answered =
        async || std::fs::read_to_string(dir.join("answered")).map_or(0, |text| text.lines().count());
    wait::until("the caller has an answer", wait::SOON, async || (answered().await > 0).then_some(()))
        .await?;
    ensure!(follow(&mut reader, Path::new(UPGRADE), Run::Machine, async |_, _| Ok(())).await? >= 1);
    let before = answered().await;
    wait::until("and more afterwards", wait::SOON, async || (answered().await > before).then_some(()))
        .await?;
    std::fs::write(dir.join("enough"), "")?;
    wait::until("the caller has ended", wait::SOON, async || dir.join("ended").exists().then_some(()))
        .await?;
    ensure!(
        std::fs::read_to_string(dir.join("refused"))?.is_empty(),
        "{:?}",
        std::fs::read_to_string(dir.join("refused"))
    );
    ensure!(told(&machine, "dpkg-query -W -f '${Version}' postern-relay").await? == later);
    let now = told(&machine, "systemctl show postern-relay -P MainPID").await?;
    ensure!(pid != now, "the relay was not restarted");
    let calls = async || reader.shell.run("postern curl -sSf wiki/").await.ok().filter(|done| done.code == 0);
    wait::until("the agent is back", wait::SOON, calls).await?;

    say("purged, they leave what they made");
    told(&machine, "apt-get purge -y postern-relay postern-agent").await?;
    for kept in ["postern/postern.redb", "postern/ca/issuing.key", "postern-agent/identity.pem"] {
        told(&machine, &format!("test -s /var/lib/private/{kept}")).await.with_context(|| kept.to_owned())?;
    }
    Ok(())
}
