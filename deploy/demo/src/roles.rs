//! Takes the first two arguments; gives the program they name: `--as ROLE ARGS…` is that program, `--tied ROLE ARGS…` is that program
//! until its standard input ends, which it does when the demo that holds the other end is gone, however it went.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::{failed, issuer, legacy};

/// How long an orphan may take to end by itself.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Runs the program that `args` name; none if they name none.
pub(crate) fn dispatch(args: &[OsString]) -> Option<ExitCode> {
    let (flag, role) = (args.get(1)?.to_str()?, args.get(2)?.to_str()?);
    let rest = args.get(3..)?.iter().cloned();
    match flag {
        "--as" => {}
        "--tied" => {
            std::thread::spawn(end_with_standard_input);
        }
        _ => return None,
    }
    let named = |name: &str| std::iter::once(OsString::from(name)).chain(rest.clone());
    Some(match role {
        "relay" => postern_relay::main(named("postern-relay")),
        "agent" => postern_agent::main(named("postern-agent")),
        "postern" => postern_client::main(named("postern")),
        "issuer" => own(issuer::run(rest)),
        "legacy" => own(legacy::run(rest)),
        _ => return None,
    })
}

fn own(ended: anyhow::Result<()>) -> ExitCode {
    ended.map_or_else(|e| failed(&e), |()| ExitCode::SUCCESS)
}

/// The pipe's other end is closed by the kernel even when the demo was killed: ask this process to end, then insist.
fn end_with_standard_input() {
    // A read error means the same as the end: nobody is there any more.
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    // Should the signal fail, what follows ends the process all the same.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    std::thread::park_timeout(ORPHAN_GRACE);
    std::process::exit(1);
}

/// The arguments of one of our own programs: exactly so many, all of them text.
pub(crate) fn exactly<const N: usize>(args: impl Iterator<Item = OsString>) -> anyhow::Result<[String; N]> {
    let args: Result<Vec<String>, OsString> = args.map(OsString::into_string).collect();
    args.ok().and_then(|args| args.try_into().ok()).with_context(|| format!("{N} arguments are needed"))
}
