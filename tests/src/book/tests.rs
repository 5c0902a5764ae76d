//! What a console says is told apart into commands and output, and output that is not as shown is found.

use super::*;

fn block(text: &str) -> Block {
    Block { place: "here".to_owned(), mark: Mark::Other, text: text.to_owned() }
}

#[test]
fn a_console_has_commands_and_what_they_print() -> Result<()> {
    let console =
        block("$ postern ls\nSERVICE  KIND\nwiki     http\n$ cat > a <<'END'\nx\nEND\n$ curl a \\\n  b\n");
    let steps = steps(&console, true)?;
    let commands: Vec<&str> = steps.iter().map(|step| step.command.as_str()).collect();
    assert_eq!(commands, ["postern ls", "cat > a <<'END'\nx\nEND", "curl a \\\n  b"]);
    assert_eq!(steps[0].shown, ["SERVICE  KIND", "wiki     http"]);
    assert!(super::steps(&block("nothing typed\n"), true).is_err());
    let script = super::steps(&block("# a word\nmkdir a && cd a\n\nls\n"), false)?;
    assert_eq!(script.len(), 2);
    Ok(())
}

#[test]
fn our_programs_are_found_wherever_they_stand() -> Result<()> {
    let ours = |command: &str| -> Result<Vec<String>> {
        Ok(programs(command)?.0.into_iter().map(|args| args.join(" ")).collect())
    };
    assert_eq!(ours("postern-relay agent invite dc1 > invite")?, ["postern-relay agent invite dc1"]);
    assert_eq!(ours("curl -H \"Authorization: Bearer $(postern token)\" https://a/")?, ["postern token"]);
    assert_eq!(ours("ssh -o ProxyCommand=\"postern connect git\" host")?, ["postern connect git"]);
    assert_eq!(ours("POSTERN_CA=x postern ls | head && postern whoami")?, ["postern ls", "postern whoami"]);
    assert_eq!(ours("sudo systemd-run --pipe -p User=postern postern-relay init")?, ["postern-relay init"]);
    assert!(ours("sudo systemctl restart postern-relay")?.is_empty());
    assert_eq!(
        programs("cat >> relay.toml <<'END'\npostern nonsense\nEND")?,
        (vec![], vec!["cat".to_owned()])
    );
    Ok(())
}

#[test]
fn output_is_as_shown_but_for_what_differs_from_run_to_run() {
    let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let printed = "! Code: ABCD-EFGH\n✓ Logged in as ada until 18:02\n  Next: postern ls\n";
    assert!(
        compare(&shown("! Code: WDJB-MJHT\n✓ Logged in as ada until 01:59\n  Next: postern ls"), printed)
            .is_ok()
    );
    assert!(compare(&shown("! Code: WDJB-MJHT\n...\n  Next: postern ls"), printed).is_ok());
    assert!(compare(&shown("! Code: WDJB-MJHT\n..."), printed).is_ok());
    assert!(compare(&shown("! Code: WDJB-MJHT"), printed).is_err());
    assert!(compare(&shown("✓ Logged in as bob until 18:02\n..."), printed).is_err());
    assert!(compare(&shown("..."), "").is_ok());
}

#[test]
fn what_does_not_run_says_what_it_needs() {
    let not_run = |prompts| Some(Mark::Commands { run: Run::No, prompts });
    assert_eq!(Mark::of("console needs a browser"), not_run(true));
    assert_eq!(Mark::of("sh needs root"), not_run(false));
    for silent in ["console", "sh", "console needs", "text needs nothing", "bash"] {
        assert_eq!(Mark::of(silent), None, "{silent}");
    }
}
