//! Takes docs/schema, which a test holds to what the programs print; gives the pages of relay.toml and agent.toml.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::page::{Page, code};
use crate::schema::Schema;

const VALUES: &str = "A duration is `\"30s\"` (`ms`, `s`, `m`, `h`, `d`), a size `\"8MiB\"` (`B`, `KiB`, `MiB`, `GiB`), a rate `\"20/s per user\"` \
(`s`, `m`, `h`, `day`; `user`, `client`, `ip`, `service`). A secret is `{ file = \"…\" }`, `{ env = \"…\" }` or `{ credential = \"…\" }` (systemd). \
A claim is a path such as `realm_access.roles`, or one claim's whole name when it starts with `https://`. Relative files are beside the \
configuration. Unknown keys are refused. Where no default is given, leaving the key out leaves the thing out.";

fn page(root: &Path, file: &str, program: &str) -> Result<String> {
    let path = format!("docs/schema/{file}.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(root.join(&path)).context(path)?)?;
    let intro = format!(
        "Every key of `{file}.toml`. {VALUES}\n\nAs JSON Schema: [{file}.schema.json](../schema/{file}.schema.json), which `{program} config schema` \
         prints. A commented example: `{program} config example`."
    );
    let mut page = Page::new(&format!("{file}.toml"), &intro);
    let empty = Map::new();
    for table in Schema::tables(&schema, &empty) {
        if !table.path.is_empty() {
            page.heading(2, &code(&table.path));
            page.text(&table.about);
        }
        let rows: Vec<Vec<String>> = table
            .keys
            .into_iter()
            .map(|key| vec![code(&key.name), key.kind, key.default, key.about])
            .collect();
        page.table(&["Key", "Type", "Default", "What"], &rows);
    }
    Ok(page.done())
}

pub(crate) fn relay(root: &Path) -> Result<String> {
    page(root, "relay", "postern-relay")
}

pub(crate) fn agent(root: &Path) -> Result<String> {
    page(root, "agent", "postern-agent")
}
