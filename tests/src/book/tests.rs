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
    let counted = |services: u32| format!("relay.toml is good: {services} service(s), 2 test(s) passed");
    assert!(compare(&shown(&counted(3)), &counted(3)).is_ok());
    assert!(compare(&shown(&counted(3)), &counted(1)).is_err());
    assert!(compare(&shown(" 42\n(1 row)"), "  42\n(7 row)\n").is_ok());
    assert!(compare(&shown(" 42\n(1 row)"), "  41\n(1 row)\n").is_err());
    assert!(compare(&shown("e34f660e"), "12345678\n").is_ok(), "an id is no count");
}

#[test]
fn a_block_that_no_test_would_run_is_refused() {
    for silent in [
        "console",
        "sh",
        "console needs a browser",
        "text needs nothing",
        "bash",
        "sh stand a",
        "console stand-in",
        "sh run x",
    ] {
        assert_eq!(Mark::of(silent), None, "{silent}");
    }
}

#[test]
fn what_runs_says_beside_what() {
    let runs = |run| Some(Mark::Commands { run, prompts: true });
    assert_eq!(Mark::of("console stand"), runs(Run::Stand(Beside::Nothing)));
    assert_eq!(Mark::of("console stand database"), runs(Run::Stand(Beside::Database)));
    assert_eq!(Mark::of("console stand-in okta"), runs(Run::StandIn(Vendor::Okta)));
    assert_eq!(Mark::of("console machine"), runs(Run::Machine));
}
