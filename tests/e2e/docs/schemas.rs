//! docs/schema is what the programs print, and a validator written by others finds every example and every configuration of the book
//! good by it, and mistakes bad.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::book::{Mark, ROOT};
use postern_tests::pki::Pki;
use postern_tests::stacks;
use serde_json::{Value, json};

use super::frame::Frame;
use super::{all_blocks, run};

/// Files that are whole configurations.
fn examples() -> Result<Vec<(PathBuf, &'static str)>> {
    let root = Path::new(ROOT);
    let mut files =
        vec![(root.join("relay/example.toml"), "relay"), (root.join("agent/example.toml"), "agent")];
    for entry in std::fs::read_dir(root.join("deploy/examples/issuers"))? {
        files.push((entry?.path(), "relay"));
    }
    Ok(files)
}

#[tokio::test]
async fn schemas_are_what_the_programs_print_and_examples_keep_to_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let frame = Frame::new(dir.path(), &Pki::create(dir.path())?)?;
    let nowhere = dir.path().join("none.toml");
    for kind in ["relay", "agent"] {
        let printed =
            run(&format!("postern-{kind}"), &nowhere, &["config", "schema"]).await?.expect_code(0)?.stdout;
        let schema = Path::new(ROOT).join(format!("docs/schema/{kind}.schema.json"));
        let kept = std::fs::read_to_string(&schema)?;
        ensure!(
            printed == kept,
            "docs/schema/{kind}.schema.json is stale: target/debug/postern-{kind} config schema > docs/schema/{kind}.schema.json"
        );

        let mut good: Vec<(String, Value)> = Vec::new();
        for (file, _) in examples()?.into_iter().filter(|(_, of)| *of == kind) {
            let text = std::fs::read_to_string(&file)?;
            let parsed: toml::Table = text.parse().with_context(|| file.display().to_string())?;
            good.push((file.display().to_string(), serde_json::to_value(parsed)?));
        }
        for block in all_blocks()? {
            let whole = match (block.mark, kind) {
                (Mark::Relay, "relay") => frame.relay(&block)?,
                (Mark::Agent, "agent") => frame.agent(&block)?,
                _ => continue,
            };
            good.push((block.place, serde_json::to_value(whole)?));
        }
        ensure!(good.len() > 10 || kind == "agent" && good.len() > 5, "{} instances", good.len());

        let (_, sound) = good.first().cloned().context("no example")?;
        let bad: Vec<(String, Value)> = mistakes(kind)
            .into_iter()
            .map(|(pointer, value)| {
                let mut broken = sound.clone();
                let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
                if let Some(table) = broken.pointer_mut(parent).and_then(Value::as_object_mut) {
                    table.insert(key.to_owned(), value);
                }
                (pointer.to_owned(), broken)
            })
            .collect();
        let instances = dir.path().join("instances.json");
        let names = |list: &[(String, Value)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        std::fs::write(&instances, json!(good.iter().chain(&bad).collect::<Vec<_>>()).to_string())?;
        let job = json!({ "schema": schema, "instances": instances });
        let report = stacks::call("schema.py", &job, Duration::from_mins(1)).await?;
        for name in names(&good) {
            ensure!(report[&name].is_null(), "{name} is not as {kind}.schema.json says: {}", report[&name]);
        }
        for name in names(&bad) {
            ensure!(!report[&name].is_null(), "{kind}.schema.json lets {name} through");
        }
    }
    Ok(())
}

/// What no configuration may say, as pointer and value.
fn mistakes(kind: &str) -> Vec<(&'static str, Value)> {
    let mut all = vec![
        ("/nonsense", json!(1)),
        ("/version", json!("one")),
        ("/services/wiki/nonsense", json!(true)),
        ("/telemetry/format", json!("xml")),
    ];
    all.extend(match kind {
        "relay" => vec![
            ("/agents/cert_ttl", json!("a while")),
            ("/services/billing/rules", json!([{ "alow": "*" }])),
            ("/services/billing/limit/body", json!("8 elephants")),
            ("/issuers", json!([{ "name": "corp" }])),
        ],
        _ => vec![("/tunnel/transport", json!("pigeon")), ("/services/wiki/limit", json!({ "connect": 3 }))],
    });
    all
}
