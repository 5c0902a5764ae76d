//! Takes a command and a JSON document that it printed; gives the schema in docs/schema that the document is to keep to. Only the lines of
//! an audit log need none: docs/reference/audit-events.md tells them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::pages::ROOT;

/// `words` say which command it is. An error says that no schema documents it.
pub(super) fn of(program: &str, words: &[&str], document: &Value) -> Result<Option<PathBuf>, String> {
    let (first, whole) = (words.first().copied().unwrap_or_default(), words[..words.len().min(2)].join("-"));
    let says = |key: &str| document.get(key).is_some();
    let names = match (program, first) {
        ("postern", _) if says("error") => vec!["postern-failure".to_owned()],
        ("postern-relay", "audit") if says("event") => return Ok(None),
        // With --reload there is a second document.
        ("postern-relay", "service") if says("changes") => vec!["relay-reload".to_owned()],
        ("postern-relay", "config") if says("issuers") => vec!["relay-config-expand".to_owned()],
        // What all programs have in common bears no program's name.
        _ => {
            let program = program.trim_start_matches("postern-");
            let own = [format!("{program}-{whole}"), format!("{program}-{first}")];
            own.into_iter().chain([whole, first.to_owned()]).collect()
        }
    };
    let schemas = Path::new(ROOT).join("docs/schema");
    let found =
        names.iter().map(|name| schemas.join(format!("{name}.schema.json"))).find(|path| path.exists());
    found.map(Some).ok_or_else(|| format!("none of docs/schema documents it: {}", names.join(", ")))
}
