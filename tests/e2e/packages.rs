//! The Debian packages hold what they must, where it belongs: programs that run, units, completions and man pages made by the programs
//! themselves, examples as conffiles; they enable and start nothing, and the same programs give the same packages.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use postern_tests::book::ROOT;
use postern_tests::process::{self, binary, command};

const NAMES: [&str; 3] = ["postern", "postern-agent", "postern-relay"];

async fn tool(program: &str, args: &[&str]) -> Result<String> {
    Ok(process::run(command(program, args), Duration::from_mins(1)).await?.expect_code(0)?.stdout)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the directory's name is not text")
}

async fn build(out: &Path) -> Result<Vec<PathBuf>> {
    let programs = binary("postern")?;
    let programs = programs.parent().context("no directory")?;
    let script = Path::new(ROOT).join("deploy/packages/build");
    let mut packing = command(script, ["--fast", text(programs)?, text(out)?]);
    // One moment for all runs.
    packing.env("SOURCE_DATE_EPOCH", "1767225600");
    let packed = process::run(packing, Duration::from_mins(2)).await?.expect_code(0)?;
    Ok(packed.stdout.lines().map(PathBuf::from).collect())
}

/// All files below a directory, relative to it.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let before = (found.len(), folders.len());
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root)?.display().to_string());
            }
        }
        ensure!(before != (found.len(), folders.len()), "{} is empty", folder.display());
    }
    Ok(found)
}

fn expected(name: &str) -> Vec<String> {
    let mut files = vec![
        format!("usr/bin/{name}"),
        format!("usr/share/bash-completion/completions/{name}"),
        format!("usr/share/zsh/vendor-completions/_{name}"),
        format!("usr/share/fish/vendor_completions.d/{name}.fish"),
        format!("usr/share/man/man1/{name}.1.gz"),
    ];
    let doc = ["copyright", "changelog.gz", "CHANGELOG.md.gz", "LICENSE-APACHE", "LICENSE-MIT"];
    files.extend(doc.iter().map(|file| format!("usr/share/doc/{name}/{file}")));
    let (example, units): (&str, &[&str]) = match name {
        "postern-agent" => ("agent.toml", &["postern-agent.service"]),
        "postern-relay" => {
            ("relay.toml", &["postern-relay.service", "postern-relay.socket", "postern-relay-quic.socket"])
        }
        _ => return files,
    };
    files.push(format!("etc/postern/{example}.example"));
    files.extend(units.iter().map(|unit| format!("usr/lib/systemd/system/{unit}")));
    files
}

#[tokio::test]
async fn packages_hold_what_they_must_and_start_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let debs = build(&dir.path().join("out")).await?;
    ensure!(debs.len() == NAMES.len(), "{debs:?}");
    let version = tool(text(&binary("postern")?)?, &["version"]).await?;
    let version = version.trim().rsplit(' ').next().context("no version")?.to_owned();
    for (name, deb) in NAMES.into_iter().zip(&debs) {
        inside(name, &version, deb, &dir.path().join(name)).await.with_context(|| name.to_owned())?;
    }

    let again = build(&dir.path().join("again")).await?;
    for (one, other) in debs.iter().zip(&again) {
        ensure!(std::fs::read(one)? == std::fs::read(other)?, "{} differs from run to run", one.display());
    }
    Ok(())
}

async fn inside(name: &str, version: &str, deb: &Path, root: &Path) -> Result<()> {
    ensure!(
        deb.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}_{version}_")))
    );
    let field = async |field: &str| -> Result<String> {
        Ok(tool("dpkg-deb", &["-f", text(deb)?, field]).await?.trim().to_owned())
    };
    ensure!(field("Package").await? == name && field("Version").await? == version);
    ensure!(field("Depends").await?.starts_with("libc6 (>= 2."), "{}", field("Depends").await?);
    let description = field("Description").await?;
    let short = description.lines().next().unwrap_or_default();
    ensure!(!short.is_empty() && short.len() < 80 && !short.ends_with('.'), "{description}");
    ensure!(description.lines().count() > 2, "{description}");

    let listed = tool("dpkg-deb", &["-c", text(deb)?]).await?;
    for line in listed.lines() {
        let mode = line.get(..10).context("no mode")?;
        ensure!(line.contains("root/root") && !mode[7..].contains('w') && !mode.contains('s'), "{line}");
    }

    tool("dpkg-deb", &["-R", text(deb)?, text(root)?]).await?;
    let control = root.join("DEBIAN");
    let moved = root.with_extension("control");
    std::fs::rename(&control, &moved)?;
    let found = files(root)?;
    ensure!(found == expected(name).into_iter().collect(), "{found:#?}");
    scripts(name, root, &moved)?;
    checksums(root, &moved).await?;
    let program = root.join("usr/bin").join(name);
    ensure!(std::fs::metadata(&program)?.permissions().mode() & 0o777 == 0o755);
    ensure!(tool(text(&program)?, &["version"]).await?.trim() == format!("{name} {version}"));

    let completion = root.join("usr/share/bash-completion/completions").join(name);
    tool("bash", &["-n", text(&completion)?]).await?;
    ensure!(std::fs::read_to_string(&completion)?.contains("completion"));
    let page = root.join(format!("usr/share/man/man1/{name}.1.gz"));
    let source = tool("gzip", &["-dc", text(&page)?]).await?;
    ensure!(source.contains(".SH NAME") && source.contains(".SH SYNOPSIS"), "{source}");
    Ok(())
}

/// The scripts of the package, and the files that are the operator's once they are there.
fn scripts(name: &str, root: &Path, control: &Path) -> Result<()> {
    let is_server = name != "postern";
    for script in ["postinst", "prerm", "postrm"] {
        let path = control.join(script);
        ensure!(path.exists() == is_server, "{script}");
        if !is_server {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.starts_with("#!/bin/sh\n") && text.contains("set -e") && !text.contains('@'), "{text}");
        for word in ["enable ", "systemctl start", "systemctl restart", "rm -rf", "useradd"] {
            ensure!(!text.contains(word), "{script} says {word:?}");
        }
        ensure!(std::fs::metadata(&path)?.permissions().mode() & 0o111 == 0o111);
    }
    let conffiles = std::fs::read_to_string(control.join("conffiles")).unwrap_or_default();
    let in_etc: Vec<String> = files(root)?
        .into_iter()
        .filter(|file| file.starts_with("etc/"))
        .map(|file| format!("/{file}"))
        .collect();
    ensure!(conffiles.lines().eq(&in_etc), "conffiles: {conffiles}");
    // Where `join` and `init` write theirs there must be nothing yet.
    ensure!(in_etc.iter().all(|file| file.ends_with(".example")), "{in_etc:?}");
    for unit in files(root)?.iter().filter(|file| file.ends_with(".service")) {
        let text = std::fs::read_to_string(root.join(unit))?;
        ensure!(text.contains(&format!("ExecStart=/usr/bin/{name} ")), "{unit} starts another program");
    }
    Ok(())
}

async fn checksums(root: &Path, control: &Path) -> Result<()> {
    let sums = control.join("md5sums");
    let check = format!("cd '{}' && md5sum --quiet -c '{}'", root.display(), sums.display());
    tool("bash", &["-c", &check]).await?;
    let summed = std::fs::read_to_string(&sums)?.lines().count();
    let all = files(root)?.iter().filter(|file| !file.starts_with("etc/")).count();
    if summed != all {
        bail!("{summed} of {all} files have a checksum");
    }
    Ok(())
}
