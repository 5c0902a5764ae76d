//! The program behind `--`: takes its words and the places that are served; gives its exit code. What is sent to us to end is passed on.

use std::ffi::OsString;
use std::process::ExitStatus;

use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Exit, Failure};

/// A place that the program may want to know.
pub(super) struct Place {
    pub(super) service: String,
    pub(super) port: u16,
    pub(super) url: String,
}

/// Starts it with `POSTERN_PORT` and `POSTERN_URL` of the first place, and of each by its service's name: `POSTERN_URL_LEDGER_DB`.
pub(super) fn start(command: &[OsString], places: &[Place]) -> Result<Child, Failure> {
    let Some((program, args)) = command.split_first() else {
        return Err(Failure::new(Exit::Usage, "no program is named behind --"));
    };
    let mut command = Command::new(program);
    command.args(args).kill_on_drop(true).envs(environment(places));
    command.spawn().map_err(|e| {
        Failure::new(Exit::Other, format!("{}: {e}", program.display())).fix("name a program that is in PATH")
    })
}

fn environment(places: &[Place]) -> impl Iterator<Item = (String, String)> {
    let first = places.first().map(|place| (String::new(), place));
    let named = places.iter().map(|place| {
        let name = place.service.replace(|c: char| !c.is_ascii_alphanumeric(), "_").to_ascii_uppercase();
        (format!("_{name}"), place)
    });
    first.into_iter().chain(named).flat_map(|(name, place)| {
        [
            (format!("POSTERN_PORT{name}"), place.port.to_string()),
            (format!("POSTERN_URL{name}"), place.url.clone()),
        ]
    })
}

/// Waits for the program's end. The terminal sends an interrupt to it directly; what is sent to us alone to end is passed on.
pub(super) async fn see_through(mut child: Child) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Other, e.to_string());
    let mut interrupts = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(failed)?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(code(status.map_err(failed)?)),
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    // It may have ended meanwhile.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
        }
    }
}

/// A program's exit code as shells see it: 128 and the signal's number when one ended it.
pub(in crate::commands) fn code(status: ExitStatus) -> u8 {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    status.code().or(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Other.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_knows_all_places_by_name_and_the_first_without() {
        let place = |service: &str, port, url: &str| Place { service: service.into(), port, url: url.into() };
        let places = [place("billing", 1, "http://127.0.0.1:1"), place("ledger-db", 2, "tcp://127.0.0.1:2")];
        let all: Vec<_> = environment(&places).map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            all,
            [
                "POSTERN_PORT=1",
                "POSTERN_URL=http://127.0.0.1:1",
                "POSTERN_PORT_BILLING=1",
                "POSTERN_URL_BILLING=http://127.0.0.1:1",
                "POSTERN_PORT_LEDGER_DB=2",
                "POSTERN_URL_LEDGER_DB=tcp://127.0.0.1:2",
            ]
        );
        assert_eq!(environment(&[]).count(), 0);
    }
}
