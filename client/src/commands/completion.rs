//! `completion`, `man`, `version`: what is generated from the definitions of the command line.

use clap_complete::Shell;
use postern_base::console::shell::Version;

use crate::cli::definition;
use crate::failure::{Exit, Failure};
use crate::output::Output;

pub(super) fn completion(shell: Shell, out: &Output) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition(), "postern", &mut script);
    out.raw(&script);
    0
}

/// The page of `postern`, then one for each command.
pub(super) fn man(out: &Output) -> Result<u8, Failure> {
    out.raw(&pages().map_err(|e| Failure::new(Exit::Other, e.to_string()))?);
    Ok(0)
}

fn pages() -> std::io::Result<Vec<u8>> {
    let mut command = definition();
    command.build();
    let mut pages = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut pages)?;
    for sub in command.get_subcommands() {
        clap_mangen::Man::new(sub.clone()).render(&mut pages)?;
    }
    Ok(pages)
}

pub(super) fn version(out: &Output) -> u8 {
    let version = env!("CARGO_PKG_VERSION");
    if out.json {
        out.json(&Version { version });
    } else {
        out.data(&format!("postern {version}"));
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_command() {
        let text = String::from_utf8(pages().unwrap()).unwrap();
        for command in definition().get_subcommands() {
            let title = format!(".TH postern-{} 1", command.get_name());
            assert!(text.contains(&title), "{title}");
        }
    }
}
