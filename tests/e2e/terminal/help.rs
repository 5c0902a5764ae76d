//! The help of every program, command and subcommand, as the programs themselves list them: at 80 columns, in colour on a terminal, a
//! file for each.

use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::process::{self, binary, command};
use postern_tests::terminal;
use tokio::task::JoinSet;

use super::pages::Pages;
use super::seen::Look;

const LIMIT: Duration = Duration::from_secs(40);

/// The commands under `Commands:` of a help page.
fn listed(help: &str) -> Vec<String> {
    let rows =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = rows.filter(|row| row.starts_with("  ") && !row.starts_with("   "));
    names
        .filter_map(|row| row.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// What one page looks like, elsewhere and on a terminal.
async fn page(program: &'static str, words: Vec<String>) -> Result<(Vec<String>, [process::Output; 2])> {
    let mut command = command(binary(program)?, words.iter().map(String::as_str).chain(["--help"]));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C.UTF-8");
    let coloured = terminal::run(&command, &[], LIMIT).await?.expect_code(0)?;
    let piped = process::run(command, LIMIT).await?.expect_code(0)?;
    Ok((words, [piped, coloured]))
}

#[tokio::test]
async fn every_help_page_fits() -> Result<()> {
    let mut pages = Pages::default();
    let programs = ["postern", "postern-agent", "postern-relay"];
    for program in programs {
        let mut asked = JoinSet::new();
        asked.spawn(page(program, Vec::new()));
        let mut count = 0;
        while let Some(found) = asked.join_next().await {
            let (words, [piped, coloured]) = found??;
            count += 1;
            for name in listed(&piped.stdout) {
                asked.spawn(page(program, words.iter().cloned().chain([name]).collect()));
            }
            let name = if words.is_empty() { "help".to_owned() } else { words.join("-") };
            let typed: Vec<&str> =
                ["$", program].into_iter().chain(words.iter().map(String::as_str)).collect();
            let typed = format!("{} --help", typed.join(" "));
            pages.fits(&typed, &coloured.stdout);
            for (look, output) in [(Look::Piped, piped), (Look::Colour, coloured)] {
                pages.add(look, &format!("help/{program}/{name}"), &typed, &output);
            }
        }
        ensure!(count > 10, "{program}: {count} pages");
    }
    pages.finish(Some("help"))
}
