//! Takes README.md and the pages under docs; gives their fenced blocks, each with the mark that says how it is proved, and what stands
//! in them: commands with the output that is shown, and the programs' argument lists. Refuses blocks without a mark that it knows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// The repository.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What a block is, and so how it is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// ```` ```toml relay ````: relay.toml or a part of it.
    Relay,
    /// ```` ```toml agent ````.
    Agent,
    /// ```` ```toml services ````: a file that `include` names.
    Services,
    /// ```` ```toml caller ````: what `policy why --as` reads.
    Caller,
    /// ```` ```console … ```` and ```` ```sh … ````: commands, and where they run; of a console with what they print.
    Commands { run: Run, prompts: bool },
    /// ```` ```js action ````: what a provider runs at each login to put claims into tokens.
    Action,
    /// Everything that is neither configuration nor command: ```` ```text ````, ```` ```json ````.
    Other,
}

/// Where commands run. Those of one mark run one after another, all of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// ```` ```console run ````: from nothing.
    FromNothing,
    /// ```` ```console stand ````: beside a relay and an agent that are at work; `stand database` with that besides.
    Stand(Beside),
    /// ```` ```console stand-in okta ````: the same, with the page's own issuer, services and rules in relay.toml, and the test issuer in
    /// the vendor's place: its address, clients and claims.
    StandIn(Vendor),
    /// ```` ```console machine ````: as root of a Debian machine with systemd.
    Machine,
    /// ```` ```sh long ````: in the long run alone, and shorter than it stands there.
    Long,
}

/// What is at work beside a relay and an agent, or different there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    Nothing,
    /// PostgreSQL, behind the service that the page configures.
    Database,
    /// OpenSSH's server, the same.
    Sshd,
    /// The issuer knows a program by its key, and by the tokens of the platform that it runs on.
    Platform,
    /// The issuer binds no tokens to keys.
    Bearer,
    /// Chromium, in which ada is waiting. Nobody has logged in yet.
    Browser,
    /// A second machine, on which nothing is but relay.toml, a backup and the root's key; the first relay is off.
    Restored,
    /// An agent's instance was taken by somebody who has the issuing CA's key.
    Taken,
}

/// Whose place the test issuer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    Keycloak,
    Okta,
    Auth0,
    Entra,
    Dex,
}

impl Vendor {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "keycloak" => Self::Keycloak,
            "okta" => Self::Okta,
            "auth0" => Self::Auth0,
            "entra" => Self::Entra,
            "dex" => Self::Dex,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Keycloak => "keycloak",
            Self::Okta => "okta",
            Self::Auth0 => "auth0",
            Self::Entra => "entra",
            Self::Dex => "dex",
        }
    }
}

impl Run {
    fn of(words: &str) -> Option<Self> {
        let (place, word) = words.split_once(' ').map_or((words, None), |(place, word)| (place, Some(word)));
        Some(match (place, word) {
            ("run", None) => Self::FromNothing,
            ("machine", None) => Self::Machine,
            ("long", None) => Self::Long,
            ("stand-in", Some(vendor)) => Self::StandIn(Vendor::of(vendor)?),
            ("stand", None) => Self::Stand(Beside::Nothing),
            ("stand", Some(beside)) => Self::Stand(match beside {
                "database" => Beside::Database,
                "sshd" => Beside::Sshd,
                "platform" => Beside::Platform,
                "bearer" => Beside::Bearer,
                "browser" => Beside::Browser,
                "restored" => Beside::Restored,
                "taken" => Beside::Taken,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

#[derive(Debug)]
pub struct Block {
    /// `docs/tutorial.md:12`.
    pub place: String,
    pub mark: Mark,
    pub text: String,
}

/// One command as somebody types it, and the lines that are shown under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub command: String,
    pub shown: Vec<String>,
}

impl Mark {
    fn of(info: &str) -> Option<Self> {
        Some(match info {
            "toml relay" => Self::Relay,
            "toml agent" => Self::Agent,
            "toml services" => Self::Services,
            "toml caller" => Self::Caller,
            "js action" => Self::Action,
            "text" | "json" => Self::Other,
            _ => match info.split_once(' ')? {
                ("console", run) => Self::Commands { run: Run::of(run)?, prompts: true },
                ("sh", run) => Self::Commands { run: Run::of(run)?, prompts: false },
                _ => return None,
            },
        })
    }
}

/// The pages, relative to the repository: the README and all that lies under docs.
///
/// # Errors
/// The directory cannot be read.
pub fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(Path::new(ROOT).join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

pub fn read(page: &Path) -> Result<String> {
    std::fs::read_to_string(Path::new(ROOT).join(page)).with_context(|| page.display().to_string())
}

/// The blocks of a page.
///
/// # Errors
/// A block has no mark, or none that is known; or a block is not closed, or is made by indenting.
pub fn blocks(page: &Path) -> Result<Vec<Block>> {
    let text = read(page)?;
    let mut blocks = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for (index, line) in text.lines().enumerate() {
        let place = format!("{}:{}", page.display(), index + 1);
        let trimmed = line.trim_start();
        match (&mut open, trimmed.strip_prefix("```")) {
            (None, Some(info)) => {
                let Some(mark) = Mark::of(info.trim()) else {
                    bail!(
                        "{place}: ```{info} is no mark that says how this block is proved (tests/src/book.rs)"
                    )
                };
                open = Some((line.len() - trimmed.len(), Block { place, mark, text: String::new() }));
            }
            (None, None) => {
                ensure!(!line.starts_with("    postern"), "{place}: a command outside of a fenced block");
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (Some((indent, block)), None) => {
                let line = line.get(*indent..).filter(|_| line.is_char_boundary(*indent)).unwrap_or(trimmed);
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    ensure!(open.is_none(), "{}: a block is not closed", page.display());
    Ok(blocks)
}

/// The block's commands. Of a console each begins at a prompt; in a script every line is one, and nothing is shown.
///
/// # Errors
/// A console begins with something else than a prompt.
pub fn steps(block: &Block, prompts: bool) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut heredoc: Option<String> = None;
    let mut continued = false;
    for line in block.text.lines() {
        let begins = heredoc.is_none() && !continued && (!prompts || line.starts_with("$ "));
        let typed = begins || continued || heredoc.is_some();
        let line = if begins { line.strip_prefix("$ ").unwrap_or(line) } else { line };
        if heredoc.as_deref() == Some(line) {
            heredoc = None;
        } else if heredoc.is_none() && typed {
            heredoc = line.split_once("<<").map(|(_, end)| end.trim().trim_matches('\'').to_owned());
            continued = line.ends_with('\\');
        }
        match steps.last_mut() {
            _ if begins && (line.is_empty() || line.starts_with('#')) => {}
            _ if begins => steps.push(Step { command: line.to_owned(), shown: Vec::new() }),
            Some(step) if typed => step.command = format!("{}\n{line}", step.command),
            Some(step) => step.shown.push(line.to_owned()),
            None => bail!("{}: begins without a prompt", block.place),
        }
    }
    Ok(steps)
}

/// The argument lists of our programs in a command, and the other programs that it names.
///
/// # Errors
/// The shell would not understand it.
pub fn programs(command: &str) -> Result<(Vec<Vec<String>>, Vec<String>)> {
    // What a heredoc holds is no command.
    let command = command.split_once("<<").map_or(command, |(head, _)| head).replace("\\\n", " ");
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for inner in command.split("$(").skip(1).filter_map(|rest| rest.split_once(')')) {
        let (more, other) = programs(inner.0)?;
        ours.extend(more);
        others.extend(other);
    }
    if let Some((_, proxy)) = command.split_once("ProxyCommand=\"") {
        ours.extend(programs(proxy.split('"').next().unwrap_or_default())?.0);
    }
    let words = shlex::split(&command).with_context(|| format!("unbalanced quotes: {command}"))?;
    for part in words.split(|word| ["|", "||", "&&", ";", "&"].contains(&word.as_str())) {
        let redirection = |word: &String| ["<", ">", ">>", "2>", "2>>", "&>"].contains(&word.as_str());
        let end = part.iter().position(redirection).unwrap_or(part.len());
        let assigns = |word: &&String| {
            word.split_once('=')
                .is_some_and(|(name, _)| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
        };
        let part: Vec<String> = part[..end].iter().skip_while(assigns).cloned().collect();
        let is_ours = |word: &String| ["postern", "postern-relay", "postern-agent"].contains(&word.as_str());
        // Behind sudo, systemd-run or another program that runs programs; not what is an argument of ours or of a package manager.
        let runs_others = part
            .first()
            .is_some_and(|first| ["sudo", "systemd-run", "env", "exec"].contains(&first.as_str()));
        let installs = part
            .iter()
            .any(|word| ["apt", "apt-get", "dpkg", "systemctl", "journalctl"].contains(&word.as_str()));
        match part.iter().position(is_ours) {
            Some(at) if at == 0 || (runs_others && !installs) => ours.push(part[at..].to_vec()),
            _ => others.extend(part.first().cloned()),
        }
    }
    Ok((ours, others))
}

/// Whether what a command printed is what is shown. A shown line `...` stands for any lines; words with digits in them, and codes such as
/// `WDJB-MJHT`, differ from run to run.
///
/// # Errors
/// The first line that is not as shown.
pub fn compare(shown: &[String], printed: &str) -> Result<()> {
    let printed: Vec<&str> = printed.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let shown: Vec<&str> = shown.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty()).collect();
    let mut at = 0;
    let mut skips = false;
    for line in &shown {
        if *line == "..." {
            skips = true;
            continue;
        }
        let same = |printed: &&str| shape(printed) == shape(line);
        let rest = printed.get(at..).unwrap_or_default();
        let found =
            if skips { rest.iter().position(same) } else { rest.first().filter(|l| same(l)).map(|_| 0) };
        let Some(found) = found else {
            bail!(
                "shown:   {line}\nprinted: {}\nall of it:\n{}",
                rest.first().unwrap_or(&"nothing more"),
                printed.join("\n")
            )
        };
        at += found + 1;
        skips = false;
    }
    ensure!(skips || at == printed.len(), "printed beyond what is shown: {}", printed[at..].join("\n"));
    Ok(())
}

/// Its words, without those that differ from run to run. How many services or tests a configuration has does not, nor what was asked for
/// where a short number is the whole line.
fn shape(line: &str) -> Vec<&str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let counts = |at: usize| {
        words.get(at + 1).map_or(words.len() == 1 && line.trim().len() < 7, |next| {
            next.starts_with("service(s)") || next.starts_with("test(s)")
        })
    };
    let code = |word: &str| {
        word.len() == 9
            && word.split('-').all(|part| part.len() == 4 && part.bytes().all(|b| b.is_ascii_uppercase()))
    };
    let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    let changes = |word: &str| word.bytes().any(|byte| byte.is_ascii_digit()) || code(word);
    let stays = |at: usize, word: &str| !changes(word) || (is_number(word) && counts(at));
    words.iter().enumerate().map(|(at, &word)| if stays(at, word) { word } else { "#" }).collect()
}

#[cfg(test)]
mod tests;
