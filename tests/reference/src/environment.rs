//! Takes the variables that the sources name and what each means; gives the page of the environment. Refuses a variable that only one of
//! the two knows.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::page::{Page, code};
use crate::source;

const SOURCES: [&str; 4] = ["client/src", "relay/src", "agent/src", "common/base/src"];

const VARIABLES: [(&str, &str, &str); 14] = [
    ("POSTERN_RELAY", "postern", "The relay, where `-r` does not name one: host, host:port or its https URL"),
    ("POSTERN_PROFILE", "postern", "The profile to use, where `--profile` does not name one"),
    ("POSTERN_TOKEN", "postern", "A token to use instead of any session; nothing is refreshed or kept"),
    (
        "POSTERN_CLIENT_ID",
        "postern",
        "The client that a program logs in as, where `--client-id` does not name one",
    ),
    (
        "POSTERN_CLIENT_SECRET_FILE",
        "postern",
        "The file with its secret, where `--client-secret-file` does not name one",
    ),
    (
        "POSTERN_CONFIG_DIR",
        "postern",
        "Where sessions, profiles and locks are kept, instead of `$XDG_STATE_HOME/postern`; keyring entries then belong to that directory alone",
    ),
    (
        "POSTERN_KEYRING",
        "postern",
        "`os`: the OS keyring or nothing; `file`: a file, 0600; `none`: nowhere. Without it the keyring, and a file where there is none",
    ),
    (
        "POSTERN_CA",
        "postern",
        "A PEM file of certificates to trust besides the system's, where `--ca` does not name one",
    ),
    (
        "POSTERN_PORT",
        "set by postern",
        "For the command after `forward … --`: the local port of the first service, and of each as `POSTERN_PORT_LEDGER_DB`",
    ),
    (
        "POSTERN_URL",
        "set by postern",
        "For the command after `forward … --`: the local address of the first service, and of each as `POSTERN_URL_LEDGER_DB`",
    ),
    ("POSTERN_RELAY_CONFIG", "postern-relay", "The configuration, where `-c` does not name one"),
    ("POSTERN_AGENT_CONFIG", "postern-agent", "The configuration, where `-c` does not name one"),
    ("POSTERN_INVITE", "postern-agent", "The invite for `join`, where `--invite-file` does not name one"),
    (
        "POSTERN_LOG",
        "all",
        "The log level, or directives such as `postern_relay=debug,info`; before `telemetry.log`, after `-v` and `-q`",
    ),
];

/// Variables that are not ours, and are honoured.
const OTHERS: [(&str, &str, &str); 6] = [
    (
        "HTTPS_PROXY, NO_PROXY",
        "all",
        "The way out: for `postern`, for issuers, and for tunnels and joins over TCP (`proxy = \"env\"` in agent.toml)",
    ),
    ("NO_COLOR", "all", "Set to anything: no colour"),
    (
        "BROWSER, DISPLAY, WAYLAND_DISPLAY, SSH_CONNECTION",
        "postern",
        "Which browser a login opens, and whether there is one; without one, and over SSH, a login is by device code",
    ),
    (
        "XDG_STATE_HOME, HOME",
        "postern",
        "Where sessions are kept, unless `POSTERN_CONFIG_DIR` says otherwise",
    ),
    ("CREDENTIALS_DIRECTORY", "servers", "Where `{ credential = \"NAME\" }` is looked for; systemd sets it"),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS, LISTEN_PID",
        "postern-relay",
        "Readiness, watchdog and sockets of systemd",
    ),
];

const PREFIX: &str = "POSTERN_";

/// Every `POSTERN_…` between quotes.
fn named(root: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for folder in SOURCES {
        for path in source::paths(root, folder)? {
            let text = std::fs::read_to_string(root.join(path))?;
            let own = text.split("#[cfg(test)]").next().unwrap_or_default();
            let names = own.split('"').filter_map(|quoted| {
                let end =
                    quoted.find(|c: char| !(c.is_ascii_uppercase() || c == '_')).unwrap_or(quoted.len());
                // Whole, or with the rest filled in by `format!`.
                let is_name = end > PREFIX.len() && (end == quoted.len() || quoted[end..].starts_with('{'));
                quoted.get(..end).filter(|name| is_name && name.starts_with(PREFIX))
            });
            found.extend(names.map(str::to_owned));
        }
    }
    Ok(found)
}

pub(crate) fn page(root: &Path) -> Result<String> {
    let code_names = named(root)?;
    let told: BTreeSet<String> = VARIABLES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let differ: Vec<&String> = code_names.symmetric_difference(&told).collect();
    ensure!(differ.is_empty(), "tests/reference/src/environment.rs and the sources differ on {differ:?}");
    let rows = |list: &[(&str, &str, &str)]| -> Vec<Vec<String>> {
        let names = |name: &str| name.split(", ").map(code).collect::<Vec<_>>().join(", ");
        list.iter().map(|(name, of, what)| vec![names(name), (*of).to_owned(), (*what).to_owned()]).collect()
    };
    let mut page = Page::new(
        "Environment",
        "A flag comes before a variable, a variable before a file. Empty counts as unset.",
    );
    page.table(&["Variable", "Program", "What"], &rows(&VARIABLES));
    page.heading(2, "Not ours");
    page.table(&["Variable", "Program", "What"], &rows(&OTHERS));
    Ok(page.done())
}
