//! What may be typed.

use super::*;

fn words(line: &str) -> Result<Cli, clap::Error> {
    parse(line.split(' ').map(OsString::from))
}

#[test]
fn the_definitions_are_sound() {
    definition().debug_assert();
}

#[test]
fn all_after_curl_is_curls() {
    for line in [
        "postern -r relay.example.com --json curl -v -r 0-9 -q billing/v1",
        "postern curl --json -- billing/v1",
    ] {
        let cli = words(line).unwrap();
        let Some(Command::Curl { args }) = cli.command else { panic!("{line}") };
        assert_eq!(args.last().unwrap(), "billing/v1");
        assert!(args.len() > 1 && cli.globals.verbose == 0, "{args:?}");
    }
    assert_eq!(words("postern curl --help").unwrap_err().kind(), clap::error::ErrorKind::DisplayHelp);
    assert!(words("postern curl").is_err());
}

#[test]
fn a_forward_takes_specs_and_a_command() {
    let cli = words("postern forward 8080:billing wiki --once -- sh -c true").unwrap();
    let Some(Command::Forward(forward)) = cli.command else { panic!() };
    assert_eq!((forward.specs.len(), forward.command.len(), forward.once), (2, 3, true));
    assert!(words("postern forward x:y:z").is_err());
    assert!(words("postern forward --unix /tmp/s --share billing").is_err());
}

#[test]
fn a_proxy_listens_at_a_port_or_an_address_and_one() {
    let place = |typed: &str| {
        let cli = words(&format!("postern proxy --socks5 {typed}"))?;
        let Some(Command::Proxy(proxy)) = cli.command else { panic!() };
        Ok::<_, clap::Error>(proxy.socks5.to_string())
    };
    assert_eq!(place("38090").unwrap(), "127.0.0.1:38090");
    assert_eq!(place("[::1]:1080").unwrap(), "[::1]:1080");
    for bad in ["x", "70000", "127.0.0.1", ":1080"] {
        assert!(place(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_program_proves_itself_in_one_way() {
    let login = "postern login r --client-credentials --client-id batch";
    for good in ["", " --client-secret-file s", " --client-key k", " --token-file t --scope a"] {
        assert!(words(&format!("{login}{good}")).is_ok(), "{good}");
    }
    for bad in [" --client-key k --token-file t", " --device", " --no-browser"] {
        assert!(words(&format!("{login}{bad}")).is_err(), "{bad}");
    }
    assert!(words("postern login r --client-id batch").is_err());
    assert!(words("postern forward wiki --client-credentials --token-file t --scope a").is_ok());
    assert!(words("postern forward wiki --scope a").is_err());
}
