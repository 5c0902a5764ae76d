//! What is on this machine: the configuration, the state directory, keys and their modes, the certificate, the clock.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use postern_base::clock::seconds;
use postern_base::console::checks::Check;
use postern_base::console::{count, span, time};
use postern_base::file;

use super::super::{Context, config_file, identity as load_identity};
use crate::admin::status::Status;
use crate::config::{self, Loaded};
use crate::identity::{AgentIdentity, IdentityError};
use crate::settings::Settings;
use crate::tunnel::clock::{Off, off};

pub(super) const CONFIGURATION: &str = "configuration";

pub(super) fn configuration(context: &Context) -> (Vec<Check>, Option<Loaded>) {
    let found = config::load(&context.config).and_then(|loaded| config_file::usable(context, loaded));
    let file = context.config.display();
    match found {
        Ok(loaded) => {
            let services = loaded.settings.services.len();
            let mut checks = vec![Check::good(CONFIGURATION, format!("{file}, {services} service(s)"))];
            let fix = "postern-agent service add NAME UPSTREAM";
            checks.extend(
                loaded.warnings.iter().map(|warning| Check::warn(CONFIGURATION, warning.as_str(), fix)),
            );
            (checks, Some(loaded))
        }
        Err(errors) => {
            let bad = errors.into_iter().map(|error| {
                let at = error.place.as_ref().map(|place| format!("{}:{}:", place.line, place.column));
                let detail = format!("{file}:{} {}", at.unwrap_or_default(), error.message);
                Check::bad(CONFIGURATION, detail, "correct it; postern-agent config check shows the line")
            });
            (bad.collect(), None)
        }
    }
}

/// The directory, and that no key is open to others.
pub(super) fn state(settings: &Settings) -> Check {
    let (name, dir) = ("state directory", &settings.state);
    let mode = match dir.metadata() {
        Ok(meta) => meta.permissions().mode() & 0o7777,
        Err(e) => {
            let fix = "postern-agent join makes it; if it is there, run this as the agent's user or as root";
            return Check::bad(name, format!("{}: {e}", dir.display()), fix);
        }
    };
    let mut keys: Vec<PathBuf> = vec![dir.join("identity.pem"), dir.join("next.key")];
    keys.extend(settings.identity.iter().map(|files| files.key.clone()));
    let tls = settings.services.values().filter_map(|service| service.tls.as_ref()?.own.as_ref());
    keys.extend(tls.map(|(_, key)| key.clone()));
    keys.retain(|key| key.exists());
    if let Some((key, e)) = keys.iter().find_map(|key| Some((key, file::check_private(key).err()?))) {
        return Check::bad(name, e.to_string(), format!("chmod 600 {}", key.display()));
    }
    if mode & 0o077 != 0 {
        let detail = format!("{} is open to others ({mode:04o})", dir.display());
        return Check::warn(name, detail, format!("chmod 700 {}", dir.display()));
    }
    Check::good(
        name,
        format!("{} ({mode:04o}), {} key file(s) of its owner's alone", dir.display(), keys.len()),
    )
}

pub(super) fn identity(settings: &Settings) -> (Check, Option<AgentIdentity>) {
    let name = "identity";
    match load_identity(settings) {
        Ok(identity) => {
            let detail = format!(
                "agent {}, instance {}, of {}",
                identity.name(),
                identity.instance(),
                identity.domain()
            );
            (Check::good(name, detail), Some(identity))
        }
        Err(e) => {
            let fix = if matches!(e, IdentityError::Missing(_) | IdentityError::Damaged { .. }) {
                "at the relay: postern-relay agent invite NAME; then here: postern-agent join RELAY"
            } else {
                "make the file readable for this user, whole, and this agent's"
            };
            // What to do is said once.
            let text = e.to_string();
            let detail = text.split(": ask for").next().and_then(|text| text.split("; see ").next());
            (Check::bad(name, detail.unwrap_or_default(), fix), None)
        }
    }
}

/// How long the certificate serves, and how its renewals go.
pub(super) fn certificate(identity: &AgentIdentity, status: Option<&Status>, now: SystemTime) -> Check {
    let name = "certificate";
    let end = identity.not_after();
    let shown = time(seconds(end));
    let is_ours = identity.files().is_none();
    let Ok(left) = end.duration_since(now) else {
        let fix = if is_ours {
            "start the agent: it recovers by itself within agents.recover of the relay; later it needs a new invite (postern-agent join)"
        } else {
            "renew it where it is made; the agent reads it again by itself"
        };
        return Check::bad(name, format!("it ended {shown}"), fix);
    };
    let detail = format!("until {shown}, for {}", span(left.as_secs()));
    if let Some(certificate) = status.map(|status| &status.certificate).filter(|found| found.failures > 0) {
        let last = certificate.last_error.as_ref().map_or("", |last| last.error.as_str());
        let detail = format!("{detail}; {}, the last: {last}", count(certificate.failures, "failed renewal"));
        return Check::warn(
            name,
            detail,
            "it is tried again by itself; look at the relay's log if that goes on",
        );
    }
    match (is_ours, left < identity.life() / 4) {
        (false, true) => {
            Check::warn(name, detail, "renew it where it is made; the agent reads it again by itself")
        }
        (true, true) => {
            Check::warn(name, detail, "let the agent run with a tunnel: it renews it at half-life")
        }
        (_, false) => Check::good(name, detail),
    }
}

/// `offset`: by how many milliseconds ours is ahead of the relay's.
pub(super) fn clock(offset: Option<i64>) -> Check {
    let name = "clock";
    let Some(offset) = offset else { return Check::skipped(name, "no relay has said what time it is") };
    let which = if offset < 0 { "behind" } else { "ahead of" };
    let by = Duration::from_millis(offset.unsigned_abs()).as_secs_f64();
    let detail = format!("{by:.1} s {which} the relay's");
    let fix = "let it keep time: systemd-timesyncd, chrony or another NTP client";
    match off(offset) {
        Off::Little => Check::good(name, detail),
        Off::Noticed => Check::warn(name, detail, fix),
        Off::TooFar => Check::bad(name, format!("{detail}: certificates and tokens are refused for it"), fix),
    }
}

#[cfg(test)]
mod tests {
    use postern_base::console::checks::State;

    use super::*;

    #[test]
    fn a_clock_is_good_within_half_a_minute_and_bad_from_five_on() {
        let of = |ms: i64| clock(Some(ms)).state;
        assert_eq!(
            [of(0), of(-29_999), of(30_000), of(-299_999)],
            [State::Good, State::Good, State::Warn, State::Warn]
        );
        assert_eq!([of(300_000), of(i64::MIN)], [State::Bad, State::Bad]);
        assert_eq!(clock(None).state, State::Skipped);
        assert_eq!(clock(Some(-200)).detail, "0.2 s behind the relay's");
    }
}
