//! What can be looked at on this machine alone: the state directory's modes and owners, and room on its disk and the audit log's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use postern_base::audit::Destination;
use postern_base::console::checks::Check;

use crate::settings::Settings;

const MIB: u64 = 1024 * 1024;
/// With less the database cannot grow, and the next rotation of anything fails.
const TIGHT: u64 = 64 * MIB;
/// Of this a busy relay's audit log needs days or less.
const SCARCE: u64 = 1024 * MIB;

pub(super) fn state(settings: &Settings) -> Vec<Check> {
    let mut checks = vec![modes(&settings.state)];
    let log = match &settings.audit.log.to {
        Destination::File(path) => path.parent().map(Path::to_owned),
        Destination::Stdout => None,
    };
    checks.push(room("disk of the state directory", &settings.state, 0));
    if let Some(dir) = log {
        let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
        checks.push(room("disk of the audit log", &dir, settings.audit.log.reserve));
    }
    checks
}

fn modes(state: &Path) -> Check {
    let name = "state directory";
    let meta = match fs::metadata(state) {
        Ok(meta) => meta,
        Err(e) => {
            let fix = "postern-relay init, or postern-relay restore FILE";
            return Check::bad(name, format!("{}: {e}", state.display()), fix);
        }
    };
    if meta.mode() & 0o077 != 0 {
        let text = format!("{}: others may look into it", state.display());
        return Check::bad(name, text, format!("chmod 700 {}", state.display()));
    }
    let (mut open, mut foreign) = (Vec::new(), Vec::new());
    let mut left = vec![state.to_owned()];
    while let Some(dir) = left.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            let fix = "sudo postern-relay doctor, or as the relay's user";
            return Check::bad(name, format!("{} cannot be read", dir.display()), fix);
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let Ok(found) = path.symlink_metadata() else { continue };
            if found.is_dir() {
                left.push(path);
                continue;
            }
            if found.uid() != meta.uid() {
                foreign.push(path.clone());
            }
            let ending = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
            let is_private = ["key", "redb", "pseudonyms"].contains(&ending) || path.ends_with("key.pem");
            if is_private && found.mode() & 0o077 != 0 {
                open.push(path);
            }
        }
    }
    let shown =
        |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
    if !open.is_empty() {
        let text = format!("others may read {}", shown(&open));
        return Check::bad(name, text, format!("chmod 600 {}", shown(&open)));
    }
    if !foreign.is_empty() {
        let text = format!("its owner is not that of {}", shown(&foreign));
        let fix = format!("chown --reference={} {}", state.display(), shown(&foreign));
        return Check::warn(name, text, fix);
    }
    Check::good(name, format!("{}, private", state.display()))
}

/// Whether a file system has room; `reserve` is what the running relay holds of it, or would at its next start.
fn room(name: &str, dir: &Path, reserve: u64) -> Check {
    let found = match rustix::fs::statvfs(dir) {
        Ok(found) => found,
        Err(e) => return Check::bad(name, format!("{}: {e}", dir.display()), "make it, or change the path"),
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} MiB free", free / MIB);
    let fix = format!("make room on the file system of {}", dir.display());
    if free < TIGHT {
        let held = if reserve > 0 {
            format!(", besides a reserve of {} MiB for audit lines", reserve / MIB)
        } else {
            String::new()
        };
        Check::bad(name, format!("{text}{held}"), fix)
    } else if free < SCARCE {
        Check::warn(name, text, fix)
    } else {
        Check::good(name, text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use postern_base::console::checks::State;

    use super::*;

    #[test]
    fn loose_modes_are_found_and_the_fix_is_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert!(modes(&state).fix.unwrap().contains("init"));
        fs::create_dir_all(state.join("ca")).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(&state, 0o750);
        assert_eq!(modes(&state).fix.unwrap(), format!("chmod 700 {}", state.display()));
        set(&state, 0o700);
        for (name, mode) in [("ca/issuing.key", 0o640), ("ca/root.pem", 0o644), ("postern.redb", 0o600)] {
            fs::write(state.join(name), "x").unwrap();
            set(&state.join(name), mode);
        }
        let found = modes(&state);
        assert_eq!(found.state, State::Bad);
        assert_eq!(found.fix.unwrap(), format!("chmod 600 {}", state.join("ca/issuing.key").display()));
        set(&state.join("ca/issuing.key"), 0o600);
        assert_eq!(modes(&state).state, State::Good);
    }
}
