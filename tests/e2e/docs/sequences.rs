//! The sequences of the book run: the tutorial and the README from nothing, as somebody types them, and what other pages show beside a
//! relay and an agent that are at work. What is printed is what is shown.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use postern_tests::book::{self, Beside, Mark, Run, Vendor};
use postern_tests::shell::Shell;
use postern_tests::stand::say;
use postern_tests::wait;

use super::beside::Place;
use super::machine;
use super::reader::{Codes, Reader, follow};

/// Ports that pages name.
const PORTS: [u16; 4] = [8443, 9500, 8080, 8081];

/// The pages that are followed from nothing.
const README: &str = "README.md";
const TUTORIAL: &str = "docs/tutorial.md";

/// The folders whose pages are followed at stands, and how many steps there are together at least.
const GUIDES: (&str, u32) = ("docs/guides", 19);
const OPERATIONS: (&str, u32) = ("docs/operations", 29);
const ISSUERS: (&str, u32) = ("docs/issuers", 14);
const OTHERS: (&str, u32) = ("docs", 1);

async fn from_nothing(page: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("postern");
    let mut replaced = vec![("/tmp/postern".to_owned(), home.display().to_string())];
    for port in PORTS {
        replaced.push((port.to_string(), wait::free_port()?.to_string()));
    }
    let repository = dir.path().join("repository");
    std::fs::create_dir(&repository)?;
    let shell = Shell::start(&repository, &[])?;
    let mut reader = Reader::new(shell, replaced, Codes::AsShown);
    reader.with_cargo(dir.path()).await?;
    let steps = follow(&mut reader, Path::new(page), Run::FromNothing, async |_, _| Ok(())).await?;
    ensure!(steps > 8 && reader.is_done(), "{steps} steps");
    Ok(())
}

#[tokio::test]
async fn the_tutorial_holds() -> Result<()> {
    from_nothing(TUTORIAL).await
}

#[tokio::test]
async fn the_readme_holds() -> Result<()> {
    from_nothing(README).await
}

/// What a page shows beside what its marks name, each on a stand of its own.
async fn at_stands(page: &Path) -> Result<u32> {
    let blocks = book::blocks(page)?;
    let mut runs: Vec<Run> = Vec::new();
    for block in &blocks {
        match block.mark {
            Mark::Commands { run: run @ (Run::Stand(_) | Run::StandIn(_)), .. } if !runs.contains(&run) => {
                runs.push(run);
            }
            Mark::Commands { .. }
            | Mark::Relay
            | Mark::Agent
            | Mark::Services
            | Mark::Caller
            | Mark::Action
            | Mark::Other => {}
        }
    }
    let mut steps = 0;
    for run in runs {
        say(&format!("== {}: {run:?}", page.display()));
        let place = Place::start(&blocks, run).await?;
        steps += {
            let mut reader = place.reader()?;
            follow(&mut reader, page, run, async |reader, block| place.judge(reader, block).await).await?
        };
        place.end().await.with_context(|| format!("{run:?}"))?;
    }
    Ok(steps)
}

/// The pages of a folder of the book.
async fn folder_at_stands((folder, least): (&str, u32)) -> Result<()> {
    let mut steps = 0;
    for page in book::pages()?.into_iter().filter(|page| page.parent() == Some(Path::new(folder))) {
        steps += at_stands(&page).await.with_context(|| page.display().to_string())?;
    }
    ensure!(steps >= least, "{steps} steps");
    Ok(())
}

#[tokio::test]
async fn what_the_guides_show_happens() -> Result<()> {
    folder_at_stands(GUIDES).await
}

#[tokio::test]
async fn what_operations_show_happens() -> Result<()> {
    folder_at_stands(OPERATIONS).await
}

#[tokio::test]
async fn what_the_pages_on_issuers_show_happens() -> Result<()> {
    folder_at_stands(ISSUERS).await
}

#[tokio::test]
async fn what_other_pages_show_happens() -> Result<()> {
    folder_at_stands(OTHERS).await
}

/// Whether a test follows such blocks of that page.
fn is_followed(page: &Path, run: Run) -> bool {
    let is_one_of = |pages: &[&str]| pages.iter().any(|one| Path::new(one) == page);
    let folder = page.parent().unwrap_or(page);
    match run {
        Run::FromNothing => is_one_of(&[README, TUTORIAL]),
        Run::Machine => is_one_of(&[machine::PACKAGES, machine::UPGRADE]),
        Run::Stand(_) | Run::StandIn(_) => {
            [GUIDES, OPERATIONS, ISSUERS, OTHERS].iter().any(|(at, _)| Path::new(at) == folder)
        }
        // By `built`, whatever the page: it takes the lines of cargo, and no others.
        Run::Long => true,
    }
}

/// All that a mark may name is in use somewhere, and what is marked is followed.
#[test]
fn no_stand_is_for_nothing() -> Result<()> {
    let mut used = Vec::new();
    for page in book::pages()? {
        for block in book::blocks(&page)? {
            let Mark::Commands { run, prompts } = block.mark else { continue };
            ensure!(is_followed(&page, run), "{}: no test follows {run:?} on this page", block.place);
            let steps = book::steps(&block, prompts)?;
            let is_built = run != Run::Long || steps.iter().all(|step| step.command.starts_with("cargo "));
            ensure!(is_built, "{}: only cargo runs there", block.place);
            used.push(run);
        }
    }
    let besides = [
        Beside::Nothing,
        Beside::Database,
        Beside::Sshd,
        Beside::Platform,
        Beside::Bearer,
        Beside::Browser,
        Beside::Restored,
        Beside::Taken,
    ];
    let vendors = [Vendor::Keycloak, Vendor::Okta, Vendor::Auth0, Vendor::Entra, Vendor::Dex];
    for run in besides.map(Run::Stand).into_iter().chain(vendors.map(Run::StandIn)) {
        ensure!(used.contains(&run), "no block is marked with {run:?}");
    }
    Ok(())
}
